//! Taking a program along to the emulated host, which has nothing but what is taken along: its
//! file, and, if it is linked dynamically, the loader and everything that the loader would load
//! here.
//!
//! What cannot be taken along whole is refused here, since there it could only fail: a script,
//! whose words may name anything; a program whose loader or libraries are not to be found; firmware
//! that is not installed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::elf;
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
/// It is no program, or needs a file that is missing here.
pub fn pack(subject: &Subject, files: &mut Vec<(PathBuf, String)>) -> Result<Subject> {
    let mut take = Take(files);
    let program = take.file(&subject.program, &format!("peers/{}", subject.kind.name()))?;
    let mut there = Subject::new(subject.kind, program);
    if let Some(interpreter) = elf::interpreter(&subject.program)? {
        for library in libraries(&subject.program)? {
            take.library(&library)?;
        }
        let loader = take.library(Path::new(&interpreter))?;
        let program = std::mem::replace(&mut there.program, loader);
        let words = ["--library-path", "/work/lib", &program.to_string_lossy()].map(str::to_string);
        there.first.extend(words);
    }
    if subject.kind.is_qemu() {
        let firmware = FIRMWARE.into_iter().filter_map(|name| Some((name, firmware(name)?)));
        let firmware: Vec<_> = firmware.collect();
        ensure!(
            !firmware.is_empty(),
            "needs its firmware beside it ({}), which is in none of {}",
            FIRMWARE.join(", "),
            FIRMWARE_FOLDERS.join(", ")
        );
        for (name, file) in firmware {
            take.file(&file, &format!("firmware/{name}"))?;
        }
        there.first.extend(["-L".to_string(), format!("{WORK}/firmware")]);
    }
    Ok(there)
}

struct Take<'a>(&'a mut Vec<(PathBuf, String)>);

impl Take<'_> {
    /// Takes a file along once; where it will be.
    fn file(&mut self, source: &Path, target: &str) -> Result<PathBuf> {
        let source = fs::canonicalize(source).with_context(|| format!("cannot find {}", source.display()))?;
        match self.0.iter().find(|(_, taken)| taken == target) {
            Some((taken, _)) => ensure!(
                *taken == source,
                "needs {}, and another subject {}: measure them one at a time",
                source.display(),
                taken.display()
            ),
            None => self.0.push((source, target.into())),
        }
        Ok(Path::new(WORK).join(target))
    }

    /// Takes a library along by its name, under which others ask for it.
    fn library(&mut self, source: &Path) -> Result<PathBuf> {
        let name = source.file_name().context("a library without a name")?;
        self.file(source, &format!("lib/{}", name.to_string_lossy()))
    }
}

/// What the loader would load for `program`.
fn libraries(program: &Path) -> Result<BTreeSet<PathBuf>> {
    let ldd = find("ldd").context("is linked dynamically, and there is no ldd to say what it needs")?;
    let listed =
        output(command(ldd).arg(program)).context("is linked dynamically, and ldd cannot say what it needs")?;
    let missing = missing_libraries(&listed);
    if !missing.is_empty() {
        bail!("needs libraries that are not here: {}", missing.join(", "));
    }
    Ok(listed_libraries(&listed))
}

/// Where a file of QEMU's firmware is.
fn firmware(name: &str) -> Option<PathBuf> {
    let places = FIRMWARE_FOLDERS.map(|folder| Path::new(folder).join(name));
    places.into_iter().find(|place| place.exists())
}

/// The names in what `ldd` writes that the loader would not find.
fn missing_libraries(listed: &str) -> Vec<&str> {
    let missing = listed
        .lines()
        .filter_map(|line| line.trim().strip_suffix("=> not found"));
    missing.map(str::trim).collect()
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
        assert!(missing_libraries(listed).is_empty());
    }

    #[test]
    fn libraries_that_are_not_here_are_named() {
        let listed = "\tlibgone.so.3 => not found\n\tlibc.so.6 => /lib/libc.so.6 (0x7f00)\n\tlibaway.so => not found\n";
        assert_eq!(missing_libraries(listed), ["libgone.so.3", "libaway.so"]);
    }

    #[test]
    fn two_libraries_of_one_name_are_not_mixed() {
        let (folder, mut files) = (tempfile::tempdir().unwrap(), Vec::new());
        let other = folder.path().join("sh");
        fs::write(&other, "other").unwrap();
        let mut take = Take(&mut files);
        let place = take.library(Path::new("/bin/sh")).unwrap();
        assert_eq!(take.library(Path::new("/bin/sh")).unwrap(), place);
        let error = take.library(&other).unwrap_err().to_string();
        assert!(error.contains("one at a time"), "{error}");
        assert_eq!(files.len(), 1);
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
