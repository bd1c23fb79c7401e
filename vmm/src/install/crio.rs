//! CRI-O's handlers: one drop-in, which CRI-O reads whatever else it has.

use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, value};

use super::common::is_own;
use super::content::Content;
use super::desired::DesiredFiles;
use super::kata::Handler;
use super::manifest::Manifest;
use super::runtimes::are_free;
use super::version::program_path;
use super::{InstallError, Options};
use crate::regular_file;

/// What CRI-O reads first.
const CONFIGURATION: &str = "/etc/crio/crio.conf";
/// Where its drop-ins are.
pub(super) const FOLDER: &str = "/etc/crio/crio.conf.d";

/// Packages of Debian's and CRI-O's own archives that bring it.
pub(crate) const PACKAGES: [&str; 1] = ["cri-o"];

/// Adds the drop-in with all `handlers`.
///
/// # Errors
///
/// A file of somebody else's has a handler of the same name, whichever of the two CRI-O would take.
pub(super) fn configure(
    options: &Options,
    handlers: &[Handler],
    before: Option<&Manifest>,
    desired: &mut DesiredFiles,
) -> Result<(), InstallError> {
    let path = PathBuf::from(format!("{FOLDER}/50-{}.conf", options.class));
    let mut others = files(options, Path::new(FOLDER));
    others.push(CONFIGURATION.into());
    for other in others.into_iter().filter(|other| *other != path) {
        let text = regular_file::read_text(&options.behind(&other)).unwrap_or_default();
        // CRI-O takes nothing of a file that is no TOML.
        let document = text.parse().unwrap_or_default();
        if !is_own(options, before, &other)? {
            are_free(handlers, options.at(&other), &document)?;
        }
    }
    if program_path(&options.root, "crio").is_none() && !options.behind(Path::new(CONFIGURATION)).exists() {
        desired
            .problems
            .push(format!("CRI-O is not here: neither its program nor {CONFIGURATION} is"));
    }
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
    let text = format!(
        "# husk {}: Kata's shims with husk.\n{document}",
        env!("CARGO_PKG_VERSION")
    );
    desired.items.push((path, Content::text(text)));
    desired
        .notes
        .push("CRI-O reads its handlers when it starts: systemctl restart crio (pods that run go on)".into());
    Ok(())
}

/// The files of `folder` and of those in it: CRI-O reads all of them, whatever they are called
/// (crio(8), `--config-dir`).
fn files(options: &Options, folder: &Path) -> Vec<PathBuf> {
    /// More than anybody has.
    const DEEPEST: usize = 16;
    let (mut files, mut folders) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(options.behind(&folder))
            .into_iter()
            .flatten()
            .flatten();
        for path in entries.map(|entry| folder.join(entry.file_name())) {
            let place = options.behind(&path);
            if place.is_file() {
                files.push(path);
            } else if options.at(&path).is_dir() && path.components().count() < DEEPEST {
                folders.push(path);
            }
        }
    }
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::super::testing::System;
    use super::*;
    use crate::install::Engine;

    /// This very text was read by CRI-O 1.32.13, whose `crio config` showed each of its values, and
    /// which called both handlers valid when it started. A key that CRI-O does not know is passed
    /// over without a word: have it read what is changed here.
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
    fn a_handler_that_others_have_is_refused_wherever_it_stands() {
        let others = |name: &str| format!("[crio.runtime.runtimes.{name}]\nruntime_path = \"/bin/x\"\n");
        for path in [
            "etc/crio/crio.conf",
            "etc/crio/crio.conf.d/10-theirs.conf",
            "etc/crio/crio.conf.d/99-theirs",
            "etc/crio/crio.conf.d/more/x.conf",
        ] {
            for name in ["kata-husk", "kata-husk-go"] {
                let system = System::new();
                let options = Options {
                    engine: Some(Engine::Crio),
                    ..system.options()
                };
                system.write("etc/crio/crio.conf.d/00-broken.conf", "[[[");
                system.write(path, &others("kata-husk-rs"));
                system.install(&options).unwrap();
                system.write(path, &others(name));
                let tree = system.tree();
                let refused = system.install(&options).unwrap_err();
                let says = format!("{path}: has a handler {name} already; install with another --runtime-class");
                assert!(refused.ends_with(&says), "{refused}");
                assert!(system.tree() == tree);
            }
        }
    }

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
