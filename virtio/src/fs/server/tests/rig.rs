//! A guest's side of a server.

use vm_memory::VolatileSlice;

use crate::fs::filesystem::Abilities;
use crate::fs::model::Model;
use crate::fs::protocol::flags::init;
use crate::fs::serve::{Outcome, Serve};
use crate::fs::server::Server;

/// Flags that Linux 6.1 offers on a virtio-fs device without DAX.
pub const LINUX_6_1: u64 = 0x1_7bff_fffb;
/// Flags that Linux 6.12 offers: `CREATE_SUPP_GROUP` to `ALLOW_IDMAP` in addition, but for
/// `PASSTHROUGH`, which takes a configuration of its own.
pub const LINUX_6_12: u64 = LINUX_6_1 | 0x1dc << 32;

/// All that there is.
pub const ALL: Abilities = Abilities {
    readonly: false,
    xattr: true,
    posix_acl: true,
    locks: true,
    submounts: true,
    writeback: true,
    security_context: true,
    killpriv: true,
    direct_mmap: true,
    readdirplus: true,
    unshared: false,
};

/// User, group and process of all requests.
pub const UID: u32 = 1000;
pub const GID: u32 = 100;
pub const PID: u32 = 77;

/// A request: its opcode, the node, and what follows the header.
#[derive(Clone, Debug)]
pub struct Request {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub extensions: u16,
    pub body: Vec<u8>,
}

impl Request {
    pub fn bytes(&self) -> Vec<u8> {
        let len = u32::try_from(40 + self.body.len()).unwrap();
        [
            &len.to_le_bytes()[..],
            &self.opcode.to_le_bytes(),
            &self.unique.to_le_bytes(),
            &self.node.to_le_bytes(),
            &UID.to_le_bytes(),
            &GID.to_le_bytes(),
            &PID.to_le_bytes(),
            &self.extensions.to_le_bytes(),
            &[0; 2],
            &self.body,
        ]
        .concat()
    }
}

/// `opcode` on `node`, with the concatenation of `parts`.
pub fn request(opcode: u32, node: u64, parts: &[&[u8]]) -> Request {
    Request {
        opcode,
        unique: 0x1122_3344,
        node,
        extensions: 0,
        body: parts.concat(),
    }
}

/// Numbers of 32 bits, one after the other.
pub fn u32s(numbers: impl IntoIterator<Item = u32>) -> Vec<u8> {
    numbers.into_iter().flat_map(u32::to_le_bytes).collect()
}

/// Numbers of 64 bits, one after the other.
pub fn u64s(numbers: impl IntoIterator<Item = u64>) -> Vec<u8> {
    numbers.into_iter().flat_map(u64::to_le_bytes).collect()
}

/// A reply: the error, and what follows the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub error: i32,
    pub body: Vec<u8>,
}

pub fn success(body: impl Into<Vec<u8>>) -> Reply {
    let body = body.into();
    Reply { error: 0, body }
}

pub fn failure(errno: rustix::io::Errno) -> Reply {
    Reply {
        error: -errno.raw_os_error(),
        body: Vec::new(),
    }
}

/// A server, and the file system behind it.
pub struct Rig {
    pub server: Server,
    pub model: Model,
}

impl Rig {
    /// In a session with Linux 6.12.
    pub fn new() -> Self {
        Self::with(ALL, LINUX_6_12)
    }

    /// In a session with a guest that offers `flags`.
    pub fn with(abilities: Abilities, flags: u64) -> Self {
        let rig = Self::before_init(abilities);
        assert_eq!(rig.ask(&init_request(7, 41, flags)).error, 0);
        rig.model.calls();
        rig
    }

    pub fn before_init(abilities: Abilities) -> Self {
        let model = Model::new(abilities);
        let server = Server::new(model.clone());
        Self { server, model }
    }

    /// See [`hand_in`].
    pub fn hand_in(&self, request: &[u8], room: usize, piece: usize) -> (Outcome, Vec<u8>) {
        hand_in(&self.server, request, room, piece)
    }

    /// See [`ask_in`]. There is room for all.
    pub fn ask(&self, request: &Request) -> Reply {
        self.ask_in(request, 1 << 16)
    }

    /// See [`ask_in`].
    pub fn ask_in(&self, request: &Request, room: usize) -> Reply {
        ask_in(&self.server, request, room)
    }

    /// Tells the server that `request` will not come again.
    pub fn give_up(&self, request: &[u8]) {
        let mut request = request.to_vec();
        let whole = [VolatileSlice::from(&mut request[..])];
        Serve::give_up(&self.server, whole.into_iter().collect());
    }

    /// The counter called `name`.
    pub fn count(&self, name: &str) -> u64 {
        let all = self.server.counters();
        all.iter().find(|(known, _)| *known == name).unwrap().1
    }
}

/// Hands in `request` in pieces of `piece` bytes, with a reply of `room` bytes in such pieces.
/// Bytes that the server did not say it wrote must be as they were.
pub fn hand_in(server: &Server, request: &[u8], room: usize, piece: usize) -> (Outcome, Vec<u8>) {
    let mut request = request.to_vec();
    let mut reply = vec![0xee_u8; room];
    let outcome = {
        let asked = request.chunks_mut(piece).map(VolatileSlice::from).collect();
        let answer = reply.chunks_mut(piece).map(VolatileSlice::from).collect();
        server.handle(asked, answer)
    };
    let len = match outcome {
        Outcome::Done(len) => usize::try_from(len).unwrap(),
        Outcome::Wait => 0,
    };
    assert!(len <= room, "{len} bytes written where {room} fit");
    let rest = reply.split_off(len);
    assert!(rest == vec![0xee; rest.len()], "more was written than was said");
    (outcome, reply)
}

/// Asks with room for so many bytes behind the header, and takes the reply's header off.
pub fn ask_in(server: &Server, request: &Request, room: usize) -> Reply {
    let (outcome, bytes) = hand_in(server, &request.bytes(), 16 + room, 1 << 20);
    let len = u32::try_from(bytes.len()).unwrap();
    assert_eq!(outcome, Outcome::Done(len), "{request:?}");
    assert_eq!(bytes[..4], len.to_le_bytes(), "{request:?}");
    assert_eq!(bytes[8..16], request.unique.to_le_bytes(), "{request:?}");
    Reply {
        error: i32::from_le_bytes(bytes[4..8].try_into().unwrap()),
        body: bytes[16..].to_vec(),
    }
}

/// `INIT` as Linux sends it.
pub fn init_request(major: u32, minor: u32, flags: u64) -> Request {
    let mut body = u32s([major, minor, 0x2_0000, u32::try_from(flags & 0xffff_ffff).unwrap()]);
    if flags & init::INIT_EXT != 0 {
        body.extend(u32s([u32::try_from(flags >> 32).unwrap()]));
        body.extend([0; 44]);
    }
    request(26, 0, &[&body])
}

/// A `fuse_entry_out` for the model's `node`, of which `attr` are bytes 8 to 88 of its attributes.
pub fn attr(node: u64, size: u64, mode: u32, nlink: u32, uid: u32, gid: u32) -> Vec<u8> {
    let mtime = if uid == 0 { [0, 0] } else { [1000, 17] };
    [
        u64s([1000 + node, size, size.div_ceil(512), mtime[0], mtime[0], 1000]),
        u32s([u32::try_from(mtime[1]).unwrap(), u32::try_from(mtime[1]).unwrap(), 17]),
        u32s([mode, nlink, uid, gid, 0, 4096, 0]),
    ]
    .concat()
}

/// A `fuse_entry_out` around that.
pub fn entry(node: u64, attr: &[u8]) -> Vec<u8> {
    [&u64s([node, 9, 1, 3])[..], &u32s([2, 4]), attr].concat()
}
