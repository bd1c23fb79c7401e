//! CRI-O's handlers: one drop-in, which CRI-O reads whatever else it has.

use toml_edit::{DocumentMut, Item, Table, value};

use super::Options;
use super::content::Content;
use super::kata::Handler;
use super::wanted::Wanted;

const FOLDER: &str = "/etc/crio/crio.conf.d";

/// Adds the drop-in with all `handlers`.
pub(super) fn configure(options: &Options, handlers: &[Handler], wanted: &mut Wanted) {
    let mut runtimes = Table::new();
    runtimes.set_implicit(true);
    for handler in handlers {
        let mut table = Table::new();
        table.insert("runtime_path", value(handler.program.display().to_string()));
        table.insert("runtime_type", value("vm"));
        table.insert("runtime_root", value("/run/vc"));
        let configuration = handler.configuration(options).display().to_string();
        table.insert("runtime_config_path", value(configuration));
        table.insert("privileged_without_host_devices", value(true));
        runtimes.insert(&handler.name, Item::Table(table));
    }
    let mut document = DocumentMut::new();
    let mut above = runtimes;
    for name in ["runtimes", "runtime", "crio"] {
        let mut table = Table::new();
        table.set_implicit(true);
        table.insert(name, Item::Table(above));
        above = table;
    }
    *document.as_table_mut() = above;
    let path = format!("{FOLDER}/50-{}.conf", options.class);
    let text = format!(
        "# husk {}: Kata's shims with husk.\n{document}",
        env!("CARGO_PKG_VERSION")
    );
    wanted.items.push((path.into(), Content::text(text)));
    wanted
        .notes
        .push("CRI-O reads its handlers when it starts: systemctl restart crio (pods that run go on)".into());
}
