//! containerd's handlers: a file that its configuration imports.
//!
//! containerd 2 merges what is imported into what is there. containerd 1 **replaces** a plugin's
//! whole section by the last file that has it: a drop-in with nothing but a new handler takes
//! `runc`, and whatever else was set for CRI, away. For it the drop-in is a copy of the section as
//! it is, with the handlers added, and the manifest remembers what it was copied from.

use std::path::{Path, PathBuf};

use toml_edit::Item;

use super::common::is_own;
use super::containerd_drop_in::{plugin_of, text};
use super::containerd_files::{Config, has_star, loaded, matches, stands_for};
use super::content::Content;
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
/// What CRI is called where plugins are turned off: in configurations of version 1, 2 and 3.
const CRI: [&str; 4] = [
    "cri",
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.runtime",
    "io.containerd.cri.v1.images",
];

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

/// Looks for handlers of the same name, and for what keeps containerd from having any, in `main`
/// and in what is read with it. A folder that `main` does not import yet counts, too.
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

/// The text of a configuration of husk's own without its first line, which says by what version it
/// was made; all of any other.
fn without_head(text: &str) -> &str {
    match text.split_once('\n') {
        Some((head, rest)) if head.starts_with("# husk ") => rest,
        Some(_) | None => text,
    }
}

/// The configuration of a containerd of version `major` that has none: it imports drop-ins, and
/// some may be there already.
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

fn foreign(options: &Options, path: &Path, problem: impl Into<String>) -> InstallError {
    InstallError::Foreign {
        path: options.at(path),
        problem: problem.into(),
    }
}

/// What a drop-in beside `config` has to be: its version, its folder, and the section that it has
/// to begin with. Where `config` is not `others`', it is husk's own, and no reason by itself to
/// install again.
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

/// The file with the section that the drop-in `own` has to begin with, for a containerd that takes
/// all of it from the last file that has one: what it would have without `own`. `None` is `main`.
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

#[cfg(test)]
#[path = "containerd_test.rs"]
mod tests;
