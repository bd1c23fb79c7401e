//! Handlers in configurations of the container engines, whoever wrote them.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, TableLike};

use super::InstallError;
use super::kata::Handler;
use crate::regular_file;

/// A handler.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Runtime {
    /// What Kubernetes calls it.
    pub(crate) name: String,
    /// The program that the engine starts; empty if it finds that by itself.
    pub(crate) program: String,
    /// containerd's name of the shim, or CRI-O's kind of runtime.
    pub(crate) kind: String,
    /// The configuration that the shim is told; empty if none.
    pub(crate) configuration: PathBuf,
}

/// The handlers that `document`, a file of containerd's or CRI-O's, defines.
pub(crate) fn runtimes(document: &DocumentMut) -> Vec<Runtime> {
    let plugins = document.get("plugins").and_then(Item::as_table_like);
    let of_containerd = plugins.into_iter().flat_map(TableLike::iter);
    let of_containerd = of_containerd.filter_map(|(_, plugin)| plugin.get("containerd")?.get("runtimes"));
    let of_crio = document
        .get("crio")
        .and_then(|crio| crio.get("runtime")?.get("runtimes"));
    let tables = of_containerd.chain(of_crio).filter_map(Item::as_table_like);
    tables.flat_map(TableLike::iter).map(runtime).collect()
}

fn runtime((name, item): (&str, &Item)) -> Runtime {
    let text = |item: Option<&Item>| item.and_then(Item::as_str).unwrap_or_default().to_owned();
    let options = item.get("options").and_then(|options| options.get("ConfigPath"));
    Runtime {
        name: name.to_owned(),
        program: text(item.get("runtime_path")),
        kind: text(item.get("runtime_type")),
        configuration: text(options.or_else(|| item.get("runtime_config_path"))).into(),
    }
}

/// Checks that the file at `path`, which is not husk's, has none of `handlers`.
pub(super) fn are_free(handlers: &[Handler], path: PathBuf, document: &DocumentMut) -> Result<(), InstallError> {
    let is_wanted = |runtime: &Runtime| handlers.iter().any(|handler| handler.name == runtime.name);
    match runtimes(document).into_iter().find(is_wanted) {
        Some(Runtime { name, .. }) => Err(InstallError::Taken { path, name }),
        None => Ok(()),
    }
}

/// The names of those handlers in the file at `path` whose shim reads something below `folder`;
/// none if there is no such file, or it cannot be read.
pub(super) fn that_read(path: &Path, folder: &Path) -> Vec<String> {
    let text = regular_file::read_text(path).unwrap_or_default();
    let found = text.parse().map(|document| runtimes(&document)).unwrap_or_default();
    let found = found
        .into_iter()
        .filter(|runtime| runtime.configuration.starts_with(folder));
    found.map(|runtime| runtime.name).collect()
}
