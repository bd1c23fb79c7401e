//! Directories: opened and listed.

use std::mem::MaybeUninit;
use std::sync::Mutex;

use husk_devices::lock;
use rustix::fs::{FileType, OFlags, RawDir, SeekFrom, seek};
use rustix::io::Errno;

use super::Tree;
use super::attributes::Kind;
use super::descriptors::Use;
use super::handles::OpenFile;
use super::names::LookupHint;
use super::nodes::Key;
use super::place::NameInDir;
use crate::fs::filesystem::{Handle, Listed, Name, Node, Opened};
use crate::fs::share::Cache;

/// What is read of a directory at a time. The host's entries are smaller than the guest's, more so
/// if these say what a name leads to: what does not fit there was read for nothing. The longest
/// name there is (`PATH_MAX`) fits into the larger of the two, which is also for names that do not
/// fit into the other.
const LISTING: usize = 4096 + 64;
const LISTING_PLUS: usize = 1024;

/// Where an open directory is read next, unless the guest says otherwise.
#[derive(Debug, Default)]
pub(super) struct Position(Mutex<u64>);

impl Tree {
    pub(super) fn opendir(&self, node: Node) -> Result<Opened, Errno> {
        let inode = self.nodes.get(node)?;
        if inode.kind() != Kind::Directory {
            return Err(Errno::NOTDIR);
        }
        let fd = self.nodes.descriptor(&inode)?;
        let (handle, ()) = self.handles.add(|| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            let file = self.budget.take(Use::File, || self.proc.reopen(&*fd, flags))?;
            let open = OpenFile {
                inode: inode.clone(),
                file,
                direct: None,
                writes: false,
                position: Some(Position::default()),
            };
            Ok((open, ()))
        })?;
        Ok(Opened {
            handle,
            keep_cache: matches!(self.policy.cache, Cache::Always | Cache::Metadata),
            direct: false,
            cache_dir: self.policy.cache != Cache::Never,
        })
    }

    pub(super) fn readdir(
        &self,
        node: Node,
        handle: Handle,
        offset: u64,
        plus: bool,
        take: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Result<(), Errno> {
        let open = self.handles.get(node, handle)?;
        let position = open.position.as_ref().ok_or(Errno::NOTDIR)?;
        let mut at = lock(&position.0);
        if *at != offset {
            seek(&open.file, SeekFrom::Start(offset))?;
        }
        // Where the host is, is not known until the end.
        *at = u64::MAX;
        let mut room = [MaybeUninit::uninit(); LISTING];
        let mut given = offset;
        let mut list = |room: &mut [MaybeUninit<u8>]| self.list(&open, room, plus, &mut given, take);
        let (some, _) = room.split_at_mut(LISTING_PLUS);
        let listed = match plus {
            // The next name does not fit.
            true => list(some).or_else(|error| {
                if error == Errno::INVAL {
                    list(&mut room)
                } else {
                    Err(error)
                }
            }),
            false => list(&mut room),
        };
        match listed {
            Ok(true) => *at = given,
            Ok(false) => {}
            // The guest hears of it when it comes to ask for the rest.
            Err(_) if given != offset => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lists what the host reads into `room`, from where it is on, and moves `given` behind what was taken. Whether
    /// that was all.
    fn list(
        &self,
        open: &OpenFile,
        room: &mut [MaybeUninit<u8>],
        plus: bool,
        given: &mut u64,
        take: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Result<bool, Errno> {
        let (node, parent) = (open.inode.node(), open.inode.key());
        let mut listing = RawDir::new(&open.file, room);
        while let Some(listed) = listing.next() {
            let listed = listed?;
            let name = Name::new(listed.file_name()).ok().filter(|_| plus);
            let key = Key {
                ino: listed.ino(),
                ..parent
            };
            let guess = if self.nodes.seems_known(&key) {
                LookupHint::Known
            } else {
                LookupHint::New
            };
            // What cannot be looked up is listed nevertheless.
            let entry = name.and_then(|name| self.entry(&open.file, NameInDir { parent: node, name }, guess).ok());
            let next = listed.next_entry_cookie();
            let taken = take(&Listed {
                ino: listed.ino(),
                next,
                kind: kind(listed.file_type()),
                name: listed.file_name(),
                entry,
            });
            if !taken {
                if let Some(entry) = entry {
                    self.nodes.forget(entry.node, 1);
                }
                return Ok(false);
            }
            *given = next;
        }
        Ok(true)
    }

    pub(super) fn releasedir(&self, node: Node, handle: Handle) -> Result<(), Errno> {
        self.release(node, handle, None)
    }
}

/// `DT_…`, which is the type in the bits of `st_mode`, moved (`IFTODT` of dirent.h).
fn kind(file: FileType) -> u8 {
    match file {
        FileType::Unknown => 0,
        known => u8::try_from(known.as_raw_mode() >> 12).unwrap_or(0),
    }
}
