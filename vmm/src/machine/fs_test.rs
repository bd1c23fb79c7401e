//! That threads of a share may do what they have to: a process whose threads are confined, and every kind of request.

use std::path::Path;

use husk_virtio::fs::serve::{Outcome, Serve};
use husk_virtio::ring::{Reader, Writer};
use vm_memory::VolatileSlice;

use super::*;
use crate::config::IdTranslation;
use crate::seccomp::{Mode, Role};
use crate::subprocess::{expect_passed, rerun};

/// The folder that the process is to serve.
const CONFINED: &str = "HUSK_FILES_CONFINED";
/// What it says at its end.
const DONE: &str = "every request was answered";
/// What Linux 6.12 offers at `FUSE_INIT`.
const OFFERED: [u32; 2] = [0x7bff_fffb, 0x1dd];
/// The root, as FUSE numbers it.
const ROOT: u64 = 1;

/// One thread's way of asking.
struct Guest<'a>(&'a Server);

/// A reply: error, then what follows the header.
type Reply = (i32, Vec<u8>);

impl Guest<'_> {
    fn ask(&self, opcode: u32, node: u64, parts: &[&[u8]]) -> Reply {
        let body = parts.concat();
        let length = u32::try_from(40 + body.len()).unwrap();
        // Of the guest, and not who runs this.
        let user = [1000u32, 1000, 77, 0].map(u32::to_le_bytes).concat();
        let mut request = [
            &length.to_le_bytes()[..],
            &opcode.to_le_bytes(),
            &u64::to_le_bytes(9),
            &node.to_le_bytes(),
            &user,
            &body,
        ]
        .concat();
        let mut reply = vec![0; 16 + 8192];
        let outcome = self.0.handle(
            Reader::from_iter([VolatileSlice::from(&mut request[..])]),
            Writer::from_iter([VolatileSlice::from(&mut reply[..])]),
        );
        let Outcome::Done(length) = outcome else {
            panic!("{opcode} waits")
        };
        reply.truncate(usize::try_from(length).unwrap());
        if reply.is_empty() {
            return (0, reply);
        }
        let error = i32::from_le_bytes(reply[4..8].try_into().unwrap());
        (error, reply.split_off(16))
    }

    /// The same for what must succeed; the first number of the reply.
    #[track_caller]
    fn must(&self, opcode: u32, node: u64, parts: &[&[u8]]) -> u64 {
        let (error, body) = self.ask(opcode, node, parts);
        assert_eq!(error, 0, "request {opcode}");
        body.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
    }
}

fn long(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn short(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Asks for everything that there is. Opcodes and structures are those of `include/uapi/linux/fuse.h`.
fn ask_for_everything(guest: &Guest<'_>) {
    names(guest);
    contents(guest);
    attributes(guest);
    locks(guest);
}

/// `MKDIR`, `CREATE`, `MKNOD`, `SYMLINK`, `LINK`, `READLINK`, `RENAME`, `RENAME2`, lists, `UNLINK`,
/// `RMDIR`, `FORGET`, `TMPFILE`.
fn names(guest: &Guest<'_>) {
    let folder = guest.must(9, ROOT, &[&short(&[0o755, 0o022]), b"folder\0"]);
    let file = guest.must(35, folder, &[&short(&[0o102, 0o100_644, 0o022, 0]), b"file\0"]);
    guest.must(8, folder, &[&short(&[0o010_600, 0, 0, 0]), b"pipe\0"]);
    let link = guest.must(6, folder, &[b"soft\0", b"file\0"]);
    guest.must(5, link, &[]);
    guest.must(13, folder, &[&long(&[file]), b"hard\0"]);
    guest.must(12, folder, &[&long(&[ROOT]), b"hard\0moved\0"]);
    guest.must(45, ROOT, &[&long(&[folder]), &short(&[1, 0]), b"moved\0again\0"]);
    let list = guest.must(27, folder, &[&short(&[0, 0])]);
    for opcode in [28, 44] {
        guest.must(opcode, folder, &[&long(&[list, 0]), &short(&[4096, 0]), &long(&[0, 0])]);
    }
    guest.must(30, folder, &[&long(&[list]), &short(&[0, 0])]);
    guest.must(29, folder, &[&long(&[list]), &short(&[0, 0]), &long(&[0])]);
    for name in [&b"pipe\0"[..], b"soft\0", b"again\0", b"file\0"] {
        guest.must(10, folder, &[name]);
    }
    guest.must(51, folder, &[&short(&[0o20_200_002, 0o100_600, 0, 0]), b"\0"]);
    guest.must(11, ROOT, &[b"folder\0"]);
    guest.must(2, folder, &[&long(&[1])]);
    guest.must(34, ROOT, &[&short(&[4, 0])]);
    guest.must(17, ROOT, &[]);
}

/// `OPEN`, `READ`, `WRITE`, `LSEEK`, `FALLOCATE`, `COPY_FILE_RANGE`, `FLUSH`, `FSYNC`, `SYNCFS`, `RELEASE`.
fn contents(guest: &Guest<'_>) {
    let found = guest.must(1, ROOT, &[b"given\0"]);
    let handle = guest.must(14, found, &[&short(&[2, 0])]);
    let write = [long(&[handle, 0]), short(&[7, 0]), long(&[0]), short(&[2, 0])].concat();
    guest.must(16, found, &[&write, b"abcdxyz"]);
    let (_, read) = guest.ask(
        15,
        found,
        &[&long(&[handle, 0]), &short(&[64, 0]), &long(&[0]), &short(&[2, 0])],
    );
    assert_eq!(read.get(..7), Some(&b"abcdxyz"[..]));
    guest.must(46, found, &[&long(&[handle, 0]), &short(&[4, 0])]);
    guest.must(43, found, &[&long(&[handle, 0, 4096]), &short(&[0, 0])]);
    let copy = long(&[handle, 0, found, handle, 1000, 4, 0]);
    guest.must(47, found, &[&copy]);
    guest.must(25, found, &[&long(&[handle, 0, 7])]);
    for data_only in [0, 1] {
        guest.must(20, found, &[&long(&[handle]), &short(&[data_only, 0])]);
    }
    guest.must(50, ROOT, &[&long(&[0])]);
    guest.must(18, found, &[&long(&[handle]), &short(&[2, 0]), &long(&[0])]);
}

/// `GETATTR`, `SETATTR`, attributes with names.
fn attributes(guest: &Guest<'_>) {
    let found = guest.must(1, ROOT, &[b"given\0"]);
    let (_, attr) = guest.ask(3, found, &[&short(&[0, 0]), &long(&[0])]);
    // Owner and group of a `fuse_attr_out`: anybody may give his own files to himself.
    let [uid, gid] = [84, 88].map(|at| u32::from_le_bytes(attr[at..at + 4].try_into().unwrap()));
    // FATTR_MODE, UID, GID, SIZE, ATIME, MTIME: one after the other, and by an open file.
    let handle = guest.must(14, found, &[&short(&[2, 0])]);
    for (valid, mode) in [
        (1u32, 0o640),
        (2, 0),
        (4, 0),
        (8, 0),
        (0x30, 0),
        (0x41, 0o600),
        (0x48, 0),
    ] {
        let times = [long(&[handle, 3, 0, 1, 1, 0]), short(&[0, 0, 0])].concat();
        let rest = short(&[mode, 0, uid, gid, 0]);
        guest.must(4, found, &[&short(&[valid, 0]), &times, &rest]);
    }
    // Not every file system has attributes of users.
    let set = [short(&[5, 0, 0, 0]), b"user.name\0value".to_vec()].concat();
    if guest.ask(21, found, &[&set]).0 == 0 {
        guest.must(22, found, &[&short(&[100, 0]), b"user.name\0"]);
        guest.must(23, found, &[&short(&[100, 0])]);
        guest.must(24, found, &[b"user.name\0"]);
    }
    guest.must(18, found, &[&long(&[handle]), &short(&[2, 0]), &long(&[0])]);
}

/// `GETLK`, `SETLK`, of bytes and of the file.
fn locks(guest: &Guest<'_>) {
    let found = guest.must(1, ROOT, &[b"given\0"]);
    let handle = guest.must(14, found, &[&short(&[2, 0])]);
    // F_WRLCK and F_UNLCK.
    let lock = |kind, whole| [long(&[handle, 5, 0, 9]), short(&[kind, 77, whole, 0])].concat();
    for whole in [0, 1] {
        guest.must(32, found, &[&lock(1, whole)]);
        guest.must(32, found, &[&lock(2, whole)]);
    }
    guest.must(31, found, &[&lock(1, 0)]);
    guest.must(18, found, &[&long(&[handle]), &short(&[2, 0]), &long(&[0])]);
}

/// Not a test by itself: run by the one below, in a process of its own.
#[test]
fn confined_thread() {
    let Ok(dir) = std::env::var(CONFINED) else { return };
    crate::process::prepare();
    let mut config = FsConfig::of_dir("t", &dir);
    config.xattr = true;
    config.locks = true;
    let opened = std::thread::scope(|scope| {
        let control = scope.spawn(|| {
            Mode::On.enter(Role::Control).unwrap();
            Server::open(&share(&config, Path::new(&dir)).unwrap())
        });
        control.join().unwrap()
    });
    let server = opened.unwrap();
    let work = || {
        Mode::On.enter(Role::Spawner).unwrap();
        server.enter().unwrap();
        Mode::On.enter(Role::Files).unwrap();
        let guest = Guest(&server);
        let init = [short(&[7, 41, 0x2_0000]), short(&OFFERED), vec![0; 44]].concat();
        guest.must(26, 0, &[&init]);
        ask_for_everything(&guest);
        // Also once all nodes and handles have gone.
        server.reset();
        guest.must(26, 0, &[&init]);
        ask_for_everything(&guest);
        drop(server);
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    eprintln!("{DONE}");
}

#[test]
fn the_threads_of_a_share_may_do_what_they_have_to() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("given"), "abcdef").unwrap();
    let mut confined = rerun("machine::fs::tests::confined_thread");
    assert_eq!(expect_passed(confined.env(CONFINED, folder.path()), DONE), Ok(()));
}

#[test]
fn users_have_the_numbers_on_the_host_that_the_share_gives_them() {
    use std::os::unix::fs::MetadataExt;
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root: files of others are to be made");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let to = |host| {
        let (guest, count) = (1000, 1);
        vec![IdTranslation::both_ways(guest, host, count)]
    };
    let mut config = FsConfig::of_dir("t", folder.path());
    config.translate_uid = to(101_000);
    config.translate_gid = to(201_000);
    let server = Server::open(&share(&config, folder.path()).unwrap()).unwrap();
    let work = || {
        server.enter().unwrap();
        let guest = Guest(&server);
        let init = [short(&[7, 41, 0x2_0000]), short(&OFFERED), vec![0; 44]].concat();
        guest.must(26, 0, &[&init]);
        let made = guest.must(9, ROOT, &[&short(&[0o755, 0]), b"made\0"]);
        // FATTR_UID and FATTR_GID: first himself, then somebody who has no number on the host.
        let set = |uid: u32| {
            let times = [long(&[0; 6]), short(&[0, 0, 0])].concat();
            guest
                .ask(4, made, &[&short(&[6, 0]), &times, &short(&[0, 0, uid, 1000, 0])])
                .0
        };
        assert_eq!((set(1000), set(1001)), (0, -libc::EPERM));
        // Owner and group of a `fuse_attr_out`, and of one that has no number in the guest.
        let owner = |node| {
            let (error, attr) = guest.ask(3, node, &[&short(&[0, 0]), &long(&[0])]);
            assert_eq!(error, 0);
            let at = |offset: usize| u32::from_le_bytes(attr[offset..offset + 4].try_into().unwrap());
            (at(16 + 68), at(16 + 72))
        };
        assert_eq!(owner(made), (1000, 1000));
        assert_eq!(owner(ROOT), (65_534, 65_534));
    };
    std::thread::scope(|scope| scope.spawn(work).join().unwrap());
    let found = folder.path().join("made").metadata().unwrap();
    assert_eq!((found.uid(), found.gid()), (101_000, 201_000));
}

#[test]
fn every_switch_of_a_folder_reaches_its_share() {
    let folder = tempfile::tempdir().unwrap();
    let usual = share(&FsConfig::of_dir("t", "/d"), folder.path()).unwrap();
    let others = FsConfig {
        readonly: true,
        writeback: true,
        direct_io: true,
        mmap: true,
        xattr: true,
        posix_acl: true,
        submounts: false,
        locks: true,
        security_label: true,
        ..FsConfig::of_dir("t", "/d")
    };
    let others = share(&others, folder.path()).unwrap();
    let switches = |share: &ShareConfig| {
        [
            share.readonly,
            share.writeback,
            share.allow_direct_io,
            share.allow_mmap,
            share.xattr,
            share.posix_acl,
            !share.announce_submounts,
            share.locks,
            share.security_label,
        ]
    };
    assert_eq!((switches(&usual), switches(&others)), ([false; 9], [true; 9]));
}
