//! Kernel modules: found in a package, decompressed, and put in the order in which they load.
//!
//! A kernel package has no `modules.dep` before it is installed, so dependencies come from the modules themselves: the
//! `depends=` entry of the `.modinfo` section (Documentation/kbuild/modules.rst).

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// The name as the kernel knows it: `kvm-amd` is `kvm_amd`.
pub fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Copies the modules `wanted`, and all they depend on, decompressed and without signatures from
/// the tree of a package to `folder`.
///
/// # Errors
///
/// A module is missing or damaged.
pub fn unpack<'a>(tree: &Path, wanted: impl Iterator<Item = &'a str>, folder: &Path) -> Result<()> {
    let mut files = HashMap::new();
    index(tree, &mut files)?;
    let load = |name: &str| files.get(name).map(|path| decompress(path)).transpose();
    fs::create_dir_all(folder)?;
    for (name, content) in in_loading_order(wanted, &load)? {
        fs::write(folder.join(format!("{name}.ko")), without_signature(&content))?;
    }
    Ok(())
}

/// A module without its signature, which a kernel checks if there is one: it sums the whole module
/// for that, at each load.
///
/// | at the end of a module | bytes |
/// |---|---|
/// | the signature | as the next field says |
/// | `struct module_signature` (include/linux/module_signature.h), whose last field is the signature's length, big-endian | 12 |
/// | [`SIGNED`] | 28 |
fn without_signature(module: &[u8]) -> &[u8] {
    let unsigned = || {
        let (rest, length) = module.strip_suffix(SIGNED)?.split_last_chunk()?;
        let rest = rest.get(..rest.len().checked_sub(8)?)?;
        rest.get(..rest.len().checked_sub(u32::from_be_bytes(*length) as usize)?)
    };
    unsigned().unwrap_or(module)
}

const SIGNED: &[u8] = b"~Module signature appended~\n";

/// Maps the plain names of all modules below `folder` to their files.
fn index(folder: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            index(&path, files)?;
        } else if let Some((module, "" | ".xz")) = name.split_once(".ko") {
            files.insert(plain_name(module), path);
        }
    }
    Ok(())
}

fn decompress(path: &Path) -> Result<Vec<u8>> {
    let raw = fs::read(path)?;
    if path.extension().is_none_or(|extension| extension != "xz") {
        return Ok(raw);
    }
    let mut plain = Vec::new();
    let result = liblzma::read::XzDecoder::new(raw.as_slice()).read_to_end(&mut plain);
    result.with_context(|| format!("{} is damaged", path.display()))?;
    Ok(plain)
}

/// The modules `wanted` and all they depend on, each after its dependencies: plain name and content as `load` gives it.
///
/// # Errors
///
/// A module that `load` does not know, or dependencies that go in a circle.
pub fn in_loading_order<'a>(
    wanted: impl Iterator<Item = &'a str>,
    load: &dyn Fn(&str) -> Result<Option<Vec<u8>>>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let mut order = Vec::new();
    for name in wanted {
        visit(&plain_name(name), load, &mut order, 0)?;
    }
    Ok(order)
}

type Loader<'a> = &'a dyn Fn(&str) -> Result<Option<Vec<u8>>>;

fn visit(name: &str, load: Loader<'_>, order: &mut Vec<(String, Vec<u8>)>, depth: usize) -> Result<()> {
    if order.iter().any(|(done, _)| done == name) {
        return Ok(());
    }
    if depth > 32 {
        bail!("module {name} depends on itself");
    }
    let content = load(name)?.with_context(|| format!("the kernel has no module {name}"))?;
    for needed in dependencies(&content) {
        visit(&plain_name(&needed), load, order, depth + 1)?;
    }
    order.push((name.to_string(), content));
    Ok(())
}

/// Names in the `depends=` entry of a module.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module
        .iter()
        .skip(start + KEY.len())
        .take_while(|byte| **byte != 0)
        .copied()
        .collect();
    let value = String::from_utf8(value).unwrap_or_default();
    value
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_string)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0intree=Y\0").into_bytes()
    }

    fn order(modules: &[(&str, &str)], wanted: &[&str]) -> Result<Vec<String>> {
        let load = |name: &str| {
            Ok(modules
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, depends)| module(depends)))
        };
        let order = in_loading_order(wanted.iter().copied(), &load)?;
        Ok(order.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let modules = [
            ("kvm_amd", "kvm,ccp"),
            ("kvm", "irqbypass"),
            ("ccp", ""),
            ("irqbypass", ""),
            ("loop", ""),
        ];
        assert_eq!(
            order(&modules, &["kvm-amd", "loop", "kvm"]).unwrap(),
            ["irqbypass", "kvm", "ccp", "kvm_amd", "loop"]
        );
    }

    #[test]
    fn missing_and_circular_modules_are_named() {
        assert!(
            order(&[("a", "b")], &["a"])
                .unwrap_err()
                .to_string()
                .contains("no module b")
        );
        assert!(
            order(&[("a", "b"), ("b", "a")], &["a"])
                .unwrap_err()
                .to_string()
                .contains("depends on itself")
        );
    }

    #[test]
    fn a_signature_is_left_out_and_nothing_else() {
        let signed = |content: &[u8], length: u32| {
            let end = [&[1, 2, 3, 0, 0, 0, 0, 0], &length.to_be_bytes()[..], SIGNED];
            [content, &end.concat()].concat()
        };
        assert_eq!(without_signature(&signed(b"modulesignature", 9)), b"module");
        assert_eq!(without_signature(&signed(b"signature", 9)), b"");
        for other in [&b"module"[..], SIGNED, &signed(b"module", 7), b""] {
            assert_eq!(without_signature(other), other);
        }
    }

    #[test]
    fn compressed_modules_are_found_below_folders() {
        let tree = tempfile::tempdir().unwrap();
        let deep = tree.path().join("kernel/drivers");
        fs::create_dir_all(&deep).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        std::io::Write::write_all(&mut xz, &module("virtio-core")).unwrap();
        fs::write(deep.join("virtio-x.ko.xz"), xz.finish().unwrap()).unwrap();
        fs::write(deep.join("virtio_core.ko"), module("")).unwrap();
        let out = tree.path().join("out");
        unpack(tree.path(), ["virtio_x"].into_iter(), &out).unwrap();
        assert_eq!(fs::read(out.join("virtio_x.ko")).unwrap(), module("virtio-core"));
        assert!(out.join("virtio_core.ko").exists());
    }
}
