//! A folder of the host by FUSE (Linux `include/uapi/linux/fuse.h`, 7.31): what a guest needs to
//! write trees and to read them.
//!
//! | request: `fuse_in_header` | bytes | field                            |
//! |---------------------------|-------|----------------------------------|
//! | 0                         | 4     | `len`                            |
//! | 4                         | 4     | `opcode`                         |
//! | 8                         | 8     | `unique`                         |
//! | 16                        | 8     | `nodeid`: 1 is the folder itself |
//! | 24                        | 16    | user, group, process             |
//!
//! A node is a path, for ever; names and attributes may not be cached, so that what the host
//! changes is seen. There is no renaming and no removing: what a guest would ask for that is
//! answered with `ENOSYS`.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

const HEADER_BYTES: usize = 40;
/// The longest write, and what a read may bring.
const MAX_WRITE: u32 = 128 << 10;
/// `FUSE_ASYNC_READ`, `FUSE_BIG_WRITES`, `FUSE_PARALLEL_DIROPS`.
const FLAGS: u32 = 1 | 1 << 5 | 1 << 18;
/// What of a node is set: `FATTR_MODE`, `FATTR_SIZE`.
const SET_MODE: u32 = 1;
const SET_SIZE: u32 = 1 << 3;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
const READLINK: u32 = 5;
const SYMLINK: u32 = 6;
const MKDIR: u32 = 9;
const LINK: u32 = 13;
const OPEN: u32 = 14;
/// The request by which a file's content is asked for.
pub const READ: u32 = 15;
const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const READDIR: u32 = 28;
const RELEASEDIR: u32 = 29;
const FSYNCDIR: u32 = 30;
const CREATE: u32 = 35;
const DESTROY: u32 = 38;
const BATCH_FORGET: u32 = 42;

/// A folder that is served.
pub struct Folder {
    /// By node, less one.
    nodes: Mutex<Vec<PathBuf>>,
}

/// What a request asks for.
pub fn opcode(request: &[u8]) -> Option<u32> {
    Fields(request.get(4..)?).u32().ok()
}

impl Folder {
    pub fn new(root: &Path) -> Self {
        Self {
            nodes: Mutex::new(vec![root.into()]),
        }
    }

    /// The reply to a request, header and all. `None` if there is none to it.
    pub fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let mut header = Fields(request.get(4..HEADER_BYTES)?);
        let (opcode, unique, node) = (header.u32().ok()?, header.u64().ok()?, header.u64().ok()?);
        if [FORGET, BATCH_FORGET].contains(&opcode) {
            return None;
        }
        let done = self.perform(opcode, node, Fields(request.get(HEADER_BYTES..)?));
        let (error, body) = match done {
            Ok(body) => (0, body),
            Err(error) => (-error.raw_os_error().unwrap_or(libc::EIO), Vec::new()),
        };
        let len = u32::try_from(body.len() + 16).ok()?;
        Some(
            [
                &len.to_le_bytes()[..],
                &error.to_le_bytes(),
                &unique.to_le_bytes(),
                &body,
            ]
            .concat(),
        )
    }

    fn perform(&self, opcode: u32, node: u64, mut fields: Fields<'_>) -> io::Result<Vec<u8>> {
        if opcode == INIT {
            return Ok(init());
        }
        let path = self.path(node)?;
        match opcode {
            LOOKUP => self.entry(path.join(fields.name()?)),
            GETATTR => attributes(&path),
            SETATTR => set(&path, &mut fields),
            READLINK => Ok(path.read_link()?.into_os_string().as_bytes().to_vec()),
            SYMLINK => {
                let link = path.join(fields.name()?);
                symlink(fields.name()?, &link)?;
                self.entry(link)
            }
            LINK => {
                let from = self.path(fields.u64()?)?;
                let link = path.join(fields.name()?);
                fs::hard_link(from, &link)?;
                self.entry(link)
            }
            MKDIR => {
                let mode = fields.u32()?;
                fields.u32()?;
                let folder = path.join(fields.name()?);
                fs::create_dir(&folder)?;
                fs::set_permissions(&folder, Permissions::from_mode(mode))?;
                self.entry(folder)
            }
            CREATE => self.create(&path, &mut fields),
            READ => read(&path, &mut fields),
            WRITE => write(&path, &mut fields),
            READDIR => list(&path, &mut fields),
            // A handle of no meaning.
            OPEN | OPENDIR => Ok(vec![0; 16]),
            STATFS => Ok(vec![0; 80]),
            RELEASE | RELEASEDIR | FSYNC | FSYNCDIR | FLUSH | DESTROY => Ok(Vec::new()),
            _ => Err(errno(libc::ENOSYS)),
        }
    }

    fn path(&self, node: u64) -> io::Result<PathBuf> {
        let nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = usize::try_from(node).ok().and_then(|node| node.checked_sub(1));
        index
            .and_then(|index| nodes.get(index).cloned())
            .ok_or(errno(libc::ESTALE))
    }

    fn create(&self, folder: &Path, fields: &mut Fields<'_>) -> io::Result<Vec<u8>> {
        let (_flags, mode) = (fields.u32()?, fields.u32()?);
        fields.u64()?;
        let path = folder.join(fields.name()?);
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(false).open(&path)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        let mut reply = self.entry(path)?;
        reply.extend([0; 16]);
        Ok(reply)
    }

    /// `fuse_entry_out` of a path that exists.
    fn entry(&self, path: PathBuf) -> io::Result<Vec<u8>> {
        let data = path.symlink_metadata()?;
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match nodes.iter().position(|known| *known == path) {
            Some(index) => index,
            None => {
                nodes.push(path);
                nodes.len() - 1
            }
        };
        let mut reply = (index as u64 + 1).to_le_bytes().to_vec();
        // Generation, and no time during which it would be valid.
        reply.extend([0; 32]);
        reply.extend(attr(&data));
        Ok(reply)
    }
}

/// `fuse_init_out`.
fn init() -> Vec<u8> {
    let words = [7, 31, MAX_WRITE, FLAGS, 0, MAX_WRITE];
    let mut reply = words.map(u32::to_le_bytes).concat();
    reply.resize(64, 0);
    reply
}

/// `fuse_attr_out`.
fn attributes(path: &Path) -> io::Result<Vec<u8>> {
    let mut reply = vec![0; 16];
    reply.extend(attr(&path.symlink_metadata()?));
    Ok(reply)
}

fn attr(data: &Metadata) -> Vec<u8> {
    let times = [data.atime(), data.mtime(), data.ctime()].map(i64::cast_unsigned);
    let long = [&[data.ino(), data.size(), data.blocks()][..], &times].concat();
    let links = u32::try_from(data.nlink()).unwrap_or(u32::MAX);
    let short = [0, 0, 0, data.mode(), links, data.uid(), data.gid(), 0, 4096, 0];
    let mut bytes: Vec<u8> = long.into_iter().flat_map(u64::to_le_bytes).collect();
    bytes.extend(short.into_iter().flat_map(u32::to_le_bytes));
    bytes
}

fn set(path: &Path, fields: &mut Fields<'_>) -> io::Result<Vec<u8>> {
    let valid = fields.u32()?;
    fields.take(12)?;
    let size = fields.u64()?;
    // Lock owner and times.
    fields.take(44)?;
    let mode = fields.u32()?;
    if valid & SET_SIZE != 0 {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if valid & SET_MODE != 0 {
        fs::set_permissions(path, Permissions::from_mode(mode & 0o7777))?;
    }
    attributes(path)
}

fn read(path: &Path, fields: &mut Fields<'_>) -> io::Result<Vec<u8>> {
    let (offset, size) = range(fields)?;
    let file = File::open(path)?;
    let mut bytes = vec![0; size];
    let mut filled = 0;
    while let Some(room) = bytes.get_mut(filled..).filter(|room| !room.is_empty()) {
        match file.read_at(room, offset + filled as u64)? {
            0 => break,
            count => filled += count,
        }
    }
    bytes.truncate(filled);
    Ok(bytes)
}

fn write(path: &Path, fields: &mut Fields<'_>) -> io::Result<Vec<u8>> {
    let (offset, size) = range(fields)?;
    // Flags, lock owner.
    fields.take(20)?;
    let file = OpenOptions::new().write(true).open(path)?;
    file.write_all_at(fields.take(size)?, offset)?;
    let written = u32::try_from(size).map_err(|_| errno(libc::EINVAL))?;
    Ok([written, 0].map(u32::to_le_bytes).concat())
}

/// `fuse_dirent`s from an offset on, which is the number of those before.
fn list(path: &Path, fields: &mut Fields<'_>) -> io::Result<Vec<u8>> {
    let (offset, size) = range(fields)?;
    let mut entries = fs::read_dir(path)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_unstable_by_key(fs::DirEntry::file_name);
    let mut reply = Vec::new();
    for (number, entry) in (1_u64..).zip(entries) {
        if number <= offset {
            continue;
        }
        let name = entry.file_name();
        let data = entry.metadata()?;
        let len = u32::try_from(name.len()).map_err(|_| errno(libc::ENAMETOOLONG))?;
        let mut bytes = [data.ino(), number].map(u64::to_le_bytes).concat();
        bytes.extend([len, data.mode() >> 12].map(u32::to_le_bytes).concat());
        bytes.extend(name.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        if reply.len() + bytes.len() > size {
            break;
        }
        reply.extend(bytes);
    }
    Ok(reply)
}

/// Offset and size of `fuse_read_in` and `fuse_write_in`.
fn range(fields: &mut Fields<'_>) -> io::Result<(u64, usize)> {
    fields.u64()?;
    let (offset, size) = (fields.u64()?, fields.u32()?);
    if size > MAX_WRITE {
        return Err(errno(libc::EINVAL));
    }
    Ok((offset, size as usize))
}

fn errno(number: i32) -> io::Error {
    io::Error::from_raw_os_error(number)
}

/// What is left of a request.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn take(&mut self, count: usize) -> io::Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(errno(libc::EINVAL))?;
        self.0 = rest;
        Ok(taken)
    }

    fn u32(&mut self) -> io::Result<u32> {
        let bytes = self.take(4)?.try_into().map_err(|_| ErrorKind::InvalidInput)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn u64(&mut self) -> io::Result<u64> {
        let bytes = self.take(8)?.try_into().map_err(|_| ErrorKind::InvalidInput)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// A name, up to its zero.
    fn name(&mut self) -> io::Result<&'a OsStr> {
        let len = self.0.iter().position(|byte| *byte == 0).ok_or(errno(libc::EINVAL))?;
        let name = self.take(len)?;
        self.take(1)?;
        Ok(OsStr::from_bytes(name))
    }
}
