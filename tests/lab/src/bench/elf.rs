//! What an executable file is: a program of this architecture, and who loads it (ELF-64 Object File
//! Format; gABI chapter 5).

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// `EM_X86_64`.
const X86_64: u16 = 62;
/// `PT_INTERP`.
const INTERPRETER: u32 = 3;
/// Bytes of an ELF header that are needed: up to `e_phnum`.
const HEADER_BYTES: usize = 58;

/// The loader that `program` names; `None` if it needs none, being linked statically.
///
/// # Errors
///
/// It is not a program of this architecture: a script, say.
pub fn interpreter(program: &Path) -> Result<Option<String>> {
    let file = fs::read(program).with_context(|| format!("cannot read {}", program.display()))?;
    if let Some(words) = file.strip_prefix(b"#!") {
        let line = words.split(|byte| *byte == b'\n').next().unwrap_or_default();
        bail!(
            "{} is a script (for {}), and the emulated host has no files beside the program: put the program itself in PATH",
            program.display(),
            String::from_utf8_lossy(line).trim()
        );
    }
    named(&file).with_context(|| format!("{} cannot be taken along to the emulated host", program.display()))
}

fn named(file: &[u8]) -> Result<Option<String>> {
    // Class 2: 64 bits; data 1: little-endian.
    ensure!(
        file.starts_with(b"\x7fELF\x02\x01") && file.len() >= HEADER_BYTES,
        "it is no ELF program of 64 bits"
    );
    let machine = number::<2>(file, 18)?;
    ensure!(machine == u64::from(X86_64), "it is for another architecture");
    let (table, size, count) = (number::<8>(file, 32)?, number::<2>(file, 54)?, number::<2>(file, 56)?);
    for index in 0..count {
        let header = table
            .checked_add(index * size)
            .context("its program headers are nowhere")?;
        if number::<4>(file, header)? != u64::from(INTERPRETER) {
            continue;
        }
        let name = slice(file, number::<8>(file, header + 8)?, number::<8>(file, header + 32)?)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        return Ok(Some(String::from_utf8_lossy(name).into_owned()));
    }
    Ok(None)
}

/// The little-endian number of `N` bytes at `offset`.
fn number<const N: usize>(file: &[u8], offset: u64) -> Result<u64> {
    let bytes = slice(file, offset, N as u64)?;
    Ok(bytes
        .iter()
        .rev()
        .fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

fn slice(file: &[u8], offset: u64, length: u64) -> Result<&[u8]> {
    let range = usize::try_from(offset)?..usize::try_from(offset.saturating_add(length))?;
    file.get(range).context("the file is cut off")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a file with this content.
    fn error(content: &[u8]) -> String {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("peer");
        fs::write(&file, content).unwrap();
        format!("{:#}", interpreter(&file).unwrap_err())
    }

    #[test]
    fn a_script_is_named_with_who_would_run_it() {
        let error = error(b"#! /bin/sh -e\nexec real\n");
        assert!(error.contains("peer is a script (for /bin/sh -e)"), "{error}");
    }

    #[test]
    fn other_files_are_no_programs() {
        let this = fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(error(b"").contains("no ELF program"));
        assert!(error(b"\x7fELF\x01\x01").contains("no ELF program of 64 bits"));
        assert!(error(&this[..100]).contains("cut off"));
        let mut foreign = this;
        foreign[18] = 183;
        assert!(error(&foreign).contains("another architecture"));
    }

    #[test]
    fn a_dynamic_program_names_its_loader() {
        let loader = interpreter(Path::new("/bin/sh")).unwrap().unwrap();
        assert!(loader.starts_with("/lib") && loader.contains("ld-"), "{loader}");
    }

    #[test]
    fn a_static_program_names_none() {
        // A header without program headers.
        let mut file = b"\x7fELF\x02\x01".to_vec();
        file.resize(HEADER_BYTES, 0);
        file[18] = 62;
        assert_eq!(named(&file).unwrap(), None);
    }
}
