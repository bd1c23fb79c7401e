//! A file system in memory, for tests of what is between a guest and one: what it does is simple
//! enough to be known beforehand, and it keeps a list of the calls that reach it.

mod state;

use std::ffi::CStr;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::filesystem::{
    Abilities, Attr, Caller, Change, Creation, Entry, FileSystem, Handle, Listed, Lock, LockKind, Locked, Name, Node,
    Opened, Space, Stamp, Ttl, Waiter, Writing,
};
use crate::iovecs::Buffers;
use state::{File, NOW, State};

/// How long it lets names and attributes be believed.
pub(crate) const TTL: Ttl = Ttl {
    entry: Duration::new(1, 2),
    attr: Duration::new(3, 4),
};

/// The file system. Clones are the same one.
#[derive(Clone, Default)]
pub(crate) struct Model(Arc<Shared>);

#[derive(Default)]
struct Shared {
    abilities: Mutex<Abilities>,
    state: Mutex<State>,
    calls: Mutex<Vec<String>>,
    agreed: Mutex<Option<Abilities>>,
}

impl Model {
    /// An empty directory, and what it can do.
    pub fn new(abilities: Abilities) -> Self {
        let model = Self::default();
        *model.0.abilities.lock().unwrap() = abilities;
        model
    }

    /// The calls since the last time, with what they were given.
    pub fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.0.calls.lock().unwrap())
    }

    /// What the present session agreed on.
    pub fn agreed(&self) -> Option<Abilities> {
        *self.0.agreed.lock().unwrap()
    }

    /// Look-ups of all nodes that the guest has not taken back.
    pub fn lookups(&self) -> u64 {
        self.state().files.values().map(|file| file.lookups).sum()
    }

    /// Whether somebody holds a lock.
    pub fn is_locked(&self) -> bool {
        !self.state().locks.is_empty()
    }

    /// From now on there is no room for what a file has from `end` on.
    pub fn fill_up(&self, end: u64) {
        self.state().full = Some(end);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap()
    }

    fn note(&self, call: String) {
        self.0.calls.lock().unwrap().push(call);
    }
}

/// Writes down a call and what it was given.
macro_rules! note {
    ($model:expr, $name:expr $(, $argument:expr)*) => {
        $model.note([$name.to_string() $(, format!("{:?}", $argument))*].join(" "))
    };
}

impl FileSystem for Model {
    fn enter(&self) -> io::Result<()> {
        Ok(())
    }

    fn abilities(&self) -> Abilities {
        *self.0.abilities.lock().unwrap()
    }

    fn begin(&self, agreed: Abilities) {
        *self.0.agreed.lock().unwrap() = Some(agreed);
    }

    fn reset(&self) {
        note!(self, "reset");
        *self.0.agreed.lock().unwrap() = None;
        self.state().forget_all();
    }

    fn lock_generation(&self) -> u64 {
        self.state().generation
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        vec![("files", self.state().files.len().try_into().unwrap())]
    }

    fn lookup(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        note!(self, "lookup", caller.uid, parent.0, name.as_c_str());
        let mut state = self.state();
        let found = state.child(parent, name)?;
        state.give(found)
    }

    fn forget(&self, node: Node, count: u64) {
        note!(self, "forget", node.0, count);
        self.state().take_back(node, count);
    }

    fn getattr(&self, node: Node, handle: Option<Handle>) -> Result<(Attr, Duration), Errno> {
        note!(self, "getattr", node.0, handle);
        let state = self.state();
        if let Some(handle) = handle {
            state.opened(node, handle)?;
        }
        Ok((state.attr(node)?, TTL.attr))
    }

    fn setattr(
        &self,
        caller: &Caller,
        node: Node,
        handle: Option<Handle>,
        change: &Change,
    ) -> Result<(Attr, Duration), Errno> {
        note!(self, "setattr", caller.uid, node.0, handle, change);
        let mut state = self.state();
        let file = state.file_mut(node)?;
        if let Some(size) = change.size {
            if !file.is(FileType::RegularFile) {
                return Err(Errno::INVAL);
            }
            file.resize(size)?;
        }
        let kind = file.mode & !0o7777;
        file.mode = change.mode.map_or(file.mode, |mode| kind | mode);
        file.uid = change.uid.unwrap_or(file.uid);
        file.gid = change.gid.unwrap_or(file.gid);
        let time = |stamp| match stamp {
            Stamp::Now => NOW,
            Stamp::At(time) => time,
        };
        file.atime = change.atime.map_or(file.atime, time);
        file.mtime = change.mtime.map_or(file.mtime, time);
        Ok((state.attr(node)?, TTL.attr))
    }

    fn readlink(&self, node: Node) -> Result<Vec<u8>, Errno> {
        note!(self, "readlink", node.0);
        let state = self.state();
        let file = state.file(node)?;
        if !file.is(FileType::Symlink) {
            return Err(Errno::INVAL);
        }
        Ok(file.contents.clone())
    }

    fn symlink(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        target: &CStr,
        new: &Creation<'_>,
    ) -> Result<Entry, Errno> {
        note!(self, "symlink", caller, parent.0, name.as_c_str(), target, new);
        let mut state = self.state();
        let made = state.make(caller, parent, name, new)?;
        state.file_mut(made)?.contents = target.to_bytes().to_vec();
        state.give(made)
    }

    fn mknod(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno> {
        note!(self, "mknod", caller, parent.0, name.as_c_str(), new);
        let mut state = self.state();
        let made = state.make(caller, parent, name, new)?;
        state.give(made)
    }

    fn mkdir(&self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Entry, Errno> {
        note!(self, "mkdir", caller, parent.0, name.as_c_str(), new);
        let mut state = self.state();
        let made = state.make(caller, parent, name, new)?;
        state.give(made)
    }

    fn unlink(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        note!(self, "unlink", caller.uid, parent.0, name.as_c_str());
        self.state().remove(parent, name, false)
    }

    fn rmdir(&self, caller: &Caller, parent: Node, name: Name<'_>) -> Result<(), Errno> {
        note!(self, "rmdir", caller.uid, parent.0, name.as_c_str());
        self.state().remove(parent, name, true)
    }

    fn rename(&self, caller: &Caller, from: (Node, Name<'_>), to: (Node, Name<'_>), flags: u32) -> Result<(), Errno> {
        note!(
            self,
            "rename",
            caller.uid,
            from.0.0,
            from.1.as_c_str(),
            to.0.0,
            to.1.as_c_str(),
            flags
        );
        self.state().rename(from, to, flags)
    }

    fn link(&self, caller: &Caller, node: Node, parent: Node, name: Name<'_>) -> Result<Entry, Errno> {
        note!(self, "link", caller.uid, node.0, parent.0, name.as_c_str());
        let mut state = self.state();
        if state.file(node)?.is(FileType::Directory) {
            return Err(Errno::PERM);
        }
        state.enter(parent, name, node)?;
        state.give(node)
    }

    fn open(&self, caller: &Caller, node: Node, flags: u32, kill_priv: bool) -> Result<Opened, Errno> {
        note!(self, "open", caller.uid, node.0, format!("{flags:#x}"), kill_priv);
        let mut state = self.state();
        if !state.file(node)?.is(FileType::RegularFile) {
            return Err(Errno::INVAL);
        }
        state.open(node)
    }

    fn create(
        &self,
        caller: &Caller,
        parent: Node,
        name: Name<'_>,
        flags: u32,
        kill_priv: bool,
        new: &Creation<'_>,
    ) -> Result<(Entry, Opened), Errno> {
        note!(
            self,
            "create",
            caller,
            parent.0,
            name.as_c_str(),
            format!("{flags:#x}"),
            kill_priv,
            new
        );
        let mut state = self.state();
        let made = state.make(caller, parent, name, new)?;
        Ok((state.give(made)?, state.open(made)?))
    }

    fn tmpfile(&self, caller: &Caller, parent: Node, flags: u32, new: &Creation<'_>) -> Result<(Entry, Opened), Errno> {
        note!(self, "tmpfile", caller, parent.0, format!("{flags:#x}"), new);
        let mut state = self.state();
        state.file(parent)?;
        let made = state.add(File::new(caller, new));
        Ok((state.give(made)?, state.open(made)?))
    }

    fn read(&self, node: Node, handle: Handle, offset: u64, into: Buffers<'_>, direct: bool) -> Result<usize, Errno> {
        let call = if direct { "read past caches" } else { "read" };
        note!(self, call, node.0, handle.0, offset, into.as_slice().len());
        let state = self.state();
        state.opened(node, handle)?;
        let contents = &state.file(node)?.contents;
        let from = usize::try_from(offset).unwrap().min(contents.len());
        let room: usize = into.slices().map(|slice| slice.len()).sum();
        let data = &contents[from..contents.len().min(from.saturating_add(room))];
        into.write(0, data);
        Ok(data.len())
    }

    fn write(
        &self,
        caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        from: Buffers<'_>,
        how: Writing,
    ) -> Result<usize, Errno> {
        note!(
            self,
            match (how.append, how.direct) {
                (false, false) => "write",
                (true, false) => "append",
                (false, true) => "write past caches",
                (true, true) => "append past caches",
            },
            caller.uid,
            node.0,
            handle.0,
            offset,
            from.as_slice().len(),
            how.kill_priv
        );
        let mut state = self.state();
        state.opened(node, handle)?;
        let mut data = Vec::new();
        for slice in from.slices() {
            let begin = data.len();
            data.resize(begin + slice.len(), 0);
            slice.copy_to(&mut data[begin..]);
        }
        if let Some(end) = state.full {
            data.truncate(usize::try_from(end.saturating_sub(offset)).unwrap());
            if data.is_empty() {
                return Err(Errno::NOSPC);
            }
        }
        let file = state.file_mut(node)?;
        let end = offset + u64::try_from(data.len()).unwrap();
        if end > u64::try_from(file.contents.len()).unwrap() {
            file.resize(end)?;
        }
        let offset = usize::try_from(offset).unwrap();
        file.contents[offset..offset + data.len()].copy_from_slice(&data);
        Ok(data.len())
    }

    fn flush(&self, node: Node, handle: Handle, owner: u64) -> Result<(), Errno> {
        note!(self, "flush", node.0, handle.0, owner);
        let mut state = self.state();
        state.opened(node, handle)?;
        state.unlock(node, owner, false);
        Ok(())
    }

    fn release(&self, node: Node, handle: Handle, flock_owner: Option<u64>) -> Result<(), Errno> {
        note!(self, "release", node.0, handle.0, flock_owner);
        let mut state = self.state();
        if let Some(owner) = flock_owner {
            state.unlock(node, owner, true);
        }
        state.close(node, handle)
    }

    fn fsync(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno> {
        note!(self, "fsync", node.0, handle.0, data_only);
        self.state().opened(node, handle)
    }

    fn fallocate(&self, node: Node, handle: Handle, mode: u32, offset: u64, length: u64) -> Result<(), Errno> {
        note!(self, "fallocate", node.0, handle.0, mode, offset, length);
        let mut state = self.state();
        state.opened(node, handle)?;
        let file = state.file_mut(node)?;
        let size = u64::try_from(file.contents.len()).unwrap();
        match mode {
            0 => file.resize(size.max(offset + length)),
            _ => Err(Errno::OPNOTSUPP),
        }
    }

    fn lseek(&self, node: Node, handle: Handle, offset: u64, whence: u32) -> Result<u64, Errno> {
        note!(self, "lseek", node.0, handle.0, offset, whence);
        let state = self.state();
        state.opened(node, handle)?;
        let size = u64::try_from(state.file(node)?.contents.len()).unwrap();
        match whence {
            _ if offset >= size => Err(Errno::NXIO),
            3 => Ok(offset),
            _ => Ok(size),
        }
    }

    fn copy_file_range(
        &self,
        from: (Node, Handle, u64),
        to: (Node, Handle, u64),
        length: u64,
        flags: u64,
    ) -> Result<usize, Errno> {
        note!(self, "copy_file_range", from, to, length, flags);
        let mut state = self.state();
        state.opened(from.0, from.1)?;
        state.opened(to.0, to.1)?;
        let source = &state.file(from.0)?.contents;
        let begin = usize::try_from(from.2).unwrap().min(source.len());
        let length = usize::try_from(length).unwrap().min(source.len() - begin);
        let data = source[begin..begin + length].to_vec();
        let file = state.file_mut(to.0)?;
        let offset = usize::try_from(to.2).unwrap();
        if offset + length > file.contents.len() {
            file.resize(u64::try_from(offset + length).unwrap())?;
        }
        file.contents[offset..offset + length].copy_from_slice(&data);
        Ok(length)
    }

    fn opendir(&self, caller: &Caller, node: Node) -> Result<Opened, Errno> {
        note!(self, "opendir", caller.uid, node.0);
        let mut state = self.state();
        if !state.file(node)?.is(FileType::Directory) {
            return Err(Errno::NOTDIR);
        }
        state.open(node)
    }

    fn readdir(
        &self,
        caller: &Caller,
        node: Node,
        handle: Handle,
        offset: u64,
        plus: bool,
        take: &mut dyn FnMut(&Listed<'_>) -> bool,
    ) -> Result<(), Errno> {
        note!(self, "readdir", caller.uid, node.0, handle.0, offset, plus);
        let mut state = self.state();
        state.opened(node, handle)?;
        for (name, child, next) in state.list(node)?.into_iter().skip(offset.try_into().unwrap()) {
            let attr = state.attr(child)?;
            let is_entry = plus && !matches!(name.to_bytes(), b"." | b"..");
            let entry = is_entry.then(|| state.give(child)).transpose()?;
            let listed = Listed {
                ino: attr.ino,
                next,
                kind: u8::try_from(attr.mode >> 12).unwrap(),
                name: &name,
                entry,
            };
            if !take(&listed) {
                if let Some(entry) = entry {
                    state.take_back(entry.node, 1);
                }
                break;
            }
        }
        Ok(())
    }

    fn releasedir(&self, node: Node, handle: Handle) -> Result<(), Errno> {
        note!(self, "releasedir", node.0, handle.0);
        self.state().close(node, handle)
    }

    fn fsyncdir(&self, node: Node, handle: Handle, data_only: bool) -> Result<(), Errno> {
        note!(self, "fsyncdir", node.0, handle.0, data_only);
        self.state().opened(node, handle)
    }

    fn statfs(&self, node: Node) -> Result<Space, Errno> {
        note!(self, "statfs", node.0);
        self.state().file(node)?;
        Ok(Space {
            blocks: 100,
            free: 50,
            available: 40,
            files: 30,
            files_free: 20,
            block_size: 4096,
            fragment_size: 512,
            name_max: 255,
        })
    }

    fn syncfs(&self, node: Node) -> Result<(), Errno> {
        note!(self, "syncfs", node.0);
        self.state().file(node).map(drop)
    }

    fn access(&self, caller: &Caller, node: Node, mask: u32) -> Result<(), Errno> {
        note!(self, "access", caller.uid, node.0, mask);
        self.state().file(node).map(drop)
    }

    fn setxattr(
        &self,
        caller: &Caller,
        node: Node,
        name: &CStr,
        value: &[u8],
        flags: u32,
        clear_sgid: bool,
    ) -> Result<(), Errno> {
        note!(
            self,
            "setxattr",
            caller.uid,
            node.0,
            name,
            value.len(),
            flags,
            clear_sgid
        );
        let mut state = self.state();
        let xattrs = &mut state.file_mut(node)?.xattrs;
        match (flags, xattrs.contains_key(name)) {
            (1, true) => return Err(Errno::EXIST),
            (2, false) => return Err(Errno::NODATA),
            _ => xattrs.insert(name.into(), value.to_vec()),
        };
        Ok(())
    }

    fn getxattr(&self, node: Node, name: &CStr, room: usize) -> Result<Vec<u8>, Errno> {
        note!(self, "getxattr", node.0, name, room);
        let state = self.state();
        let value = state.file(node)?.xattrs.get(name).ok_or(Errno::NODATA)?;
        within(value.clone(), room)
    }

    fn getxattr_len(&self, node: Node, name: &CStr) -> Result<usize, Errno> {
        note!(self, "getxattr_len", node.0, name);
        let state = self.state();
        let value = state.file(node)?.xattrs.get(name).ok_or(Errno::NODATA)?;
        Ok(value.len())
    }

    fn listxattr(&self, node: Node, room: usize) -> Result<Vec<u8>, Errno> {
        note!(self, "listxattr", node.0, room);
        within(self.state().file(node)?.xattr_names(), room)
    }

    fn listxattr_len(&self, node: Node) -> Result<usize, Errno> {
        note!(self, "listxattr_len", node.0);
        Ok(self.state().file(node)?.xattr_names().len())
    }

    fn removexattr(&self, caller: &Caller, node: Node, name: &CStr) -> Result<(), Errno> {
        note!(self, "removexattr", caller.uid, node.0, name);
        let mut state = self.state();
        let removed = state.file_mut(node)?.xattrs.remove(name);
        removed.map(drop).ok_or(Errno::NODATA)
    }

    fn getlk(&self, node: Node, handle: Handle, lock: &Lock) -> Result<Option<Lock>, Errno> {
        note!(self, "getlk", node.0, handle.0, lock);
        let state = self.state();
        state.opened(node, handle)?;
        Ok(state.in_the_way(node, lock))
    }

    fn setlk(&self, node: Node, handle: Handle, lock: &Lock, waiter: Option<Waiter>) -> Result<Locked, Errno> {
        note!(self, "setlk", node.0, handle.0, lock, waiter.is_some());
        let mut state = self.state();
        state.opened(node, handle)?;
        match lock.kind {
            LockKind::Unlock => state.unlock(node, lock.owner, lock.whole_file),
            _ if state.in_the_way(node, lock).is_none() => state.locks.push((node, *lock)),
            _ if waiter.is_some() => return Ok(Locked::Later),
            _ => return Err(Errno::AGAIN),
        }
        Ok(Locked::Yes)
    }

    fn give_up(&self, waiter: Waiter) {
        note!(self, "give_up", waiter.owner, waiter.request);
    }
}

fn within(bytes: Vec<u8>, room: usize) -> Result<Vec<u8>, Errno> {
    if bytes.len() > room {
        Err(Errno::RANGE)
    } else {
        Ok(bytes)
    }
}
