//! The same random calls on a share and on a directory beside it: both answer the same, and look the same in the end.

use super::*;
use proptest::prelude::*;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, RenameFlags, ResolveFlags};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

/// A place: names from the root on. Any but the last may be no directory.
type Place = Vec<&'static str>;

#[derive(Clone, Debug)]
enum Step {
    Create(Place, bool),
    Mkdir(Place),
    Symlink(Place, &'static str),
    Link(Place, Place),
    Unlink(Place),
    Rmdir(Place),
    Rename(Place, Place, u32),
    Write(Place, u64, u8),
    Truncate(Place, u64),
    Chmod(Place, u32),
    Read(Place),
    Readlink(Place),
    List(Place),
    /// The guest forgets what it was given.
    Forget,
}

fn place() -> impl Strategy<Value = Place> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    prop::collection::vec(name, 1..4)
}

fn step() -> impl Strategy<Value = Step> {
    let target = prop::sample::select(vec!["a", "../outside", "/", "b/c"]);
    prop_oneof![
        4 => (place(), any::<bool>()).prop_map(|(at, exclusive)| Step::Create(at, exclusive)),
        4 => place().prop_map(Step::Mkdir),
        1 => (place(), target).prop_map(|(at, target)| Step::Symlink(at, target)),
        2 => (place(), place()).prop_map(|(from, to)| Step::Link(from, to)),
        2 => place().prop_map(Step::Unlink),
        1 => place().prop_map(Step::Rmdir),
        4 => (place(), place(), 0u32..4).prop_map(|(from, to, flags)| Step::Rename(from, to, flags)),
        3 => (place(), 0u64..9000, any::<u8>()).prop_map(|(at, offset, byte)| Step::Write(at, offset, byte)),
        1 => (place(), 0u64..9000).prop_map(|(at, size)| Step::Truncate(at, size)),
        1 => (place(), 0u32..0o1000).prop_map(|(at, mode)| Step::Chmod(at, mode | 0o700)),
        2 => place().prop_map(Step::Read),
        1 => place().prop_map(Step::Readlink),
        2 => place().prop_map(Step::List),
        1 => Just(Step::Forget),
    ]
}

/// What a step that succeeded found.
type Answer = Result<Vec<u8>, Errno>;

/// The guest's side: as its kernel would, a name at a time.
struct Guest<'a> {
    share: &'a Share,
    given: Vec<Node>,
}

impl Guest<'_> {
    fn find(&mut self, place: &[&str]) -> Result<(Node, Attr), Errno> {
        let mut at = (Node::ROOT, self.share.attr(Node::ROOT));
        for name in place {
            let entry = self.share.lookup(at.0, name)?;
            self.given.push(entry.node);
            at = (entry.node, entry.attr);
        }
        Ok(at)
    }

    fn parent(&mut self, place: &Place) -> Result<(Node, &'static str), Errno> {
        let (name, above) = place.split_last().unwrap();
        let (node, attr) = self.find(above)?;
        if attr.mode & 0o170_000 != 0o040_000 {
            Err(Errno::NOTDIR)
        } else {
            Ok((node, name))
        }
    }

    fn keep(&mut self, entry: Entry) -> Answer {
        self.given.push(entry.node);
        Ok(vec![])
    }

    fn with_file(&mut self, place: &Place, flags: u32, call: impl FnOnce(Node, Handle) -> Answer) -> Answer {
        let (node, _) = self.find(place)?;
        let handle = self.share.open(node, flags)?;
        let answer = call(node, handle);
        self.share.tree.release(node, handle, None).unwrap();
        answer
    }

    fn run(&mut self, step: &Step) -> Answer {
        let share = self.share;
        let done = |()| vec![];
        match step {
            Step::Create(at, exclusive) => {
                let (dir, name) = self.parent(at)?;
                let flags = O_RDWR | if *exclusive { O_EXCL } else { 0 };
                let (entry, opened) = share.create(dir, name, flags, 0o644)?;
                share.tree.release(entry.node, opened.handle, None).unwrap();
                self.keep(entry)
            }
            Step::Mkdir(at) => {
                let (dir, name) = self.parent(at)?;
                share.mkdir(dir, name, 0o755).and_then(|entry| self.keep(entry))
            }
            Step::Symlink(at, target) => {
                let (dir, name) = self.parent(at)?;
                share.symlink(dir, name, target).and_then(|entry| self.keep(entry))
            }
            Step::Link(from, to) => {
                let (node, _) = self.find(from)?;
                let (dir, name) = self.parent(to)?;
                share.link(node, dir, name).and_then(|entry| self.keep(entry))
            }
            Step::Unlink(at) => {
                let (dir, name) = self.parent(at)?;
                share.unlink(dir, name).map(done)
            }
            Step::Rmdir(at) => {
                let (dir, name) = self.parent(at)?;
                share.rmdir(dir, name).map(done)
            }
            Step::Rename(from, to, flags) => {
                let (from, to) = (self.parent(from)?, self.parent(to)?);
                share.rename(from, to, *flags).map(done)
            }
            Step::Write(at, offset, byte) => self.with_file(at, O_WRONLY, |node, handle| {
                share
                    .write(node, handle, *offset, &[*byte; 100])
                    .map(|bytes| bytes.to_le_bytes().to_vec())
            }),
            Step::Truncate(at, size) => {
                let (node, _) = self.find(at)?;
                let size = Change {
                    size: Some(*size),
                    ..Change::default()
                };
                share.setattr(node, size).map(|attr| attr.size.to_le_bytes().to_vec())
            }
            Step::Chmod(at, mode) => {
                let (node, _) = self.find(at)?;
                let mode = Change {
                    mode: Some(*mode),
                    ..Change::default()
                };
                share.setattr(node, mode).map(|attr| attr.mode.to_le_bytes().to_vec())
            }
            Step::Read(at) => self.with_file(at, O_RDONLY, |node, handle| share.read(node, handle, 0, 20_000)),
            Step::Readlink(at) => {
                let (node, _) = self.find(at)?;
                share.tree.readlink(node)
            }
            Step::List(at) => {
                let (node, attr) = self.find(at)?;
                if attr.mode & 0o170_000 != 0o040_000 {
                    return Err(Errno::NOTDIR);
                }
                Ok(share.names(node, 2).join("/").into_bytes())
            }
            Step::Forget => {
                for node in self.given.drain(..) {
                    share.tree.forget(node, 1);
                }
                Ok(vec![])
            }
        }
    }
}

/// The host's side: the calls themselves, links not followed.
struct Twin(OwnedFd);

impl Twin {
    /// A name at a time, so that a link in the middle is no directory.
    fn open(&self, place: &[&str], flags: OFlags) -> Result<OwnedFd, Errno> {
        let (name, above) = place.split_last().unwrap_or((&".", &[]));
        let dir = match above {
            [] => self.0.try_clone().unwrap(),
            above => self.open(above, OFlags::PATH | OFlags::NOFOLLOW)?,
        };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        rustix::fs::openat2(dir, *name, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn parent(&self, place: &Place) -> Result<(OwnedFd, &'static str), Errno> {
        let (name, above) = place.split_last().unwrap();
        let above = self.open(above, OFlags::PATH | OFlags::NOFOLLOW)?;
        let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&above)?.st_mode);
        if kind.is_dir() {
            Ok((above, name))
        } else {
            Err(Errno::NOTDIR)
        }
    }

    fn run(&self, step: &Step) -> Answer {
        let (none, done) = (AtFlags::empty(), |()| vec![]);
        let mode = Mode::from_raw_mode;
        match step {
            Step::Create(at, exclusive) => {
                let (dir, name) = self.parent(at)?;
                let exclusive = if *exclusive { OFlags::EXCL } else { OFlags::empty() };
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | exclusive;
                rustix::fs::openat(dir, name, flags, mode(0o644)).map(|_| vec![])
            }
            Step::Mkdir(at) => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::mkdirat(dir, name, mode(0o755)).map(done)
            }
            Step::Symlink(at, target) => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::symlinkat(*target, dir, name).map(done)
            }
            Step::Link(from, to) => {
                self.open(from, OFlags::PATH | OFlags::NOFOLLOW)?;
                let (from_dir, from) = self.parent(from)?;
                let (dir, name) = self.parent(to)?;
                rustix::fs::linkat(from_dir, from, dir, name, none).map(done)
            }
            Step::Unlink(at) => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::unlinkat(dir, name, none).map(done)
            }
            Step::Rmdir(at) => {
                let (dir, name) = self.parent(at)?;
                rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR).map(done)
            }
            Step::Rename(from, to, flags) => {
                let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
                let flags = RenameFlags::from_bits_retain(*flags);
                rustix::fs::renameat_with(from_dir, from, to_dir, to, flags).map(done)
            }
            Step::Write(at, offset, byte) => {
                let file = self.open(at, OFlags::WRONLY | OFlags::NOFOLLOW)?;
                rustix::io::pwrite(file, &[*byte; 100], *offset).map(|bytes| bytes.to_le_bytes().to_vec())
            }
            Step::Truncate(at, size) => {
                let link = self.open(at, OFlags::PATH | OFlags::NOFOLLOW)?;
                if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&link)?.st_mode).is_symlink() {
                    // No call of the host truncates one: what ftruncate(2) says of any other file.
                    return Err(Errno::INVAL);
                }
                rustix::fs::ftruncate(self.open(at, OFlags::WRONLY | OFlags::NOFOLLOW)?, *size)?;
                Ok(size.to_le_bytes().to_vec())
            }
            Step::Chmod(at, bits) => {
                let link = self.open(at, OFlags::PATH | OFlags::NOFOLLOW)?;
                let stat = rustix::fs::fstat(&link)?;
                if rustix::fs::FileType::from_raw_mode(stat.st_mode).is_symlink() {
                    return Err(Errno::OPNOTSUPP);
                }
                rustix::fs::fchmod(self.open(at, OFlags::RDONLY)?, mode(*bits))?;
                Ok((stat.st_mode & 0o170_000 | bits).to_le_bytes().to_vec())
            }
            Step::Read(at) => {
                let file = self.open(at, OFlags::RDONLY | OFlags::NOFOLLOW)?;
                if rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode).is_dir() {
                    return Err(Errno::ISDIR);
                }
                let mut bytes = vec![0; 20_000];
                let read = rustix::io::pread(file, &mut bytes[..], 0)?;
                bytes.truncate(read);
                Ok(bytes)
            }
            Step::Readlink(at) => {
                let link = self.open(at, OFlags::PATH | OFlags::NOFOLLOW)?;
                if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&link)?.st_mode).is_symlink() {
                    return Err(Errno::INVAL);
                }
                Ok(rustix::fs::readlinkat(link, c"", vec![])?.into_bytes())
            }
            Step::List(at) => {
                let link = self.open(at, OFlags::PATH | OFlags::NOFOLLOW)?;
                if !rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&link)?.st_mode).is_dir() {
                    return Err(Errno::NOTDIR);
                }
                let dir = rustix::fs::Dir::new(self.open(at, OFlags::RDONLY)?)?;
                let mut names: Vec<_> = dir
                    .map(|entry| entry.unwrap().file_name().to_str().unwrap().to_owned())
                    .collect();
                names.sort();
                Ok(names.join("/").into_bytes())
            }
            Step::Forget => Ok(vec![]),
        }
    }
}

/// Everything below `dir`: kind and permissions, links, and what is in it.
fn everything(dir: &Path) -> BTreeMap<String, (u32, u64, Vec<u8>)> {
    let mut found = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(next) = dirs.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let bytes = match meta.file_type() {
                kind if kind.is_file() => fs::read(&path).unwrap(),
                kind if kind.is_symlink() => fs::read_link(&path).unwrap().to_string_lossy().as_bytes().to_vec(),
                _ => {
                    dirs.push(path.clone());
                    vec![]
                }
            };
            let name = path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned();
            found.insert(name, (meta.mode(), meta.nlink(), bytes));
        }
    }
    found
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn a_share_answers_as_the_host_does(steps in prop::collection::vec(step(), 1..80), descriptors in 1usize..6) {
        let share = Share::with(|config| config.max_node_descriptors = descriptors);
        fs::write(share.outside("outside"), "canary").unwrap();
        fs::create_dir(share.outside("twin")).unwrap();
        let twin = rustix::fs::openat(CWD, share.outside("twin"), OFlags::PATH, Mode::empty()).unwrap();
        let (mut guest, twin) = (Guest { share: &share, given: vec![] }, Twin(twin));
        for step in &steps {
            prop_assert_eq!(guest.run(step), twin.run(step), "{:?}", step);
        }
        prop_assert_eq!(everything(&share.host("")), everything(&share.outside("twin")));
        prop_assert_eq!(content(share.outside("outside")), "canary");
        guest.run(&Step::Forget).unwrap();
        prop_assert_eq!((share.counter("nodes"), share.counter("handles")), (1, 0));
    }
}
