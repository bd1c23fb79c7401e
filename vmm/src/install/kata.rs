//! Kata's shims, and their configurations for husk.
//!
//! A shim reads the one file that the engine names, and then every file of `config.d` beside it, in
//! the order of their names. Kata's own files share one such folder, so that what is put there
//! reaches every handler. Each of husk's handlers has a folder of its own instead: Kata's file as
//! it is, and what differs in `config.d/10-husk.toml`. Whoever wants other values adds files behind
//! that one.

use std::path::{Path, PathBuf};

use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::content::{Content, is_public};
use super::desired::{self, DesiredFiles};
use super::{InstallError, Options};
use crate::regular_file;

/// One of Kata's shims.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shim {
    /// runtime-rs.
    Rust,
    /// The Go runtime.
    Go,
}

impl Shim {
    /// In the order in which handlers get names.
    pub(crate) const ALL: [Self; 2] = [Self::Rust, Self::Go];

    /// The program, below Kata's folder.
    pub(crate) const fn program(self) -> &'static str {
        match self {
            Self::Rust => "runtime-rs/bin/containerd-shim-kata-v2",
            Self::Go => "bin/containerd-shim-kata-v2",
        }
    }

    /// Where Kata has its configuration for Cloud Hypervisor: today's place, then older ones.
    const fn configurations(self) -> [&'static str; 2] {
        match self {
            Self::Rust => [
                "share/defaults/kata-containers/runtime-rs/configuration-clh-runtime-rs.toml",
                "share/defaults/kata-containers/runtime-rs/configuration-cloud-hypervisor.toml",
            ],
            Self::Go => [
                "share/defaults/kata-containers/configuration-clh.toml",
                "share/defaults/kata-containers/configuration.toml",
            ],
        }
    }
}

/// What the engine starts for a runtime class.
#[derive(Clone, Debug)]
pub(super) struct Handler {
    /// The handler's name in the engine's configuration and in Kubernetes' RuntimeClass.
    pub name: String,
    /// The shim's program.
    pub program: PathBuf,
    /// Kata's configuration.
    base: PathBuf,
    text: String,
    /// Whether everybody may read that.
    is_public: bool,
    /// The hypervisor's name in it: `clh`, or `cloud-hypervisor` in older ones.
    key: String,
}

impl Handler {
    fn folder(&self, options: &Options) -> PathBuf {
        options.shared().join("kata").join(&self.name)
    }

    /// The configuration that the engine names to the shim.
    pub fn configuration(&self, options: &Options) -> PathBuf {
        self.folder(options).join("configuration.toml")
    }
}

/// A handler for each of Kata's shims that is there. The first has the class's name, the other one
/// the same with `-go` behind it. One whose configuration cannot be used is left out, with a note,
/// as long as there is another.
pub(super) fn handlers(options: &Options, desired: &mut DesiredFiles) -> Result<Vec<Handler>, InstallError> {
    let mut handlers: Vec<Handler> = Vec::new();
    let (mut looked_for, mut unusable) = (Vec::new(), Vec::new());
    for shim in Shim::ALL {
        let program = options.kata.join(shim.program());
        let found = shim
            .configurations()
            .into_iter()
            .find(|path| options.behind(&options.kata.join(path)).is_file());
        let (true, Some(base)) = (options.behind(&program).is_file(), found) else {
            let [newest, _] = shim.configurations();
            looked_for.push(format!("{} with {newest}", shim.program()));
            continue;
        };
        let name = match handlers.first() {
            None => options.class.clone(),
            Some(_) => format!("{}-go", options.class),
        };
        let base = options.kata.join(base);
        let (text, key) = match read(&options.behind(&base)) {
            Ok(read) => read,
            Err(error) => {
                unusable.push((shim, error));
                continue;
            }
        };
        desired.source(base.clone(), text.as_bytes());
        handlers.push(Handler {
            name,
            program,
            is_public: is_public(&options.root, &options.behind(&base)),
            base,
            text,
            key,
        });
    }
    let is_empty = handlers.is_empty();
    for (shim, error) in unusable {
        if is_empty {
            return Err(error);
        }
        let program = options.kata.join(shim.program());
        desired
            .notes
            .push(format!("{} gets no handler: {error}", program.display()));
    }
    if is_empty {
        return Err(InstallError::NoKata {
            dir: options.at(&options.kata),
            looked_for: looked_for.join("; "),
        });
    }
    Ok(handlers)
}

/// Kata's configuration at `path`, and its name for Cloud Hypervisor.
fn read(path: &Path) -> Result<(String, String), InstallError> {
    let text = regular_file::read_text(path).map_err(|error| InstallError::io("read", path, error))?;
    let refuse = |problem: String| InstallError::Foreign {
        path: path.to_owned(),
        problem,
    };
    let document: DocumentMut = text.parse().map_err(|error| refuse(one_line(&error)))?;
    let hypervisors = document.get("hypervisor").and_then(Item::as_table_like);
    let known = ["clh", "cloud-hypervisor"];
    let key = known
        .into_iter()
        .find(|key| hypervisors.is_some_and(|found| found.contains_key(key)));
    let key = key.ok_or_else(|| refuse("has no [hypervisor.clh]: is not for Cloud Hypervisor".into()))?;
    Ok((text, key.into()))
}

/// What the parser has to say, without the picture of the place.
pub(super) fn one_line(error: &toml_edit::TomlError) -> String {
    let text = error.to_string();
    let place = text.lines().next().unwrap_or_default();
    format!("{place}: {}", error.message().replace('\n', ", "))
}

/// The configuration of `handler`.
pub(super) fn configure(options: &Options, handler: &Handler, desired: &mut DesiredFiles) -> Result<(), InstallError> {
    let folder = handler.folder(options);
    let overlay = overlay(options, handler);
    desired
        .items
        .push((folder.join("config.d/10-husk.toml"), Content::text(overlay)));
    let path = handler.configuration(options);
    if !handler.is_public {
        let from = handler.base.display();
        desired
            .excerpts
            .insert(path.clone(), format!("# a copy of {from}, which is not shown\n"));
    }
    desired
        .items
        .push((path, Content::copy(handler.text.clone(), handler.is_public)));
    Ok(())
}

/// What differs from Kata's file.
fn overlay(options: &Options, handler: &Handler) -> String {
    let mut document = DocumentMut::new();
    let mut table = Table::new();
    let text = |path: &Path| path.display().to_string();
    let only = |path: &Path| value(Array::from_iter([text(path)]));
    let program = desired::program(options);
    table.insert("path", value(text(&program)));
    table.insert("valid_hypervisor_paths", only(&program));
    if options.file_server {
        let server = desired::file_server(options);
        table.insert("virtio_fs_daemon", value(text(&server)));
        table.insert("valid_virtio_fs_daemon_paths", only(&server));
    }
    let mut hypervisors = Table::new();
    hypervisors.set_implicit(true);
    hypervisors.insert(&handler.key, Item::Table(table));
    document.insert("hypervisor", Item::Table(hypervisors));
    format!(
        "# husk {}, over a copy of {}. Files of this folder that sort behind this one have the last word.\n{document}",
        env!("CARGO_PKG_VERSION"),
        handler.base.display()
    )
}

#[cfg(test)]
#[path = "kata_test.rs"]
mod tests;
