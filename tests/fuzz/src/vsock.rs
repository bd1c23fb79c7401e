//! vsock from both sides: packets of the guest's driver, and programs of the host that dial,
//! answer, send, stall and leave.
//!
//! | byte of a host step | arguments | what happens |
//! |---|---|---|
//! | 0 | - | a program dials |
//! | 1 | program, bytes | a program sends these |
//! | 2 | program, port | a program asks for a port of the guest |
//! | 3 | program | a program reads what there is |
//! | 4 | program | a program sends nothing more |
//! | 5 | program | a program leaves |
//! | 6 | - | a program takes a stream of the guest |
//! | 7 | - | the machine resets the transport |

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

use husk_virtio::threads::{ThreadBody, ThreadClass, Threads};
use husk_virtio::vsock::Vsock;

use crate::Seeds;
use crate::file::folder;
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::{Recorder, Script};

const CID: u32 = 3;
/// The port that programs of the host listen on.
const PORT: u32 = 1024;
/// Programs at a time.
const PROGRAMS: usize = 8;
/// Dials in all: more would wait for somebody to take them.
const DIALS: u8 = 100;
/// Entries of the receive queue that seeds fill.
const BUFFERS: u8 = 6;

const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;

pub fn run(input: &[u8]) {
    let folder = folder();
    let path = folder.path().join("v");
    let listener = UnixListener::bind(folder.path().join(format!("v_{PORT}"))).unwrap();
    listener.set_nonblocking(true).unwrap();
    let threads: Arc<dyn Threads> = Arc::new(NoThreads);
    let mut vsock = Vsock::open(CID, &path, &threads).unwrap();
    let mut programs = Programs {
        path,
        listener,
        streams: Vec::new(),
        dials: 0,
    };
    run_script(&mut vsock, &mut Script::new(input), |vsock, script| {
        let _ = programs.step(vsock, script);
    });
}

/// No threads: what they would do waits for ever, but a driver is there to do it.
struct NoThreads;

impl Threads for NoThreads {
    fn start(&self, _name: &str, _body: ThreadBody) -> std::io::Result<()> {
        Ok(())
    }

    fn confine(&self, _thread_class: ThreadClass) -> std::io::Result<()> {
        Ok(())
    }
}

struct Programs {
    path: std::path::PathBuf,
    listener: UnixListener,
    streams: Vec<UnixStream>,
    dials: u8,
}

impl Programs {
    fn step(&mut self, vsock: &Vsock, script: &mut Script<'_>) -> Option<()> {
        match script.u8()? & 7 {
            0 => {
                if self.streams.len() < PROGRAMS && self.dials < DIALS {
                    self.dials += 1;
                    self.admit(UnixStream::connect(&self.path).unwrap());
                }
            }
            1 => {
                let (mut stream, bytes) = (self.stream(script.u8()?), script.bytes()?);
                // Fails when the device has hung up or is slow: programs know that.
                let _ = stream.as_mut().map(|stream| stream.write(bytes));
            }
            2 => {
                let (mut stream, port) = (self.stream(script.u8()?), script.u32()?);
                let _ = stream
                    .as_mut()
                    .map(|stream| stream.write(format!("CONNECT {port}\n").as_bytes()));
            }
            3 => {
                let _ = self.stream(script.u8()?).map(|stream| stream.read(&mut [0; 8192]));
            }
            4 => {
                let _ = self.stream(script.u8()?).map(|stream| stream.shutdown(Shutdown::Write));
            }
            5 => {
                let which = usize::from(script.u8()?);
                if which < self.streams.len() {
                    self.streams.swap_remove(which);
                }
            }
            6 => {
                if let Ok((stream, _)) = self.listener.accept() {
                    self.admit(stream);
                }
            }
            _ => vsock.reset_transport(),
        }
        Some(())
    }

    fn admit(&mut self, stream: UnixStream) {
        stream.set_nonblocking(true).unwrap();
        self.streams.push(stream);
        self.streams.truncate(PROGRAMS);
    }

    fn stream(&mut self, which: u8) -> Option<&mut UnixStream> {
        let which = usize::from(which).checked_rem(self.streams.len())?;
        self.streams.get_mut(which)
    }
}

/// Operations (virtio 1.2 §5.10.6).
const REQUEST: u16 = 1;
const RESPONSE: u16 = 2;
const SHUTDOWN: u16 = 4;
const DATA: u16 = 5;
const CREDIT_UPDATE: u16 = 6;
const CREDIT_REQUEST: u16 = 7;

/// A packet of the guest: header and payload.
fn packet(ports: (u32, u32), op: u16, flags: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let (host, stream) = (2_u64, 1_u16);
    let mut bytes = [u64::from(CID), host].map(u64::to_le_bytes).concat();
    bytes.extend([ports.0, ports.1, len].map(u32::to_le_bytes).concat());
    bytes.extend([stream, op].map(u16::to_le_bytes).concat());
    bytes.extend([flags, 4096, 0].map(u32::to_le_bytes).concat());
    bytes.extend(payload);
    bytes
}

fn send(to: &mut Recorder, packet: &[u8]) {
    Op::Chain(TRANSMIT, vec![readable(0, packet)]).write(to);
    Op::Kick(TRANSMIT).write(to);
}

fn host(to: &mut Recorder, step: u8) -> &mut Recorder {
    Op::Host.write(to);
    to.u8(step)
}

/// A driver with buffers to receive into.
fn ready() -> Recorder {
    let buffers = (0..BUFFERS).map(|slot| Op::Chain(RECEIVE, vec![writable(8 + slot, 44), writable(16 + slot, 4000)]));
    script(&buffers.chain([Op::Kick(RECEIVE)]).collect::<Vec<_>>())
}

pub fn seeds() -> Seeds {
    // A program of the guest dials, sends, half-closes.
    let mut outwards = ready();
    let ports = (5000, PORT);
    send(&mut outwards, &packet(ports, REQUEST, 0, b""));
    host(&mut outwards, 6);
    send(&mut outwards, &packet(ports, DATA, 0, b"hello"));
    host(&mut outwards, 3).u8(0);
    host(&mut outwards, 1).u8(0).bytes(b"hello yourself");
    Op::Wake.write(&mut outwards);
    send(&mut outwards, &packet(ports, CREDIT_REQUEST, 0, b""));
    send(&mut outwards, &packet(ports, SHUTDOWN, 2, b""));
    host(&mut outwards, 4).u8(0);
    Op::Wake.write(&mut outwards);
    send(&mut outwards, &packet(ports, SHUTDOWN, 3, b""));
    // A program of the host dials; the device names itself by a port from 2^30 on.
    let mut inwards = ready();
    host(&mut inwards, 0);
    host(&mut inwards, 2).u8(0).u32(1024);
    Op::Wake.write(&mut inwards);
    for port in [1 << 30, (1 << 30) + 1] {
        send(&mut inwards, &packet((1024, port), RESPONSE, 0, b""));
        host(&mut inwards, 3).u8(0);
        send(&mut inwards, &packet((1024, port), DATA, 0, b"data"));
        send(&mut inwards, &packet((1024, port), CREDIT_UPDATE, 0, b""));
    }
    host(&mut inwards, 5).u8(0);
    Op::Wake.write(&mut inwards);
    let mut refused = ready();
    for (ports, op) in [((1, 2), REQUEST), ((1, PORT), DATA), ((1, PORT), 99)] {
        send(&mut refused, &packet(ports, op, 7, b"x"));
    }
    host(&mut refused, 0);
    host(&mut refused, 1).u8(0).bytes(b"GET / HTTP/1.1\n");
    host(&mut refused, 7);
    Op::Wake.write(&mut refused);
    vec![
        ("outwards", outwards.take()),
        ("inwards", inwards.take()),
        ("refused", refused.take()),
    ]
}
