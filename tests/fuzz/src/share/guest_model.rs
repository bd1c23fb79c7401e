//! What a guest knows of a share: which nodes it was given how often, what it has open, and what
//! must be in the files that it made itself.

use std::collections::BTreeMap;

use super::opcodes::{
    COPY_FILE_RANGE, CREATE, DESTROY, FALLOCATE, FORGET, LINK, LOOKUP, MKDIR, MKNOD, OPEN, OPENDIR, READ, READDIRPLUS,
    RELEASE, RELEASEDIR, SETATTR, SYMLINK, TMPFILE, WRITE,
};

const ROOT: u64 = 1;
const BATCH_FORGET: u8 = 42;
/// Flags of open(2).
const O_APPEND: u32 = 0o2000;
const O_TRUNC: u32 = 0o1000;
/// Permissions and types.
const S_IFMT: u32 = 0o170_000;
const S_IFREG: u32 = 0o100_000;
const FATTR_SIZE: u32 = 1 << 3;
/// Bytes of a file that are kept at most.
const MAX: usize = 1 << 16;

#[derive(Default)]
pub struct GuestModel {
    /// Nodes in the order in which they were given first, and how often each was.
    given: Vec<(u64, u64)>,
    /// Node, handle, whether it is a directory.
    opened: Vec<(u64, u64, bool)>,
    contents: BTreeMap<u64, Vec<u8>>,
    checked: usize,
}

/// The 64 bits at `offset`; 0 if there are none.
pub fn number(bytes: &[u8], offset: usize) -> u64 {
    let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

/// The 32 bits at `offset`; 0 if there are none.
fn half(bytes: &[u8], offset: usize) -> u32 {
    let bytes = bytes.get(offset..).and_then(|bytes| bytes.first_chunk());
    bytes.map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn size(number: u64) -> usize {
    usize::try_from(number).expect("usize has 64 bits")
}

impl GuestModel {
    /// A node by its place in the list, or one that there is not.
    pub fn node(&self, choice: u8) -> u64 {
        let all = [ROOT].into_iter().chain(self.given.iter().map(|(node, _)| *node));
        match choice {
            0xff => u64::MAX,
            0xfe => 0,
            choice => all.cycle().nth(usize::from(choice & 0x7f)).unwrap_or(ROOT),
        }
    }

    /// Something that is open, and its node.
    pub fn handle(&self, choice: u8) -> (u64, u64) {
        let newest = self.opened.iter().rev().cycle();
        match choice {
            0xff => (ROOT, u64::MAX),
            choice => newest
                .take(256)
                .nth(usize::from(choice))
                .map_or((ROOT, 0), |(node, handle, _)| (*node, *handle)),
        }
    }

    /// All nodes, and how often each was given.
    pub fn given(&self) -> Vec<(u64, u64)> {
        self.given.clone()
    }

    /// All that is open.
    pub fn opened(&self) -> Vec<(u64, u64, bool)> {
        self.opened.clone()
    }

    /// Bytes that were read and had to be what they are.
    pub fn checked(&self) -> usize {
        self.checked
    }

    /// Takes down what a request did.
    pub fn note(&mut self, opcode: u32, node: u64, asked: &[u8], done: &Result<Vec<u8>, i32>) {
        let Ok(opcode) = u8::try_from(opcode) else { return };
        let Ok(answer) = done else {
            return self.note_failure(opcode, node, asked);
        };
        match opcode {
            LOOKUP | SYMLINK | MKNOD | MKDIR | LINK => self.give(answer),
            CREATE | TMPFILE => {
                self.give(answer);
                let node = number(answer, 0);
                self.open(node, number(answer, 128), false, half(asked, 0));
            }
            FORGET if asked.len() == 8 => self.forget(node, number(asked, 0)),
            BATCH_FORGET if asked.len() == 8 + 16 * size(half(asked, 0).into()) => {
                for one in asked[8..].chunks(16) {
                    self.forget(number(one, 0), number(one, 8));
                }
            }
            OPEN => self.open(node, number(answer, 0), false, half(asked, 0)),
            OPENDIR => self.open(node, number(answer, 0), true, 0),
            RELEASE | RELEASEDIR => self.opened.retain(|(_, handle, _)| *handle != number(asked, 0)),
            READDIRPLUS => self.give_list(answer),
            READ => self.check(node, asked, answer),
            WRITE => self.write(node, number(asked, 8), &asked[40..40 + size(half(answer, 0).into())]),
            SETATTR if half(asked, 0) & FATTR_SIZE != 0 => self.resize(node, number(asked, 16)),
            FALLOCATE => self.allocate(node, asked),
            COPY_FILE_RANGE => self.copy(node, asked, half(answer, 0)),
            DESTROY => *self = Self::default(),
            _ => {}
        }
    }

    /// What failed may have been done in part.
    fn note_failure(&mut self, opcode: u8, node: u64, asked: &[u8]) {
        match opcode {
            WRITE | SETATTR | FALLOCATE | OPEN => self.contents.remove(&node),
            COPY_FILE_RANGE => self.contents.remove(&number(asked, 16)),
            CREATE => {
                self.contents.clear();
                None
            }
            _ => None,
        };
    }

    /// A `fuse_entry_out`.
    fn give(&mut self, entry: &[u8]) {
        let node = number(entry, 0);
        match self.given.iter_mut().find(|(known, _)| *known == node) {
            Some((_, count)) => *count += 1,
            None => self.given.push((node, 1)),
        }
        // The attributes begin at 40, their mode is 60 bytes in.
        if half(entry, 100) & S_IFMT == S_IFREG && number(entry, 48) == 0 {
            self.contents.insert(node, Vec::new());
        }
    }

    fn give_list(&mut self, mut list: &[u8]) {
        while !list.is_empty() {
            if number(list, 0) != 0 {
                self.give(list);
            }
            let len = 152 + size(half(list, 144).into());
            list = &list[len.next_multiple_of(8)..];
        }
    }

    fn forget(&mut self, node: u64, count: u64) {
        let Some(at) = self.given.iter().position(|(known, _)| *known == node) else {
            return;
        };
        let known = &mut self.given[at].1;
        *known = known.saturating_sub(count);
        if *known == 0 {
            // Its file may be had again as another node.
            self.given.remove(at);
            self.contents.remove(&node);
        }
    }

    fn open(&mut self, node: u64, handle: u64, is_directory: bool, flags: u32) {
        self.opened.push((node, handle, is_directory));
        if flags & O_APPEND != 0 {
            // Writes go where the file ends by then.
            self.contents.remove(&node);
        }
        if flags & O_TRUNC != 0 && flags & 3 != 0 {
            self.contents.entry(node).and_modify(Vec::clear);
        }
    }

    /// Holds what was read against what must be there.
    fn check(&mut self, node: u64, asked: &[u8], answer: &[u8]) {
        let Some(contents) = self.contents.get(&node) else {
            return;
        };
        let from = size(number(asked, 8)).min(contents.len());
        let expected = &contents[from..];
        let len = expected.len().min(answer.len());
        assert!(
            answer == &expected[..len],
            "node {node} is read otherwise than it was written"
        );
        self.checked += len;
    }

    fn write(&mut self, node: u64, offset: u64, data: &[u8]) {
        let Some(contents) = self.contents.get_mut(&node) else {
            return;
        };
        let offset = size(offset);
        if !data.is_empty() {
            contents.resize(contents.len().max(offset + data.len()), 0);
            contents[offset..offset + data.len()].copy_from_slice(data);
        }
    }

    fn resize(&mut self, node: u64, len: u64) {
        match self.contents.get_mut(&node) {
            Some(contents) if size(len) <= MAX => contents.resize(size(len), 0),
            _ => drop(self.contents.remove(&node)),
        }
    }

    fn allocate(&mut self, node: u64, asked: &[u8]) {
        let end = size(number(asked, 8)) + size(number(asked, 16));
        match (half(asked, 24), self.contents.get_mut(&node)) {
            (0, Some(contents)) if end <= MAX => contents.resize(contents.len().max(end), 0),
            // The size stays.
            (1, _) => {}
            _ => drop(self.contents.remove(&node)),
        }
    }

    fn copy(&mut self, node: u64, asked: &[u8], copied: u32) {
        let (from, to, at) = (size(number(asked, 8)), number(asked, 16), number(asked, 32));
        let copied = size(copied.into());
        let source = self
            .contents
            .get(&node)
            .and_then(|contents| contents.get(from..from + copied));
        match source.map(<[u8]>::to_vec) {
            Some(data) => self.write(to, at, &data),
            None if copied > 0 => drop(self.contents.remove(&to)),
            None => {}
        }
    }
}
