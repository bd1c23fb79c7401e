//! What would have to change on a host so that it has what is wanted. Reads, and changes nothing.

use std::path::{Path, PathBuf};

use super::common::{is_needed, others};
use super::content::Content;
use super::describe::dangling;
use super::desired::{DesiredFiles, desired};
use super::manifest::Manifest;
use super::request::Choices;
use super::runtimes::that_read;
use super::{InstallError, Options};

/// One path that does not have what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Where, in the installed system.
    pub path: PathBuf,
    /// What is there.
    pub before: Option<Content>,
    /// What shall be there.
    pub after: Option<Content>,
    /// What people are shown in place of the text that shall be there.
    pub excerpt: Option<String>,
}

/// Everything that an installation would do.
#[derive(Clone, Debug)]
pub struct Plan {
    pub(super) root: PathBuf,
    pub(super) prefix: PathBuf,
    /// In the order in which they are made: whoever reads one finds what it names.
    pub(super) changes: Vec<Change>,
    pub(super) before: Option<Manifest>,
    pub(super) after: Manifest,
    pub(super) problems: Vec<String>,
    pub(super) notes: Vec<String>,
}

impl Plan {
    /// Whether the host has all that is wanted.
    pub fn is_done(&self) -> bool {
        self.changes.is_empty() && self.before.as_ref() == Some(&self.after)
    }
}

/// What `options` ask for, held against what is there.
///
/// # Errors
///
/// Kata or the engine cannot be used, or something stands in the way.
pub fn plan(options: &Options) -> Result<Plan, InstallError> {
    let before = Manifest::read_or_begun(&options.root, &options.prefix)?;
    let DesiredFiles {
        items,
        engine,
        mut fingerprints,
        mut excerpts,
        sources,
        mut problems,
        mut notes,
    } = desired(options, before.as_ref())?;
    let choices = engine.map(|engine| Choices {
        kata: options.kata.clone(),
        engine,
        file_server: options.file_server,
        overhead: options.overhead.clone(),
    });
    let kept = before.as_ref().and_then(|before| before.options.as_ref());
    if let Some((now, before)) = choices.as_ref().zip(kept) {
        notes.extend(now.changes(before));
    }
    if before
        .as_ref()
        .is_some_and(|before| before.options.is_none() && !before.class.is_empty())
    {
        notes.push(
            "the husk that installed this did not keep its options: --overhead, --kata and --engine count as they are given now"
                .into(),
        );
    }
    let mut after = Manifest::new(&options.class, choices);
    after.sources = sources;
    let mut changes = Vec::new();
    for (path, content) in items {
        let found = read(options, &path)?;
        let known = fingerprints.remove(&path);
        let fingerprint = known.unwrap_or_else(|| content.fingerprint());
        after.items.insert(path.clone(), vec![fingerprint.clone()]);
        if found.as_ref() == Some(&content) {
            continue;
        }
        let known = |found| before.as_ref().is_some_and(|before| before.has(&path, found));
        if let Some(found) = found.as_ref().filter(|found| !known(found)) {
            let listed = before.as_ref().is_some_and(|before| before.items.contains_key(&path));
            // The same bytes with other permissions are still husk's.
            if found.fingerprint() != fingerprint {
                let whose = if listed {
                    "was changed since husk wrote it"
                } else {
                    "is not husk's"
                };
                let path = options.at(&path);
                return Err(InstallError::InTheWay { path, whose });
            }
        }
        let excerpt = excerpts.remove(&path);
        changes.push(Change {
            path,
            before: found,
            after: Some(content),
            excerpt,
        });
    }
    let handlers = after.handlers(&options.prefix);
    let gone = |name: &String| !handlers.contains(name);
    notes.extend(going(options, before.as_ref(), &handlers)?);
    for path in before.iter().flat_map(|before| before.items.keys()) {
        if after.items.contains_key(path) {
            continue;
        }
        let is_needed = before
            .as_ref()
            .is_some_and(|before| is_needed(&options.root, before, path));
        match read(options, path)? {
            Some(_) if is_needed => notes.push(format!("{} stays: another installation needs it", path.display())),
            Some(found) if before.as_ref().is_some_and(|before| before.has(path, &found)) => changes.push(Change {
                path: path.clone(),
                before: Some(found),
                after: None,
                excerpt: None,
            }),
            Some(_) => {
                notes.push(format!("{} was changed since husk wrote it, and stays", path.display()));
                let mut names = that_read(&options.at(path), &options.shared());
                names.retain(gone);
                if !names.is_empty() {
                    problems.push(dangling(path, &names));
                }
            }
            None => {}
        }
    }
    after.folders = folders(options, before.as_ref(), &after);
    Ok(Plan {
        root: options.root.clone(),
        prefix: options.prefix.clone(),
        changes,
        before,
        after,
        problems,
        notes,
    })
}

/// What is told of handlers that go.
///
/// # Errors
///
/// Some go that belong to the class, and nobody has named that: a shim or its configuration is not
/// there any more, or cannot be used.
fn going(options: &Options, before: Option<&Manifest>, handlers: &[String]) -> Result<Option<String>, InstallError> {
    let Some(before) = before else {
        return Ok(None);
    };
    let mut names = before.handlers(&options.prefix);
    names.retain(|name| !handlers.contains(name));
    if names.is_empty() {
        return Ok(None);
    }
    // Others are what an installation under another name was killed before it had removed.
    let is_of_class = |name: &String| {
        name.strip_prefix(before.class.as_str())
            .is_some_and(|rest| rest.is_empty() || rest == "-go")
    };
    if !options.class_is_given && names.iter().any(is_of_class) {
        let class = options.class.clone();
        return Err(InstallError::Handlers { names, class });
    }
    let names = names.join(", ");
    Ok(Some(format!(
        "the handlers {names} go: no pod with that runtime class will start"
    )))
}

fn read(options: &Options, path: &Path) -> Result<Option<Content>, InstallError> {
    let path = options.at(path);
    Content::read(&path).map_err(|error| InstallError::io("read", &path, error))
}

/// Folders that are husk's: those that were, those that are missing, and those that another
/// installation has made. The last of them takes it away.
fn folders(options: &Options, before: Option<&Manifest>, after: &Manifest) -> Vec<PathBuf> {
    let mut folders = before.map(|before| before.folders.clone()).unwrap_or_default();
    let manifest = Manifest::path(&options.prefix);
    let used = after.items.keys().filter_map(|path| path.parent());
    let others = others(
        &options.root,
        &options.prefix,
        used.filter(|folder| folder.starts_with("/etc")),
    );
    let of_others: Vec<_> = others.iter().flat_map(|other| &other.folders).collect();
    for path in after.items.keys().chain([&manifest]) {
        let common = path
            .ancestors()
            .skip(1)
            .filter(|folder| of_others.iter().any(|other| other == folder));
        folders.extend(common.map(Path::to_owned));
        let missing = path
            .ancestors()
            .skip(1)
            .take_while(|folder| !options.behind(folder).exists());
        folders.extend(missing.map(Path::to_owned));
    }
    folders.sort();
    folders.dedup();
    folders
}
