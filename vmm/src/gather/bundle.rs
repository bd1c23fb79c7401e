//! Where a bundle goes, an archive or a folder, and the index that explains each of its files.

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tar::{Builder, Header};
use zstd::Encoder;

use super::{Output, mask};
use crate::log::date_and_time;
use crate::procfs;

/// The folder in an archive.
const ROOT: &str = "husk-gather";
/// The file that explains the others.
const INDEX: &str = "index.txt";
/// How hard it is tried: zstd's default.
const LEVEL: i32 = 3;
/// For whom it is: it may say more of a node than everybody should know.
const FILE_MODE: u32 = 0o600;
/// Likewise.
const FOLDER_MODE: u32 = 0o700;

/// A part that was read, or was not.
#[derive(Debug)]
pub(super) struct Entry {
    /// The file's path in the bundle.
    pub(super) path: String,
    /// What it is.
    pub(super) about: &'static str,
    /// How long it took.
    pub(super) took: Duration,
    /// It, or why it is not there.
    pub(super) content: Result<Vec<u8>, String>,
}

/// A bundle that is being written.
pub(super) struct Bundle {
    path: PathBuf,
    to: To,
}

enum To {
    /// Also whether the file has its name already.
    Archive(Option<Box<Builder<Encoder<'static, File>>>>, bool),
    Folder,
}

impl Bundle {
    /// A new bundle with nothing in it. An archive has its name only when it is whole, where the
    /// file system can have files without one.
    ///
    /// # Errors
    /// There is something of this name, or it cannot be made.
    pub(super) fn create(output: &Output) -> io::Result<Self> {
        let (path, to) = match output {
            Output::Archive(path) => {
                let (file, is_named) = new_file(path)?;
                let archive = Builder::new(Encoder::new(file, LEVEL)?);
                (path, To::Archive(Some(Box::new(archive)), is_named))
            }
            Output::Folder(path) => {
                fs::DirBuilder::new().mode(FOLDER_MODE).create(path)?;
                (path, To::Folder)
            }
        };
        Ok(Self { path: path.clone(), to })
    }

    /// Writes the index, then all of `entries` that are there, and ends the bundle.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn fill(&mut self, entries: &[Entry]) -> io::Result<()> {
        self.put(INDEX, index(entries).as_bytes())?;
        for entry in entries {
            if let Ok(content) = &entry.content {
                self.put(&entry.path, content)?;
            }
        }
        match &mut self.to {
            To::Archive(archive, is_named) => {
                let Some(archive) = archive.take() else { return Ok(()) };
                let mut file = archive.into_inner()?.finish()?;
                file.flush()?;
                if !*is_named {
                    procfs::give_name(&file, &self.path)?;
                    *is_named = true;
                }
                Ok(())
            }
            To::Folder => Ok(()),
        }
    }

    /// Takes away what has been written.
    pub(super) fn discard(self) {
        // There is nothing more to be done about it.
        let _ = match self.to {
            To::Archive(_, true) => fs::remove_file(&self.path),
            To::Archive(_, false) => Ok(()),
            To::Folder => fs::remove_dir_all(&self.path),
        };
    }

    fn put(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        match &mut self.to {
            To::Archive(Some(archive), _) => {
                let mut header = Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(FILE_MODE);
                header.set_mtime(now().as_secs());
                archive.append_data(&mut header, Path::new(ROOT).join(path), content)
            }
            To::Archive(None, _) => Ok(()),
            To::Folder => {
                let path = self.path.join(path);
                if let Some(folder) = path.parent() {
                    fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
                }
                let mut file = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(FILE_MODE)
                    .open(path)?;
                file.write_all(content)
            }
        }
    }
}

/// A new file that is to be `path`, and whether it is already: not every file system can have files without a name.
fn new_file(path: &Path) -> io::Result<(File, bool)> {
    if path.symlink_metadata().is_ok() {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut options = OpenOptions::new();
    options.write(true).mode(FILE_MODE);
    let nameless = options.clone().custom_flags(libc::O_TMPFILE).open(folder);
    match nameless {
        Ok(file) => Ok((file, false)),
        Err(_) => Ok((options.create_new(true).open(path)?, true)),
    }
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// What each file is, and what could not be had.
fn index(entries: &[Entry]) -> String {
    let mut text = format!(
        "Gathered by husk {} at {}.\n\n\
         There is no guest memory, no environment and no content of files in it, but for the ends of husk's log and of the guest's\n\
         console where those are files. What looks like a secret is ***: values of names with one of these in them,\n\
         {},\n\
         names and passwords in addresses and behind -u, and keys in PEM.\n\n",
        env!("CARGO_PKG_VERSION"),
        date_and_time(now()),
        mask::names("")
    );
    let width = entries.iter().map(|entry| entry.path.len()).max().unwrap_or(0);
    for entry in entries {
        if let Ok(content) = &entry.content {
            let (path, ms) = (&entry.path, entry.took.as_millis());
            let _ = writeln!(
                text,
                "{path:<width$}  {:>8} bytes  {ms:>5} ms  {}",
                content.len(),
                entry.about
            );
        }
    }
    let missing: Vec<_> = entries.iter().filter(|entry| entry.content.is_err()).collect();
    if !missing.is_empty() {
        text.push_str("\nCould not be had:\n\n");
    }
    for entry in missing {
        let why = entry.content.as_ref().err().map_or("", String::as_str);
        let _ = writeln!(text, "{:<width$}  {why} ({})", entry.path, entry.about);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn entries() -> Vec<Entry> {
        let entry = |path: &str, content| Entry {
            path: path.into(),
            about: "about it",
            took: Duration::from_millis(7),
            content,
        };
        vec![
            entry("a/b", Ok(b"text".to_vec())),
            entry("a/none", Err("why not".into())),
            entry(&format!("long/{}", "n".repeat(200)), Ok(Vec::new())),
        ]
    }

    #[test]
    fn an_archive_and_a_folder_have_the_same_files() {
        let folder = tempfile::tempdir().unwrap();
        let (archive, tree) = (folder.path().join("a.tar.zst"), folder.path().join("d"));
        for output in [Output::Archive(archive.clone()), Output::Folder(tree.clone())] {
            Bundle::create(&output).unwrap().fill(&entries()).unwrap();
            // What is there is kept.
            assert_eq!(
                Bundle::create(&output).err().unwrap().kind(),
                io::ErrorKind::AlreadyExists
            );
        }
        assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, FILE_MODE);
        let mut read = tar::Archive::new(zstd::Decoder::new(File::open(&archive).unwrap()).unwrap());
        let mut files = BTreeMap::new();
        for entry in read.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().strip_prefix(ROOT).unwrap().to_owned();
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            files.insert(path, content);
        }
        assert_eq!(files.len(), 3);
        assert_eq!(files[Path::new("a/b")], "text");
        let index = &files[Path::new(INDEX)];
        assert!(index.contains("       4 bytes      7 ms  about it\n"), "{index}");
        assert!(index.contains("  why not (about it)\n"), "{index}");
        for (path, content) in &files {
            let there = fs::read_to_string(tree.join(path)).unwrap();
            // The indices were written at different times.
            assert!(there == *content || path == Path::new(INDEX));
        }
    }

    /// Whoever ends husk gather, by whatever signal, finds the name free.
    #[test]
    fn an_archive_that_is_not_whole_has_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let archive = folder.path().join("a");
        let mut bundle = Bundle::create(&Output::Archive(archive.clone())).unwrap();
        bundle.put("x", b"y").unwrap();
        assert!(matches!(bundle.to, To::Archive(_, false)), "no O_TMPFILE here");
        assert!(!archive.exists());
        // Somebody else takes the name.
        fs::write(&archive, "other").unwrap();
        let error = bundle.fill(&entries()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        bundle.discard();
        assert_eq!(fs::read(&archive).unwrap(), b"other");
    }

    #[test]
    fn a_bundle_that_failed_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        for output in [
            Output::Archive(folder.path().join("a")),
            Output::Folder(folder.path().join("d")),
        ] {
            let mut bundle = Bundle::create(&output).unwrap();
            bundle.put("x", b"y").unwrap();
            bundle.discard();
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
