//! containerd's handlers: a file that its configuration imports.
//!
//! containerd 2 merges what is imported into what is there. containerd 1 **replaces** a plugin's whole section by the last file that has it: a drop-in
//! with nothing but a new handler takes `runc`, and whatever else was set for CRI, away. For it the drop-in is a copy of the section as it is, with the
//! handlers added, and the manifest remembers what it was copied from.

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::content::Content;
use super::kata::{Handler, one_line};
use super::manifest::Manifest;
use super::version::program_version;
use super::wanted::Wanted;
use super::{InstallError, Options};

const CONFIGURATION: &str = "/etc/containerd/config.toml";
const FOLDER: &str = "/etc/containerd/conf.d";
/// CRI in configuration version 2, and its part that has the runtimes in version 3.
const PLUGINS: [(i64, &str); 2] = [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];

/// A file of containerd's configuration.
struct Config {
    path: PathBuf,
    text: String,
    document: DocumentMut,
}

impl Config {
    /// Reads `path` of the installed system; `None` if there is no such file.
    fn read(options: &Options, path: &Path) -> Result<Option<Self>, InstallError> {
        let place = options.behind(path);
        if !place.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&place).map_err(|error| InstallError::io("read", &place, error))?;
        let document = text.parse().map_err(|error| InstallError::Foreign {
            path: place,
            problem: one_line(&error),
        })?;
        let path = path.to_owned();
        Ok(Some(Self { path, text, document }))
    }

    fn version(&self) -> i64 {
        self.document.get("version").and_then(Item::as_integer).unwrap_or(1)
    }

    fn section(&self, plugin: &str) -> Option<&Item> {
        self.document.get("plugins")?.get(plugin)
    }

    /// What it imports: absolute paths, possibly with `*` in them. containerd 1 looks for a relative pattern in its working directory, wherever
    /// that is.
    fn imports(&self, is_first: bool) -> Vec<PathBuf> {
        let imports = self.document.get("imports").and_then(Item::as_array);
        let named = imports.into_iter().flatten().filter_map(|import| import.as_str());
        let is_known = |import: &&str| !is_first || import.starts_with('/') || !import.contains('*');
        let folder = self.path.parent().unwrap_or(&self.path);
        let named = named.filter(is_known);
        named.map(|import| folder.join(import).components().collect()).collect()
    }
}

/// Adds the drop-in with all `handlers`, and the file that imports it if containerd has no configuration at all.
pub(super) fn configure(
    options: &Options,
    handlers: &[Handler],
    before: Option<&Manifest>,
    wanted: &mut Wanted,
) -> Result<(), InstallError> {
    let main = Path::new(CONFIGURATION);
    let program = program_version(&options.root, "containerd");
    let major = program
        .as_deref()
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let found = match is_own(options, before, main)? {
        true => None,
        false => Config::read(options, main)?,
    };
    let (config_version, folder, section) = match &found {
        Some(config) => existing(options, config, major, wanted)?,
        None => {
            let version = match major {
                Some(0 | 1) => 2,
                Some(_) => 3,
                None => {
                    let problem = "is not there, and neither is containerd: make it with containerd config default";
                    return Err(foreign(options, main, problem));
                }
            };
            let text = format!(
                "# husk {}: there was no configuration; this one has containerd's defaults, and drop-ins.\n\
                 version = {version}\nimports = [\"{FOLDER}/*.toml\"]\n",
                env!("CARGO_PKG_VERSION")
            );
            wanted.items.push((main.into(), Content::text(text)));
            (version, FOLDER.into(), None)
        }
    };
    let path = folder.join(drop_in(options));
    let plugin = plugin_of(config_version);
    let text = text(options, handlers, config_version.min(3), plugin, section);
    wanted.items.push((path, Content::text(text)));
    wanted.notes.push(
        "containerd reads its handlers when it starts: systemctl restart containerd (pods that run go on)".into(),
    );
    Ok(())
}

/// Sorts behind what others usually have: in containerd 1 the last file with a section is the one that counts.
fn drop_in(options: &Options) -> String {
    format!("90-{}.toml", options.class)
}

fn plugin_of(version: i64) -> &'static str {
    let [(_, old), (split, new)] = PLUGINS;
    if version < split { old } else { new }
}

/// Whether `path` is as husk wrote it. One that somebody has changed since is theirs.
fn is_own(options: &Options, before: Option<&Manifest>, path: &Path) -> Result<bool, InstallError> {
    let place = options.at(path);
    let found = Content::read(&place).map_err(|error| InstallError::io("read", &place, error))?;
    Ok(before
        .zip(found)
        .is_some_and(|(before, found)| before.has(path, &found)))
}

fn foreign(options: &Options, path: &Path, problem: impl Into<String>) -> InstallError {
    InstallError::Foreign {
        path: options.at(path),
        problem: problem.into(),
    }
}

/// What a drop-in beside `config` has to be: its version, its folder, and the section that it has to begin with.
fn existing(
    options: &Options,
    config: &Config,
    major: Option<u32>,
    wanted: &mut Wanted,
) -> Result<(i64, PathBuf, Option<Item>), InstallError> {
    let version = config.version();
    if version < 2 {
        let problem = format!("has configuration version {version}: containerd config migrate writes a newer one");
        return Err(foreign(options, &config.path, problem));
    }
    let name = drop_in(options);
    let merges = version >= 3 || major.is_some_and(|major| major >= 2);
    let imports = config.imports(!merges);
    let folder = imports.iter().find_map(|import| {
        let folder = import.parent()?;
        matches(import, &folder.join(&name)).then(|| folder.to_owned())
    });
    let folder = folder.unwrap_or_else(|| {
        wanted.notes.push(format!(
            "{CONFIGURATION} does not import the handlers yet: put imports = [\"{FOLDER}/*.toml\"] at its top"
        ));
        FOLDER.into()
    });
    if merges {
        return Ok((version, folder, None));
    }
    wanted.source(config.path.clone(), config.text.as_bytes());
    let plugin = plugin_of(version);
    let mut section = config.section(plugin).cloned();
    let own = folder.join(&name);
    for path in imported(options, &imports).into_iter().filter(|path| *path != own) {
        let Some(config) = Config::read(options, &path)? else {
            continue;
        };
        let Some(found) = config.section(plugin) else {
            continue;
        };
        if path.file_name() > own.file_name() {
            let problem = format!(
                "has a section of {plugin} and is read after {}: containerd before 2.0 would not see the handlers",
                own.display()
            );
            return Err(foreign(options, &path, problem));
        }
        section = Some(found.clone());
        wanted.source(path, config.text.as_bytes());
    }
    Ok((version, folder, section))
}

/// Files that `imports` name, in the order in which containerd reads them.
fn imported(options: &Options, imports: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for import in imports {
        let folder = import.parent().unwrap_or(import);
        let entries = std::fs::read_dir(options.at(folder)).into_iter().flatten().flatten();
        let paths = entries.map(|entry| folder.join(entry.file_name()));
        let mut paths: Vec<_> = paths.filter(|path| matches(import, path)).collect();
        paths.sort();
        found.extend(paths);
    }
    found
}

/// Whether `pattern`, which may have `*` in its last part, stands for `path`.
fn matches(pattern: &Path, path: &Path) -> bool {
    let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned());
    let (Some(pattern_name), Some(name)) = (name(pattern), name(path)) else {
        return false;
    };
    let mut parts = pattern_name.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return pattern.parent() == path.parent() && rest.is_empty();
    };
    for part in middle {
        let Some(found) = rest.find(part) else {
            return false;
        };
        rest = rest.get(found + part.len()..).unwrap_or_default();
    }
    pattern.parent() == path.parent() && rest.ends_with(last)
}

/// The drop-in.
fn text(options: &Options, handlers: &[Handler], version: i64, plugin: &str, section: Option<Item>) -> String {
    let why = match section {
        Some(_) => ", and the section of CRI as it was: containerd before 2.0 takes all of it from here",
        None => "",
    };
    let implicit = || {
        let mut table = Table::new();
        table.set_implicit(true);
        table
    };
    let below = |table: &mut Table, name: &str| {
        if !table.get(name).is_some_and(Item::is_table) {
            // An inline table, or nothing.
            let found = table.remove(name).and_then(|item| item.into_table().ok());
            table.insert(name, Item::Table(found.unwrap_or_else(implicit)));
        }
    };
    let mut section = section.and_then(|item| item.into_table().ok()).unwrap_or_else(implicit);
    below(&mut section, "containerd");
    if let Some(containerd) = section.get_mut("containerd").and_then(Item::as_table_mut) {
        below(containerd, "runtimes");
        if let Some(runtimes) = containerd.get_mut("runtimes").and_then(Item::as_table_mut) {
            for handler in handlers {
                runtimes.insert(&handler.name, Item::Table(runtime(options, handler)));
            }
        }
    }
    let mut plugins = implicit();
    plugins.insert(plugin, Item::Table(section));
    let mut document = DocumentMut::new();
    document.insert("version", value(version));
    document.insert("plugins", Item::Table(plugins));
    forget_places(document.as_table_mut());
    format!(
        "# husk {}: Kata's shims with husk{why}.\n{document}",
        env!("CARGO_PKG_VERSION")
    )
}

/// Tables that come from another document remember where they stood there, and would be written in that order among the new ones.
fn forget_places(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        if let Some(below) = item.as_table_mut() {
            forget_places(below);
        }
    }
}

fn runtime(options: &Options, handler: &Handler) -> Table {
    let mut table = Table::new();
    table.insert("runtime_type", value(format!("io.containerd.{}.v2", handler.name)));
    table.insert("runtime_path", value(handler.program.display().to_string()));
    table.insert("privileged_without_host_devices", value(true));
    table.insert("pod_annotations", value(Array::from_iter(["io.katacontainers.*"])));
    let mut extra = Table::new();
    extra.insert(
        "ConfigPath",
        value(handler.configuration(options).display().to_string()),
    );
    table.insert("options", Item::Table(extra));
    table
}

#[cfg(test)]
#[path = "containerd_test.rs"]
mod tests;
