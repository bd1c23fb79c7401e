//! A handler with a guest's driver on one side and programs of the host on the other, for unit tests.

use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::handler::VsockHandler;
use super::host::Host;
use super::listener::Listener;
use super::metrics::VsockMetrics;
use super::packet::{HEADER_BYTES, HOST_CID, Header, Op, TYPE_STREAM};
use crate::device::{Handler, HandlerError, Watch};
use crate::testing::{Buf, Driver, memory};
use crate::unix::SocketFile;

/// The guest's context.
pub const CID: u64 = 3;
/// A port that programs of the guest listen at, in these tests.
pub const PORT: u32 = 1024;
/// Payload that fits into a receive buffer.
pub const ROOM: usize = 4096;
/// What the guest offers for each stream, unless a test says otherwise.
pub const GUEST_BUFFER: u32 = 256 << 10;

const RINGS: [u64; 3] = [0x1000, 0x1_1000, 0x2_1000];
const RECEIVE_BUFFERS: u64 = 0x4_0000;
const RECEIVE_STRIDE: u64 = 0x2000;
const TRANSMIT_BUFFERS: u64 = 0x10_0000;
const TRANSMIT_STRIDE: u64 = 0x1_1000;

/// The thread's loop, one turn at a time.
pub struct Turns(Epoll);

impl Turns {
    pub fn new() -> Self {
        Self(Epoll::new().unwrap())
    }

    /// What has happened, by token.
    pub fn events(&self) -> Vec<u32> {
        self.wait(0)
    }

    /// What has happened, or happens within `timeout` milliseconds, -1 for ever.
    fn wait(&self, timeout: i32) -> Vec<u32> {
        let mut events = [EpollEvent::default(); 16];
        let count = self.0.wait(timeout, &mut events).unwrap();
        let tokens = events[..count].iter().map(|event| event.data());
        tokens.map(|token| u32::try_from(token).unwrap()).collect()
    }

    fn add(&self, fd: RawFd, events: EventSet, token: u32) -> io::Result<()> {
        self.0
            .ctl(ControlOperation::Add, fd, EpollEvent::new(events, token.into()))
    }
}

impl Watch for Turns {
    fn readable(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.add(fd, EventSet::IN, token)
    }

    fn edges(&mut self, fd: RawFd, token: u32) -> io::Result<()> {
        self.add(fd, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, token)
    }

    fn forget(&mut self, fd: RawFd) -> io::Result<()> {
        self.0.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }
}

/// A packet as the guest got it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub header: Header,
    pub payload: Vec<u8>,
}

impl Packet {
    pub fn op(&self) -> Op {
        Op::new(self.header.op).unwrap()
    }
}

/// Both sides and the handler between them.
pub struct Rig {
    pub receive: Driver,
    pub transmit: Driver,
    pub event: Driver,
    pub handler: Box<VsockHandler>,
    pub turns: Turns,
    pub host: Arc<Host>,
    pub folder: TempDir,
    _file: SocketFile,
    /// Addresses of receive buffers by head.
    buffers: std::collections::HashMap<u32, u64>,
    next_receive: u64,
    next_transmit: u64,
}

impl Rig {
    /// A device whose driver has put 32 buffers into the receive queue.
    pub fn new() -> Self {
        let mut rig = Self::without_buffers();
        rig.offer(32);
        rig
    }

    pub fn without_buffers() -> Self {
        let mem = memory();
        let [receive, transmit, event] = RINGS.map(|base| Driver::new(&mem, base, 64));
        let folder = tempfile::tempdir().unwrap();
        let (listener, file) = Listener::bind(&folder.path().join("v.sock")).unwrap();
        let host = Arc::new(Host::new(listener).unwrap());
        let event_ring = Some(event.ring());
        let mut handler = VsockHandler::new(CID, host.clone(), receive.ring(), transmit.ring(), event_ring);
        let mut turns = Turns::new();
        handler.watch(&mut turns).unwrap();
        Self {
            receive,
            transmit,
            event,
            handler: Box::new(handler),
            turns,
            host,
            folder,
            _file: file,
            buffers: std::collections::HashMap::new(),
            next_receive: 0,
            next_transmit: 0,
        }
    }

    pub fn metrics(&self) -> &VsockMetrics {
        &self.host.metrics
    }

    /// Puts `count` buffers into the receive queue, and tells so.
    pub fn offer(&mut self, count: usize) {
        for _ in 0..count {
            let at = RECEIVE_BUFFERS + (self.next_receive % 64) * RECEIVE_STRIDE;
            self.next_receive += 1;
            let len = u32::try_from(HEADER_BYTES + ROOM).unwrap();
            let head = self.receive.add(&[Buf::In(at, len)]);
            self.buffers.insert(u32::from(head), at);
        }
        self.receive.kick.write(1).unwrap();
    }

    /// Lets the handler do all there is to do.
    pub fn run(&mut self) {
        self.try_run().unwrap();
    }

    pub fn try_run(&mut self) -> Result<(), HandlerError> {
        loop {
            let events = self.turns.events();
            if events.is_empty() {
                return Ok(());
            }
            for token in events {
                self.handler.wake(token, &mut self.turns)?;
            }
        }
    }

    /// Waits for something to happen, and lets the handler do what there is to do then.
    pub fn run_once_more(&mut self) {
        for token in self.turns.wait(-1) {
            self.handler.wake(token, &mut self.turns).unwrap();
        }
        self.run();
    }

    /// Runs the handler and returns what the guest got. The buffers go back into the queue.
    pub fn received(&mut self) -> Vec<Packet> {
        self.run();
        let mut packets = Vec::new();
        while let Some((head, len)) = self.receive.take_used() {
            let at = self.buffers[&head];
            packets.push(self.packet_at(at, len));
            self.offer(1);
        }
        packets
    }

    pub fn packet_at(&self, at: u64, len: u32) -> Packet {
        let bytes = self.receive.read(at, usize::try_from(len).unwrap());
        let (header, payload) = bytes.split_first_chunk().unwrap();
        let header = Header::parse(header);
        assert_eq!(payload.len(), header.len as usize, "used length and header agree");
        Packet {
            header,
            payload: payload.to_vec(),
        }
    }

    /// The only packet that the guest got.
    #[track_caller]
    pub fn one(&mut self) -> Packet {
        let mut packets = self.received();
        assert_eq!(packets.len(), 1, "{packets:?}");
        packets.remove(0)
    }

    /// Puts a packet into the transmit queue without telling so.
    pub fn queue(&mut self, header: Header, payload: &[u8]) {
        let at = TRANSMIT_BUFFERS + (self.next_transmit % 14) * TRANSMIT_STRIDE;
        self.next_transmit += 1;
        self.transmit.write(at, &header.bytes());
        self.transmit.write(at + 64, payload);
        let mut chain = vec![Buf::Out(at, 44)];
        if !payload.is_empty() {
            chain.push(Buf::Out(at + 64, u32::try_from(payload.len()).unwrap()));
        }
        self.transmit.add(&chain);
    }

    /// Sends a packet and lets the handler see it.
    pub fn send(&mut self, header: Header, payload: &[u8]) {
        self.queue(header, payload);
        self.transmit.kick.write(1).unwrap();
        self.run();
        while self.transmit.take_used().is_some() {}
    }

    /// A packet of the guest for the stream between `host` and the guest's port `guest`.
    pub fn header(host: u32, guest: u32, op: Op) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: guest,
            dst_port: host,
            kind: TYPE_STREAM,
            op: op as u16,
            buf_alloc: GUEST_BUFFER,
            ..Header::default()
        }
    }

    pub fn data(&mut self, host: u32, payload: &[u8]) {
        let header = Header {
            len: u32::try_from(payload.len()).unwrap(),
            ..Self::header(host, PORT, Op::Data)
        };
        self.send(header, payload);
    }

    pub fn shut_down(&mut self, host: u32, flags: u32) {
        let header = Header {
            flags,
            ..Self::header(host, PORT, Op::Shutdown)
        };
        self.send(header, &[]);
    }

    pub fn path(&self) -> PathBuf {
        self.folder.path().join("v.sock")
    }

    /// A program of the host that connects and says nothing.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    }

    /// A dial, as far as the guest's answer.
    pub fn dial(&mut self) -> (UnixStream, u32) {
        let mut stream = self.connect();
        stream.write_all(format!("connect {PORT}\n").as_bytes()).unwrap();
        let request = self.one();
        assert_eq!(request.op(), Op::Request);
        (stream, request.header.src_port)
    }

    /// An open stream: the host's end, and its port.
    pub fn open(&mut self) -> (UnixStream, u32) {
        self.open_with(GUEST_BUFFER)
    }

    /// An open stream for which the guest has a buffer of `buf_alloc` bytes.
    pub fn open_with(&mut self, buf_alloc: u32) -> (UnixStream, u32) {
        let (mut stream, port) = self.dial();
        let response = Header {
            buf_alloc,
            ..Self::header(port, PORT, Op::Response)
        };
        self.send(response, &[]);
        assert_eq!(said(&mut stream), format!("OK {port}\n").into_bytes());
        assert_eq!(self.received(), []);
        (stream, port)
    }
}

/// Everything that the host's program can read now.
pub fn said(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = vec![0; 1 << 20];
    let mut total = 0;
    while let Ok(count @ 1..) = stream.read(&mut bytes[total..]) {
        total += count;
    }
    bytes.truncate(total);
    bytes
}

/// Whether the host's program has come to the end of its stream.
pub fn is_at_end(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}
