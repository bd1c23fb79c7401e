//! A vhost-user front-end whose driver is this file: rings by hand, and FUSE by hand (Linux include/uapi/linux/fuse.h).

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use husk_devices::testing::until;
use rustix::fs::{MemfdFlags, memfd_create};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const QUEUES: usize = 33;
/// A part of memory for each queue: ring, and buffers of as many requests as there are slots.
const PART: u64 = 0x40_000;
const SIZE: u16 = 64;
const SLOTS: u64 = 16;
/// Where in a part.
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const BUFFERS: u64 = 0x4000;
const SLOT: u64 = 0x2000;
/// Where in a slot the reply goes.
const REPLY: u64 = 0x1000;
/// Where memory is that comes later.
const LATER: u64 = 1 << 30;

const ROOT: u64 = 1;
/// `FUSE_POSIX_LOCKS`, `FUSE_BIG_WRITES`, `FUSE_FLOCK_LOCKS`.
const INIT_FLAGS: u32 = 1 << 1 | 1 << 5 | 1 << 10;

/// What a request came to: the reply's body, or a negative errno.
type Answer = Result<Vec<u8>, i32>;

/// A request that was handed over.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    queue: usize,
    slot: u64,
    unique: u64,
    /// Where the used ring was then: what it had before is of other requests, one in this slot among them.
    used: u16,
}

/// An open file.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    node: u64,
    handle: u64,
}

/// A VMM with a driver.
pub struct FrontEnd {
    frontend: Frontend,
    file: File,
    mem: GuestMemoryMmap<()>,
    later: Option<GuestMemoryMmap<()>>,
    rings: Vec<Option<Ring>>,
    /// The queue that requests take.
    queue: usize,
    unique: u64,
}

struct Ring {
    kick: EventFd,
    _call: EventFd,
    /// Requests made available.
    made: u16,
}

fn memory(gpa: u64, bytes: u64) -> (File, GuestMemoryMmap<()>) {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(bytes).unwrap();
    let offset = FileOffset::new(file.try_clone().unwrap(), 0);
    let range = (GuestAddress(gpa), usize::try_from(bytes).unwrap(), Some(offset));
    (file, GuestMemoryMmap::from_ranges_with_files([range]).unwrap())
}

fn region(mem: &GuestMemoryMmap<()>) -> VhostUserMemoryRegionInfo {
    VhostUserMemoryRegionInfo::from_guest_region(mem.iter().next().unwrap()).unwrap()
}

impl FrontEnd {
    /// Connects, agrees on features, and brings memory.
    pub fn connect(socket: &Path) -> Self {
        let mut frontend = Frontend::connect(socket, QUEUES as u64).unwrap();
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        // VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES; VIRTIO_RING_F_EVENT_IDX is there and not taken.
        let wanted = 1 << 32 | 1 << 30;
        assert_eq!(features & (wanted | 1 << 29 | 1 << 28), wanted | 1 << 29 | 1 << 28);
        frontend.set_features(wanted).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        let needed = VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
            | VhostUserProtocolFeatures::RESET_DEVICE;
        assert!(protocol.contains(needed), "{protocol:?}");
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_hdr_flags(vhost::vhost_user::message::VhostUserHeaderFlag::NEED_REPLY);
        let (file, mem) = memory(0, PART * QUEUES as u64);
        frontend.set_mem_table(&[region(&mem)]).unwrap();
        Self {
            frontend,
            file,
            mem,
            later: None,
            rings: (0..QUEUES).map(|_| None).collect(),
            queue: 1,
            unique: 0,
        }
    }

    pub fn queues(&mut self) -> u64 {
        self.frontend.get_queue_num().unwrap()
    }

    pub fn tag(&mut self) -> String {
        let wanted = [0; 40];
        let (_, found) = self
            .frontend
            .get_config(0, 40, VhostUserConfigFlags::WRITABLE, &wanted)
            .unwrap();
        assert_eq!(found[36..], 32_u32.to_le_bytes());
        String::from_utf8(found[..36].to_vec())
            .unwrap()
            .trim_end_matches('\0')
            .into()
    }

    /// From now on requests take this queue.
    pub fn use_queue(&mut self, queue: usize) {
        self.queue = queue;
        if self.rings[queue].is_none() {
            self.start(queue, 0);
        }
    }

    fn start(&mut self, queue: usize, base: u16) {
        self.bring(queue, base);
        let (kick, call) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
        self.frontend.set_vring_call(queue, &call).unwrap();
        self.frontend.set_vring_kick(queue, &kick).unwrap();
        self.frontend.set_vring_enable(queue, true).unwrap();
        self.rings[queue] = Some(Ring {
            kick,
            _call: call,
            made: base,
        });
    }

    /// Sets a ring up, and does not start it.
    fn bring(&mut self, queue: usize, base: u16) {
        let part = PART * queue as u64;
        let host = region(&self.mem).userspace_addr + part;
        self.frontend.set_vring_num(queue, SIZE).unwrap();
        self.frontend.set_vring_base(queue, base).unwrap();
        let config = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: host,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAIL,
            log_addr: None,
        };
        self.frontend.set_vring_addr(queue, &config).unwrap();
    }

    /// Takes the ring back as for a pause of the VM, and brings it again as it was.
    pub fn pause_and_go_on(&mut self) {
        let base = self.frontend.get_vring_base(self.queue).unwrap();
        let base = u16::try_from(base).unwrap();
        assert_eq!(base, self.rings[self.queue].as_ref().unwrap().made);
        self.start(self.queue, base);
    }

    /// Resets the device, and starts the ring from its beginning.
    pub fn begin_anew(&mut self) {
        self.frontend.get_vring_base(self.queue).unwrap();
        self.frontend.reset_device().unwrap();
        self.frontend.set_features(1 << 32 | 1 << 30).unwrap();
        let part = PART * self.queue as u64;
        self.mem.write_slice(&[0; 0x4000], GuestAddress(part)).unwrap();
        self.start(self.queue, 0);
    }

    /// Takes the ring back, as when its driver is reset, brings it from its beginning, and takes it back again before
    /// it has run. Where it stands then; and it is started there.
    pub fn begin_anew_after_a_pause(&mut self) -> u32 {
        self.frontend.get_vring_base(self.queue).unwrap();
        let part = PART * self.queue as u64;
        self.mem.write_slice(&[0; 0x4000], GuestAddress(part)).unwrap();
        self.bring(self.queue, 0);
        let base = self.frontend.get_vring_base(self.queue).unwrap();
        self.start(self.queue, u16::try_from(base).unwrap());
        base
    }

    /// Makes a chain available whose descriptor leads nowhere.
    pub fn break_queue(&mut self, queue: usize) {
        self.start(queue, 0);
        let part = PART * queue as u64;
        self.descriptor(part, 0, u64::MAX - 0x1000, 64, 0, 0);
        self.make_available(queue, 0);
    }

    /// From now on buffers are in memory that comes now.
    pub fn add_memory(&mut self) {
        let (_, mem) = memory(LATER, PART);
        self.frontend.add_mem_region(&region(&mem)).unwrap();
        self.later = Some(mem);
    }

    /// Takes the file of all memory away, and asks to look at it.
    pub fn truncate_memory_and_kick(&mut self) {
        self.file.set_len(0).unwrap();
        self.rings[self.queue].as_ref().unwrap().kick.write(1).unwrap();
    }

    fn descriptor(&self, part: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let bytes = [
            &addr.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &next.to_le_bytes(),
        ]
        .concat();
        self.mem
            .write_slice(&bytes, GuestAddress(part + 16 * u64::from(index)))
            .unwrap();
    }

    fn make_available(&mut self, queue: usize, head: u16) {
        let avail = PART * queue as u64 + AVAIL;
        let ring = self.rings[queue].as_mut().unwrap();
        let entry = avail + 4 + 2 * u64::from(ring.made % SIZE);
        self.mem.write_obj(head, GuestAddress(entry)).unwrap();
        ring.made = ring.made.wrapping_add(1);
        fence(Ordering::SeqCst);
        self.mem
            .store(ring.made, GuestAddress(avail + 2), Ordering::Release)
            .unwrap();
        ring.kick.write(1).unwrap();
    }

    fn buffers(&self) -> (&GuestMemoryMmap<()>, u64) {
        match &self.later {
            Some(later) => (later, LATER),
            None => (&self.mem, PART * self.queue as u64 + BUFFERS),
        }
    }

    /// Hands a request over, whose reply has room for `room` bytes behind its header.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Asked {
        self.unique += 2;
        let (queue, slot, unique) = (self.queue, self.unique / 2 % SLOTS, self.unique);
        let len = u32::try_from(40 + body.len()).unwrap();
        let header = [
            &len.to_le_bytes()[..],
            &opcode.to_le_bytes(),
            &unique.to_le_bytes(),
            &node.to_le_bytes(),
            // user, group, process, extensions
            &[0; 16],
        ];
        let request = [&header.concat(), body].concat();
        let (mem, base) = self.buffers();
        let at = base + SLOT * slot;
        mem.write_slice(&request, GuestAddress(at)).unwrap();
        mem.write_slice(&[0; 16], GuestAddress(at + REPLY)).unwrap();
        let part = PART * queue as u64;
        let head = u16::try_from(2 * slot).unwrap();
        self.descriptor(part, head, at, len, 1, head + 1);
        self.descriptor(part, head + 1, at + REPLY, 16 + room, 2, 0);
        let used = self.used(queue);
        self.make_available(queue, head);
        Asked {
            queue,
            slot,
            unique,
            used,
        }
    }

    /// Whether a request has its reply.
    pub fn is_answered(&self, asked: Asked) -> bool {
        let entries = PART * asked.queue as u64 + USED + 4;
        let new = self.used(asked.queue).wrapping_sub(asked.used);
        (0..new).any(|number| {
            let entry = asked.used.wrapping_add(number) % SIZE;
            let head: u32 = self.mem.read_obj(GuestAddress(entries + 8 * u64::from(entry))).unwrap();
            u64::from(head) == 2 * asked.slot && self.reply(asked).0 == asked.unique
        })
    }

    /// The index of a used ring.
    fn used(&self, queue: usize) -> u16 {
        let used = PART * queue as u64 + USED;
        self.mem.load(GuestAddress(used + 2), Ordering::Acquire).unwrap()
    }

    /// The number, and the answer, that stand in a slot.
    fn reply(&self, asked: Asked) -> (u64, Answer) {
        let (mem, base) = self.buffers();
        let at = base + SLOT * asked.slot + REPLY;
        let len: u32 = mem.read_obj(GuestAddress(at)).unwrap();
        let error: i32 = mem.read_obj(GuestAddress(at + 4)).unwrap();
        let unique = mem.read_obj(GuestAddress(at + 8)).unwrap();
        let mut body = vec![0; usize::try_from(len).unwrap().saturating_sub(16).min(0x1000)];
        mem.read_slice(&mut body, GuestAddress(at + 16)).unwrap();
        (unique, if error == 0 { Ok(body) } else { Err(error) })
    }

    /// Waits for the reply to a request.
    pub fn wait_for(&self, asked: Asked) -> Answer {
        until(|| self.is_answered(asked));
        self.reply(asked).1
    }

    fn call(&mut self, opcode: u32, node: u64, body: &[u8], room: u32) -> Answer {
        let asked = self.ask(opcode, node, body, room);
        self.wait_for(asked)
    }

    /// `FUSE_INIT` of protocol 7.38.
    pub fn mount(&mut self) {
        self.use_queue(self.queue);
        let words = [7, 38, 0x2_0000, INIT_FLAGS].map(u32::to_le_bytes).concat();
        let body = [words, vec![0; 48]].concat();
        let agreed = self.call(26, ROOT, &body, 64).unwrap();
        assert_eq!(agreed[..4], 7_u32.to_le_bytes());
    }

    /// `FUSE_LOOKUP` in the root.
    pub fn lookup(&mut self, name: &str) -> Result<u64, i32> {
        let body = [name.as_bytes(), b"\0"].concat();
        let entry = self.call(1, ROOT, &body, 128)?;
        Ok(u64::from_le_bytes(entry[..8].try_into().unwrap()))
    }

    fn open_with(&mut self, name: &str, flags: i32) -> Result<Opened, i32> {
        let node = self.lookup(name)?;
        let body = [flags, 0].map(i32::to_le_bytes).concat();
        let opened = self.call(14, node, &body, 16)?;
        let handle = u64::from_le_bytes(opened[..8].try_into().unwrap());
        Ok(Opened { node, handle })
    }

    /// `FUSE_OPEN`, which may fail.
    pub fn try_open(&mut self, name: &str) -> Result<Opened, i32> {
        self.open_with(name, libc::O_RDWR)
    }

    /// `FUSE_RELEASE`.
    pub fn release(&mut self, file: Opened) {
        let body = [file.handle, 0, 0].map(u64::to_le_bytes).concat();
        assert_eq!(self.call(18, file.node, &body, 0), Ok(vec![]));
    }

    /// `FUSE_OPEN`.
    pub fn open(&mut self, name: &str) -> Opened {
        self.open_with(name, libc::O_RDWR).unwrap()
    }

    /// The error of an attempt.
    pub fn open_to_write(&mut self, name: &str) -> Result<(), i32> {
        self.open_with(name, libc::O_WRONLY).map(drop)
    }

    fn transfer(file: Opened, size: u32) -> Vec<u8> {
        let words = [file.handle, 0, size.into(), 0, 0];
        words.map(u64::to_le_bytes).concat()
    }

    /// `FUSE_READ` of the beginning.
    pub fn read(&mut self, name: &str) -> Vec<u8> {
        let file = self.open_with(name, libc::O_RDONLY).unwrap();
        self.call(15, file.node, &Self::transfer(file, 0x800), 0x800).unwrap()
    }

    /// `FUSE_WRITE` at the beginning.
    pub fn write(&mut self, name: &str, data: &[u8]) {
        let file = self.open(name);
        let size = u32::try_from(data.len()).unwrap();
        let body = [&Self::transfer(file, size), data].concat();
        let written = self.call(16, file.node, &body, 8).unwrap();
        assert_eq!(written[..4], size.to_le_bytes());
    }

    /// Gives a file to a user.
    pub fn chown(&mut self, name: &str, uid: u32) -> Result<(), i32> {
        let node = self.lookup(name)?;
        // FATTR_UID
        let mut body = vec![0; 88];
        body[0] = 1 << 1;
        body[76..80].copy_from_slice(&uid.to_le_bytes());
        self.call(4, node, &body, 104).map(drop)
    }

    fn lock_body(file: Opened, owner: u64, kind: i32) -> Vec<u8> {
        let range = [file.handle, owner, 0, u64::MAX >> 1].map(u64::to_le_bytes).concat();
        let rest = [kind, 1, 0, 0].map(i32::to_le_bytes).concat();
        [range, rest].concat()
    }

    /// `FUSE_SETLK` of all of a file.
    pub fn lock(&mut self, file: Opened, owner: u64, locked: bool) -> Result<(), i32> {
        let kind = if locked { libc::F_WRLCK } else { libc::F_UNLCK };
        self.call(32, file.node, &Self::lock_body(file, owner, kind), 0)
            .map(drop)
    }

    /// `FUSE_SETLKW` of all of a file, without a wait for it.
    pub fn begin_lock(&mut self, file: Opened, owner: u64) -> Asked {
        self.ask(33, file.node, &Self::lock_body(file, owner, libc::F_WRLCK), 0)
    }
}
