//! What cases are made of: who acts, on what, and how an answer is written down.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::thread;

use rustix::fs::{CWD, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;
use rustix::process::{chdir, umask};
use rustix::thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid};

use crate::kernel;

/// What a case has to say, or which of the calls that prepare it failed.
pub type Found = Result<String, Errno>;
/// What a call answered, as far as anybody cares.
pub type Did = Result<(), Errno>;

/// Some call, by its name.
pub type Act = (&'static str, fn() -> Did);

type Body = Box<dyn Fn() -> Found + Send + Sync>;

/// One rule.
pub struct Case {
    pub name: String,
    pub rule: String,
    body: Body,
}

/// All of them.
#[derive(Default)]
pub struct Cases(pub Vec<Case>);

impl Cases {
    /// Adds the rule that `body`, in an empty folder of its own and as root with the usual umask, says `rule`.
    pub fn add(
        &mut self,
        name: impl Into<String>,
        rule: impl Into<String>,
        body: impl Fn() -> Found + Send + Sync + 'static,
    ) {
        self.0.push(Case {
            name: name.into(),
            rule: rule.into(),
            body: Box::new(body),
        });
    }
}

impl Case {
    /// Does it in `folder`, on a thread that changes its directory, umask and user without anybody else.
    pub fn run(&self, folder: &Path) -> String {
        let on_thread = || {
            kernel::own_directories()?;
            chdir(folder)?;
            umask(Mode::from_raw_mode(0o022));
            (self.body)()
        };
        match thread::scope(|scope| scope.spawn(on_thread).join()) {
            Ok(Ok(found)) => found,
            Ok(Err(errno)) => format!("was prepared in vain: {}", name(errno)),
            Err(_) => "panicked".into(),
        }
    }
}

/// Somebody on the host or in the guest.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Groups beside that.
    pub groups: &'static [u32],
}

/// Who owns most things.
pub const OWNER: User = User {
    uid: 1001,
    gid: 1001,
    groups: &[],
};
/// Of the owner's group.
pub const MEMBER: User = User {
    uid: 1002,
    gid: 1001,
    groups: &[],
};
/// Of the owner's group as well, beside another.
pub const SUPPLEMENTARY: User = User {
    uid: 1003,
    gid: 1003,
    groups: &[1001],
};
/// Nobody in particular.
pub const OTHER: User = User {
    uid: 1004,
    gid: 1004,
    groups: &[],
};

/// Does `act` as `user`, with nothing of root's left.
pub fn as_user<T: Send>(user: User, act: impl FnOnce() -> Result<T, Errno> + Send) -> Result<T, Errno> {
    let on_thread = || {
        let groups: Vec<_> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        let gid = Gid::from_raw(user.gid);
        set_thread_res_gid(gid, gid, gid)?;
        let uid = Uid::from_raw(user.uid);
        set_thread_res_uid(uid, uid, uid)?;
        act()
    };
    thread::scope(|scope| scope.spawn(on_thread).join()).unwrap_or(Err(Errno::CANCELED))
}

/// An answer in words: `ok`, or the name of the error.
pub fn said<T>(answer: Result<T, Errno>) -> String {
    match answer {
        Ok(_) => "ok".into(),
        Err(errno) => name(errno),
    }
}

macro_rules! names {
    ($errno:expr; $($name:ident)*) => {
        match $errno {
            $(Errno::$name => concat!("E", stringify!($name)).into(),)*
            other => format!("error {}", other.raw_os_error()),
        }
    };
}

/// The error's name as the manual pages have it.
pub fn name(errno: Errno) -> String {
    match errno {
        Errno::ACCESS => "EACCES".into(),
        Errno::TOOBIG => "E2BIG".into(),
        errno => {
            names!(errno; AGAIN BADF BUSY CANCELED DEADLK EXIST FBIG INTR INVAL IO ISDIR LOOP MLINK NAMETOOLONG NODATA NODEV
            NOENT NOLCK NOSPC NOSYS NOTCONN NOTDIR NOTEMPTY NOTTY NXIO OPNOTSUPP OVERFLOW PERM PIPE RANGE ROFS SPIPE STALE TXTBSY XDEV)
        }
    }
}

/// Opens `path`; a file that is made has the mode 0644 less the umask.
pub fn open(path: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o644))
}

/// Opens a file that is there to read and write.
pub fn edit(path: &str) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDWR)
}

/// Makes a file with this mode, whatever the umask, and opens it to read and write.
pub fn create(path: &str, mode: u32) -> Result<OwnedFd, Errno> {
    let file = open(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)?;
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    Ok(file)
}

/// Makes a file.
pub fn file(path: &str) -> Did {
    create(path, 0o644).map(drop)
}

/// Makes a file with this content.
pub fn file_of(path: &str, content: &[u8]) -> Did {
    write(create(path, 0o644)?, content)
}

/// Makes a file of somebody with this mode.
pub fn file_by(user: User, path: &str, mode: u32) -> Did {
    create(path, 0o600)?;
    give(user, path, mode)
}

/// Makes a folder of somebody with this mode.
pub fn folder_by(user: User, path: &str, mode: u32) -> Did {
    folder(path)?;
    give(user, path, mode)
}

/// Gives something away. The mode comes after the owner, whose change takes bits of it.
pub fn give(user: User, path: &str, mode: u32) -> Did {
    rustix::fs::chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
    chmod(path, mode)
}

/// Makes a folder.
pub fn folder(path: &str) -> Did {
    rustix::fs::mkdir(path, Mode::from_raw_mode(0o755))
}

/// Makes a symbolic link.
pub fn symlink(target: &str, path: &str) -> Did {
    rustix::fs::symlink(target, path)
}

/// Makes a pipe, socket or device.
pub fn node(path: &str, kind: FileType, device: u64) -> Did {
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o644), device)
}

pub fn chmod(path: &str, mode: u32) -> Did {
    rustix::fs::chmod(path, Mode::from_raw_mode(mode))
}

pub fn chown(path: &str, uid: Option<u32>, gid: Option<u32>) -> Did {
    rustix::fs::chown(path, uid.map(Uid::from_raw), gid.map(Gid::from_raw))
}

pub fn truncate(path: &str, bytes: i64) -> Did {
    // The one call that rustix has for descriptors only.
    let name = std::ffi::CString::new(path).map_err(|_| Errno::INVAL)?;
    kernel::truncate(&name, bytes)
}

/// Writes all of it at the beginning.
pub fn write(file: impl AsFd, content: &[u8]) -> Did {
    write_at(file, content, 0)
}

/// Writes all of it.
pub fn write_at(file: impl AsFd, content: &[u8], offset: u64) -> Did {
    let written = rustix::io::pwrite(file, content, offset)?;
    if written == content.len() {
        Ok(())
    } else {
        Err(Errno::IO)
    }
}

/// The first bytes of a file as text, at most 256, with a dot for each zero.
pub fn content(path: &str) -> Found {
    text(open(path, OFlags::RDONLY)?)
}

/// As [`content`], of what is open.
pub fn text(file: impl AsFd) -> Found {
    let mut bytes = [0; 256];
    let count = rustix::io::pread(file, &mut bytes, 0)?;
    let read = bytes.get(..count).unwrap_or_default();
    Ok(read
        .iter()
        .map(|byte| if *byte == 0 { '.' } else { char::from(*byte) })
        .collect())
}

/// Of the thing itself, be it a link.
pub fn stat(path: &str) -> Result<Stat, Errno> {
    rustix::fs::lstat(path)
}

/// Permissions with the bits above them, in octal digits.
pub fn mode(path: &str) -> Found {
    Ok(format!("{:o}", stat(path)?.st_mode & 0o7777))
}

/// `UID:GID MODE`.
pub fn owner(path: &str) -> Found {
    let stat = stat(path)?;
    Ok(format!("{}:{} {:o}", stat.st_uid, stat.st_gid, stat.st_mode & 0o7777))
}

/// A word for what something is; `nothing`, if it is not there.
pub fn kind(path: &str) -> Found {
    let stat = match stat(path) {
        Err(Errno::NOENT) => return Ok("nothing".into()),
        stat => stat?,
    };
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "file",
        FileType::Directory => "folder",
        FileType::Symlink => "link",
        FileType::Fifo => "pipe",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
    .into())
}

/// The names in a folder, in their order.
pub fn names(path: &str) -> Found {
    let folder = rustix::fs::Dir::new(open(path, OFlags::DIRECTORY)?)?;
    let mut names = Vec::new();
    for entry in folder {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.retain(|name| name != "." && name != "..");
    names.sort();
    Ok(names.join(" "))
}

/// Sets an attribute, there or not.
pub fn set_attribute(path: &str, attribute: &str, value: &[u8]) -> Did {
    rustix::fs::lsetxattr(path, attribute, value, XattrFlags::empty())
}

/// An attribute as text.
pub fn attribute(path: &str, attribute: &str) -> Found {
    let mut value = [0; 256];
    let count = rustix::fs::lgetxattr(path, attribute, &mut value[..])?;
    Ok(String::from_utf8_lossy(value.get(..count).unwrap_or_default()).into_owned())
}
