//! A hostile guest of a directory that is shared: FUSE requests on a real tree, beside what it must not reach.
//!
//! The first four bytes choose what share it is ([`config`]). Then come requests of 14 bytes, and
//! for some names and bodies counted bytes after them:
//!
//! | byte | is |
//! |---|---|
//! | 0 | the opcode, modulo 64; 0 is a body of any bytes for opcode `a`, those that FUSE does not have are a new session |
//! | 1, 2 | a node that the guest was given; another one |
//! | 3 | something that it has open |
//! | 4, 5 | names ([`request::NAMES`]); a number that has none is followed by a name |
//! | 6 | who asks |
//! | 7 | how much room there is for the reply |
//! | 8, 9 | `a`: an offset or a size |
//! | 10 to 13 | `b`: flags, a mode |

mod fixture;
mod guest_model;
mod opcodes;
mod request;
mod seeds;

use husk_virtio::fs::serve::{Outcome, Serve};
use husk_virtio::fs::server::Server;
use husk_virtio::fs::share::{Cache, ShareConfig};
use vm_memory::VolatileSlice;

use crate::script::Script;
use fixture::{SECRET, ShareFixture};
use guest_model::{GuestModel, number};
use opcodes::{DESTROY, FORGET, GETATTR, INIT, RELEASE, RELEASEDIR};
use request::{Wish, takes_handle, u32s, u64s};
pub use seeds::seeds;

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
            op => (op.into(), wish.body(&self.model, handle)),
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
