//! The API server in front of several clients at once, who send requests torn anywhere, with
//! descriptors, and leave when they like.
//!
//! | byte | arguments | what happens |
//! |---|---|---|
//! | 0 | client, number of descriptors, bytes | a client sends these |
//! | 1 | client, number of descriptors, request | a client sends a whole request |
//! | 2 | client | a client sends nothing more |
//! | 3 | client | a client hangs up |
//! | 4 | how | the next command is answered, or dropped |
//! | 5 | - | there is a VM, or no longer |
//!
//! The server has a thread of its own, so what comes first may differ from run to run; what a
//! client is answered in the end may not: as many answers as requests, in their order, each command
//! with the descriptors of its request. No descriptor is left open.

use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use husk::api::http::{Message, Method, Parser};
use husk::api::{
    ApiError, Command, CommandReceiver, FdCloser, Info, Kind, Reply, Request, Running, Server, VmInfo, VmState,
};
use husk::config::VmConfig;
use serde_json::{Value, json};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::Seeds;
use crate::answers::Answers;
use crate::file::folder;
use crate::http::messages;
use crate::script::{Recorder, Script};

const CLIENTS: usize = 3;
/// Descriptors of one client at most: the server refuses more than a message can carry.
const DESCRIPTORS: usize = 200;
/// When an answer is taken never to come.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whole requests for byte 1.
const REQUESTS: [&str; 10] = [
    "GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n",
    "GET /api/v1/vm.info HTTP/1.1\r\n\r\n",
    "PUT /api/v1/vm.boot HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "PUT /api/v1/vm.add-net HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}",
    "PUT /api/v1/vm.add-disk HTTP/1.1\r\nContent-Length: 12\r\n\r\n{\"path\":\"/\"}",
    "PUT /api/v1/vm.resize HTTP/1.1\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}",
    "HEAD /api/v1/vmm.ping HTTP/1.1\r\n\r\n",
    "PUT /api/v1/vm.remove-device HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 8\r\n\r\n{\"id\":1}",
    "PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n",
];

pub fn run(input: &[u8]) {
    let mut bench = Bench::new();
    let mut script = Script::new(input);
    while bench.step(&mut script).is_some() {}
    bench.end();
}

/// One command that was taken: the descriptors it came with.
type Taken = Vec<u64>;

struct Bench {
    info: Info,
    commands: CommandReceiver,
    running: Option<Running>,
    clients: Vec<Client>,
    taken: Vec<Taken>,
    has_vm: bool,
    _folder: tempfile::TempDir,
}

struct Client {
    stream: Option<UnixStream>,
    sent: Vec<u8>,
    /// Each descriptor's file, and how many bytes had been sent with it.
    descriptors: Vec<(u64, u64)>,
    /// The other ends of the pipes.
    pipes: Vec<std::io::PipeReader>,
    received: Vec<u8>,
}

impl Bench {
    fn new() -> Self {
        let folder = folder();
        let path = folder.path().join("api");
        let info = Info::new();
        let closer = FdCloser::start(|| Ok(())).unwrap();
        let (running, commands) = Server::bind(&path)
            .unwrap()
            .spawn(info.clone(), closer, || Ok(()))
            .unwrap();
        let client = || {
            let stream = UnixStream::connect(&path).unwrap();
            stream.set_nonblocking(true).unwrap();
            Client {
                stream: Some(stream),
                sent: Vec::new(),
                descriptors: Vec::new(),
                pipes: Vec::new(),
                received: Vec::new(),
            }
        };
        Self {
            info,
            commands,
            running: Some(running),
            clients: (0..CLIENTS).map(|_| client()).collect(),
            taken: Vec::new(),
            has_vm: false,
            _folder: folder,
        }
    }

    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let what = script.u8()? % 6;
        if what < 4 {
            let client = usize::from(script.u8()?) % CLIENTS;
            let client = &mut self.clients[client];
            match what {
                0 => {
                    let (count, bytes) = (script.u8()?, script.bytes()?);
                    client.send(count & 3, bytes);
                }
                1 => {
                    let (count, request) = (script.u8()?, script.u8()?);
                    client.send(count & 3, REQUESTS[usize::from(request) % REQUESTS.len()].as_bytes());
                }
                2 => client.finish(),
                _ => client.stream = None,
            }
            return Some(());
        }
        if what == 4 {
            let how = script.u8()?;
            if let Some(request) = self.commands.next() {
                self.answer(request, how);
            }
        } else {
            self.has_vm = !self.has_vm;
            self.info.set(self.has_vm.then(|| VmInfo {
                config: VmConfig::default(),
                state: VmState::Created,
                memory_actual_size: 1,
            }));
        }
        Some(())
    }

    /// Answers with the command's number, so that the client can tell which command its request became.
    fn answer(&mut self, request: Request, how: u8) {
        let number = self.taken.len();
        let mut taken = Vec::new();
        if let Command::Add(_, fds) = request.command {
            for fd in fds {
                taken.push(std::fs::File::from(fd.into_owned()).metadata().unwrap().ino());
            }
        }
        self.taken.push(taken);
        match how & 3 {
            0 => drop(request.respond),
            1 => request.respond.send(Err(ApiError::new(Kind::Conflict, "not now"))),
            2 => request.respond.send(Ok(Reply::Done)),
            _ => request.respond.send(Ok(Reply::Json(json!({ "number": number })))),
        }
    }

    /// Every client is answered, everything is closed, the server ends.
    fn end(mut self) {
        let deadline = Instant::now() + PATIENCE;
        let epoll = Epoll::new().unwrap();
        let watch = |fd| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0));
        watch(self.commands.as_raw_fd()).unwrap();
        for client in &mut self.clients {
            client.finish();
            if let Some(stream) = &client.stream {
                watch(stream.as_raw_fd()).unwrap();
            }
        }
        loop {
            while let Some(request) = self.commands.next() {
                self.answer(request, 3);
            }
            let waiting = self.clients.iter_mut().filter_map(|client| client.receive()).count();
            if waiting == 0 {
                break;
            }
            assert!(Instant::now() < deadline, "{waiting} clients wait in vain");
            // libFuzzer's clock interrupts it now and then.
            let _ = epoll.wait(100, &mut [EpollEvent::default(); 4]);
        }
        drop(self.running.take());
        while self.commands.next().is_some() {}
        for client in &mut self.clients {
            client.check(&self.taken);
            for pipe in &mut client.pipes {
                assert_eq!(pipe.read(&mut [0]).unwrap(), 0);
            }
        }
    }
}

impl Client {
    /// Sends bytes, as far as the socket takes them, and as many new descriptors.
    fn send(&mut self, count: u8, bytes: &[u8]) {
        let Some(stream) = &mut self.stream else { return };
        if count == 0 || bytes.is_empty() || self.descriptors.len() >= DESCRIPTORS {
            let sent = stream.write(bytes).unwrap_or(0);
            self.sent.extend(&bytes[..sent]);
            return;
        }
        let (mut readers, mut writers) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (reader, writer) = std::io::pipe().unwrap();
            readers.push(reader);
            writers.push(std::fs::File::from(std::os::fd::OwnedFd::from(writer)));
        }
        let fds: Vec<_> = writers.iter().map(AsRawFd::as_raw_fd).collect();
        // One message is sent as a whole or not at all: it is shorter than what a socket takes at once.
        if stream.send_with_fds(&[bytes], &fds).is_ok() {
            self.sent.extend(bytes);
            let came = self.sent.len() as u64;
            let inodes = writers.iter().map(|writer| writer.metadata().unwrap().ino());
            self.descriptors.extend(inodes.map(|inode| (inode, came)));
            self.pipes.extend(readers);
        }
    }

    fn finish(&mut self) {
        if let Some(stream) = &self.stream {
            // Fails when the server has hung up already.
            let _ = stream.shutdown(Shutdown::Write);
        }
    }

    /// Takes what has come; `None` at the end of it.
    fn receive(&mut self) -> Option<()> {
        let mut buffer = [0; 4096];
        loop {
            match self.stream.as_mut()?.read(&mut buffer) {
                Ok(0) => return None,
                Ok(count) => self.received.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(()),
                Err(error) => panic!("a client that was not done lost the connection: {error}"),
            }
        }
    }

    /// Each request has its answer, each command its descriptors.
    fn check(&self, taken: &[Taken]) {
        if self.stream.is_none() {
            return;
        }
        let mut parser = Parser::new(husk::api::body_bytes);
        parser.push(&self.sent);
        let mut answers = Answers::new(&self.received);
        let mut begin = 0;
        for message in messages(&mut parser) {
            let Ok(message) = message else {
                let (status, _) = answers.next(true).expect("a refusal is said");
                assert!(status >= 400);
                break;
            };
            let (status, body) = answers
                .next(message.method != Method::Head)
                .expect("every request is answered");
            assert!(
                matches!(status, 200 | 204 | 400 | 404 | 405 | 409 | 500 | 501),
                "status {status}"
            );
            self.check_descriptors(&message, begin, &body, taken);
            begin = message.end;
            if message.close {
                break;
            }
        }
        assert_eq!(answers.next(true), None, "more answers than requests");
    }

    fn check_descriptors(&self, message: &Message, begin: u64, body: &Value, taken: &[Taken]) {
        let Some(number) = body.get("number").and_then(Value::as_u64) else {
            return;
        };
        let taken = &taken[usize::try_from(number).unwrap()];
        let mine = self
            .descriptors
            .iter()
            .filter(|(_, came)| begin < *came && *came <= message.end);
        // Those that come with any other device are closed at once.
        let are_used = message.path.ends_with("vm.add-net");
        let mine: Vec<_> = mine.filter(|_| are_used).map(|(inode, _)| *inode).collect();
        assert_eq!(*taken, mine, "{}", message.path);
    }
}

pub fn seeds() -> Seeds {
    let mut whole = Recorder::default();
    for (request, _) in (0..).zip(REQUESTS) {
        whole
            .u8(1)
            .u8(request % 3)
            .u8(request % 4)
            .u8(request)
            .u8(4)
            .u8(request);
    }
    let mut torn = Recorder::default();
    let (head, rest) = REQUESTS[5].split_at(40);
    torn.u8(0).u8(1).u8(1).bytes(head.as_bytes());
    torn.u8(0).u8(2).u8(0).bytes(b"no request\r\n\r\n");
    torn.u8(0).u8(1).u8(2).bytes(rest.as_bytes());
    torn.u8(1).u8(1).u8(1).u8(4).u8(5).u8(1).u8(1).u8(0).u8(1).u8(2).u8(1);
    let mut gone = Recorder::default();
    gone.u8(1)
        .u8(0)
        .u8(3)
        .u8(4)
        .u8(3)
        .u8(0)
        .u8(1)
        .u8(1)
        .u8(0)
        .u8(8)
        .u8(2)
        .u8(1)
        .u8(4)
        .u8(3);
    vec![("whole", whole.take()), ("torn", torn.take()), ("gone", gone.take())]
}
