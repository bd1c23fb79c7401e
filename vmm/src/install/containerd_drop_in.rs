//! The text of the file that gives containerd its handlers.

use toml_edit::{Array, DocumentMut, Item, Table, value};

use super::Options;
use super::kata::Handler;

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

pub(super) fn plugin_of(version: i64) -> &'static str {
    let [(_, old), (split, new)] = PLUGINS;
    if version < split { old } else { new }
}

/// The drop-in.
pub(super) fn text(options: &Options, handlers: &[Handler], version: i64, section: Option<Item>) -> String {
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

/// Tables that come from another document remember where they stood there, and would be written in
/// that order among the new ones.
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
