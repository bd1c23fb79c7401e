//! Requests to start from.

use super::opcodes::*;
use super::request::USER;
use crate::Seeds;
use crate::script::Recorder;

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
