//! A file system that stops answering when its test says so: every name in it is a file of 2 MiB of zeros.

use std::ffi::CString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// Requests (`enum fuse_opcode` of linux/fuse.h).
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
/// What statx(2) waits for.
pub const GETATTR: u32 = 3;
const SETATTR: u32 = 4;
pub const OPEN: u32 = 14;
const READ: u32 = 15;
pub const WRITE: u32 = 16;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const FSYNC: u32 = 20;
/// What close(2) waits for.
pub const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const INTERRUPT: u32 = 36;
const BATCH_FORGET: u32 = 42;

const SIZE: u64 = 2 << 20;
const ROOT: u64 = 1;
/// Bytes of a request's header, and of the largest request.
const HEADER: usize = 40;
const MOST: usize = (1 << 20) + 4096;

/// What is not answered.
#[derive(Default)]
struct Silence {
    of: Option<u32>,
    /// Requests that wait, by their numbers.
    waiting: Vec<u64>,
}

/// The file system, mounted. When it goes, so does the mount, and whoever waits for it has an error.
pub struct SlowFiles {
    folder: TempDir,
    silence: Arc<Mutex<Silence>>,
    hung: Receiver<()>,
    device: Arc<File>,
}

impl SlowFiles {
    /// `None`, and a word, where there can be none.
    pub fn mount() -> Option<Self> {
        let Ok(device) = File::options().read(true).write(true).open("/dev/fuse") else {
            println!("skipped: needs /dev/fuse");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,allow_other",
            device.as_raw_fd()
        );
        let options = CString::new(options).unwrap();
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        if mount("husk-test", folder.path(), "fuse", flags, &*options).is_err() {
            println!("skipped: needs mounts");
            return None;
        }
        let (device, silence) = (Arc::new(device), Arc::default());
        let (say, hung) = channel();
        thread::spawn({
            let (device, silence) = (Arc::clone(&device), Arc::clone(&silence));
            move || serve(&device, &silence, &say)
        });
        Some(Self {
            folder,
            silence,
            hung,
            device,
        })
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Does not answer the next request of this kind until what is returned is dropped: before the
    /// process that waits for it, which could not end.
    pub fn hang(&self, opcode: u32) -> Hanging<'_> {
        self.silence.lock().unwrap().of = Some(opcode);
        Hanging(self)
    }

    /// Waits until somebody waits.
    pub fn wait(&self) {
        self.hung.recv().unwrap();
    }
}

/// The file system is silent.
#[must_use]
pub struct Hanging<'a>(&'a SlowFiles);

impl Hanging<'_> {
    /// Answers now, as if nothing had been, what has waited to open a file.
    pub fn open(self) {
        let mut silence = self.0.silence.lock().unwrap();
        for request in silence.waiting.drain(..) {
            answer(&self.0.device, request, 0, &numbers(&[1, 0]));
        }
    }
}

impl Drop for Hanging<'_> {
    /// What has waited fails.
    fn drop(&mut self) {
        let SlowFiles {
            silence, hung, device, ..
        } = self.0;
        let mut silence = silence.lock().unwrap();
        silence.of = None;
        for request in silence.waiting.drain(..) {
            answer(device, request, -libc::EIO, &[]);
        }
        while hung.try_recv().is_ok() {}
    }
}

impl Drop for SlowFiles {
    fn drop(&mut self) {
        let _ = unmount(self.folder.path(), UnmountFlags::DETACH);
    }
}

fn serve(mut device: &File, silence: &Mutex<Silence>, hung: &Sender<()>) {
    let mut request = vec![0; MOST];
    // Fails once it is not mounted any more.
    while let Ok(bytes) = device.read(&mut request) {
        let Some((header, body)) = request.get(..bytes).and_then(|all| all.split_at_checked(HEADER)) else {
            return;
        };
        let (opcode, id, node) = (number(header, 4), long(header, 8), long(header, 16));
        let mut silence = silence.lock().unwrap();
        if silence.of == Some(opcode) {
            silence.of = None;
            silence.waiting.push(id);
            let _ = hung.send(());
            continue;
        }
        drop(silence);
        match opcode {
            INIT => answer(device, id, 0, &init(number(body, 8))),
            LOOKUP => answer(
                device,
                id,
                0,
                &[&numbers(&[2, 0, 0, 0, 0]), &attributes(2)[..]].concat(),
            ),
            GETATTR | SETATTR => answer(device, id, 0, &[&numbers(&[0, 0]), &attributes(node)[..]].concat()),
            OPEN | OPENDIR => answer(device, id, 0, &numbers(&[1, 0])),
            READ => answer(device, id, 0, &vec![0; usize::try_from(number(body, 16)).unwrap()]),
            WRITE => answer(device, id, 0, &numbers(&[u64::from(number(body, 16))])),
            STATFS => answer(device, id, 0, &[0; 80]),
            FLUSH | RELEASE | RELEASEDIR | FSYNC => answer(device, id, 0, &[]),
            FORGET | BATCH_FORGET | INTERRUPT => {}
            _ => answer(device, id, -libc::ENOSYS, &[]),
        }
    }
}

/// `struct fuse_out_header` and what follows it. Whoever asked may have given up.
fn answer(mut device: &File, id: u64, error: i32, body: &[u8]) {
    let bytes = u32::try_from(16 + body.len()).unwrap();
    let header = [&bytes.to_ne_bytes()[..], &error.to_ne_bytes(), &id.to_ne_bytes()].concat();
    let _ = device.write(&[&header[..], body].concat());
}

/// `struct fuse_init_out` of version 7.31.
fn init(readahead: u32) -> Vec<u8> {
    let mut words = [0_u32; 16];
    // Version; bytes read ahead; 16 requests in the background, of 12 at which it is congested; bytes of a write.
    (words[0], words[1], words[2]) = (7, 31, readahead);
    (words[4], words[5]) = (16 | 12 << 16, 65536);
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// `struct fuse_attr` of `node`.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = match node {
        ROOT => (libc::S_IFDIR | 0o755, 0),
        _ => (libc::S_IFREG | 0o644, SIZE),
    };
    let times = numbers(&[node, size, size / 512, 0, 0, 0]);
    let rest = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0];
    let rest = rest.iter().flat_map(|word: &u32| word.to_ne_bytes());
    times.into_iter().chain(rest).collect()
}

fn numbers(of: &[u64]) -> Vec<u8> {
    of.iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn long(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap())
}
