//! A hostile guest of a directory that is shared: FUSE requests on a real tree, beside what it must not reach.
//!
//! The first four bytes choose what share it is ([`config`]). Then come requests of 14 bytes, and for some names and bodies counted bytes after
//! them:
//!
//! | byte | is |
//! |---|---|
//! | 0 | the opcode, modulo 64; 0 is a body of any bytes for opcode `a`, those that FUSE does not have are a new session |
//! | 1, 2 | a node that the guest was given; another one |
//! | 3 | something that it has open |
//! | 4, 5 | names ([`NAMES`]); a number that has none is followed by a name |
//! | 6 | who asks |
//! | 7 | how much room there is for the reply |
//! | 8, 9 | `a`: an offset or a size |
//! | 10 to 13 | `b`: flags, a mode |

mod fixture;
mod guest_model;

use husk_virtio::fs::serve::{Outcome, Serve};
use husk_virtio::fs::server::Server;
use husk_virtio::fs::share::{Cache, ShareConfig};
use vm_memory::VolatileSlice;

use crate::Seeds;
use crate::script::{Recorder, Script};
use fixture::{SECRET, ShareFixture};
use guest_model::{GuestModel, number};

/// Names that lead somewhere, or should not.
const NAMES: [&[u8]; 20] = [
    b"f",
    b"d",
    b"g",
    b"new",
    b"other",
    b"out",
    b"absolute",
    b"secret-link",
    b"secret",
    b"canary",
    b".",
    b"..",
    b"",
    b"/",
    b"../canary/secret",
    b"out/secret",
    b"d/../../canary",
    b"user.a",
    b"security.x",
    b"system.posix_acl_access",
];
const USER: u8 = 17;

/// Opcodes of FUSE.
const LOOKUP: u8 = 1;
const FORGET: u8 = 2;
const GETATTR: u8 = 3;
const SETATTR: u8 = 4;
const READLINK: u8 = 5;
const SYMLINK: u8 = 6;
const MKNOD: u8 = 8;
const MKDIR: u8 = 9;
const UNLINK: u8 = 10;
const RMDIR: u8 = 11;
const RENAME: u8 = 12;
const LINK: u8 = 13;
const OPEN: u8 = 14;
const READ: u8 = 15;
const WRITE: u8 = 16;
const STATFS: u8 = 17;
const RELEASE: u8 = 18;
const FSYNC: u8 = 20;
const SETXATTR: u8 = 21;
const GETXATTR: u8 = 22;
const LISTXATTR: u8 = 23;
const REMOVEXATTR: u8 = 24;
const FLUSH: u8 = 25;
const INIT: u8 = 26;
const OPENDIR: u8 = 27;
const READDIR: u8 = 28;
const RELEASEDIR: u8 = 29;
const FSYNCDIR: u8 = 30;
const GETLK: u8 = 31;
const SETLK: u8 = 32;
const SETLKW: u8 = 33;
const ACCESS: u8 = 34;
const CREATE: u8 = 35;
const DESTROY: u8 = 38;
const FALLOCATE: u8 = 43;
const READDIRPLUS: u8 = 44;
const RENAME2: u8 = 45;
const LSEEK: u8 = 46;
const COPY_FILE_RANGE: u8 = 47;
const TMPFILE: u8 = 51;
const STATX: u8 = 52;

/// All that Linux 6.12 offers.
const FLAGS: u64 = 0x1dd_7bff_fffb;
/// Most requests of an input: the tree is a real one.
const REQUESTS: usize = 200;

pub fn run(input: &[u8]) {
    live(input);
}

/// How many requests were carried out, how many refused, and how many bytes were read that had to be what they are.
type Tally = (usize, usize, usize);

/// A guest's life, if there is a share for it.
fn live(input: &[u8]) -> Option<Tally> {
    let mut script = Script::new(input);
    let fixture = ShareFixture::new();
    let config = config(&fixture, &mut script)?;
    let server = Server::open(&config).expect("a directory can be shared");
    let tally = std::thread::scope(|threads| {
        // What a thread gives up to serve it does not get back.
        let guest = threads.spawn(|| {
            server.enter().expect("a thread can serve");
            Guest::new(&server).run_script(&mut script)
        });
        guest.join().expect("the guest ends nothing but itself")
    });
    fixture.check(config.readonly);
    Some(tally)
}

/// The share that the first bytes choose.
fn config(fixture: &ShareFixture, script: &mut Script<'_>) -> Option<ShareConfig> {
    let [flags, cache, limits, locks] = [script.u8()?, script.u8()?, script.u8()?, script.u8()?];
    let has = |bit: u8| flags & 1 << bit != 0;
    let mut config = ShareConfig::new(fixture.share());
    config.readonly = has(0);
    config.writeback = has(1);
    config.allow_direct_io = has(2);
    config.xattr = has(3);
    config.posix_acl = has(3) && has(4);
    // One that leaves access control lists as they are.
    let map = ":map:security.:user.f.:".parse().expect("a map is the last rule");
    config.xattr_map = (cache & 4 != 0).then_some(map);
    config.announce_submounts = has(5);
    config.locks = has(6);
    config.cache = [Cache::Auto, Cache::Never, Cache::Always, Cache::Metadata][usize::from(cache & 3)];
    if limits != 0 {
        let limit = usize::from(limits);
        (config.max_nodes, config.max_node_descriptors, config.max_handles) = (limit + 2, limit / 8 + 1, limit / 4 + 1);
    }
    config.max_locks = usize::from(locks) + 1;
    Some(config)
}

/// A request as the script has it.
struct Wish<'a> {
    op: u8,
    nodes: [u8; 2],
    handle: u8,
    names: [&'a [u8]; 2],
    caller: u8,
    room: u8,
    a: u16,
    b: u32,
}

impl<'a> Wish<'a> {
    fn read(script: &mut Script<'a>) -> Option<Self> {
        let [op, node, other, handle, name, second] = [
            script.u8()?,
            script.u8()?,
            script.u8()?,
            script.u8()?,
            script.u8()?,
            script.u8()?,
        ];
        let mut wish = Self {
            op: op & 63,
            nodes: [node, other],
            handle,
            names: [&[]; 2],
            caller: script.u8()?,
            room: script.u8()?,
            a: script.u16()?,
            b: script.u32()?,
        };
        for (name, choice) in wish.names.iter_mut().zip([name, second]) {
            *name = match NAMES.get(usize::from(choice)) {
                Some(name) => name,
                None => script.bytes()?,
            };
        }
        Some(wish)
    }
}

struct Guest<'s> {
    server: &'s Server,
    model: GuestModel,
    unique: u64,
    done: usize,
    refused: usize,
}

impl<'s> Guest<'s> {
    fn new(server: &'s Server) -> Self {
        Self {
            server,
            model: GuestModel::default(),
            unique: 0,
            done: 0,
            refused: 0,
        }
    }

    fn run_script(mut self, script: &mut Script<'_>) -> Tally {
        self.init();
        for _ in 0..REQUESTS {
            let Some(wish) = Wish::read(script) else { break };
            self.wish(&wish, script);
        }
        let tally = (self.done, self.refused, self.model.checked());
        self.leave();
        tally
    }

    fn init(&mut self) {
        let [low, high] = [FLAGS & 0xffff_ffff, FLAGS >> 32].map(|half| u32::try_from(half).expect("a half"));
        let mut body = u32s(&[7, 41, 0, low, high]);
        body.extend([0; 44]);
        self.ask(INIT.into(), 0, 0, &body, 64)
            .expect("a session can always begin");
        self.model = GuestModel::default();
    }

    fn wish(&mut self, wish: &Wish<'_>, script: &mut Script<'_>) {
        let node = self.model.node(wish.nodes[0]);
        let (owner, handle) = self.model.handle(wish.handle);
        // What is done with something open is mostly done with its own node.
        let node = if takes_handle(wish.op) && wish.nodes[0] < 0x80 {
            owner
        } else {
            node
        };
        let room = match wish.room {
            0..0x80 => 0x2000,
            few => usize::from(few & 0x7f) * 5,
        };
        let (opcode, body) = match wish.op {
            0 => (wish.a.into(), script.bytes().unwrap_or_default().to_vec()),
            INIT | 53.. => return self.init(),
            op => (op.into(), self.body(wish, handle)),
        };
        let before = self.server.counters();
        let done = self.ask(opcode, node, wish.caller, &body, room);
        match done {
            Ok(_) => self.done += 1,
            Err(_) => self.refused += 1,
        }
        if before
            .iter()
            .zip(self.server.counters())
            .any(|(before, now)| before.0 == "sessions" && before.1 != now.1)
        {
            self.model = GuestModel::default();
        } else if opcode == u32::from(DESTROY) && done.is_ok() {
            self.init();
        } else {
            self.model.note(opcode, node, &body, &done);
        }
    }

    /// What follows the header, as `fuse.h` has it.
    fn body(&self, wish: &Wish<'_>, handle: u64) -> Vec<u8> {
        let [name, second] = wish.names.map(|name| [name, b"\0"].concat());
        let (offset, size) = (u64::from(wish.a & 0x3fff), wish.b & 0x1fff);
        let other = self.model.node(wish.nodes[1]);
        let (a, b) = (u32::from(wish.a), wish.b);
        let parts: &[&[u8]] = match wish.op {
            LOOKUP | UNLINK | RMDIR | REMOVEXATTR => &[&name],
            FORGET => &[&u64s(&[u64::from(a & 3)])],
            GETATTR => &[&u32s(&[a & 1, 0]), &u64s(&[handle])],
            SETATTR => &[
                &u32s(&[b & 0xfff, 0]),
                &u64s(&[handle, offset, 0, 1, 2, 3]),
                &u32s(&[1, 2, 3, a, 0, a & 1, a & 1, 0]),
            ],
            SYMLINK => &[&name, &second],
            MKNOD => &[&u32s(&[b & 0o177_777, 0x103, a & 0o777, 0]), &name],
            MKDIR => &[&u32s(&[b & 0o7777, a & 0o777]), &name],
            RENAME => &[&u64s(&[other]), &name, &second],
            RENAME2 => &[&u64s(&[other]), &u32s(&[b & 7, 0]), &name, &second],
            LINK => &[&u64s(&[other]), &name],
            OPEN | OPENDIR => &[&u32s(&[b, a & 1])],
            READ | READDIR | READDIRPLUS => &[&u64s(&[handle, offset]), &u32s(&[size, 0]), &[0; 16]],
            WRITE => &[
                &u64s(&[handle, offset]),
                &u32s(&[size, b >> 29]),
                &[0; 16],
                &vec![b.to_le_bytes()[3]; usize::try_from(size).expect("13 bits")],
            ],
            RELEASE | RELEASEDIR => &[&u64s(&[handle]), &u32s(&[0, a & 3]), &u64s(&[other])],
            FSYNC | FSYNCDIR => &[&u64s(&[handle]), &u32s(&[a & 1, 0])],
            SETXATTR => &[
                &u32s(&[size & 0xff, b >> 30, a & 1, 0]),
                &name,
                &vec![b.to_le_bytes()[2]; usize::try_from(size & 0xff).expect("8 bits")],
            ],
            GETXATTR => &[&u32s(&[size, 0]), &name],
            LISTXATTR => &[&u32s(&[size, 0])],
            FLUSH => &[&u64s(&[handle, 0, u64::from(a & 7)])],
            GETLK | SETLK | SETLKW => &[
                &u64s(&[handle, u64::from(a & 7), u64::from(size & 0xff), u64::from(size)]),
                &u32s(&[b >> 30, 1, b >> 29 & 1, 0]),
            ],
            ACCESS => &[&u32s(&[b & 7, 0])],
            CREATE | TMPFILE => &[&u32s(&[b, 0o100_000 | a & 0o7777, b >> 20 & 0o777, 0]), &name],
            FALLOCATE => &[&u64s(&[handle, offset, u64::from(size)]), &u32s(&[b >> 25, 0])],
            LSEEK => &[&u64s(&[handle, offset]), &u32s(&[b & 7, 0])],
            COPY_FILE_RANGE => {
                let (node, to) = self.model.handle(wish.nodes[1]);
                &[&u64s(&[
                    handle,
                    offset,
                    node,
                    to,
                    u64::from(size),
                    u64::from(size) * 2,
                    0,
                ])]
            }
            STATX => &[&u32s(&[a & 1, 0]), &u64s(&[handle]), &u32s(&[0, 0xfff])],
            // The disk has better to do.
            50 => &[],
            _ => &[&u64s(&[u64::from(b)])],
        };
        parts.concat()
    }

    /// Asks. The reply's body, or the number of the error; 0 for a wait.
    fn ask(&mut self, opcode: u32, node: u64, caller: u8, body: &[u8], room: usize) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let len = u32::try_from(40 + body.len()).expect("a short one");
        let (uid, extensions) = (u32::from(caller & 3) * 1000, 0);
        let mut request = [
            &u32s(&[len, opcode])[..],
            &u64s(&[self.unique, node]),
            &u32s(&[uid, uid, 1, extensions]),
            body,
        ]
        .concat();
        let mut reply = vec![0xee; 16 + room];
        // Buffers as a driver would have them, and odd ones.
        let piece = if caller & 0x80 == 0 {
            4096
        } else {
            1 + usize::from(caller >> 2 & 31)
        };
        let asked = request.chunks_mut(piece).map(VolatileSlice::from).collect();
        let answer = reply.chunks_mut(piece).map(VolatileSlice::from).collect();
        let Outcome::Done(len) = self.server.handle(asked, answer) else {
            return Err(0);
        };
        let len = usize::try_from(len).expect("32 bits");
        let rest = reply.split_off(len);
        assert!(rest.iter().all(|byte| *byte == 0xee), "more was written than was said");
        assert!(
            !reply.windows(SECRET.len()).any(|bytes| bytes == SECRET),
            "opcode {opcode} told what is outside"
        );
        let Some((header, body)) = reply.split_at_checked(16) else {
            return Ok(Vec::new());
        };
        assert_eq!(number(header, 8), self.unique);
        match i32::from_le_bytes(header[4..8].try_into().expect("4 bytes")) {
            0 => Ok(body.to_vec()),
            error => Err(-error),
        }
    }

    /// Gives back all that was given: nothing may be left of it.
    fn leave(mut self) {
        for (node, handle, is_directory) in self.model.opened() {
            let release = if is_directory { RELEASEDIR } else { RELEASE };
            let body = u64s(&[handle, 0, 0]);
            self.ask(release.into(), node, 0, &body, 64)
                .expect("what is open can be closed");
        }
        for (node, count) in self.model.given() {
            // The file may be gone, but never the node.
            let known = self.ask(GETATTR.into(), node, 0, &[0; 16], 200);
            assert_ne!(known.err(), Some(EBADF), "node {node} was given {count} times");
            self.ask(FORGET.into(), node, 0, &u64s(&[count]), 0)
                .expect("it is not answered");
        }
        self.expect_left(&[("nodes", 1), ("handles", 0), ("locks", 0)]);
        self.ask(DESTROY.into(), 0, 0, &[], 64).expect("a session can end");
    }

    /// Holds what the server still has for the guest against what it may have at most.
    fn expect_left(&self, most: &[(&str, u64)]) {
        let counters = self.server.counters();
        for (name, most) in most {
            let left = counters.iter().find(|(known, _)| known == name).map(|(_, left)| left);
            assert!(left.is_some_and(|left| left <= most), "{left:?} {name} are left");
        }
    }
}

const EBADF: i32 = 9;

fn takes_handle(op: u8) -> bool {
    matches!(
        op,
        READ | WRITE
            | RELEASE
            | FSYNC
            | FLUSH
            | READDIR
            | READDIRPLUS
            | RELEASEDIR
            | FSYNCDIR
            | GETLK
            | SETLK
            | SETLKW
            | FALLOCATE
            | LSEEK
            | COPY_FILE_RANGE
    )
}

fn u32s(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// One request of a seed.
#[derive(Clone, Copy, Default)]
struct Step {
    op: u8,
    node: u8,
    other: u8,
    handle: u8,
    name: u8,
    second: u8,
    a: u16,
    b: u32,
}

fn script(config: [u8; 4], steps: &[Step]) -> Vec<u8> {
    let mut input = Recorder::default();
    input.raw(&config);
    for step in steps {
        let Step {
            op,
            node,
            other,
            handle,
            name,
            second,
            a,
            b,
        } = *step;
        input.raw(&[op, node, other, handle, name, second, 0, 0]).u16(a).u32(b);
    }
    input.take()
}

pub fn seeds() -> Seeds {
    let step = |op, node, name| Step {
        op,
        node,
        name,
        ..Step::default()
    };
    let all = 0b0111_1000;
    // All names that lead outside, in all opcodes that take one.
    let outwards = (0..20).flat_map(|name| {
        [
            LOOKUP, MKDIR, UNLINK, RMDIR, SYMLINK, LINK, RENAME, CREATE, MKNOD, RENAME2,
        ]
        .map(|op| Step {
            second: name,
            b: 0o100_644,
            ..step(op, 0, name)
        })
    });
    // Through a link: it is looked up, read, opened, listed, and something is looked up in it.
    let through = (5..8).flat_map(|name| {
        [
            step(LOOKUP, 0, name),
            step(READLINK, 1, 0),
            step(OPEN, 1, 0),
            step(OPENDIR, 1, 0),
            step(LOOKUP, 1, 8),
            Step {
                b: 1 << 3,
                ..step(SETATTR, 1, 0)
            },
            step(SETXATTR, 1, USER),
            step(GETXATTR, 1, USER),
            Step {
                a: 1,
                ..step(FORGET, 1, 0)
            },
        ]
    });
    let contents = [
        Step {
            b: 0o102,
            a: 0o644,
            ..step(CREATE, 0, 3)
        },
        Step {
            a: 100,
            b: 0x4100_0800,
            ..step(WRITE, 0, 0)
        },
        Step {
            a: 50,
            b: 0x1000,
            ..step(READ, 0, 0)
        },
        Step {
            a: 0,
            b: 0x2000_0010,
            ..step(FALLOCATE, 0, 0)
        },
        Step {
            a: 10,
            b: 0x20,
            ..step(COPY_FILE_RANGE, 0, 0)
        },
        Step {
            a: 200,
            b: 1 << 3,
            ..step(SETATTR, 1, 0)
        },
        Step {
            a: 0,
            b: 0x1fff,
            ..step(READ, 0, 0)
        },
        Step {
            a: 0,
            b: 3,
            ..step(LSEEK, 0, 0)
        },
        Step {
            a: 1,
            b: 0x4000_00ff,
            ..step(SETLK, 0, 0)
        },
        Step {
            a: 2,
            b: 0x4000_00ff,
            ..step(SETLKW, 0, 0)
        },
        Step {
            a: 2,
            b: 0x4000_00ff,
            ..step(GETLK, 0, 0)
        },
        step(FLUSH, 0, 0),
        step(FSYNC, 0, 0),
        step(RELEASE, 0, 0),
        Step {
            b: 2,
            ..step(TMPFILE, 0, 13)
        },
        Step {
            a: 0,
            b: 10,
            ..step(WRITE, 0, 0)
        },
        step(STATX, 1, 0),
    ];
    let names = [
        Step {
            b: 0o755,
            ..step(MKDIR, 0, 3)
        },
        Step {
            b: 0o100_644,
            ..step(MKNOD, 1, 0)
        },
        Step {
            b: 0o10_644,
            ..step(MKNOD, 1, 1)
        },
        Step {
            other: 2,
            ..step(LINK, 0, 4)
        },
        Step {
            other: 1,
            second: 4,
            ..step(RENAME, 0, 0)
        },
        Step {
            other: 0,
            second: 4,
            b: 2,
            ..step(RENAME2, 1, 4)
        },
        step(OPENDIR, 0, 0),
        Step {
            b: 0x1000,
            ..step(READDIR, 0, 0)
        },
        Step {
            b: 0x1000,
            ..step(READDIRPLUS, 0, 0)
        },
        Step {
            b: 300,
            ..step(READDIRPLUS, 0, 0)
        },
        step(FSYNCDIR, 0, 0),
        step(RELEASEDIR, 0, 0),
        step(STATFS, 0, 0),
        step(LOOKUP, 0, 1),
        step(LOOKUP, 6, 2),
        step(UNLINK, 6, 2),
        step(GETATTR, 7, 0),
        step(RMDIR, 0, 1),
        step(ACCESS, 6, 0),
        step(LISTXATTR, 2, 0),
        step(REMOVEXATTR, 2, USER),
        step(INIT, 0, 0),
        step(LOOKUP, 0, 0),
    ];
    let outwards: Vec<_> = outwards.collect();
    let through: Vec<_> = through.collect();
    vec![
        ("outwards", script([all, 0, 0, 9], &outwards)),
        ("through-links", script([all, 1, 0, 9], &through)),
        ("contents", script([all, 0, 0, 9], &contents)),
        ("written-back", script([all | 2, 2, 0, 0], &contents)),
        ("names", script([all, 0, 0, 9], &names)),
        ("few-nodes", script([all, 0, 3, 9], &names)),
        ("read-only", script([all | 1, 0, 0, 9], &names)),
        ("plain", script([0, 3, 0, 0], &names)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_do_what_their_names_say() {
        // Requests that are carried out at least, and bytes that are held against what was written.
        let expected = [
            ("outwards", 40, 0),
            ("through-links", 5, 0),
            ("contents", 13, 2000),
            ("written-back", 13, 2000),
            ("names", 15, 0),
            ("few-nodes", 10, 0),
            ("read-only", 8, 0),
            ("plain", 12, 0),
        ];
        for ((name, seed), (expected, done, checked)) in seeds().into_iter().zip(expected) {
            let tally = live(&seed).unwrap();
            assert_eq!(name, expected);
            assert!(
                tally.0 >= done && tally.1 > 0 && tally.2 >= checked,
                "{name}: {tally:?}"
            );
        }
    }

    #[test]
    fn what_is_outside_is_noticed_when_it_changes() {
        type Harm = fn(&std::path::Path);
        let harms: [Harm; 4] = [
            |base| std::fs::write(base.join("canary/secret"), "other").unwrap(),
            |base| std::fs::write(base.join("canary/new"), "").unwrap(),
            |base| std::fs::remove_file(base.join("canary/link")).unwrap(),
            |base| std::fs::create_dir(base.join("new")).unwrap(),
        ];
        for harm in harms {
            let fixture = ShareFixture::new();
            fixture.check(false);
            harm(fixture.share().parent().unwrap());
            assert!(std::panic::catch_unwind(|| fixture.check(false)).is_err());
        }
        let fixture = ShareFixture::new();
        std::fs::write(fixture.share().join("new"), "").unwrap();
        fixture.check(false);
        assert!(std::panic::catch_unwind(|| fixture.check(true)).is_err());
    }
}
