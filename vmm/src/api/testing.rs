//! A server and its clients, without a machine.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use serde_json::Value;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::info::{Info, VmInfo, VmState};
use super::passed::FdCloser;
use super::queue::{CommandReceiver, Request};
use super::server::{Running, Server};
use crate::config::VmConfig;
use crate::events::Events;

pub(super) const PING: &[u8] = b"GET /api/v1/vmm.ping HTTP/1.1\r\n\r\n";
pub(super) const BOOT: &[u8] = b"PUT /api/v1/vm.boot HTTP/1.1\r\n\r\n";
pub(super) const PAUSE: &[u8] = b"PUT /api/v1/vm.pause HTTP/1.1\r\n\r\n";

pub(super) fn closer() -> FdCloser {
    FdCloser::start(|| Ok(())).unwrap()
}

pub(super) struct Bench {
    pub(super) folder: tempfile::TempDir,
    pub(super) commands: Option<CommandReceiver>,
    pub(super) running: Option<Running>,
    pub(super) info: Info,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with_events(&Events::default())
    }

    pub(super) fn with_events(events: &Events) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let info = Info::new();
        let server = Server::bind(&folder.path().join("api"))
            .unwrap()
            .with_events(events.clone());
        let (running, commands) = server.spawn(info.clone(), closer(), || Ok(())).unwrap();
        Self {
            folder,
            commands: Some(commands),
            running: Some(running),
            info,
        }
    }

    pub(super) fn client(&self) -> Client {
        let stream = UnixStream::connect(self.folder.path().join("api")).unwrap();
        Client(BufReader::new(stream))
    }

    /// Waits for the next command.
    pub(super) fn command(&self) -> Request {
        let commands = self.commands.as_ref().unwrap();
        let epoll = Epoll::new().unwrap();
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, commands.as_raw_fd(), interest)
            .unwrap();
        loop {
            if let Some(request) = commands.next() {
                return request;
            }
            epoll.wait(-1, &mut [EpollEvent::default()]).unwrap();
        }
    }

    pub(super) fn create_vm(&self) {
        self.info.set(Some(VmInfo {
            config: VmConfig::default(),
            state: VmState::Created,
            memory_actual_size: 512 << 20,
        }));
    }
}

pub(super) struct Client(pub(super) BufReader<UnixStream>);

impl Client {
    pub(super) fn send(&mut self, bytes: &[u8]) {
        self.0.get_mut().write_all(bytes).unwrap();
    }

    pub(super) fn send_with_fds(&mut self, bytes: &[u8], fds: &[RawFd]) {
        assert_eq!(self.0.get_ref().send_with_fds(&[bytes], fds).unwrap(), bytes.len());
    }

    /// The next answer: its status and its body.
    pub(super) fn answer(&mut self) -> (u16, Value) {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        let status = line
            .strip_prefix("HTTP/1.1 ")
            .and_then(|rest| rest.strip_suffix(" \r\n"));
        let status = status
            .unwrap_or_else(|| panic!("no status line: {line:?}"))
            .parse()
            .unwrap();
        let mut length = 0;
        loop {
            line.clear();
            self.0.read_line(&mut line).unwrap();
            if let Some(value) = line.strip_prefix("Content-Length: ") {
                length = value.trim_end().parse().unwrap();
            }
            if line == "\r\n" {
                break;
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        let body = if body.is_empty() {
            Value::Null
        } else {
            serde_json::from_slice(&body).unwrap()
        };
        (status, body)
    }

    pub(super) fn ask(&mut self, request: &[u8]) -> (u16, Value) {
        self.send(request);
        self.answer()
    }

    pub(super) fn is_at_end(&mut self) -> bool {
        self.0.fill_buf().unwrap().is_empty()
    }
}

pub(super) fn put(name: &str, body: &str) -> Vec<u8> {
    format!(
        "PUT /api/v1/{name} HTTP/1.1\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

impl Client {
    /// The next line of a stream.
    pub(super) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        line
    }

    /// What is in the next chunk; `None` at the end.
    pub(super) fn chunk(&mut self) -> Option<String> {
        let length = usize::from_str_radix(self.line().trim(), 16).unwrap();
        let mut bytes = vec![0; length + 2];
        self.0.read_exact(&mut bytes).unwrap();
        assert_eq!(bytes.split_off(length), b"\r\n");
        (length > 0).then(|| String::from_utf8(bytes).unwrap())
    }
}
