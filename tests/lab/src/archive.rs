//! Archives in the newc format: initramfs images.

use std::collections::BTreeSet;
use std::io::Write;

use anyhow::{Context, Result};
use cpio::newc;

/// An initramfs under construction. Folders above a file are added by themselves.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

impl Archive {
    /// Adds an empty folder.
    ///
    /// # Errors
    ///
    /// None in memory; the writer's type allows them.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        let mut path = String::new();
        for part in name.split('/') {
            path = if path.is_empty() {
                part.into()
            } else {
                format!("{path}/{part}")
            };
            if self.folders.insert(path.clone()) {
                self.entry(&path, 0o040_755, &[])?;
            }
        }
        Ok(())
    }

    /// Adds a file that can be executed.
    ///
    /// # Errors
    ///
    /// The file is larger than the format's 4 GiB.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.entry(name, 0o100_755, content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    ///
    /// As [`Archive::folder`].
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(name)?;
        self.entry(name, 0o120_777, target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    ///
    /// As [`Archive::folder`].
    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.parents(name)?;
        self.entries += 1;
        let builder = newc::Builder::new(name).mode(0o020_666).ino(self.entries).nlink(1);
        builder
            .rdev_major(major)
            .rdev_minor(minor)
            .write(&mut self.bytes, 0)
            .finish()?;
        Ok(())
    }

    /// The complete archive.
    ///
    /// # Errors
    ///
    /// As [`Archive::folder`].
    pub fn finish(mut self) -> Result<Vec<u8>> {
        newc::trailer(&mut self.bytes)?;
        Ok(self.bytes)
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        match name.rsplit_once('/') {
            Some((folder, _)) => self.folder(folder),
            None => Ok(()),
        }
    }

    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.entries += 1;
        let length = u32::try_from(content.len()).with_context(|| format!("{name} is too large for an archive"))?;
        let builder = newc::Builder::new(name).mode(mode).ino(self.entries).nlink(1);
        let mut entry = builder.write(&mut self.bytes, length);
        entry.write_all(content)?;
        entry.finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// The name and the content of everything in an archive.
    fn read(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
        let (mut entries, mut rest) = (Vec::new(), bytes);
        loop {
            let mut entry = newc::Reader::new(rest).unwrap();
            if entry.entry().is_trailer() {
                return entries;
            }
            let (name, mut content) = (entry.entry().name().to_string(), Vec::new());
            entry.read_to_end(&mut content).unwrap();
            entries.push((name, content));
            rest = entry.finish().unwrap();
        }
    }

    #[test]
    fn what_was_written_is_there_with_its_folders() {
        let mut archive = Archive::default();
        archive.file("a/b/one", b"1").unwrap();
        archive.file("a/b/two", b"22").unwrap();
        archive.link("a/link", "b/one").unwrap();
        let entries = read(&archive.finish().unwrap());
        let names: Vec<_> = entries.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["a", "a/b", "a/b/one", "a/b/two", "a/link"]);
        assert_eq!(entries[3].1, b"22");
    }
}
