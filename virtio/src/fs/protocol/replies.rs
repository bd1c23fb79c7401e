//! What replies consist of, behind their header: structures `fuse_…_out` of `fuse.h`, made of what
//! the file system says.

use std::time::Duration;

use zerocopy::little_endian::{I32, I64, U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::flags;
use super::requests::wire;
use crate::fs::filesystem as fs;

wire! {
    /// `fuse_out_header`.
    Header, 16 { len: U32, error: I32, unique: U64, }
    /// `fuse_attr`.
    Attr, 88 {
        ino: U64,
        size: U64,
        blocks: U64,
        atime: I64,
        mtime: I64,
        ctime: I64,
        atimensec: U32,
        mtimensec: U32,
        ctimensec: U32,
        mode: U32,
        nlink: U32,
        uid: U32,
        gid: U32,
        rdev: U32,
        blksize: U32,
        flags: U32,
    }
    /// `fuse_attr_out`.
    AttrOut, 104 { attr_valid: U64, attr_valid_nsec: U32, dummy: U32, attr: Attr, }
    /// `fuse_entry_out`.
    Entry, 128 {
        nodeid: U64,
        generation: U64,
        entry_valid: U64,
        attr_valid: U64,
        entry_valid_nsec: U32,
        attr_valid_nsec: U32,
        attr: Attr,
    }
    /// `fuse_open_out`.
    Opened, 16 { fh: U64, open_flags: U32, padding: U32, }
    /// What `CREATE` answers.
    Created, 144 { entry: Entry, opened: Opened, }
    /// `fuse_write_out`.
    Written, 8 { size: U32, padding: U32, }
    /// `fuse_statfs_out`.
    Statfs, 80 {
        blocks: U64,
        bfree: U64,
        bavail: U64,
        files: U64,
        ffree: U64,
        bsize: U32,
        namelen: U32,
        frsize: U32,
        padding: U32,
        spare: [U32; 6],
    }
    /// `fuse_getxattr_out`.
    XattrSize, 8 { size: U32, padding: U32, }
    /// `fuse_lk_out`.
    Lk, 24 { start: U64, end: U64, kind: U32, pid: U32, }
    /// `fuse_init_out`.
    Init, 64 {
        major: U32,
        minor: U32,
        max_readahead: U32,
        flags: U32,
        max_background: U16,
        congestion_threshold: U16,
        max_write: U32,
        time_gran: U32,
        max_pages: U16,
        map_alignment: U16,
        flags2: U32,
        unused: [U32; 7],
    }
    /// `fuse_lseek_out`.
    Lseek, 8 { offset: U64, }
    /// `fuse_dirent` without its name.
    Dirent, 24 { ino: U64, off: U64, namelen: U32, kind: U32, }
    /// `fuse_sx_time`.
    StatxTime, 16 { tv_sec: I64, tv_nsec: U32, reserved: I32, }
    /// `fuse_statx`.
    Statx, 256 {
        mask: U32,
        blksize: U32,
        attributes: U64,
        nlink: U32,
        uid: U32,
        gid: U32,
        mode: U16,
        spare0: U16,
        ino: U64,
        size: U64,
        blocks: U64,
        attributes_mask: U64,
        atime: StatxTime,
        btime: StatxTime,
        ctime: StatxTime,
        mtime: StatxTime,
        rdev_major: U32,
        rdev_minor: U32,
        dev_major: U32,
        dev_minor: U32,
        spare2: [U64; 14],
    }
    /// `fuse_statx_out`.
    StatxOut, 288 { attr_valid: U64, attr_valid_nsec: U32, flags: U32, spare: [U64; 2], stat: Statx, }
}

/// `STATX_BASIC_STATS` and `STATX_BTIME` of statx(2).
const STATX_BASIC_STATS: u32 = 0x7ff;
const STATX_BTIME: u32 = 0x800;

impl From<&fs::Attr> for Attr {
    fn from(attr: &fs::Attr) -> Self {
        Self {
            ino: attr.ino.into(),
            size: attr.size.into(),
            blocks: attr.blocks.into(),
            atime: attr.atime.sec.into(),
            mtime: attr.mtime.sec.into(),
            ctime: attr.ctime.sec.into(),
            atimensec: attr.atime.nsec.into(),
            mtimensec: attr.mtime.nsec.into(),
            ctimensec: attr.ctime.nsec.into(),
            mode: attr.mode.into(),
            nlink: attr.nlink.into(),
            uid: attr.uid.into(),
            gid: attr.gid.into(),
            rdev: attr.rdev.into(),
            blksize: attr.blksize.into(),
            flags: if attr.submount { flags::ATTR_SUBMOUNT } else { 0 }.into(),
        }
    }
}

impl AttrOut {
    /// `attr`, good for `ttl`.
    pub fn new(attr: &fs::Attr, ttl: Duration) -> Self {
        Self {
            attr_valid: ttl.as_secs().into(),
            attr_valid_nsec: ttl.subsec_nanos().into(),
            dummy: U32::ZERO,
            attr: attr.into(),
        }
    }
}

impl From<&fs::Entry> for Entry {
    fn from(entry: &fs::Entry) -> Self {
        Self {
            nodeid: entry.node.0.into(),
            generation: entry.generation.into(),
            entry_valid: entry.ttl.entry.as_secs().into(),
            attr_valid: entry.ttl.attr.as_secs().into(),
            entry_valid_nsec: entry.ttl.entry.subsec_nanos().into(),
            attr_valid_nsec: entry.ttl.attr.subsec_nanos().into(),
            attr: (&entry.attr).into(),
        }
    }
}

impl From<&fs::Opened> for Opened {
    fn from(opened: &fs::Opened) -> Self {
        use flags::fopen::{CACHE_DIR, DIRECT_IO, KEEP_CACHE, PARALLEL_DIRECT_WRITES};
        let flags = [
            (opened.direct, DIRECT_IO | PARALLEL_DIRECT_WRITES),
            (opened.keep_cache, KEEP_CACHE),
            (opened.cache_dir, CACHE_DIR),
        ];
        let set = flags.iter().filter(|(set, _)| *set);
        Self {
            fh: opened.handle.0.into(),
            open_flags: set.fold(0, |all, (_, flag)| all | flag).into(),
            padding: U32::ZERO,
        }
    }
}

impl From<&fs::Space> for Statfs {
    fn from(space: &fs::Space) -> Self {
        Self {
            blocks: space.blocks.into(),
            bfree: space.free.into(),
            bavail: space.available.into(),
            files: space.files.into(),
            ffree: space.files_free.into(),
            bsize: space.block_size.into(),
            namelen: space.name_max.into(),
            frsize: space.fragment_size.into(),
            padding: U32::ZERO,
            spare: [U32::ZERO; 6],
        }
    }
}

impl From<fs::Time> for StatxTime {
    fn from(time: fs::Time) -> Self {
        Self {
            tv_sec: time.sec.into(),
            tv_nsec: time.nsec.into(),
            reserved: I32::ZERO,
        }
    }
}

impl StatxOut {
    /// `attr`, good for `ttl`.
    pub fn new(attr: &fs::Attr, ttl: Duration) -> Self {
        let born = if attr.btime.is_some() { STATX_BTIME } else { 0 };
        let (major, minor) = fs::device_numbers(attr.rdev);
        let mut out = Self::new_zeroed();
        out.attr_valid = ttl.as_secs().into();
        out.attr_valid_nsec = ttl.subsec_nanos().into();
        let stat = &mut out.stat;
        stat.mask = (STATX_BASIC_STATS | born).into();
        stat.blksize = attr.blksize.into();
        stat.nlink = attr.nlink.into();
        stat.uid = attr.uid.into();
        stat.gid = attr.gid.into();
        // Types and permissions have 16 bits.
        stat.mode = u16::try_from(attr.mode & 0xffff).unwrap_or_default().into();
        stat.ino = attr.ino.into();
        stat.size = attr.size.into();
        stat.blocks = attr.blocks.into();
        stat.atime = attr.atime.into();
        stat.btime = attr.btime.unwrap_or_default().into();
        stat.ctime = attr.ctime.into();
        stat.mtime = attr.mtime.into();
        stat.rdev_major = major.into();
        stat.rdev_minor = minor.into();
        out
    }
}
