//! Directories: opened, listed, closed.

use std::io::Write;
use std::mem::size_of;

use rustix::io::Errno;
use zerocopy::{FromZeros, IntoBytes};

use super::files::checked_size;
use super::reply::Reply;
use super::request_parser::RequestParser;
use super::{Done, Server};
use crate::fs::filesystem::{Handle, Listed, Name};
use crate::fs::protocol::flags::FSYNC_FDATASYNC;
use crate::fs::protocol::{replies, requests};
use crate::ring::Writer;

/// Entries begin at multiples of this (`FUSE_DIRENT_ALIGN`).
const ALIGN: usize = 8;
/// Bytes before the name: what it leads to, and the entry itself.
const PLUS: usize = size_of::<replies::Entry>();
const DIRENT: usize = size_of::<replies::Dirent>();
/// Room for the longest entry.
const LONGEST: usize = (PLUS + DIRENT + Name::MAX).next_multiple_of(ALIGN);

impl Server {
    pub(super) fn opendir(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let _: requests::Open = request.last()?;
        let opened = self.fs.opendir(&request.caller, request.node)?;
        reply.send(&replies::Opened::from(&opened))
    }

    pub(super) fn readdir(&self, request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        self.list(request, reply, false)
    }

    pub(super) fn readdirplus(&self, request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        if !request.features.readdirplus() {
            return Err(Errno::NOSYS.into());
        }
        self.list(request, reply, true)
    }

    pub(super) fn releasedir(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Release = request.last()?;
        self.fs.releasedir(request.node, Handle(wanted.fh.get()))?;
        reply.empty()
    }

    pub(super) fn fsyncdir(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let wanted: requests::Fsync = request.last()?;
        let data_only = wanted.fsync_flags.get() & FSYNC_FDATASYNC != 0;
        self.fs.fsyncdir(request.node, Handle(wanted.fh.get()), data_only)?;
        reply.empty()
    }

    fn list(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>, plus: bool) -> Done {
        let wanted: requests::Read = request.last()?;
        let room = self.fitting(checked_size(wanted.size.get())?, reply)?;
        let mut list = List {
            body: reply.body()?,
            room,
            used: 0,
            refused: false,
            skipped: 0,
        };
        let (handle, offset) = (Handle(wanted.fh.get()), wanted.offset.get());
        let mut take = |listed: &Listed<'_>| list.take(listed, plus);
        let done = self
            .fs
            .readdir(&request.caller, request.node, handle, offset, plus, &mut take);
        self.counters.unlisted_names.add(list.skipped);
        match done {
            // What is in the list was given away: the failure comes again with the next request.
            _ if list.used > 0 => reply.filled(list.used),
            Err(errno) => Err(errno.into()),
            Ok(()) if list.refused => Err(Errno::INVAL.into()),
            Ok(()) => reply.filled(0),
        }
    }
}

/// A list while it grows.
struct List<'a> {
    body: Writer<'a>,
    room: usize,
    used: usize,
    /// Something did not fit.
    refused: bool,
    /// Entries that the guest would not take.
    skipped: u64,
}

impl List<'_> {
    /// Appends one entry, if it fits. One whose name the guest would not take is left out, so that it sees the others.
    fn take(&mut self, listed: &Listed<'_>, plus: bool) -> bool {
        let mut bytes = [0; LONGEST];
        let Some(len) = encode(listed, plus, &mut bytes) else {
            self.skipped = self.skipped.saturating_add(1);
            return !self.refused;
        };
        let fits = |end: &usize| *end <= self.room;
        let entry = bytes.get(..len);
        let end = entry.and_then(|entry| self.used.checked_add(entry.len())).filter(fits);
        // After one that did not fit none may follow, or it would be left out.
        let (false, Some(entry), Some(end)) = (self.refused, entry, end) else {
            self.refused = true;
            return false;
        };
        if self.body.write_all(entry).is_err() {
            self.refused = true;
            return false;
        }
        self.used = end;
        true
    }
}

/// Writes an entry to the beginning of `bytes`, and says how long it is with its padding. `None` if its name is none.
fn encode(listed: &Listed<'_>, plus: bool, bytes: &mut [u8; LONGEST]) -> Option<usize> {
    let name = listed.name.to_bytes();
    let namelen = Some(name.len()).filter(|len| (1..=Name::MAX).contains(len))?;
    let dirent = replies::Dirent {
        ino: listed.ino.into(),
        off: listed.next.into(),
        namelen: u32::try_from(namelen).ok()?.into(),
        kind: u32::from(listed.kind).into(),
    };
    let mut rest = &mut bytes[..];
    if plus {
        let entry = listed.entry.as_ref();
        // A node of 0: nothing was looked up.
        let entry = entry.map_or_else(replies::Entry::new_zeroed, replies::Entry::from);
        rest.write_all(entry.as_bytes()).ok()?;
    }
    rest.write_all(dirent.as_bytes()).ok()?;
    rest.write_all(name).ok()?;
    let left = rest.len();
    LONGEST.checked_sub(left)?.checked_next_multiple_of(ALIGN)
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use vm_memory::VolatileSlice;

    use super::*;

    #[test]
    fn a_name_that_no_guest_takes_hides_none_behind_it() {
        for plus in [false, true] {
            let mut room = vec![0; 8192];
            let size = room.len();
            let mut list = List {
                body: [VolatileSlice::from(&mut room[..])].into_iter().collect(),
                room: size,
                used: 0,
                refused: false,
                skipped: 0,
            };
            let lengths = [1, 255, 256, 1024, 1025, 4095, 2];
            let mut ends = Vec::new();
            for (next, length) in (1..).zip(lengths) {
                let name = CString::new(vec![b'x'; length]).unwrap();
                let listed = Listed {
                    ino: 9,
                    next,
                    kind: 8,
                    name: &name,
                    entry: None,
                };
                assert!(list.take(&listed, plus), "{length}");
                ends.push(list.used);
            }
            assert_eq!((list.skipped, ends[4], ends[5]), (2, ends[3], ends[3]));
            let used = list.used;
            let head = if plus { PLUS + DIRENT } else { DIRENT };
            let taken = [1, 255, 256, 1024, 2].map(|length| (head + length).next_multiple_of(ALIGN));
            assert_eq!(used, taken.iter().sum::<usize>());
        }
    }
}
