//! What stands at a path: a file or a link, and how one is told from another later.

use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::procfs;

/// A file or a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A regular file.
    File {
        /// Its bytes.
        bytes: Vec<u8>,
        /// Its permissions.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where it points.
        target: PathBuf,
    },
}

/// What is remembered of [`Content`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Fingerprint {
    /// Of a file: SHA-256, as hexadecimal digits.
    Sha256(String),
    /// Of a link: where it points.
    Link(PathBuf),
}

impl Content {
    /// A file that everybody may read.
    pub fn text(text: impl Into<String>) -> Self {
        Self::File {
            bytes: text.into().into_bytes(),
            mode: 0o644,
        }
    }

    /// A copy of what somebody else wrote, with or without something added: for everybody if that
    /// `is_public`, for its owner alone otherwise. Its group is not the original's, and may not
    /// read it either.
    pub fn copy(text: impl Into<String>, is_public: bool) -> Self {
        Self::File {
            bytes: text.into().into_bytes(),
            mode: if is_public { 0o644 } else { 0o600 },
        }
    }

    /// What stands at `path`; `None` if nothing does.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is neither file nor link.
    pub fn read(path: &Path) -> io::Result<Option<Self>> {
        let found = match fs::symlink_metadata(path) {
            Ok(found) => found,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if found.is_symlink() {
            return fs::read_link(path).map(|target| Some(Self::Link { target }));
        }
        if !found.is_file() {
            return Err(io::Error::other("is neither a file nor a link"));
        }
        let (bytes, mode) = (fs::read(path)?, found.mode() & 0o7777);
        Ok(Some(Self::File { bytes, mode }))
    }

    /// What is remembered of it.
    pub fn fingerprint(&self) -> Fingerprint {
        match self {
            Self::File { bytes, .. } => Fingerprint::Sha256(digest(bytes)),
            Self::Link { target } => Fingerprint::Link(target.clone()),
        }
    }

    /// Puts it at `path` in one step, in place of what stands there.
    ///
    /// It is made in the folder above first: engines and shims read every file of a folder of
    /// drop-ins, half-written ones too. A folder that is a mount of its own has no such place:
    /// there a file has no name until it is whole, and then for a moment two.
    ///
    /// # Errors
    ///
    /// The host refused; `path` is as it was.
    pub fn put(&self, path: &Path) -> io::Result<()> {
        let [above, beside] = drafts(path);
        // Left by one that was killed.
        let _ = fs::remove_file(&above);
        let placed = self.make(&above).and_then(|()| fs::rename(&above, path));
        let _ = fs::remove_file(&above);
        match placed {
            // A folder above that nobody may write to says nothing of this one.
            Err(error) if is_of_other_mount(&error) => {
                let _ = fs::remove_file(&beside);
                let placed = self.make_at_once(&beside).and_then(|()| fs::rename(&beside, path));
                if placed.is_err() {
                    let _ = fs::remove_file(&beside);
                }
                placed
            }
            placed => placed,
        }
    }

    fn make(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Link { target } => symlink(target, path),
            Self::File { bytes, mode } => {
                let mut options = fs::File::options();
                let file = options.write(true).create_new(true).mode(0o600).open(path)?;
                fill(file, bytes, *mode).map(drop)
            }
        }
    }

    /// As [`make`](Self::make), where nobody sees a part of it.
    fn make_at_once(&self, path: &Path) -> io::Result<()> {
        let Self::File { bytes, mode } = self else {
            return self.make(path);
        };
        let folder = path.parent().unwrap_or(path);
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR)?;
        let file = fill(file.into(), bytes, *mode)?;
        procfs::give_name(&file, path)
    }
}

/// Whether everybody may read the file at `path`: its mode and those of the folders between it and
/// `root` let them. One that cannot be looked at counts as secret.
pub fn is_public(root: &Path, path: &Path) -> bool {
    let allows = |path: &Path, bit| fs::metadata(path).is_ok_and(|found| found.mode() & bit != 0);
    let (Ok(root), Ok(path)) = (fs::canonicalize(root), fs::canonicalize(path)) else {
        return false;
    };
    let mut folders = path.ancestors().skip(1).take_while(|folder| *folder != root);
    allows(&path, 0o004) && folders.all(|folder| allows(folder, 0o001))
}

/// Writes `bytes` to `file`, which gets `mode` whatever the umask is.
fn fill(mut file: fs::File, bytes: &[u8], mode: u32) -> io::Result<fs::File> {
    io::Write::write_all(&mut file, bytes)?;
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
    file.sync_all()?;
    Ok(file)
}

/// Whether a folder may be another mount than the one above, as far as `error` tells: that one
/// cannot be written to, or nothing can be moved from one into the other.
fn is_of_other_mount(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::CrossesDevices | io::ErrorKind::ReadOnlyFilesystem
    )
}

/// Where that which is to stand at `path` is made: in the folder above, or beside it; the same
/// places at each try, so that what is left of one that was killed is found. Who has the
/// [lock](super::Lock) has them alone.
pub fn drafts(path: &Path) -> [PathBuf; 2] {
    const NAME: &str = ".husk-install";
    let folder = path.parent().unwrap_or(path);
    [folder.parent().unwrap_or(folder), folder].map(|folder| folder.join(NAME))
}

/// Removes what is left of one that was killed when it was to make `path`.
pub fn remove_drafts(path: &Path) {
    for draft in drafts(path) {
        let _ = fs::remove_file(draft);
    }
}

/// SHA-256 of `bytes`, as hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    #[cfg(test)]
    DIGESTED.with_borrow_mut(|digested| digested.push(bytes.to_vec()));
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
thread_local! {
    /// What this thread has made digests of.
    pub static DIGESTED: std::cell::RefCell<Vec<Vec<u8>>> = const { std::cell::RefCell::new(Vec::new()) };
}
