//! `cargo lab package`: what husk is given to others in.
//!
//! | file in `target/lab/package` | content |
//! |---|---|
//! | `husk-VERSION-x86_64-linux.tar.gz` | the static program, the manual page, completions, documents |
//! | `husk_VERSION-1_amd64.deb` | the same for Debian, by cargo-deb |
//! | `husk-VERSION.cdx.json` | the bill of materials, CycloneDX, by cargo-cyclonedx |
//! | `SHA256SUMS` | the digests of all three |
//!
//! The same source makes the same bytes, in whatever folder and at whatever time: paths are mapped away, times are those of the last commit
//! (`SOURCE_DATE_EPOCH`), and `--twice` makes everything again elsewhere and compares. The .deb is installed into an empty system by dpkg, and removed
//! again, each time. cargo-deb and cargo-cyclonedx take minutes to build: they are no part of the tests, which hold the tarball against itself.

mod debian;
mod materials;
mod tarball;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

use crate::command::{command, output, shown};
use crate::paths::{Lab, PART};
use crate::{build, progress, tools};

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// How to make packages.
#[derive(clap::Args)]
pub struct PackageArgs {
    /// Make them again from a copy in another folder, and compare every byte.
    #[arg(long)]
    twice: bool,
}

/// One making of the packages: of which source, and where.
struct Making<'a> {
    lab: &'a Lab,
    source: PathBuf,
    /// What cargo builds in.
    target: PathBuf,
    /// What is made.
    out: PathBuf,
    version: String,
    /// The time that all files have, in seconds since 1970.
    epoch: u64,
}

/// Makes the packages and tries the .deb; whether two makings were equal.
///
/// # Errors
///
/// Something does not compile, or cannot be installed.
pub fn run(lab: &Lab, arguments: &PackageArgs) -> Result<bool> {
    let folder = lab.path("package");
    let first = Making::new(lab, lab.workspace.clone(), &folder)?;
    let made = first.make()?;
    debian::try_out(&first, &folder.join(debian::file_name(&first.version)))?;
    for (name, digest) in &made {
        println!("{digest}  {}", folder.join(name).display());
    }
    if !arguments.twice {
        return Ok(true);
    }
    let elsewhere = tempfile::Builder::new().prefix("husk-again-").tempdir()?;
    let source = elsewhere.path().join("some where/else");
    copy_source(&lab.workspace, &source)?;
    let again = Making::new(lab, source, &elsewhere.path().join("out"))?;
    let again = Making {
        epoch: first.epoch,
        ..again
    };
    let again = again.make()?;
    let differ: Vec<_> = made.iter().zip(&again).filter(|(one, other)| one != other).collect();
    for ((name, digest), (_, other)) in &differ {
        progress::say(&format!("{name} differs: {digest} here, {other} elsewhere"));
    }
    if differ.is_empty() {
        progress::say("made twice, in different folders: equal bytes");
    }
    Ok(differ.is_empty())
}

/// The files of the checkout at `from` that git knows, as they are, to `to`.
fn copy_source(from: &Path, to: &Path) -> Result<()> {
    let listed = output(command("git").args(["ls-files", "-z"]).current_dir(from))?;
    for name in listed.split_terminator('\0') {
        let (from, to) = (from.join(name), to.join(name));
        // Deleted, and not committed.
        if from.is_file() {
            fs::create_dir_all(to.parent().context("a file has a folder")?)?;
            fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        }
    }
    Ok(())
}

impl<'a> Making<'a> {
    fn new(lab: &'a Lab, source: PathBuf, out: &Path) -> Result<Self> {
        let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => output(
                command("git")
                    .args(["log", "-1", "--format=%ct"])
                    .current_dir(&lab.workspace),
            )?,
        };
        Ok(Self {
            lab,
            target: out.join("build"),
            out: out.to_owned(),
            version: env!("CARGO_PKG_VERSION").into(),
            epoch: epoch
                .trim()
                .parse()
                .context("SOURCE_DATE_EPOCH is no number of seconds")?,
            source,
        })
    }

    /// Where cargo puts the program.
    fn release(&self) -> PathBuf {
        self.target.join(TARGET).join("release")
    }

    /// Everything; names and digests of what was made.
    fn make(&self) -> Result<Vec<(String, String)>> {
        fs::create_dir_all(&self.out)?;
        self.build()?;
        self.completions()?;
        let materials = materials::make(self)?;
        let deb = debian::make(self)?;
        let tarball = format!("husk-{}-x86_64-linux.tar.gz", self.version);
        progress::step(&format!("packing {tarball}"), || self.pack(&self.out.join(&tarball)))?;
        let mut made = Vec::new();
        for name in [tarball, deb, materials] {
            let bytes = fs::read(self.out.join(&name))?;
            let digest: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
            made.push((name, digest));
        }
        let sums: String = made
            .iter()
            .map(|(name, digest)| format!("{digest}  {name}\n"))
            .collect();
        fs::write(self.out.join("SHA256SUMS"), sums)?;
        Ok(made)
    }

    /// Builds the program, with no path of this machine in it.
    fn build(&self) -> Result<()> {
        let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
        let home = home.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cargo")));
        let home = home.context("neither CARGO_HOME nor HOME is set")?;
        // The last that fits counts.
        let paths = [(&home, "/cargo"), (&self.source, "/husk"), (&self.target, "/build")];
        let flags = paths.map(|(path, to)| format!("--remap-path-prefix={}={to}", path.display()));
        let flags = serde_json::to_string(&flags)?;
        progress::say("building husk as it is released");
        shown(
            self.cargo()
                .args([
                    "build",
                    "--release",
                    "--locked",
                    "--package",
                    "husk",
                    "--target",
                    TARGET,
                ])
                .arg("--config")
                .arg(format!("target.{TARGET}.rustflags={flags}")),
        )
    }

    /// Cargo for this source, as it is to be for all that is made.
    fn cargo(&self) -> Command {
        let mut cargo = build::cargo(self.lab);
        cargo
            .current_dir(&self.source)
            .env("CARGO_TARGET_DIR", &self.target)
            .env("SOURCE_DATE_EPOCH", self.epoch.to_string());
        cargo
    }

    fn completions(&self) -> Result<()> {
        let folder = self.release().join("completions");
        fs::create_dir_all(&folder)?;
        for (shell, name) in [("bash", "husk"), ("zsh", "_husk"), ("fish", "husk.fish")] {
            let script = output(command(self.release().join("husk")).args(["completions", shell]))?;
            ensure!(script.contains("husk"), "the completions for {shell} are none");
            fs::write(folder.join(name), script)?;
        }
        Ok(())
    }

    fn pack(&self, path: &Path) -> Result<()> {
        let (release, docs) = (self.release(), self.source.join("docs"));
        let mut files = vec![
            ("bin/husk".to_owned(), release.join("husk"), 0o755),
            ("share/man/man1/husk.1".into(), docs.join("husk.1"), 0o644),
            ("husk.cdx.json".into(), release.join("husk.cdx.json"), 0o644),
        ];
        for (place, name) in [
            ("bash-completion/completions", "husk"),
            ("zsh/site-functions", "_husk"),
            ("fish/vendor_completions.d", "husk.fish"),
        ] {
            files.push((
                format!("share/{place}/{name}"),
                release.join("completions").join(name),
                0o644,
            ));
        }
        for name in documents(&self.source)? {
            let path = self.source.join(&name);
            files.push((name, path, 0o644));
        }
        let folder = format!("husk-{}", self.version);
        fs::write(path, tarball::pack(&folder, &files, self.epoch)?)?;
        Ok(())
    }
}

/// The documents of the checkout at `source`, as they lie there.
fn documents(source: &Path) -> Result<Vec<String>> {
    let mut names = ["CONTRIBUTING.md", "LICENSE", "README.md"].map(str::to_owned).to_vec();
    for folder in ["docs", "docs/adr"] {
        let entries = fs::read_dir(source.join(folder))?.flatten();
        let files = entries.filter(|entry| entry.path().is_file());
        names.extend(files.map(|entry| format!("{folder}/{}", entry.file_name().to_string_lossy())));
    }
    names.sort();
    Ok(names)
}

/// The program `name` of the crate of that name, built below the lab's tools unless this system has it, or it was built before.
fn tool(lab: &Lab, name: &str) -> Result<PathBuf> {
    if let Some(found) = tools::find(lab, name) {
        return Ok(found);
    }
    let folder = lab.path("tools");
    fs::create_dir_all(&folder)?;
    let scratch = tempfile::Builder::new().prefix(PART).tempdir_in(&folder)?;
    let mut install = build::cargo_install(lab, name, &folder, scratch.path());
    progress::step(&format!("building {name}"), || shown(&mut install))?;
    tools::find(lab, name).with_context(|| format!("the crate {name} has no program of that name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the text in Markdown at `name` refers to beside it, by the same kind of names.
    fn links(name: &str, text: &str) -> Vec<String> {
        let folder = Path::new(name).parent().unwrap_or(Path::new(""));
        let targets = text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        let local = targets.filter(|target| !target.is_empty() && !target.contains(':'));
        let paths = local.map(|target| {
            let mut path = folder.to_owned();
            for part in target.split('/') {
                if part == ".." {
                    path.pop();
                } else {
                    path.push(part);
                }
            }
            path.to_string_lossy().into_owned()
        });
        paths.collect()
    }

    #[test]
    fn documents_refer_to_documents_that_are_packed() {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
        let documents = documents(source).unwrap();
        for name in documents.iter().filter(|name| name.ends_with(".md")) {
            let text = fs::read_to_string(source.join(name)).unwrap();
            // Source files are no documents.
            for link in links(name, &text).into_iter().filter(|link| !link.ends_with(".rs")) {
                let mut names = documents.iter();
                let is_packed = names.any(|name| *name == link || link.ends_with('/') && name.starts_with(&link));
                assert!(is_packed, "{name} refers to {link}");
            }
        }
    }

    #[test]
    fn a_link_is_what_stands_beside_its_text() {
        let text = "[a](b.md) [c](../d.md#e) [f](#g) [h](https://i/j) [k](adr/l.md)";
        assert_eq!(links("docs/x.md", text), ["docs/b.md", "d.md", "docs/adr/l.md"]);
        assert_eq!(links("README.md", "[a](docs/b.md)"), ["docs/b.md"]);
    }
}
