//! What the file system in memory consists of.

use std::collections::BTreeMap;
use std::ffi::CString;

use rustix::fs::FileType;
use rustix::io::Errno;

use super::TTL;
use crate::fs::filesystem::{Attr, Caller, Creation, Entry, Handle, Lock, LockKind, Name, Node, Opened, Time};

/// It is always now.
pub(super) const NOW: Time = Time { sec: 1000, nsec: 17 };
/// Longest file.
const MAX: u64 = 16 << 20;

/// One file, directory or link.
#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub rdev: u32,
    pub nlink: u32,
    pub atime: Time,
    pub mtime: Time,
    /// Of a file, or what a link leads to.
    pub contents: Vec<u8>,
    pub children: BTreeMap<CString, Node>,
    pub parent: Option<Node>,
    pub xattrs: BTreeMap<CString, Vec<u8>>,
    pub lookups: u64,
}

impl File {
    pub fn new(caller: &Caller, new: &Creation<'_>) -> Self {
        let xattrs = new.label.map(|(name, value)| (name.to_owned(), value.to_vec()));
        let umask = if new.mode & 0o170_000 == 0o120_000 {
            0
        } else {
            new.umask
        };
        Self {
            mode: new.mode & !umask,
            uid: caller.uid,
            gid: caller.gid,
            rdev: new.rdev,
            atime: NOW,
            mtime: NOW,
            xattrs: xattrs.into_iter().collect(),
            ..Self::default()
        }
    }

    pub fn is(&self, kind: FileType) -> bool {
        FileType::from_raw_mode(self.mode) == kind
    }

    pub fn resize(&mut self, size: u64) -> Result<(), Errno> {
        if size > MAX {
            return Err(Errno::FBIG);
        }
        self.contents.resize(usize::try_from(size).unwrap(), 0);
        Ok(())
    }

    pub fn xattr_names(&self) -> Vec<u8> {
        self.xattrs
            .keys()
            .flat_map(|name| name.to_bytes_with_nul())
            .copied()
            .collect()
    }
}

/// All files, and who has them open and locked.
#[derive(Debug)]
pub(super) struct State {
    pub files: BTreeMap<Node, File>,
    pub handles: BTreeMap<Handle, Node>,
    pub locks: Vec<(Node, Lock)>,
    pub generation: u64,
    /// Where files end that are written, if the disk is full.
    pub full: Option<u64>,
    next: u64,
}

impl Default for State {
    fn default() -> Self {
        let root = File {
            mode: 0o040_755,
            nlink: 2,
            ..File::default()
        };
        Self {
            files: BTreeMap::from([(Node::ROOT, root)]),
            handles: BTreeMap::new(),
            locks: Vec::new(),
            generation: 0,
            full: None,
            next: 2,
        }
    }
}

impl State {
    /// What a new session knows nothing of.
    pub fn forget_all(&mut self) {
        self.handles.clear();
        self.locks.clear();
        self.files.values_mut().for_each(|file| file.lookups = 0);
        self.generation += 1;
    }

    pub fn file(&self, node: Node) -> Result<&File, Errno> {
        self.files.get(&node).ok_or(Errno::BADF)
    }

    pub fn file_mut(&mut self, node: Node) -> Result<&mut File, Errno> {
        self.files.get_mut(&node).ok_or(Errno::BADF)
    }

    pub fn attr(&self, node: Node) -> Result<Attr, Errno> {
        let file = self.file(node)?;
        let size = u64::try_from(file.contents.len()).unwrap();
        Ok(Attr {
            ino: node.0 + 1000,
            size,
            blocks: size.div_ceil(512),
            atime: file.atime,
            mtime: file.mtime,
            ctime: NOW,
            mode: file.mode,
            nlink: file.nlink,
            uid: file.uid,
            gid: file.gid,
            rdev: file.rdev,
            blksize: 4096,
            submount: false,
            btime: Some(Time { sec: -1, nsec: 5 }),
        })
    }

    pub fn child(&self, parent: Node, name: Name<'_>) -> Result<Node, Errno> {
        let parent = self.file(parent)?;
        if !parent.is(FileType::Directory) {
            return Err(Errno::NOTDIR);
        }
        parent.children.get(name.as_c_str()).copied().ok_or(Errno::NOENT)
    }

    /// Says what `node` is, as one more look-up of it.
    pub fn give(&mut self, node: Node) -> Result<Entry, Errno> {
        self.file_mut(node)?.lookups += 1;
        Ok(Entry {
            node,
            generation: 9,
            attr: self.attr(node)?,
            ttl: TTL,
        })
    }

    pub fn take_back(&mut self, node: Node, count: u64) {
        if let Some(file) = self.files.get_mut(&node) {
            file.lookups = file.lookups.saturating_sub(count);
        }
    }

    pub fn add(&mut self, file: File) -> Node {
        let node = Node(self.next);
        self.next += 1;
        self.files.insert(node, file);
        node
    }

    /// Makes something new under a name that is not there.
    pub fn make(&mut self, caller: &Caller, parent: Node, name: Name<'_>, new: &Creation<'_>) -> Result<Node, Errno> {
        let node = self.add(File::new(caller, new));
        let entered = self.enter(parent, name, node);
        if let Err(errno) = entered {
            self.files.remove(&node);
            return Err(errno);
        }
        let file = self.file_mut(node)?;
        if file.is(FileType::Directory) {
            file.nlink = 2;
            file.parent = Some(parent);
            self.file_mut(parent)?.nlink += 1;
        }
        Ok(node)
    }

    /// Gives `node` one name more.
    pub fn enter(&mut self, parent: Node, name: Name<'_>, node: Node) -> Result<(), Errno> {
        match self.child(parent, name) {
            Ok(_) => return Err(Errno::EXIST),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        self.file_mut(node)?.nlink += 1;
        self.file_mut(parent)?.children.insert(name.as_c_str().into(), node);
        Ok(())
    }

    pub fn remove(&mut self, parent: Node, name: Name<'_>, directory: bool) -> Result<(), Errno> {
        let node = self.child(parent, name)?;
        let file = self.file_mut(node)?;
        match (directory, file.is(FileType::Directory)) {
            (true, false) => return Err(Errno::NOTDIR),
            (false, true) => return Err(Errno::ISDIR),
            (true, true) if !file.children.is_empty() => return Err(Errno::NOTEMPTY),
            (true, true) => file.nlink = 0,
            (false, false) => file.nlink -= 1,
        }
        let parent = self.file_mut(parent)?;
        parent.children.remove(name.as_c_str());
        parent.nlink -= u32::from(directory);
        Ok(())
    }

    pub fn rename(&mut self, from: (Node, Name<'_>), to: (Node, Name<'_>), flags: u32) -> Result<(), Errno> {
        let node = self.child(from.0, from.1)?;
        let is_directory = self.file(node)?.is(FileType::Directory);
        // Its own directories and what is above them stay what they are.
        if flags > 1 || is_directory && from.0 != to.0 {
            return Err(Errno::INVAL);
        }
        match self.child(to.0, to.1) {
            Ok(there) if there == node => return Ok(()),
            Ok(_) if flags == 1 => return Err(Errno::EXIST),
            Ok(_) => self.remove(to.0, to.1, is_directory)?,
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        self.file_mut(from.0)?.children.remove(from.1.as_c_str());
        self.file_mut(to.0)?.children.insert(to.1.as_c_str().into(), node);
        Ok(())
    }

    pub fn open(&mut self, node: Node) -> Result<Opened, Errno> {
        let handle = Handle(self.next + 100);
        self.next += 1;
        self.handles.insert(handle, node);
        Ok(Opened {
            handle,
            keep_cache: true,
            direct: false,
            cache_dir: self.file(node)?.is(FileType::Directory),
        })
    }

    pub fn opened(&self, node: Node, handle: Handle) -> Result<(), Errno> {
        let known = self.handles.get(&handle) == Some(&node);
        known.then_some(()).ok_or(Errno::BADF)
    }

    pub fn close(&mut self, node: Node, handle: Handle) -> Result<(), Errno> {
        self.opened(node, handle)?;
        self.handles.remove(&handle);
        Ok(())
    }

    /// Names, what they lead to, and where the next one is.
    pub fn list(&self, node: Node) -> Result<Vec<(CString, Node, u64)>, Errno> {
        let file = self.file(node)?;
        let dots = [(c".", node), (c"..", file.parent.unwrap_or(node))];
        let dots = dots.into_iter().map(|(name, node)| (CString::from(name), node));
        let children = file.children.iter().map(|(name, node)| (name.clone(), *node));
        let all = dots.chain(children).zip(1..);
        Ok(all.map(|((name, node), next)| (name, node, next)).collect())
    }

    pub fn in_the_way(&self, node: Node, wanted: &Lock) -> Option<Lock> {
        let locks = self.locks.iter().filter(|(locked, _)| *locked == node);
        let mut others = locks.map(|(_, lock)| lock).filter(|lock| {
            lock.owner != wanted.owner
                && lock.whole_file == wanted.whole_file
                && (lock.kind == LockKind::Write || wanted.kind == LockKind::Write)
                && lock.start <= wanted.end
                && wanted.start <= lock.end
        });
        others.next().copied()
    }

    pub fn unlock(&mut self, node: Node, owner: u64, whole_file: bool) {
        let before = self.locks.len();
        self.locks
            .retain(|(locked, lock)| *locked != node || lock.owner != owner || lock.whole_file != whole_file);
        self.generation += u64::from(self.locks.len() != before);
    }
}
