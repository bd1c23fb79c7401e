//! A thread that the host's kernel holds to the share: what it can no longer do outside, and
//! everything that it still does inside.

use std::sync::mpsc;

use rustix::fs::{Mode, OFlags, openat};

use super::*;

/// A folder with a share in it, and a file beside that.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(dir.path().join("share")).unwrap();
        fs::write(dir.path().join("secret"), "of the host").unwrap();
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Has a thread that confines itself serve the share: `work` is given the tree, and a descriptor of the folder.
    fn confined<T: Send>(
        &self,
        change: impl FnOnce(&mut ShareConfig),
        work: impl FnOnce(&Tree, &fs::File) -> T + Send,
    ) -> T {
        let mut config = ShareConfig::new(self.path("share"));
        config.confine = true;
        change(&mut config);
        let tree = Tree::open_within(&config, FdBudget::new(4096)).unwrap();
        tree.begin(tree.abilities());
        let folder = fs::File::open(self.0.path()).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                tree.enter().unwrap();
                work(&tree, &folder)
            });
            thread.join().unwrap()
        })
    }
}

/// Whether the host holds threads by Landlock; says so if not.
fn has_landlock() -> bool {
    let version = host::landlock_abi();
    if version < 2 {
        eprintln!("skipped: needs Landlock: its version here is {version}");
    }
    version >= 2
}

fn lookup(tree: &Tree, parent: Node, name: &str) -> Result<Node, Errno> {
    named(name, |name| tree.lookup(parent, name)).map(|entry| entry.node)
}

fn create(tree: &Tree, parent: Node, name: &str) -> (Node, Handle) {
    let new = creation(0o644);
    let made = named(name, |name| tree.create(&ROOT, parent, name, O_RDWR, false, &new));
    made.map(|(entry, opened)| (entry.node, opened.handle)).unwrap()
}

fn open(tree: &Tree, node: Node, flags: u32) -> Result<Handle, Errno> {
    tree.open_node(node, flags, false).map(|opened| opened.handle)
}

fn write(tree: &Tree, node: Node, handle: Handle, text: &[u8]) {
    let mut text = text.to_vec();
    let len = text.len();
    let mut iovecs = Iovecs::default();
    let mut live = iovecs.begin();
    live.push(VolatileSlice::from(&mut text[..]));
    assert_eq!(tree.write(node, handle, 0, live.buffers(), Writing::default()), Ok(len));
}

#[test]
fn nothing_beside_the_share_can_be_opened() {
    if !has_landlock() {
        return;
    }
    let folder = Folder::new();
    folder.confined(
        |_| {},
        |_, outside| {
            let open = |name: &str, flags| openat(outside, name, flags, Mode::RUSR).map(drop);
            // Whatever rights it has besides: the descriptor leads there, and the kernel does not let it.
            assert_eq!(open("secret", OFlags::RDONLY), Err(Errno::ACCESS));
            assert_eq!(open("secret", OFlags::WRONLY | OFlags::TRUNC), Err(Errno::ACCESS));
            assert_eq!(open("new", OFlags::WRONLY | OFlags::CREATE), Err(Errno::ACCESS));
            assert_eq!(open(".", OFlags::RDONLY | OFlags::DIRECTORY), Err(Errno::ACCESS));
            let mkdir = rustix::fs::mkdirat(outside, "dir", Mode::RWXU);
            assert_eq!(mkdir, Err(Errno::ACCESS));
            assert_eq!(
                rustix::fs::unlinkat(outside, "secret", rustix::fs::AtFlags::empty()),
                Err(Errno::ACCESS)
            );
            // Nor carried in.
            let moved = rustix::fs::renameat(outside, "secret", outside, "share/secret");
            assert!(matches!(moved, Err(Errno::ACCESS | Errno::XDEV)), "{moved:?}");
            let linked = rustix::fs::linkat(outside, "secret", outside, "share/link", rustix::fs::AtFlags::empty());
            assert!(matches!(linked, Err(Errno::ACCESS | Errno::XDEV)), "{linked:?}");
            assert!(fs::read("/proc/self/maps").is_err());
        },
    );
    assert_eq!(content(folder.path("secret")), "of the host");
    assert_eq!(fs::read_dir(folder.0.path()).unwrap().count(), 2);
}

#[test]
fn everything_in_the_share_goes_on() {
    let folder = Folder::new();
    folder.confined(
        |config| {
            config.xattr = true;
            // So that nodes are opened again, by handle or by name.
            config.max_node_descriptors = 1;
        },
        |tree, _| {
            let mkdir = |name| named(name, |name| tree.mkdir(&ROOT, Node::ROOT, name, &creation(0o755)));
            let (a, b) = (mkdir("a").unwrap().node, mkdir("b").unwrap().node);
            let (file, handle) = create(tree, a, "file");
            write(tree, file, handle, b"one");
            tree.release(file, handle, None).unwrap();
            for name in ["x", "y", "z"] {
                named(name, |name| tree.mknod(&ROOT, b, name, &creation(0o100_644))).unwrap();
            }
            // From one directory to another, both ways of it.
            named("file", |from| named("moved", |to| tree.rename((a, from), (b, to), 0))).unwrap();
            named("again", |name| tree.link(file, a, name)).unwrap();
            let handle = open(tree, file, O_RDWR).unwrap();
            write(tree, file, handle, b"two");
            let change = Change {
                size: Some(2),
                mode: Some(0o600),
                ..Change::default()
            };
            tree.setattr(file, None, &change).unwrap();
            tree.setattr(
                file,
                Some(handle),
                &Change {
                    size: Some(1),
                    ..change
                },
            )
            .unwrap();
            tree.release(file, handle, None).unwrap();
            assert_eq!(tree.getxattr_len(file, c"user.none"), Err(Errno::NODATA));
            let list = tree.opendir(b).unwrap().handle;
            tree.releasedir(b, list).unwrap();
            tree.syncfs(Node::ROOT).unwrap();
            let unnamed = tree.tmpfile(&ROOT, a, O_RDWR, &creation(0o600)).unwrap();
            named("named", |name| tree.link(unnamed.0.node, b, name)).unwrap();
            // Removed while it is open, and opened once more.
            named("moved", |name| tree.unlink(b, name)).unwrap();
            let handle = open(tree, file, O_RDONLY).unwrap();
            named("again", |name| tree.unlink(a, name)).unwrap();
            assert_eq!(tree.getattr(file, None).unwrap().0.nlink, 0);
            tree.release(file, handle, None).unwrap();
        },
    );
    assert!(folder.path("share/b/named").exists());
}

/// What a handle alone leads to may be in no hierarchy that the kernel has in memory, and then
/// Landlock says no: names come first. When the name has gone elsewhere, the handle is all that
/// there is.
#[test]
fn nodes_are_opened_again_by_name_and_then_by_handle() {
    let folder = Folder::new();
    for file in 0..8 {
        fs::write(folder.path(&format!("share/{file}")), "text").unwrap();
    }
    let read = folder.confined(
        |config| config.max_node_descriptors = 1,
        |tree, _| {
            let find = |file| lookup(tree, Node::ROOT, &format!("{file}")).unwrap();
            let nodes: Vec<_> = (0..8).map(find).collect();
            for node in &nodes {
                let handle = open(tree, *node, O_RDONLY).unwrap();
                tree.release(*node, handle, None).unwrap();
            }
            // As somebody on the host would.
            let proc = tree.nodes.descriptor(&tree.nodes.root()).unwrap();
            rustix::fs::renameat(&*proc, "0", &*proc, "elsewhere").unwrap();
            let gone = open(tree, nodes[0], O_RDONLY).map(drop);
            let root = openat(&*proc, c".", OFlags::RDONLY, Mode::empty()).unwrap();
            let handle = host::FileHandle::of(&root).and_then(|handle| handle.open(root.as_fd(), libc::O_PATH));
            (gone, handle.is_ok())
        },
    );
    let expected = if read.1 { Ok(()) } else { Err(Errno::STALE) };
    assert_eq!(read.0, expected);
}

/// The name that is known may be the one that is gone, of a file that has others. Where its handle
/// leads is nowhere in a hierarchy then, once the host's kernel has forgotten the other name.
#[test]
fn a_file_that_only_a_handle_leads_to_is_stale_until_another_name_of_it_is_looked_up() {
    if !has_landlock() || !is_root() {
        return;
    }
    let folder = Folder::new();
    fs::write(folder.path("share/a"), "text").unwrap();
    fs::hard_link(folder.path("share/a"), folder.path("share/b")).unwrap();
    for name in ["first", "last"] {
        fs::write(folder.path(&format!("share/{name}")), "text").unwrap();
    }
    let (ask, asked) = mpsc::channel();
    let (done, is_done) = mpsc::channel();
    std::thread::scope(|scope| {
        // Somebody on the host, whom nothing holds.
        scope.spawn(move || {
            for () in asked {
                // What was in use lately takes more than one look to be forgotten.
                for _ in 0..4 {
                    fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
                }
                done.send(()).unwrap();
            }
        });
        folder.confined(
            |config| config.max_node_descriptors = 1,
            move |tree, _| {
                // The first one that is opened again by handle stays open for all that are on its mount.
                lookup(tree, Node::ROOT, "first").unwrap();
                let node = lookup(tree, Node::ROOT, "a").unwrap();
                assert_eq!(lookup(tree, Node::ROOT, "b"), Ok(node));
                lookup(tree, Node::ROOT, "last").unwrap();
                let root = tree.nodes.descriptor(&tree.nodes.root()).unwrap();
                rustix::fs::unlinkat(&*root, "b", rustix::fs::AtFlags::empty()).unwrap();
                ask.send(()).unwrap();
                is_done.recv().unwrap();
                // It is there, and what does not open it works.
                assert_eq!(tree.getattr(node, None).unwrap().0.nlink, 1);
                let opened = open(tree, node, O_RDONLY).map(drop);
                assert!(matches!(opened, Ok(()) | Err(Errno::STALE)), "{opened:?}");
                let size = Some(2);
                let cut = tree.setattr(
                    node,
                    None,
                    &Change {
                        size,
                        ..Change::default()
                    },
                );
                assert!(matches!(cut, Ok(_) | Err(Errno::STALE)), "{cut:?}");
                // What a guest does then.
                assert_eq!(lookup(tree, Node::ROOT, "a"), Ok(node));
                let handle = open(tree, node, O_RDWR).unwrap();
                tree.release(node, handle, None).unwrap();
            },
        );
    });
}

#[test]
fn a_share_that_is_read_only_is_so_for_the_kernel() {
    if !has_landlock() {
        return;
    }
    let folder = Folder::new();
    fs::write(folder.path("share/file"), "text").unwrap();
    folder.confined(
        |config| config.readonly = true,
        |tree, outside| {
            let node = lookup(tree, Node::ROOT, "file").unwrap();
            let handle = open(tree, node, O_RDONLY).unwrap();
            tree.release(node, handle, None).unwrap();
            let open = |flags| openat(outside, "share/file", flags, Mode::empty()).map(drop);
            assert_eq!(open(OFlags::RDONLY), Ok(()));
            assert_eq!(open(OFlags::WRONLY), Err(Errno::ACCESS));
            let removed = rustix::fs::unlinkat(outside, "share/file", rustix::fs::AtFlags::empty());
            assert_eq!(removed, Err(Errno::ACCESS));
        },
    );
    assert_eq!(content(folder.path("share/file")), "text");
}

#[test]
fn what_is_mounted_below_is_part_of_the_share() {
    let folder = Folder::new();
    fs::create_dir(folder.path("share/mount")).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            if host::own_mounts().is_err() {
                eprintln!("skipped: needs mounts");
                return;
            }
            let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let flags = rustix::mount::MountFlags::empty();
            rustix::mount::mount("tmpfs", folder.path("share/mount"), "tmpfs", flags, None).unwrap();
            folder.confined(
                |_| {},
                |tree, _| {
                    let mount = lookup(tree, Node::ROOT, "mount").unwrap();
                    let (file, handle) = create(tree, mount, "file");
                    write(tree, file, handle, b"text");
                    let other = open(tree, file, O_RDONLY).unwrap();
                    assert!(tree.getattr(mount, None).unwrap().0.submount);
                    tree.release(file, handle, None).unwrap();
                    tree.release(file, other, None).unwrap();
                },
            );
        });
    });
}

#[test]
fn what_is_in_force_is_told() {
    let folder = Folder::new();
    let told = folder.confined(|_| {}, |tree, _| tree.confinement().unwrap());
    assert_eq!(told.landlock.is_some(), host::landlock_abi() >= 2);
    let text = told.to_string();
    let landlock = told
        .landlock
        .map_or("none".into(), |version| format!("version {version}"));
    assert!(text.contains(&format!("Landlock: {landlock};")), "{text}");
    assert!(text.contains("umask: own; capabilities: "), "{text}");
}
