//! What a request for files costs in the server of a share, without a ring: guest memory, decoding,
//! the host's calls, the reply (FUSE 7.38, `include/uapi/linux/fuse.h`). The folder is where
//! temporary files are; all that is read is cached there.

use std::fs::{self, File};
use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use husk_virtio::fs::serve::{Outcome, Serve};
use husk_virtio::fs::server::Server;
use husk_virtio::fs::share::ShareConfig;
use vm_memory::VolatileSlice;

const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const UNLINK: u32 = 10;
const OPEN: u32 = 14;
const READ: u32 = 15;
const WRITE: u32 = 16;
const RELEASE: u32 = 18;
const FLUSH: u32 = 25;
const INIT: u32 = 26;
const OPENDIR: u32 = 27;
const RELEASEDIR: u32 = 29;
const CREATE: u32 = 35;
const READDIRPLUS: u32 = 44;

const ROOT: u64 = 1;
/// Bytes of a request's header, and of a reply's.
const IN: usize = 40;
const OUT: usize = 16;
/// A user who is not the server's.
const SOMEBODY: u32 = 1000;
const DATA_BYTES: usize = 4 << 20;
const LISTED: u32 = 200;
/// Bytes that Linux asks for in a `READDIRPLUS` at a time.
const PAGE: u32 = 4096;

/// A driver with one request at a time, whose buffers are pages as a guest's are.
struct Guest {
    server: Server,
    uid: u32,
    request: Vec<u8>,
    reply: Vec<u8>,
}

impl Guest {
    fn new(folder: &Path) -> Self {
        let mut config = ShareConfig::new(folder);
        config.xattr = true;
        let server = Server::open(&config).expect("a directory that can be shared");
        server.enter().expect("a thread that can serve");
        let mut guest = Self {
            server,
            uid: rustix::process::geteuid().as_raw(),
            request: Vec::new(),
            reply: vec![0; OUT + DATA_BYTES],
        };
        let flags = [7u32, 38, 128 << 10, 0x73ff_fffb, 0, 0].map(u32::to_le_bytes).concat();
        guest.ask(INIT, ROOT, &[&flags, &[0; 40]], OUT + 64);
        guest
    }

    /// Sends a request, and expects success: the length of the reply's body.
    fn ask(&mut self, opcode: u32, node: u64, parts: &[&[u8]], room: usize) -> usize {
        let len = IN + parts.iter().map(|part| part.len()).sum::<usize>();
        self.request.clear();
        self.request
            .extend(u32::try_from(len).expect("a short request").to_le_bytes());
        self.request.extend(opcode.to_le_bytes());
        self.request.extend([1, node].map(u64::to_le_bytes).concat());
        self.request
            .extend([self.uid, self.uid, 1, 0].map(u32::to_le_bytes).concat());
        parts.iter().for_each(|part| self.request.extend_from_slice(part));
        let pieces = |bytes| <[u8]>::chunks_mut(bytes, 64 << 10).map(VolatileSlice::from);
        let reply = self.reply.get_mut(..room).expect("room for any reply");
        let asked = pieces(self.request.as_mut_slice()).collect();
        let outcome = self.server.handle(asked, pieces(reply).collect());
        if opcode == FORGET {
            assert_eq!(outcome, Outcome::Done(0));
            return 0;
        }
        assert_eq!(self.reply.get(4..8), Some(&[0; 4][..]), "opcode {opcode}");
        match outcome {
            Outcome::Done(len) => usize::try_from(len).expect("a length") - OUT,
            Outcome::Wait => panic!("nobody has a lock"),
        }
    }

    /// The number that is so many bytes behind the reply's header.
    fn told(&self, at: usize) -> u64 {
        let bytes = self.reply.get(OUT + at..OUT + at + 8).expect("a reply of that length");
        u64::from_le_bytes(bytes.try_into().expect("eight bytes"))
    }

    fn lookup(&mut self, name: &[u8]) -> u64 {
        self.ask(LOOKUP, ROOT, &[name, &[0]], OUT + 128);
        self.told(0)
    }

    fn forget(&mut self, node: u64) {
        self.ask(FORGET, node, &[&1u64.to_le_bytes()], 0);
    }

    fn open(&mut self, opcode: u32, node: u64, flags: i32) -> u64 {
        self.ask(opcode, node, &[&flags.to_le_bytes(), &[0; 4]], OUT + 16);
        self.told(0)
    }

    fn read(&mut self, opcode: u32, node: u64, handle: u64, offset: u64, size: u32) -> usize {
        let wanted = [handle, offset, size.into(), 0, 0].map(u64::to_le_bytes).concat();
        let room = OUT + usize::try_from(size).expect("a size");
        self.ask(opcode, node, &[&wanted], room)
    }

    fn write(&mut self, node: u64, handle: u64, data: &[u8]) {
        let size = u64::try_from(data.len()).expect("a length");
        let wanted = [handle, 0, size, 0, 0].map(u64::to_le_bytes).concat();
        self.ask(WRITE, node, &[&wanted, data], OUT + 8);
    }

    fn close(&mut self, opcode: u32, node: u64, handle: u64) {
        let wanted = [handle, 0, 0].map(u64::to_le_bytes).concat();
        self.ask(opcode, node, &[&wanted], OUT);
    }

    /// Makes a file, closes it, removes it, and forgets it.
    fn pass(&mut self) {
        let umask = 0o022u32;
        let wanted = [0o2u32, 0o100_644, umask, 0].map(u32::to_le_bytes).concat();
        self.ask(CREATE, ROOT, &[&wanted, b"passing\0"], OUT + 144);
        let (node, handle) = (self.told(0), self.told(128));
        self.close(FLUSH, node, handle);
        self.close(RELEASE, node, handle);
        self.ask(UNLINK, ROOT, &[b"passing\0"], OUT);
        self.forget(node);
    }

    /// Lists a folder with what its entries are, and forgets them: how many there are.
    fn list(&mut self, folder: u64) -> usize {
        let handle = self.open(OPENDIR, folder, 0);
        let (mut offset, mut nodes) = (0, Vec::new());
        loop {
            let len = self.read(READDIRPLUS, folder, handle, offset, PAGE);
            let mut at = 0;
            while at < len {
                let name = self.told(at + 144) & 0xffff_ffff;
                offset = self.told(at + 136);
                // `.` and `..` are none.
                nodes.extend(Some(self.told(at)).filter(|node| *node != 0));
                at += (152 + usize::try_from(name).expect("a length")).next_multiple_of(8);
            }
            if len == 0 {
                break;
            }
        }
        self.close(RELEASEDIR, folder, handle);
        nodes.iter().for_each(|node| self.forget(*node));
        nodes.len()
    }
}

fn filled() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mode = fs::Permissions::from_mode(0o777);
    fs::set_permissions(folder.path(), mode).expect("a folder for everybody");
    fs::write(folder.path().join("data"), vec![0x5a; DATA_BYTES]).expect("a file");
    let listed = folder.path().join("listed");
    fs::create_dir(&listed).expect("a folder");
    for number in 0..LISTED {
        File::create(listed.join(format!("file-{number:05}"))).expect("a file");
    }
    folder
}

fn names(c: &mut Criterion) {
    let folder = filled();
    let mut guest = Guest::new(folder.path());
    let mut group = c.benchmark_group("files");
    group.bench_function("lookup of a new node, forget", |b| {
        b.iter(|| {
            let node = guest.lookup(b"data");
            guest.forget(black_box(node));
        });
    });
    let node = guest.lookup(b"data");
    group.bench_function("lookup of a known node", |b| {
        b.iter(|| black_box(guest.lookup(b"data")));
    });
    group.bench_function("getattr", |b| {
        b.iter(|| guest.ask(GETATTR, node, &[&[0; 16]], OUT + 104));
    });
    group.bench_function("open, release", |b| {
        b.iter(|| {
            let handle = guest.open(OPEN, node, 0);
            guest.close(RELEASE, node, handle);
        });
    });
    group.bench_function("create, unlink", |b| b.iter(|| guest.pass()));
    if guest.uid == 0 {
        guest.uid = SOMEBODY;
        group.bench_function("create, unlink by another user", |b| b.iter(|| guest.pass()));
        guest.uid = 0;
    }
    let listed = guest.lookup(b"listed");
    group.throughput(Throughput::Elements(LISTED.into()));
    group.bench_function("readdirplus, forget", |b| {
        b.iter(|| assert!(guest.list(listed) >= usize::try_from(LISTED).expect("a count")));
    });
    group.finish();
}

fn contents(c: &mut Criterion) {
    let folder = filled();
    let mut guest = Guest::new(folder.path());
    let node = guest.lookup(b"data");
    let handle = guest.open(OPEN, node, 0o2);
    let mut group = c.benchmark_group("files");
    for (size, name) in [(4 << 10, "4 KiB"), (128 << 10, "128 KiB"), (1 << 20, "1 MiB")] {
        group.throughput(Throughput::Bytes(u64::from(size)));
        group.bench_function(format!("read of {name}"), |b| {
            b.iter(|| guest.read(READ, node, handle, 0, size));
        });
        let data = vec![0x5a; usize::try_from(size).expect("a size")];
        group.bench_function(format!("write of {name}"), |b| {
            b.iter(|| guest.write(node, handle, &data));
        });
    }
    group.finish();
}

criterion_group!(benches, names, contents);
criterion_main!(benches);
