use super::*;
use crate::fs::filesystem::{Stamp, Time};
use crate::iovecs::Iovecs;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;
use vm_memory::VolatileSlice;

#[path = "tree/confinement_test.rs"]
mod confinement_side;
#[path = "tree/escape_test.rs"]
mod escape;
#[path = "tree/host_test.rs"]
mod host_side;
#[path = "tree/lock_test.rs"]
mod lock;
#[path = "tree/nodes_test.rs"]
mod node;
#[path = "tree/owner_test.rs"]
mod owner;
#[path = "tree/rules_test.rs"]
mod rules;
#[path = "tree/share_root_test.rs"]
mod share_root;
#[path = "tree/twin_test.rs"]
mod twin;
#[path = "tree/wait_graph_test.rs"]
mod wait_graph;
#[path = "tree/xattr_test.rs"]
mod xattr;

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    pid: 1,
    group: None,
};
const O_RDONLY: u32 = 0;
const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_EXCL: u32 = 0o200;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;
const O_DIRECT: u32 = 0o40000;
const O_NOATIME: u32 = 0o1000000;

/// A share in a directory of its own, and the other things that are in that.
struct Share {
    dir: tempfile::TempDir,
    tree: Tree,
}

impl Share {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut ShareConfig)) -> Self {
        Self::within(FdBudget::new(4096), change)
    }

    fn within(budget: Arc<FdBudget>, change: impl FnOnce(&mut ShareConfig)) -> Self {
        Self::of(tempfile::tempdir().unwrap(), budget, change)
    }

    /// In memory, where there is such a file system: for a great many files.
    fn in_memory(change: impl FnOnce(&mut ShareConfig)) -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        Self::of(dir.unwrap(), FdBudget::new(4096), change)
    }

    fn of(dir: tempfile::TempDir, budget: Arc<FdBudget>, change: impl FnOnce(&mut ShareConfig)) -> Self {
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut config = ShareConfig::new(dir.path().join("share"));
        change(&mut config);
        let tree = Tree::open_within(&config, budget).unwrap();
        tree.begin(tree.abilities());
        // Each test has a thread of its own.
        tree.enter().unwrap();
        Self { dir, tree }
    }

    /// A name in the share, on the host.
    fn host(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join("share").join(name)
    }

    /// A name beside the share.
    fn outside(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn lookup(&self, parent: Node, name: &str) -> Result<Entry, Errno> {
        named(name, |name| self.tree.lookup(parent, name))
    }

    fn node(&self, name: &str) -> Node {
        self.lookup(Node::ROOT, name).unwrap().node
    }

    fn mkdir(&self, parent: Node, name: &str, mode: u32) -> Result<Entry, Errno> {
        named(name, |name| self.tree.mkdir(&ROOT, parent, name, &creation(mode)))
    }

    fn create(&self, parent: Node, name: &str, flags: u32, mode: u32) -> Result<(Entry, Opened), Errno> {
        self.create_as(&ROOT, parent, name, flags, mode)
    }

    fn create_as(
        &self,
        caller: &Caller,
        parent: Node,
        name: &str,
        flags: u32,
        mode: u32,
    ) -> Result<(Entry, Opened), Errno> {
        let new = creation(mode);
        named(name, |name| self.tree.create(caller, parent, name, flags, false, &new))
    }

    fn rename(&self, from: (Node, &str), to: (Node, &str), flags: u32) -> Result<(), Errno> {
        named(from.1, |name| {
            named(to.1, |to_name| self.tree.rename((from.0, name), (to.0, to_name), flags))
        })
    }

    fn link(&self, node: Node, parent: Node, name: &str) -> Result<Entry, Errno> {
        named(name, |name| self.tree.link(node, parent, name))
    }

    fn unlink(&self, parent: Node, name: &str) -> Result<(), Errno> {
        named(name, |name| self.tree.unlink(parent, name))
    }

    fn rmdir(&self, parent: Node, name: &str) -> Result<(), Errno> {
        named(name, |name| self.tree.rmdir(parent, name))
    }

    fn symlink(&self, parent: Node, name: &str, target: &str) -> Result<Entry, Errno> {
        let target = CString::new(target).unwrap();
        named(name, |name| {
            self.tree.symlink(&ROOT, parent, name, &target, &creation(0))
        })
    }

    fn mknod(&self, name: &str, mode: u32, rdev: u32) -> Result<Entry, Errno> {
        let new = Creation { rdev, ..creation(mode) };
        named(name, |name| self.tree.mknod(&ROOT, Node::ROOT, name, &new))
    }

    fn setattr(&self, node: Node, change: Change) -> Result<Attr, Errno> {
        self.tree.setattr(node, None, &change).map(|(attr, _)| attr)
    }

    fn attr(&self, node: Node) -> Attr {
        self.tree.getattr(node, None).unwrap().0
    }

    fn open(&self, node: Node, flags: u32) -> Result<Handle, Errno> {
        self.tree.open_node(node, flags, false).map(|opened| opened.handle)
    }

    fn read(&self, node: Node, handle: Handle, offset: u64, len: usize) -> Result<Vec<u8>, Errno> {
        self.read_as(node, handle, offset, len, false)
    }

    fn read_as(&self, node: Node, handle: Handle, offset: u64, len: usize, direct: bool) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; len];
        let mut iovecs = Iovecs::default();
        let mut live = iovecs.begin();
        // In two pieces, as guests' buffers are.
        let (one, two) = bytes.split_at_mut(len / 2);
        live.push(VolatileSlice::from(one));
        live.push(VolatileSlice::from(two));
        let read = self.tree.read(node, handle, offset, live.buffers(), direct)?;
        drop(iovecs);
        bytes.truncate(read);
        Ok(bytes)
    }

    fn write(&self, node: Node, handle: Handle, offset: u64, bytes: &[u8]) -> Result<usize, Errno> {
        self.write_as(node, handle, offset, bytes, Writing::default())
    }

    fn write_as(&self, node: Node, handle: Handle, offset: u64, bytes: &[u8], how: Writing) -> Result<usize, Errno> {
        let mut bytes = bytes.to_vec();
        let mut iovecs = Iovecs::default();
        let mut live = iovecs.begin();
        let (one, two) = bytes.split_at_mut(1);
        live.push(VolatileSlice::from(one));
        live.push(VolatileSlice::from(two));
        self.tree.write(node, handle, offset, live.buffers(), how)
    }

    /// Names, offsets behind them, and nodes, of a directory from `offset` on; `room` at a time.
    fn list(
        &self,
        node: Node,
        handle: Handle,
        offset: u64,
        plus: bool,
        room: usize,
    ) -> Vec<(String, u64, Option<Entry>)> {
        let mut found = Vec::new();
        let mut take = |listed: &Listed<'_>| {
            if found.len() == room {
                return false;
            }
            let name = listed.name.to_str().unwrap().to_owned();
            found.push((name, listed.next, listed.entry));
            true
        };
        self.tree.readdir(node, handle, offset, plus, &mut take).unwrap();
        found
    }

    /// All names of a directory, as a guest with little room reads them.
    fn names(&self, node: Node, room: usize) -> Vec<String> {
        let handle = self.tree.opendir(node).unwrap().handle;
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let part = self.list(node, handle, offset, false, room);
            let Some((_, next, _)) = part.last() else { break };
            offset = *next;
            names.extend(part.into_iter().map(|(name, ..)| name));
        }
        self.tree.releasedir(node, handle).unwrap();
        names.sort();
        names
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = FileSystem::counters(&self.tree);
        counters.iter().find(|(found, _)| *found == name).unwrap().1
    }
}

fn named<T>(name: &str, call: impl FnOnce(Name<'_>) -> Result<T, Errno>) -> Result<T, Errno> {
    let name = CString::new(name).unwrap();
    call(Name::new(&name)?)
}

fn creation(mode: u32) -> Creation<'static> {
    Creation {
        mode,
        ..Creation::default()
    }
}

/// Whether this is root over all users; says so if not.
fn is_root() -> bool {
    let everybody = fs::read_to_string("/proc/self/uid_map").unwrap().contains("4294967295");
    let root = everybody && rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: needs root: nobody else acts for others, and gives files away");
    }
    root
}

/// Whether this thread may mount; from now on its mounts go with it. Says so if not.
fn may_mount() -> bool {
    let private = || Command::new("mount").args(["--make-rprivate", "/"]).output();
    let may = host::own_mounts().is_ok() && private().is_ok_and(|output| output.status.success());
    if !may {
        eprintln!("skipped: needs mounts");
    }
    may
}

/// Mounts a file system in memory.
fn mount(options: &str, at: impl AsRef<Path>) {
    let options = ["-t", "tmpfs", "-o", options, "none"];
    let mounted = Command::new("mount").args(options).arg(at.as_ref()).output().unwrap();
    assert!(mounted.status.success(), "{mounted:?}");
}

/// What `path` holds.
fn content(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap()
}
