//! A good request of every kind, and what it is answered, to the byte.

use rustix::io::Errno;

use super::rig::*;
use crate::fs::filesystem::{Caller, Creation, FileSystem, Handle, Name, Node, Writing};
use crate::fs::model::Model;
use crate::fs::protocol::Opcode;
use crate::fs::protocol::flags::init::INIT_EXT;

/// The root; a file with contents and an attribute, and its handle; a directory, and its handle; a
/// symbolic link. The next node, and the next handle if a node comes before it.
pub const ROOT: u64 = 1;
pub const FILE: u64 = 2;
pub const OPEN_FILE: u64 = 103;
pub const DIRECTORY: u64 = 4;
pub const OPEN_DIRECTORY: u64 = 105;
pub const LINK: u64 = 6;
pub const NEXT: u64 = 7;
pub const NEXT_HANDLE: u64 = 108;

pub const CONTENTS: &[u8] = b"hello world";

/// A request, and what must come of it.
pub struct Case {
    pub request: Request,
    /// `None` if there is no reply.
    pub reply: Option<Reply>,
    /// The call that the file system gets, if any.
    pub call: Option<String>,
}

impl Case {
    pub fn opcode(&self) -> Opcode {
        Opcode::of(self.request.opcode).unwrap()
    }
}

/// A server in a session, with the files above.
pub fn furnished() -> Rig {
    let rig = Rig::new();
    furnish(&rig.model);
    rig
}

/// Makes the files above.
pub fn furnish(model: &Model) {
    let caller = Caller {
        uid: UID,
        gid: GID,
        pid: PID,
        group: None,
    };
    let name = |name| Name::new(name).unwrap();
    let made = |mode| Creation {
        mode,
        ..Creation::default()
    };
    let file = model.mknod(&caller, Node::ROOT, name(c"f"), &made(0o100_644)).unwrap();
    let open = model.open(&caller, file.node, 2, false).unwrap();
    let directory = model.mkdir(&caller, Node::ROOT, name(c"d"), &made(0o040_755)).unwrap();
    let list = model.opendir(&caller, directory.node).unwrap();
    let link = model.symlink(&caller, Node::ROOT, name(c"l"), c"../target", &made(0o120_777));
    model
        .setxattr(&caller, file.node, c"user.a", b"value", 0, false)
        .unwrap();
    let mut contents = CONTENTS.to_vec();
    let mut iovecs = crate::iovecs::Iovecs::default();
    let mut live = iovecs.begin();
    live.push(vm_memory::VolatileSlice::from(&mut contents[..]));
    model
        .write(&caller, file.node, open.handle, 0, live.buffers(), Writing::default())
        .unwrap();
    let made = [
        file.node.0,
        open.handle.0,
        directory.node.0,
        list.handle.0,
        link.unwrap().node.0,
    ];
    assert_eq!(made, [FILE, OPEN_FILE, DIRECTORY, OPEN_DIRECTORY, LINK]);
    assert_eq!(open.handle, Handle(OPEN_FILE));
    model.calls();
}

const CALLER: &str = "Caller { uid: 1000, gid: 100, pid: 77, group: None }";

fn created(node: u64, mode: u32, nlink: u32) -> Vec<u8> {
    entry(node, &attr(node, 0, mode, nlink, UID, GID))
}

fn creation(mode: u32, umask: u32, rdev: u32) -> String {
    format!("Creation {{ mode: {mode}, umask: {umask}, rdev: {rdev}, label: None }}")
}

/// A case of `opcode` that is answered with `body`.
fn case(opcode: u32, node: u64, parts: &[&[u8]], body: impl Into<Vec<u8>>, call: impl Into<String>) -> Case {
    Case {
        request: request(opcode, node, parts),
        reply: Some(success(body)),
        call: Some(call.into()),
    }
}

fn unanswered(opcode: u32, node: u64, parts: &[&[u8]], call: Option<&str>) -> Case {
    Case {
        request: request(opcode, node, parts),
        reply: None,
        call: call.map(str::to_string),
    }
}

/// One of each kind.
pub fn catalogue() -> Vec<Case> {
    [names(), attributes(), files(), directories(), locks(), others()]
        .into_iter()
        .flatten()
        .collect()
}

fn names() -> Vec<Case> {
    let file = entry(FILE, &attr(FILE, 11, 0o100_644, 1, UID, GID));
    let linked = entry(FILE, &attr(FILE, 11, 0o100_644, 2, UID, GID));
    let mut fifo = created(NEXT, 0o020_640, 1);
    fifo[116..120].copy_from_slice(&0x103_u32.to_le_bytes());
    let mut link = created(NEXT, 0o120_777, 1);
    link[48..56].copy_from_slice(&4_u64.to_le_bytes());
    link[56..64].copy_from_slice(&1_u64.to_le_bytes());
    vec![
        case(1, ROOT, &[b"f\0"], file, r#"lookup 1000 1 "f""#),
        unanswered(2, FILE, &[&u64s([1])], Some("forget 2 1")),
        case(5, LINK, &[], *b"../target", "readlink 6"),
        case(
            6,
            ROOT,
            &[b"new\0", b"a/..\0"],
            link,
            format!(r#"symlink {CALLER} 1 "new" "a/.." {}"#, creation(0o120_777, 0, 0)),
        ),
        case(
            8,
            ROOT,
            &[&u32s([0o020_666, 0x103, 0o1027, 0]), b"new\0"],
            fifo,
            format!(r#"mknod {CALLER} 1 "new" {}"#, creation(0o020_666, 0o27, 0x103)),
        ),
        case(
            9,
            DIRECTORY,
            &[&u32s([0o1777, 0o22]), b"new\0"],
            created(NEXT, 0o041_755, 2),
            format!(r#"mkdir {CALLER} 4 "new" {}"#, creation(0o041_777, 0o22, 0)),
        ),
        case(10, ROOT, &[b"f\0"], [], r#"unlink 1000 1 "f""#),
        case(11, ROOT, &[b"d\0"], [], r#"rmdir 1000 1 "d""#),
        case(
            12,
            ROOT,
            &[&u64s([DIRECTORY]), b"f\0g\0"],
            [],
            r#"rename 1000 1 "f" 4 "g" 0"#,
        ),
        case(13, DIRECTORY, &[&u64s([FILE]), b"g\0"], linked, r#"link 1000 2 4 "g""#),
        unanswered(
            42,
            0,
            &[&u32s([2, 0]), &u64s([FILE, 1, DIRECTORY, 3])],
            Some("forget 2 1\nforget 4 3"),
        ),
        case(
            45,
            ROOT,
            &[&u64s([DIRECTORY]), &u32s([1, 0]), b"f\0g\0"],
            [],
            r#"rename 1000 1 "f" 4 "g" 1"#,
        ),
    ]
}

fn attributes() -> Vec<Case> {
    let looked = [&u64s([3])[..], &u32s([4, 0]), &attr(FILE, 11, 0o100_644, 1, UID, GID)].concat();
    let mut changed = [&u64s([3])[..], &u32s([4, 0]), &attr(FILE, 5, 0o100_600, 1, 5, 6)].concat();
    // Modified at -7 and 9 nanoseconds, accessed now.
    changed[48..56].copy_from_slice(&(-7_i64).to_le_bytes());
    changed[68..72].copy_from_slice(&9_u32.to_le_bytes());
    // Mode, owners, size, both times, the handle, "now" for the first time.
    let set = [
        u32s([0b1111_1111 | 1 << 11, 0]),
        u64s([OPEN_FILE, 5, 0, 0, (-7_i64).cast_unsigned(), 0]),
        u32s([0, 9, 0, 0o100_600, 0, 5, 6, 0]),
    ]
    .concat();
    let statx = [
        u64s([3]),
        u32s([4, 0]),
        u64s([0, 0]),
        u32s([0xfff, 4096]),
        u64s([0]),
        u32s([1, UID, GID, 0o100_644]),
        u64s([1000 + FILE, 11, 1, 0]),
        u64s([1000, 17, (-1_i64).cast_unsigned(), 5, 1000, 17, 1000, 17]),
        vec![0; 128],
    ]
    .concat();
    let space = [u64s([100, 50, 40, 30, 20]), u32s([4096, 255, 512, 0]), vec![0; 24]].concat();
    vec![
        case(
            3,
            FILE,
            &[&u32s([1, 0]), &u64s([OPEN_FILE])],
            looked,
            "getattr 2 Some(Handle(103))",
        ),
        case(
            4,
            FILE,
            &[&set],
            changed,
            "setattr 1000 2 Some(Handle(103)) Change { mode: Some(384), uid: Some(5), gid: Some(6), size: Some(5), \
             atime: Some(Now), mtime: Some(At(Time { sec: -7, nsec: 9 })), kill_priv: true }",
        ),
        case(17, ROOT, &[], space, "statfs 1"),
        case(
            21,
            FILE,
            &[&u32s([3, 1, 1, 0]), b"user.b\0", b"abc"],
            [],
            r#"setxattr 1000 2 "user.b" 3 1 true"#,
        ),
        case(
            22,
            FILE,
            &[&u32s([5, 0]), b"user.a\0"],
            *b"value",
            r#"getxattr 2 "user.a" 5"#,
        ),
        case(23, FILE, &[&u32s([100, 0])], *b"user.a\0", "listxattr 2 100"),
        case(24, FILE, &[b"user.a\0"], [], r#"removexattr 1000 2 "user.a""#),
        case(34, FILE, &[&u32s([6, 0])], [], "access 1000 2 6"),
        case(
            52,
            FILE,
            &[&u32s([0, 0]), &u64s([0]), &u32s([0, 0xfff])],
            statx,
            "getattr 2 None",
        ),
    ]
}

fn files() -> Vec<Case> {
    let opened = |handle| [u64s([handle]), u32s([2, 0])].concat();
    let new = [created(NEXT, 0o100_644, 1), opened(NEXT_HANDLE)].concat();
    let unnamed = [created(NEXT, 0o100_600, 0), opened(NEXT_HANDLE)].concat();
    let read = [u64s([OPEN_FILE, 6]), u32s([5, 0]), u64s([0, 0])].concat();
    vec![
        case(
            14,
            FILE,
            &[&u32s([0o100_002, 1])],
            opened(NEXT + 100),
            r#"open 1000 2 "0x2" true"#,
        ),
        case(15, FILE, &[&read], *b"world", "read 2 103 6 1"),
        case(16, FILE, &[&read, b"earth"], u32s([5, 0]), "write 1000 2 103 6 1 false"),
        case(
            18,
            FILE,
            &[&u64s([OPEN_FILE]), &u32s([0, 2]), &u64s([66])],
            [],
            "release 2 103 Some(66)",
        ),
        case(20, FILE, &[&u64s([OPEN_FILE]), &u32s([1, 0])], [], "fsync 2 103 true"),
        case(25, FILE, &[&u64s([OPEN_FILE, 0, 66])], [], "flush 2 103 66"),
        case(
            35,
            ROOT,
            &[&u32s([0o302, 0o100_666, 0o22, 0]), b"new\0"],
            new,
            format!(
                r#"create {CALLER} 1 "new" "0x82" false {}"#,
                creation(0o100_666, 0o22, 0)
            ),
        ),
        case(
            43,
            FILE,
            &[&u64s([OPEN_FILE, 4, 20]), &u32s([0, 0])],
            [],
            "fallocate 2 103 0 4 20",
        ),
        case(
            46,
            FILE,
            &[&u64s([OPEN_FILE, 4]), &u32s([4, 0])],
            u64s([11]),
            "lseek 2 103 4 4",
        ),
        case(
            47,
            FILE,
            &[&u64s([OPEN_FILE, 6, FILE, OPEN_FILE, 0, 100, 0])],
            u32s([5, 0]),
            "copy_file_range (Node(2), Handle(103), 6) (Node(2), Handle(103), 0) 100 0",
        ),
        case(
            51,
            DIRECTORY,
            &[&u32s([0o20_200_002, 0o600, 0, 0]), b"/\0"],
            unnamed,
            format!(r#"tmpfile {CALLER} 4 "0x2" {}"#, creation(0o100_600, 0, 0)),
        ),
    ]
}

fn directories() -> Vec<Case> {
    let list = [u64s([OPEN_DIRECTORY, 0]), u32s([4096, 0]), u64s([0, 0])].concat();
    let dirent = |node: u64, next: u64, name: &[u8]| {
        let namelen = u32::try_from(name.len()).unwrap();
        let mut bytes = [&u64s([1000 + node, next])[..], &u32s([namelen, 4]), name].concat();
        bytes.resize(32, 0);
        bytes
    };
    let (this, above) = (dirent(DIRECTORY, 1, b"."), dirent(ROOT, 2, b".."));
    let nothing = vec![0; 128];
    let plus = [&nothing[..], &this, &nothing, &above].concat();
    let opened = [u64s([NEXT + 100]), u32s([0b1010, 0])].concat();
    vec![
        case(27, DIRECTORY, &[&u32s([0, 0])], opened, "opendir 1000 4"),
        case(
            28,
            DIRECTORY,
            &[&list],
            [this, above].concat(),
            "readdir 1000 4 105 0 false",
        ),
        case(29, DIRECTORY, &[&u64s([OPEN_DIRECTORY, 0, 0])], [], "releasedir 4 105"),
        case(30, DIRECTORY, &[&u64s([OPEN_DIRECTORY, 0])], [], "fsyncdir 4 105 false"),
        case(44, DIRECTORY, &[&list], plus, "readdir 1000 4 105 0 true"),
    ]
}

fn locks() -> Vec<Case> {
    let end = (1 << 63) - 1;
    let lock = |kind| [u64s([OPEN_FILE, 66, 4, end]), u32s([kind, 5, 0, 0])].concat();
    let wanted = |kind| {
        format!("Lock {{ owner: 66, pid: 5, kind: {kind}, start: 4, end: 18446744073709551615, whole_file: false }}")
    };
    let free = [u64s([4, end]), u32s([2, 0])].concat();
    vec![
        case(31, FILE, &[&lock(1)], free, format!("getlk 2 103 {}", wanted("Write"))),
        case(
            32,
            FILE,
            &[&lock(0)],
            [],
            format!("setlk 2 103 {} false", wanted("Read")),
        ),
        case(
            33,
            FILE,
            &[&lock(2)],
            [],
            format!("setlk 2 103 {} true", wanted("Unlock")),
        ),
        unanswered(36, 0, &[&u64s([5])], None),
    ]
}

fn others() -> Vec<Case> {
    let mut init = init_request(7, 39, INIT_EXT);
    init.node = 0;
    let versions = [
        u32s([7, 39, 0x2_0000, 1 << 30, 192 << 16 | 256, 32 * 4096, 1]),
        vec![0; 36],
    ]
    .concat();
    vec![
        Case {
            request: init,
            reply: Some(success(versions)),
            call: Some("reset".into()),
        },
        case(38, 0, &[], [], "reset"),
        Case {
            request: request(39, FILE, &[&u64s([OPEN_FILE]), &u32s([0, 0x8008_6601]), &u64s([0, 0])]),
            reply: Some(failure(Errno::NOTTY)),
            call: None,
        },
        case(50, ROOT, &[&u64s([0])], [], "syncfs 1"),
    ]
}
