//! containerd's handlers: a file that its configuration imports.
//!
//! containerd 2 merges what is imported into what is there. containerd 1 **replaces** a plugin's whole section by the last file that has it: a drop-in
//! with nothing but a new handler takes `runc`, and whatever else was set for CRI, away. For it the drop-in is a copy of the section as it is, with the
//! handlers added, and the manifest remembers what it was copied from.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::common::is_own;
use super::content::{Content, is_public};
use super::desired::DesiredFiles;
use super::kata::{Handler, one_line};
use super::manifest::Manifest;
use super::runtimes::are_free;
use super::version::program_version;
use super::{InstallError, Options};

/// What containerd reads first.
pub(super) const CONFIGURATION: &str = "/etc/containerd/config.toml";
/// Where its drop-ins are, unless its configuration imports another folder.
pub(super) const FOLDER: &str = "/etc/containerd/conf.d";
/// Packages of Debian and of Docker that bring it.
pub(crate) const PACKAGES: [&str; 2] = ["containerd", "containerd.io"];
/// CRI in configuration version 2, and its part that has the runtimes in version 3.
const PLUGINS: [(i64, &str); 2] = [(2, "io.containerd.grpc.v1.cri"), (3, "io.containerd.cri.v1.runtime")];

/// Stands at the end of the first line of a drop-in that begins with a copied section.
const COPY: &str = ", and the section of CRI as it was: containerd before 2.0 takes all of it from here";

/// Whether `text` is that of a drop-in of husk's with a copied section.
pub(super) fn is_copy(text: &str) -> bool {
    text.lines()
        .next()
        .is_some_and(|first| first.starts_with("# husk ") && first.contains(COPY))
}

/// What CRI is called where plugins are turned off: in configurations of version 1, 2 and 3.
const CRI: [&str; 4] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
];

/// A file of containerd's configuration.
struct Config {
    path: PathBuf,
    text: String,
    document: DocumentMut,
    /// Whether everybody may read it.
    is_public: bool,
}

impl Config {
    /// Reads `path` of the installed system; `None` if there is no such file.
    fn read(options: &Options, path: &Path) -> Result<Option<Self>, InstallError> {
        let place = options.behind(path);
        if !place.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&place).map_err(|error| InstallError::io("read", &place, error))?;
        let is_public = is_public(&options.root, &place);
        let document = text.parse().map_err(|error| InstallError::Foreign {
            path: place,
            problem: one_line(&error),
        })?;
        Ok(Some(Self {
            path: path.to_owned(),
            text,
            document,
            is_public,
        }))
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

/// What a drop-in has to be, beside a configuration.
struct DropInLocation {
    /// The configuration's version.
    version: i64,
    folder: PathBuf,
    /// Whether containerd is one before 2.0, or may be.
    is_first: bool,
    copied: Option<Copied>,
}

/// A section of CRI that the drop-in has to begin with.
struct Copied {
    section: Item,
    /// The file that it is of.
    from: PathBuf,
    /// Whether everybody may read that.
    is_public: bool,
}

/// Adds the drop-in with all `handlers`, and the file that imports it if containerd has no configuration at all.
pub(super) fn configure(
    options: &Options,
    handlers: &[Handler],
    before: Option<&Manifest>,
    desired: &mut DesiredFiles,
) -> Result<(), InstallError> {
    let main = Path::new(CONFIGURATION);
    let program = program_version(&options.root, "containerd", &PACKAGES);
    let major = program
        .as_deref()
        .and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    let found = Config::read(options, main)?;
    let own = first(options, major);
    let (config, is_others) = match (found, own) {
        // What another installation has made is as much this one's, whatever version of husk that was.
        (Some(found), Ok(own)) if without_head(&found.text) == without_head(&own.text) => (found, false),
        (Some(found), own) => match is_own(options, before, main)? {
            true => (own?, false),
            false => (found, true),
        },
        (None, own) => (own?, false),
    };
    let place = existing(options, &config, major, is_others, desired)?;
    look_around(options, handlers, before, &config, &place, desired)?;
    let path = place.folder.join(drop_in(options));
    let version = place.version.min(3);
    let content = match place.copied {
        Some(copied) => {
            // Of what others have set, tokens of registries among it, a plan shows nothing.
            let own = text(options, handlers, version, None);
            let from = copied.from.display();
            let shown = format!("{own}# and a copy of the section of CRI in {from}, which is not shown\n");
            desired.excerpts.insert(path.clone(), shown);
            let text = text(options, handlers, version, Some(copied.section));
            Content::copy(text, copied.is_public)
        }
        None => Content::text(text(options, handlers, version, None)),
    };
    if !is_others {
        desired.items.push((config.path, Content::text(config.text)));
    }
    desired.items.push((path, content));
    desired.notes.push(
        "containerd reads its handlers when it starts: systemctl restart containerd (pods that run go on)".into(),
    );
    Ok(())
}

/// Looks for handlers of the same name, and for what keeps containerd from having any, in `main` and in what is read with it. A folder that `main`
/// does not import yet counts, too.
fn look_around(
    options: &Options,
    handlers: &[Handler],
    before: Option<&Manifest>,
    main: &Config,
    place: &DropInLocation,
    desired: &mut DesiredFiles,
) -> Result<(), InstallError> {
    let own = place.folder.join(drop_in(options));
    let mut others = loaded(options, main, &own, place.is_first)?;
    let known: Vec<_> = others.iter().flatten().map(|config| config.path.clone()).collect();
    let beside = stands_for(options, &place.folder.join("*.toml"), &own);
    for path in beside.into_iter().filter(|path| *path != own && !known.contains(path)) {
        // What containerd does not read may be no configuration.
        others.push(Config::read(options, &path).unwrap_or_default());
    }
    for config in [main].into_iter().chain(others.iter().flatten()) {
        if !is_own(options, before, &config.path)? {
            are_free(handlers, options.at(&config.path), &config.document)?;
        }
        let disabled = config.document.get("disabled_plugins").and_then(Item::as_array);
        let mut disabled = disabled.into_iter().flatten().filter_map(|plugin| plugin.as_str());
        if let Some(plugin) = disabled.find(|plugin| CRI.contains(plugin)) {
            desired.problems.push(format!(
                "{} has {plugin} among its disabled_plugins: without CRI containerd has no handlers for Kubernetes",
                config.path.display()
            ));
        }
    }
    Ok(())
}

/// The text of a configuration of husk's own without its first line, which says by what version it was made; all of any other.
fn without_head(text: &str) -> &str {
    match text.split_once('\n') {
        Some((head, rest)) if head.starts_with("# husk ") => rest,
        Some(_) | None => text,
    }
}

/// The configuration of a containerd of version `major` that has none: it imports drop-ins, and some may be there already.
fn first(options: &Options, major: Option<u32>) -> Result<Config, InstallError> {
    let path = PathBuf::from(CONFIGURATION);
    let version = match major {
        Some(0 | 1) => 2,
        Some(_) => 3,
        None => {
            let problem = "is not there, and what version of containerd is to read it is not known: make it with containerd config default";
            return Err(foreign(options, &path, problem));
        }
    };
    let text = format!(
        "# husk {}: there was no configuration; this one has containerd's defaults, and drop-ins.\n\
         version = {version}\nimports = [\"{FOLDER}/*.toml\"]\n",
        env!("CARGO_PKG_VERSION")
    );
    let document = text
        .parse()
        .map_err(|error| foreign(options, &path, one_line(&error)))?;
    Ok(Config {
        path,
        text,
        document,
        is_public: true,
    })
}

/// Sorts behind what others usually have: in containerd 1 the last file with a section is the one that counts.
fn drop_in(options: &Options) -> String {
    format!("90-{}.toml", options.class)
}

fn plugin_of(version: i64) -> &'static str {
    let [(_, old), (split, new)] = PLUGINS;
    if version < split { old } else { new }
}

fn foreign(options: &Options, path: &Path, problem: impl Into<String>) -> InstallError {
    InstallError::Foreign {
        path: options.at(path),
        problem: problem.into(),
    }
}

/// What a drop-in beside `config` has to be: its version, its folder, and the section that it has to begin with. Where `config` is not
/// `others`', it is husk's own, and no reason by itself to install again.
fn existing(
    options: &Options,
    config: &Config,
    major: Option<u32>,
    is_others: bool,
    desired: &mut DesiredFiles,
) -> Result<DropInLocation, InstallError> {
    let version = config.version();
    if version < 2 {
        let problem = format!("has configuration version {version}: containerd config migrate writes a newer one");
        return Err(foreign(options, &config.path, problem));
    }
    let name = drop_in(options);
    let merges = version >= 3 || major.is_some_and(|major| major >= 2);
    let imports = config.imports(!merges);
    let mut folders: Vec<PathBuf> = imports
        .iter()
        .filter_map(|import| {
            let folder = import.parent().filter(|folder| !has_star(folder))?;
            matches(import, &folder.join(&name)).then(|| folder.to_owned())
        })
        .collect();
    if folders.is_empty() {
        desired.problems.push(format!(
            "{CONFIGURATION} does not import the handlers yet: put imports = [\"{FOLDER}/*.toml\"] at its top"
        ));
        folders.push(FOLDER.into());
    }
    if merges {
        return Ok(DropInLocation {
            version,
            folder: folders.swap_remove(0),
            is_first: false,
            copied: None,
        });
    }
    if is_others {
        desired.source(config.path.clone(), config.text.as_bytes());
    }
    let mut refused = None;
    for folder in folders {
        match beginning(options, config, &folder.join(&name)) {
            Ok(source) => {
                let from = source.as_ref().unwrap_or(config);
                let section = from.section(plugin_of(version)).cloned();
                let copied = section.map(|section| Copied {
                    section,
                    from: from.path.clone(),
                    is_public: from.is_public,
                });
                if let Some(source) = source {
                    desired.source(source.path, source.text.as_bytes());
                }
                return Ok(DropInLocation {
                    version,
                    folder,
                    is_first: true,
                    copied,
                });
            }
            Err(error) => refused = refused.or(Some(error)),
        }
    }
    Err(refused.unwrap_or_else(|| foreign(options, &config.path, "imports nothing")))
}

/// The file with the section that the drop-in `own` has to begin with, for a containerd that takes all of it from the last file that has one: what
/// it would have without `own`. `None` is `main`.
///
/// # Errors
/// A file that is read after `own` has the section, too.
fn beginning(options: &Options, main: &Config, own: &Path) -> Result<Option<Config>, InstallError> {
    let plugin = plugin_of(main.version());
    let (mut last, mut is_behind) = (None, false);
    for loaded in loaded(options, main, own, true)? {
        let config = match loaded {
            None => {
                is_behind = true;
                continue;
            }
            Some(config) if config.section(plugin).is_none() => continue,
            Some(config) => config,
        };
        if is_behind {
            let problem = format!(
                "has a section of {plugin} and is read after {}: containerd before 2.0 would not see the handlers",
                own.display()
            );
            return Err(foreign(options, &config.path, problem));
        }
        last = Some(config);
    }
    Ok(last)
}

/// What containerd reads after `main`, containerd 1 in this order (`LoadConfig` in its `config.go`): what each file imports goes to the end of a
/// queue, and of what is there twice the first counts. `None` stands for husk's drop-in `own`, whether it is there yet or not.
fn loaded(options: &Options, main: &Config, own: &Path, is_first: bool) -> Result<Vec<Option<Config>>, InstallError> {
    let resolve = |config: &Config| -> Vec<PathBuf> {
        let imports = config.imports(is_first);
        imports
            .iter()
            .flat_map(|import| stands_for(options, import, own))
            .collect()
    };
    let (mut seen, mut found) = (vec![main.path.clone()], Vec::new());
    let mut pending = VecDeque::from(resolve(main));
    while let Some(path) = pending.pop_front() {
        if seen.contains(&path) {
            continue;
        }
        if path == own {
            found.push(None);
        } else if let Some(config) = Config::read(options, &path)? {
            pending.extend(resolve(&config));
            found.push(Some(config));
        }
        seen.push(path);
    }
    Ok(found)
}

/// The files that `import` stands for, as if `own` were there: with a `*` in it what there is, folder by folder, in the order of names.
fn stands_for(options: &Options, import: &Path, own: &Path) -> Vec<PathBuf> {
    if !has_star(import) {
        return vec![import.to_owned()];
    }
    let mut found = vec![PathBuf::from("/")];
    for part in import.components().skip(1) {
        let below = |folder: PathBuf| {
            let entries = std::fs::read_dir(options.behind(&folder))
                .into_iter()
                .flatten()
                .flatten();
            let mut paths: Vec<_> = entries.map(|entry| folder.join(entry.file_name())).collect();
            if let Some(name) = own.strip_prefix(&folder).ok().and_then(|rest| rest.iter().next()) {
                paths.push(folder.join(name));
            }
            let pattern = folder.join(part);
            paths.retain(|path| matches(&pattern, path));
            paths.sort();
            paths.dedup();
            paths
        };
        found = found.into_iter().flat_map(below).collect();
    }
    found
}

fn has_star(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().contains('*')
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
fn text(options: &Options, handlers: &[Handler], version: i64, section: Option<Item>) -> String {
    let plugin = plugin_of(version);
    let why = match section {
        Some(_) => COPY,
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
