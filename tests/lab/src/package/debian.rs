//! The package for Debian, and a system that it is installed into.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use super::{Making, TARGET, documents, tool};
use crate::command::{command, output};
use crate::packages::root_prefix;
use crate::progress;

/// What the package has to bring, beside its documents.
const FILES: [&str; 5] = [
    "usr/bin/husk",
    "usr/share/man/man1/husk.1.gz",
    "usr/share/bash-completion/completions/husk",
    "usr/share/zsh/vendor-completions/_husk",
    "usr/share/fish/vendor_completions.d/husk.fish",
];

/// Where it has documents, as they lie in the source.
const DOCUMENTS: &str = "usr/share/doc/husk";

/// Its file's name.
pub(super) fn file_name(version: &str) -> String {
    format!("husk_{version}-1_amd64.deb")
}

/// Makes it; its file's name.
pub(super) fn make(making: &Making<'_>) -> Result<String> {
    let tool = tool(making.lab, "cargo-deb")?;
    let name = file_name(&making.version);
    let mut deb = command(tool);
    deb.args([
        "deb",
        "--quiet",
        "--no-build",
        "--no-strip",
        "--locked",
        "--package",
        "husk",
    ])
    .args(["--target", TARGET, "--output"])
    .arg(making.out.join(&name))
    .current_dir(&making.source)
    .env("CARGO_TARGET_DIR", &making.target)
    .env("SOURCE_DATE_EPOCH", making.epoch.to_string());
    progress::step(&format!("packing {name}"), || output(&mut deb).map(drop))?;
    Ok(name)
}

/// Installs `deb` into an empty system, looks at what came, runs it, and removes it again.
///
/// # Errors
///
/// dpkg refuses, or something is missing or left.
pub(super) fn try_out(making: &Making<'_>, deb: &Path) -> Result<()> {
    let Some(prefix) = root_prefix() else {
        bail!("dpkg installs as root only: run this as root, or where sudo asks for no password");
    };
    let system = tempfile::tempdir()?;
    let root = system.path();
    let state = root.join("var/lib/dpkg");
    for folder in ["info", "updates", "triggers"] {
        fs::create_dir_all(state.join(folder))?;
    }
    for file in ["status", "available"] {
        fs::write(state.join(file), "")?;
    }
    let dpkg = |arguments: &[&str], file: Option<&Path>| {
        let mut words = prefix.iter().chain(&["dpkg"]);
        let mut dpkg = command(words.next().context("no command")?);
        dpkg.args(words)
            .arg(format!("--root={}", root.display()))
            .args(arguments)
            .args(file);
        output(&mut dpkg)
    };
    progress::step("installing it into an empty system", || dpkg(&["--install"], Some(deb)))?;
    for file in FILES {
        ensure!(root.join(file).is_file(), "the package has no {file}");
    }
    for name in documents(&making.source)? {
        let file = root.join(DOCUMENTS).join(&name);
        ensure!(file.is_file(), "the package has no {name} in {DOCUMENTS}");
    }
    let told = output(command(root.join(FILES[0])).arg("--version"))?;
    ensure!(
        told == format!("husk {}\n", making.version),
        "the installed program is {told}"
    );
    dpkg(&["--purge", "husk"], None)?;
    let left: Vec<_> = FILES.iter().filter(|file| root.join(file).exists()).collect();
    ensure!(left.is_empty(), "the package leaves {left:?}");
    ensure!(!root.join("usr").exists(), "the package leaves folders");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether `pattern`, which may have one `*` in its last part, stands for `path`.
    fn fits(pattern: &str, path: &str) -> bool {
        match pattern.split_once('*') {
            None => pattern == path,
            Some((begin, end)) => {
                let rest = path.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end));
                rest.is_some_and(|rest| !rest.contains('/'))
            }
        }
    }

    #[test]
    fn every_document_is_in_the_package_where_links_lead() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let manifest = fs::read_to_string(source.join("vmm/Cargo.toml")).unwrap();
        let rows = manifest.lines().filter_map(|line| line.trim().strip_suffix(','));
        let assets: Vec<[String; 3]> = rows.filter_map(|row| serde_json::from_str(row).ok()).collect();
        for name in documents(source).unwrap() {
            let folder = Path::new(DOCUMENTS).join(&name);
            let folder = format!("{}/", folder.parent().unwrap().display());
            let file = format!("../{name}");
            assert!(
                assets.iter().any(|[from, to, _]| fits(from, &file) && *to == folder),
                "no asset brings {name} to {folder}"
            );
        }
    }
}
