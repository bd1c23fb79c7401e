//! A tarball that depends on nothing but names, bytes, permissions and one time.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use flate2::{Compression, GzBuilder};
use tar::{Builder, EntryType, Header};

/// Packs files, each with its name below `folder`, where it is, and its permissions; sorted, and owned by root.
///
/// # Errors
///
/// A file cannot be read.
pub fn pack(folder: &str, files: &[(String, PathBuf, u32)], epoch: u64) -> Result<Vec<u8>> {
    let time = u32::try_from(epoch).context("a time beyond 2106")?;
    let gzip = GzBuilder::new().mtime(time).write(Vec::new(), Compression::best());
    let mut tar = Builder::new(gzip);
    let header = |kind, mode, size| {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(epoch);
        header.set_uid(0);
        header.set_gid(0);
        header
    };
    let mut sorted: Vec<_> = files.iter().collect();
    sorted.sort();
    let mut folders = BTreeSet::new();
    for (name, path, mode) in sorted {
        let name = format!("{folder}/{name}");
        for (end, _) in name.match_indices('/') {
            let above = &name[..=end];
            if folders.insert(above.to_owned()) {
                let mut header = header(EntryType::Directory, 0o755, 0);
                tar.append_data(&mut header, above, std::io::empty())?;
            }
        }
        let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut header = header(EntryType::Regular, *mode, bytes.len().try_into()?);
        tar.append_data(&mut header, &name, bytes.as_slice())?;
    }
    let mut gzip = tar.into_inner()?;
    gzip.flush()?;
    Ok(gzip.finish()?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// Two files in a folder of their own, made in this order and with these permissions.
    fn files(order: [&str; 2], mode: u32) -> (tempfile::TempDir, Vec<(String, PathBuf, u32)>) {
        let folder = tempfile::tempdir().unwrap();
        let files = order.map(|name| {
            let path = folder.path().join(name);
            fs::write(&path, name.repeat(1000)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            (format!("share/{name}"), path, 0o644)
        });
        (folder, files.to_vec())
    }

    #[test]
    fn the_same_files_elsewhere_are_the_same_tarball() {
        let (_here, one) = files(["a", "b"], 0o600);
        let (_there, other) = files(["b", "a"], 0o777);
        let packed = pack("husk-1", &one, 1_700_000_000).unwrap();
        assert!(packed == pack("husk-1", &other, 1_700_000_000).unwrap());
        assert!(packed != pack("husk-1", &one, 1_700_000_001).unwrap());
        assert!(packed != pack("husk-2", &one, 1_700_000_000).unwrap());
    }

    #[test]
    fn everything_is_in_it_and_roots() {
        let (_folder, files) = files(["a", "b"], 0o600);
        let packed = pack("husk-1", &files, 7).unwrap();
        let mut tar = tar::Archive::new(flate2::read::GzDecoder::new(packed.as_slice()));
        let mut found = Vec::new();
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let header = entry.header();
            assert_eq!(
                (header.uid().unwrap(), header.gid().unwrap(), header.mtime().unwrap()),
                (0, 0, 7)
            );
            let mode = header.mode().unwrap();
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            found.push((entry.path().unwrap().to_str().unwrap().to_owned(), mode, text.len()));
        }
        let expected = [
            ("husk-1/", 0o755, 0),
            ("husk-1/share/", 0o755, 0),
            ("husk-1/share/a", 0o644, 1000),
            ("husk-1/share/b", 0o644, 1000),
        ];
        let expected = expected.map(|(name, mode, size)| (name.to_owned(), mode, size));
        assert_eq!(found, expected);
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let missing = [("a".to_owned(), PathBuf::from("/nowhere/a"), 0o644)];
        let error = pack("husk-1", &missing, 0).unwrap_err();
        assert_eq!(error.to_string(), "cannot read /nowhere/a");
    }
}
