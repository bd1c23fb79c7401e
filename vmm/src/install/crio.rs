//! CRI-O's handlers: one drop-in, which CRI-O reads whatever else it has.

use toml_edit::{DocumentMut, Item, Table, value};

use super::Options;
use super::content::Content;
use super::kata::Handler;
use super::wanted::Wanted;

/// Where its drop-ins are.
pub(super) const FOLDER: &str = "/etc/crio/crio.conf.d";

/// Packages of Debian's and CRI-O's own archives that bring it.
pub(crate) const PACKAGES: [&str; 1] = ["cri-o"];

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

#[cfg(test)]
mod tests {
    use super::super::testing::System;
    use super::*;
    use crate::install::Engine;

    /// This very text was read by CRI-O 1.32.13, whose `crio config` showed each of its values, and which called both handlers valid when it started. A
    /// key that CRI-O does not know is passed over without a word: have it read what is changed here.
    const READ_BY_CRIO: &str = r#"
[crio.runtime.runtimes.kata-husk]
runtime_path = "/opt/kata/runtime-rs/bin/containerd-shim-kata-v2"
runtime_type = "vm"
runtime_root = "/run/vc"
runtime_config_path = "/opt/husk/share/husk/kata/kata-husk/configuration.toml"
privileged_without_host_devices = true

[crio.runtime.runtimes.kata-husk-go]
runtime_path = "/opt/kata/bin/containerd-shim-kata-v2"
runtime_type = "vm"
runtime_root = "/run/vc"
runtime_config_path = "/opt/husk/share/husk/kata/kata-husk-go/configuration.toml"
privileged_without_host_devices = true
"#;

    #[test]
    fn the_drop_in_is_the_text_that_crio_has_read() {
        let system = System::new();
        let options = Options {
            engine: Some(Engine::Crio),
            ..system.options()
        };
        system.install(&options).unwrap();
        let text = system.read("etc/crio/crio.conf.d/50-kata-husk.conf");
        let (first, rest) = text.split_once('\n').unwrap();
        assert!(first.starts_with("# husk "), "{first}");
        assert_eq!(format!("\n{rest}"), READ_BY_CRIO);
    }
}
