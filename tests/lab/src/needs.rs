//! What tests may need that a machine can lack, in fixed words, and whether this machine has it.
//!
//! A test that cannot run prints `skipped: needs X`, or `skipped: needs X, Y`, where each is one of
//! [`NEEDS`]. After a colon may follow what it was told: `skipped: needs io_uring: Operation not
//! permitted`.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, FileType, IFlags, Mode, OFlags, XattrFlags};
use rustix::net::SendFlags;
use rustix::thread::{CoreSchedulingScope, core_scheduling_cookie, gettid};

use crate::command::{command, find, output};
use crate::host::{self, Host};
use crate::sys;

/// Something that tests need.
struct Need {
    /// What tests call it.
    name: &'static str,
    /// Whether this machine has it, for this user.
    is_here: fn() -> bool,
}

const fn need(name: &'static str, is_here: fn() -> bool) -> Need {
    Need { name, is_here }
}

/// All that tests may need. Where tests make files is the folder for temporary ones.
const NEEDS: [Need; 37] = [
    need("a native host", || true),
    need("root", is_root),
    // Devices.
    need("/dev/kvm", || host::open_kvm().is_ok()),
    need("/dev/vhost-net", || can_open("/dev/vhost-net")),
    need("/dev/vhost-vsock", || can_open("/dev/vhost-vsock")),
    need("/dev/fuse", || can_open("/dev/fuse")),
    need("a tun device", || can_open("/dev/net/tun")),
    need("a loop device", has_loop_device),
    need("null_blk", || knows_module("null_blk")),
    need("quota_v2", || knows_module("quota_v2")),
    // What the kernel has, and lets this user have.
    need("mounts", || mounts(&[])),
    need("user namespaces", || mounts(&["--user", "--map-root-user"])),
    need("a network namespace", || succeeds("unshare", &["--net", "true"])),
    need("io_uring", sys::has_io_uring),
    need("core scheduling", has_core_scheduling),
    need("data out of band on Unix sockets", has_out_of_band),
    need("overlayfs", || knows_module("overlay")),
    need("btrfs", || knows_module("btrfs")),
    need("Landlock", || sys::landlock_version() >= 2),
    need("no SELinux", || !Path::new("/sys/fs/selinux/enforce").exists()),
    // What the file system has, and lets this user have.
    need("ext4", is_ext4),
    need("file handles", has_file_handles),
    need("security attributes", || takes_attribute("security.husk_lab", b"label")),
    need("access control lists", || {
        takes_attribute("system.posix_acl_access", &LIST)
    }),
    need("files that can only be appended to", has_append_only),
    need("a file system with O_DIRECT", has_o_direct),
    need("device nodes", has_device_nodes),
    need("inode numbers that are used again", reuses_numbers),
    // Programs.
    need("qemu-system-x86_64", || find("qemu-system-x86_64").is_some()),
    need("mke2fs", || find("mke2fs").is_some()),
    need("mkfs.btrfs", || find("mkfs.btrfs").is_some()),
    need("debugfs", || find("debugfs").is_some()),
    need("unshare", || find("unshare").is_some()),
    // Those that the lab brings along: a test that does not find them was not told.
    need("containerd", || true),
    need("nginx", || true),
    need("prometheus", || true),
    need("promtool", || true),
];

/// An access control list that says what mode 0644 does (acl(5), linux/posix_acl_xattr.h): a
/// version, then tag, permissions and number of owner, group and others.
const LIST: [u8; 28] = [
    2, 0, 0, 0, //
    1, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
    4, 0, 4, 0, 0xff, 0xff, 0xff, 0xff, //
    32, 0, 4, 0, 0xff, 0xff, 0xff, 0xff,
];

/// What a reason says that a test needs; `None` if it names something that is not known here.
fn named(reason: &str) -> Option<Vec<&'static Need>> {
    let named = reason.strip_prefix("needs ")?.split(": ").next()?;
    named
        .split(", ")
        .map(|name| NEEDS.iter().find(|need| need.name == name))
        .collect()
}

/// Whether a test that skips for `reason` on `host` really lacks something there. A reason that is
/// not known here excuses nothing. An emulated host has everything: it is made for these tests,
/// which are root there.
pub fn allows_skip(reason: &str, host: Host) -> bool {
    named(reason).is_some_and(|needs| {
        needs.iter().any(|need| match host {
            Host::Emulated => need.name == "a native host",
            Host::Native => !(need.is_here)(),
        })
    })
}

/// Root over all users, and not just in a namespace.
fn has_core_scheduling() -> bool {
    core_scheduling_cookie(gettid(), CoreSchedulingScope::Thread).is_ok()
}

fn is_root() -> bool {
    let users = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    rustix::process::geteuid().is_root() && users.split_whitespace().any(|count| count == "4294967295")
}

fn can_open(path: &str) -> bool {
    File::options().read(true).write(true).open(path).is_ok()
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    output(command(program).args(arguments)).is_ok()
}

fn knows_module(name: &str) -> bool {
    succeeds("modprobe", &["--dry-run", name])
}

/// Whether this user may mount in namespaces of his own.
fn mounts(more: &[&str]) -> bool {
    let mount = ["--mount", "mount", "-t", "tmpfs", "none", "/tmp"];
    output(command("unshare").args(more).args(mount)).is_ok()
}

/// Whether the kernel has `CONFIG_AF_UNIX_OOB`.
fn has_out_of_band() -> bool {
    let sent = |(one, _other): (UnixStream, UnixStream)| Ok(rustix::net::send(one, b"!", SendFlags::OOB)?);
    UnixStream::pair().and_then(sent).is_ok()
}

/// Whether a file becomes a loop device, and is none afterwards.
fn has_loop_device() -> bool {
    let attached =
        in_a_file(|_, path| output(command("losetup").args(["--find", "--show"]).arg(path)).map_err(io::Error::other));
    attached.is_ok_and(|device| succeeds("losetup", &["--detach", device.trim()]))
}

/// What `look` says of a new file of one page.
fn in_a_file<T>(look: impl FnOnce(&File, &Path) -> io::Result<T>) -> io::Result<T> {
    let file = tempfile::NamedTempFile::new()?;
    file.as_file().set_len(4096)?;
    look(file.as_file(), file.path())
}

fn is_ext4() -> bool {
    const EXT4_SUPER_MAGIC: i64 = 0xef53;
    in_a_file(|file, _| Ok(rustix::fs::fstatfs(file)?.f_type == EXT4_SUPER_MAGIC)).unwrap_or(false)
}

fn has_file_handles() -> bool {
    in_a_file(|file, _| sys::open_by_handle(file)).is_ok()
}

fn takes_attribute(name: &str, value: &[u8]) -> bool {
    in_a_file(|file, _| Ok(rustix::fs::fsetxattr(file, name, value, XattrFlags::empty())?)).is_ok()
}

fn has_append_only() -> bool {
    let set = |file: &File, flags| rustix::fs::ioctl_setflags(file, flags);
    in_a_file(|file, _| Ok(set(file, IFlags::APPEND).and_then(|()| set(file, IFlags::empty()))?)).is_ok()
}

fn has_o_direct() -> bool {
    let Ok(file) = tempfile::NamedTempFile::new() else {
        return false;
    };
    rustix::fs::open(file.path(), OFlags::RDWR | OFlags::DIRECT, Mode::empty()).is_ok()
}

fn has_device_nodes() -> bool {
    let Ok(folder) = tempfile::tempdir() else { return false };
    let (mode, null) = (Mode::from_raw_mode(0o600), rustix::fs::makedev(1, 3));
    rustix::fs::mknodat(CWD, folder.path().join("null"), FileType::CharacterDevice, mode, null).is_ok()
}

/// Whether a new file ever gets the number of one that is gone.
fn reuses_numbers() -> bool {
    let number = || in_a_file(|file, _| Ok(file.metadata()?.ino())).ok();
    let mut last = number();
    (0..200).any(|_| {
        let next = number();
        std::mem::replace(&mut last, next) == next
    })
}

#[cfg(test)]
#[path = "needs_test.rs"]
mod tests;
