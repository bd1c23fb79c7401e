//! Files that a process writes to, read through its own descriptors.
//!
//! What a process calls its log or its guest's console is its own word, and a bundle is often made
//! by root: a name alone would have any process choose a file of root's. So a file is read only
//! where the process has it open for writing, and what is read is what that descriptor has, in
//! whatever mount namespace the process is and whatever has become of the name since.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::process::geteuid;

use super::parts::FILE_BYTES;
use crate::fleet::HuskProcess;
use crate::procfs;

/// Follows the name of a file that has none any more, in `/proc/PID/fd`.
const DELETED: &str = " (deleted)";

/// A regular file that a process has open for writing.
pub(super) struct Written {
    /// Its name, as the kernel knows it.
    pub(super) name: PathBuf,
    /// When it was last written to.
    pub(super) modified: SystemTime,
    file: File,
}

/// One of a husk's descriptors.
struct Descriptor<'a> {
    /// `/proc/PID`.
    folder: &'a Path,
    number: u32,
}

/// Device and inode.
type Identity = (u64, u64);

impl Written {
    /// Its end, as far as [`FILE_BYTES`] go.
    pub(super) fn tail(&self) -> Result<Vec<u8>, String> {
        let read = || -> io::Result<Vec<u8>> {
            let mut file = &self.file;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(FILE_BYTES)))?;
            let mut bytes = Vec::new();
            file.take(FILE_BYTES).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(|error| format!("{}: {error}", self.name.display()))
    }
}

/// The file that `husk` calls `path` and has open for writing.
///
/// # Errors
/// It has no such file open, or not for this user to read.
pub(super) fn called(husk: &HuskProcess, path: &Path) -> Result<Written, String> {
    let wanted = identity(husk, path);
    let name = husk.whole_path(path);
    let deleted = PathBuf::from(format!("{}{DELETED}", name.display()));
    let mut refused = format!("{}: not open there for writing", path.display());
    for descriptor in descriptors(husk)? {
        let is_it = wanted.is_some_and(|wanted| descriptor.identity() == Some(wanted))
            || descriptor.name().is_some_and(|found| found == name || found == deleted);
        if is_it && descriptor.flags().is_some_and(is_for_writing) {
            match descriptor.open() {
                Ok(file) => return Ok(file),
                Err(error) => refused = format!("{}: {error}", path.display()),
            }
        }
    }
    Err(refused)
}

/// What `husk` has open for writing as descriptor `number`.
///
/// # Errors
/// It has no such file open, or not for this user to read.
pub(super) fn behind(husk: &HuskProcess, number: u32) -> Result<Written, String> {
    let folder = &husk.folder;
    let opened = Descriptor { folder, number }.open();
    opened.map_err(|error| format!("descriptor {number}: {error}"))
}

/// The files that `husk` opened as it opens those for its guest's output, but for `others`, which
/// it has for something else: the one that was written to last is the last one.
///
/// # Errors
/// Its descriptors are not for this user to see.
pub(super) fn outputs(husk: &HuskProcess, others: &[PathBuf]) -> Result<Vec<Written>, String> {
    let others: Vec<Identity> = others.iter().filter_map(|path| identity(husk, path)).collect();
    let is_output = |descriptor: &Descriptor<'_>| {
        let own = libc::O_WRONLY | libc::O_APPEND | libc::O_NONBLOCK;
        let mask = libc::O_ACCMODE | libc::O_PATH | own;
        // What it was started with is not of its opening.
        descriptor.number > 2
            && descriptor.flags().is_some_and(|flags| flags & mask == own)
            && descriptor.identity().is_some_and(|found| !others.contains(&found))
    };
    let found = descriptors(husk)?;
    let mut files: Vec<Written> = found
        .iter()
        .filter(|descriptor| is_output(descriptor))
        .filter_map(|descriptor| descriptor.open().ok())
        .collect();
    files.sort_by_key(|file| file.modified);
    Ok(files)
}

fn descriptors(husk: &HuskProcess) -> Result<Vec<Descriptor<'_>>, String> {
    let place = husk.folder.join("fd");
    let numbers = procfs::numbers(&place).map_err(|error| format!("{}: {error}", place.display()))?;
    let folder = &husk.folder;
    Ok(numbers
        .into_iter()
        .map(|number| Descriptor { folder, number })
        .collect())
}

/// Which file `path` is for `husk`, who may have another root and other mounts. It is only looked at.
fn identity(husk: &HuskProcess, path: &Path) -> Option<Identity> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = match path.strip_prefix("/") {
        Ok(below) => {
            let root = rustix::fs::openat(CWD, husk.folder.join("root"), flags, Mode::empty()).ok()?;
            openat2(root, below, flags, Mode::empty(), ResolveFlags::IN_ROOT).ok()?
        }
        Err(_) => rustix::fs::openat(CWD, husk.folder.join("cwd").join(path), flags, Mode::empty()).ok()?,
    };
    let found = fstat(file).ok()?;
    Some((found.st_dev, found.st_ino))
}

fn is_for_writing(flags: libc::c_int) -> bool {
    flags & libc::O_PATH == 0 && matches!(flags & libc::O_ACCMODE, libc::O_WRONLY | libc::O_RDWR)
}

impl Descriptor<'_> {
    fn link(&self) -> PathBuf {
        self.folder.join("fd").join(self.number.to_string())
    }

    fn name(&self) -> Option<PathBuf> {
        fs::read_link(self.link()).ok()
    }

    fn identity(&self) -> Option<Identity> {
        let found = fs::metadata(self.link()).ok()?;
        Some((found.dev(), found.ino()))
    }

    fn about(&self) -> Option<String> {
        fs::read_to_string(self.folder.join("fdinfo").join(self.number.to_string())).ok()
    }

    fn flags(&self) -> Option<libc::c_int> {
        flags(&self.about()?)
    }

    /// The same file, for reading. A process may put another file behind the number at any time, so
    /// that it is held against what was opened: mount and inode, which the kernel tells together
    /// with the flags.
    fn open(&self) -> io::Result<Written> {
        let link = self.link();
        if !fs::metadata(&link)?.is_file() {
            return Err(io::Error::other("no regular file"));
        }
        let name = fs::read_link(&link)?;
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let file = OpenOptions::new().read(true).custom_flags(flags).open(&link)?;
        let found = file.metadata()?;
        let own = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
        let about = self.about().unwrap_or_default();
        let is_same = item(&about, "mnt_id:") == item(&own, "mnt_id:")
            && match item(&about, "ino:") {
                Some(inode) => inode.parse() == Ok(found.ino()),
                // Linux before 5.14 does not tell: whoever is asked by itself can open it anyway.
                None => fs::metadata(self.folder)?.uid() == geteuid().as_raw(),
            };
        if !found.is_file() || !is_same || !self::flags(&about).is_some_and(is_for_writing) {
            return Err(io::Error::other("not open there for writing"));
        }
        let modified = found.modified()?;
        Ok(Written { name, modified, file })
    }
}

/// The item `name` of a text like `/proc/PID/fdinfo/N`.
fn item<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// The flags in a text like `/proc/PID/fdinfo/N`, which are octal there.
fn flags(text: &str) -> Option<libc::c_int> {
    libc::c_int::from_str_radix(item(text, "flags:")?, 8).ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn contents(found: &Result<Written, String>) -> Result<Vec<u8>, &String> {
        found.as_ref().map(|file| file.tail().unwrap())
    }

    #[test]
    fn only_what_is_open_for_writing_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let husk = HuskProcess::sample();
        fs::write(path("a"), "text").unwrap();
        symlink(path("a"), path("link")).unwrap();
        let refused = format!("{}: not open there for writing", path("a").display());
        assert_eq!(contents(&called(&husk, &path("a"))), Err(&refused));
        // Neither does the name open it, nor a descriptor that reads or only names it.
        let reads = File::open(path("a")).unwrap();
        let names = rustix::fs::openat(CWD, path("a"), OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert_eq!(contents(&called(&husk, &path("a"))), Err(&refused));
        for number in [reads.as_raw_fd(), names.as_raw_fd()] {
            let number = u32::try_from(number).unwrap();
            assert!(behind(&husk, number).is_err());
        }
        let writes = File::options().append(true).open(path("a")).unwrap();
        for name in ["a", "link"] {
            assert_eq!(contents(&called(&husk, &path(name))), Ok(b"text".to_vec()), "{name}");
        }
        // Nobody has the name any more.
        fs::remove_file(path("a")).unwrap();
        assert_eq!(contents(&called(&husk, &path("a"))), Ok(b"text".to_vec()));
        drop(writes);
        assert_eq!(contents(&called(&husk, &path("a"))), Err(&refused));
    }

    #[test]
    fn the_end_of_a_long_file_is_kept_and_nothing_but_files_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut long = vec![b'a'; 10];
        long.extend(vec![b'b'; usize::try_from(FILE_BYTES).unwrap()]);
        fs::write(&path, &long).unwrap();
        let writes = File::options().append(true).open(&path).unwrap();
        let husk = HuskProcess::sample();
        let kept = called(&husk, &path).unwrap().tail().unwrap();
        assert!(kept.len() as u64 == FILE_BYTES && kept.iter().all(|byte| *byte == b'b'));
        drop(writes);
        let fifo = crate::terminal::testing::fifo(&folder);
        let both = File::options().read(true).write(true).open(&fifo).unwrap();
        let refused = called(&husk, &fifo).err().unwrap();
        assert!(refused.ends_with("no regular file"), "{refused}");
        drop(both);
        assert!(called(&husk, folder.path()).is_err());
    }

    #[test]
    fn output_is_known_by_how_it_was_opened() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let husk = HuskProcess::sample();
        let open = |name: &str, flags: libc::c_int| {
            let mut options = File::options();
            options.append(true).create(true).custom_flags(flags);
            options.open(path(name)).unwrap()
        };
        let _own = [
            open("log", libc::O_NONBLOCK),
            open("console", libc::O_NONBLOCK),
            open("other", 0),
        ];
        let found = outputs(&husk, &[path("log")]).unwrap();
        let mut names = found.iter().map(|file| &file.name);
        // Other tests have files of their own open.
        assert!(names.any(|name| *name == path("console")));
        assert!(
            !found
                .iter()
                .any(|file| file.name == path("log") || file.name == path("other"))
        );
    }
}
