//! containerd's configuration files: what each of them says, and which are read with it, in what order.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item};

use super::content::is_public;
use super::kata::one_line;
use super::{InstallError, Options};
use crate::regular_file;

/// A file of containerd's configuration.
pub(super) struct Config {
    pub(super) path: PathBuf,
    pub(super) text: String,
    pub(super) document: DocumentMut,
    /// Whether everybody may read it.
    pub(super) is_public: bool,
}

impl Config {
    /// Reads `path` of the installed system; `None` if there is no such file.
    pub(super) fn read(options: &Options, path: &Path) -> Result<Option<Self>, InstallError> {
        let place = options.behind(path);
        if !place.exists() {
            return Ok(None);
        }
        let text = regular_file::read_text(&place).map_err(|error| InstallError::io("read", &place, error))?;
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

    pub(super) fn version(&self) -> i64 {
        self.document.get("version").and_then(Item::as_integer).unwrap_or(1)
    }

    pub(super) fn section(&self, plugin: &str) -> Option<&Item> {
        self.document.get("plugins")?.get(plugin)
    }

    /// What it imports: absolute paths, possibly with `*` in them. containerd 1 looks for a
    /// relative pattern in its working directory, wherever that is.
    pub(super) fn imports(&self, is_first: bool) -> Vec<PathBuf> {
        let imports = self.document.get("imports").and_then(Item::as_array);
        let named = imports.into_iter().flatten().filter_map(|import| import.as_str());
        let is_known = |import: &&str| !is_first || import.starts_with('/') || !import.contains('*');
        let folder = self.path.parent().unwrap_or(&self.path);
        let named = named.filter(is_known);
        named.map(|import| folder.join(import).components().collect()).collect()
    }
}

/// What containerd reads after `main`, containerd 1 in this order (`LoadConfig` in its
/// `config.go`): what each file imports goes to the end of a queue, and of what is there twice the
/// first counts. `None` stands for husk's drop-in `own`, whether it is there yet or not.
pub(super) fn loaded(
    options: &Options,
    main: &Config,
    own: &Path,
    is_first: bool,
) -> Result<Vec<Option<Config>>, InstallError> {
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

/// The files that `import` stands for, as if `own` were there: with a `*` in it what there is,
/// folder by folder, in the order of names.
pub(super) fn stands_for(options: &Options, import: &Path, own: &Path) -> Vec<PathBuf> {
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

pub(super) fn has_star(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().contains('*')
}

/// Whether `pattern`, which may have `*` in its last part, stands for `path`.
pub(super) fn matches(pattern: &Path, path: &Path) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_stand_for_names_in_their_own_folder() {
        let fits = |pattern: &str, path: &str| matches(Path::new(pattern), Path::new(path));
        for (pattern, path) in [
            ("/a/*.toml", "/a/b.toml"),
            ("/a/b", "/a/b"),
            ("/a/*", "/a/b"),
            ("/a/x*y*z", "/a/x1y2z"),
        ] {
            assert!(fits(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/a/*.toml", "/b/b.toml"),
            ("/a/b", "/a/bc"),
            ("/a/x*y*z", "/a/xz"),
            ("/a/*.toml", "/a/b.conf"),
            ("/", "/a"),
            ("/a/b*b", "/a/b"),
        ] {
            assert!(!fits(pattern, path), "{pattern} {path}");
        }
    }
}
