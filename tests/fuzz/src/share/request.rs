//! A request: as the script has it, and what follows its header as `fuse.h` has it.

use super::guest_model::GuestModel;
use super::opcodes::*;
use crate::script::Script;

/// Names that lead somewhere, or should not.
pub const NAMES: [&[u8]; 20] = [
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
pub const USER: u8 = 17;

/// A request as the script has it.
pub struct Wish<'a> {
    pub op: u8,
    pub nodes: [u8; 2],
    pub handle: u8,
    pub names: [&'a [u8]; 2],
    pub caller: u8,
    pub room: u8,
    pub a: u16,
    pub b: u32,
}

impl<'a> Wish<'a> {
    pub fn read(script: &mut Script<'a>) -> Option<Self> {
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

    /// What follows the header, as `fuse.h` has it.
    pub fn body(&self, model: &GuestModel, handle: u64) -> Vec<u8> {
        let [name, second] = self.names.map(|name| [name, b"\0"].concat());
        let (offset, size) = (u64::from(self.a & 0x3fff), self.b & 0x1fff);
        let other = model.node(self.nodes[1]);
        let (a, b) = (u32::from(self.a), self.b);
        let parts: &[&[u8]] = match self.op {
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
                let (node, to) = model.handle(self.nodes[1]);
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
}

pub fn takes_handle(op: u8) -> bool {
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

pub fn u32s(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

pub fn u64s(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}
