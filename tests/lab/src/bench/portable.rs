//! Taking a program along to the emulated host, which has no libraries: its file, and, if it is linked dynamically, the loader
//! and everything that the loader would load here.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::subject::Subject;
use crate::command::{command, find, output};

/// Where the emulated host has what is taken along.
const WORK: &str = "/work";

/// QEMU's firmware: what `-kernel` needs on the two machines that are measured.
const FIRMWARE: [&str; 6] = [
    "bios-256k.bin",
    "bios-microvm.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
    "pvh.bin",
    "qboot.rom",
];

/// Where distributions keep it.
const FIRMWARE_FOLDERS: [&str; 4] = [
    "/usr/share/qemu",
    "/usr/share/seabios",
    "/usr/lib/ipxe/qemu",
    "/usr/local/share/qemu",
];

/// Adds the files of `subject` to `files`; the subject as it is started there.
///
/// # Errors
///
/// A file of it is missing here.
pub fn pack(subject: &Subject, files: &mut Vec<(PathBuf, String)>) -> Result<Subject> {
    let mut take = Take(files);
    let program = take.file(&subject.program, &format!("peers/{}", subject.kind.name()))?;
    let mut there = Subject::new(subject.kind, program);
    if let Some(libraries) = libraries(&subject.program) {
        let mut loader = None;
        for library in &libraries {
            let name = library
                .file_name()
                .context("a library without a name")?
                .to_string_lossy();
            let path = take.file(library, &format!("lib/{name}"))?;
            if name.starts_with("ld-linux") {
                loader = Some(path);
            }
        }
        let program = std::mem::replace(&mut there.program, loader.context("no loader among the libraries")?);
        let words = ["--library-path", "/work/lib", &program.to_string_lossy()].map(str::to_string);
        there.first.extend(words);
    }
    if subject.kind.is_qemu() {
        for name in FIRMWARE {
            let places = FIRMWARE_FOLDERS.map(|folder| Path::new(folder).join(name));
            if let Some(file) = places.iter().find(|place| place.exists()) {
                take.file(file, &format!("firmware/{name}"))?;
            }
        }
        there.first.extend(["-L".to_string(), format!("{WORK}/firmware")]);
    }
    Ok(there)
}

struct Take<'a>(&'a mut Vec<(PathBuf, String)>);

impl Take<'_> {
    /// Takes a file along once; where it will be.
    fn file(&mut self, source: &Path, target: &str) -> Result<PathBuf> {
        if !self.0.iter().any(|(_, taken)| taken == target) {
            let source = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
            self.0.push((source, target.into()));
        }
        Ok(Path::new(WORK).join(target))
    }
}

/// What the loader would load for `program`, the loader included; `None` if it is linked statically.
fn libraries(program: &Path) -> Option<BTreeSet<PathBuf>> {
    let listed = output(command(find("ldd")?).arg(program)).ok()?;
    let found = listed_libraries(&listed);
    (!found.is_empty()).then_some(found)
}

/// The paths in what `ldd` writes: `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` for the loader.
fn listed_libraries(listed: &str) -> BTreeSet<PathBuf> {
    let word = |line: &str| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        path.split_whitespace().next().map(PathBuf::from)
    };
    listed
        .lines()
        .filter_map(word)
        .filter(|path| path.is_absolute())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::subject::Kind;

    #[test]
    fn libraries_and_loader_are_found_in_the_listing() {
        let listed = "\tlinux-vdso.so.1 (0x7ffc)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f00)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f10)\n";
        let paths = ["/lib/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(listed_libraries(listed), BTreeSet::from(paths));
        assert!(listed_libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn a_program_is_started_by_the_loader_that_comes_with_it() {
        let mut files = Vec::new();
        let there = pack(&Subject::new(Kind::CloudHypervisor, "/bin/sh"), &mut files).unwrap();
        assert!(there.program.starts_with("/work/lib"), "{there:?}");
        assert_eq!(there.first.last().unwrap(), "/work/peers/cloud-hypervisor");
        assert!(files.iter().any(|(_, target)| target.starts_with("lib/libc.so")));
    }
}
