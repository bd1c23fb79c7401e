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
use super::names::Guess;
use super::nodes::Key;
use super::place::Seen;
use crate::fs::filesystem::{Handle, Listed, Name, Node, Opened};
use crate::fs::share::Cache;

/// What is read of a directory at a time. The host's entries are smaller than the guest's, more so if these say what a name leads to:
/// what does not fit there was read for nothing.
const LISTING: usize = 4096;
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
        let parent = self.nodes.get(node)?.key();
        let mut at = lock(&position.0);
        if *at != offset {
            seek(&open.file, SeekFrom::Start(offset))?;
        }
        // Where the host is, is not known until the end.
        *at = u64::MAX;
        let mut room = [MaybeUninit::uninit(); LISTING];
        let (small, _) = room.split_at_mut(LISTING_PLUS);
        let mut listing = match plus {
            true => RawDir::new(&open.file, small),
            false => RawDir::new(&open.file, &mut room),
        };
        let mut given = offset;
        while let Some(listed) = listing.next() {
            let listed = match listed {
                Ok(listed) => listed,
                // The guest hears of it when it comes to ask for the rest.
                Err(_) if given != offset => return Ok(()),
                Err(error) => return Err(error),
            };
            let name = Name::new(listed.file_name()).ok().filter(|_| plus);
            let key = Key {
                ino: listed.ino(),
                ..parent
            };
            let guess = if self.nodes.seems_known(&key) {
                Guess::Known
            } else {
                Guess::New
            };
            // What cannot be looked up is listed nevertheless.
            let entry = name.and_then(|name| self.entry(&open.file, Seen { parent: node, name }, guess).ok());
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
                return Ok(());
            }
            given = next;
        }
        *at = given;
        Ok(())
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
