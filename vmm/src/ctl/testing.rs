//! A server that answers as a test says, and a VM whose guest takes its time.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::Client;

/// No test takes so long.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What becomes of a request.
pub enum Reply {
    /// This status and body; `Null` is none.
    Answer(u16, Value),
    /// These bytes, and the end of the connection.
    Bytes(Vec<u8>),
    /// Nothing, while the client is there.
    Silence,
}

/// A socket at which a test's own function answers.
pub struct Server {
    folder: TempDir,
}

impl Server {
    /// `answer` gets requests as `GET vm.info`, with their bodies, one at a time.
    pub fn new(answer: impl FnMut(&str, Value) -> Reply + Send + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("api.sock")).unwrap();
        let answer = Arc::new(Mutex::new(answer));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (stream, answer) = (stream.unwrap(), Arc::clone(&answer));
                thread::spawn(move || serve(stream, |request, body| answer.lock().unwrap()(request, body)));
            }
        });
        Self { folder }
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    pub fn client(&self) -> Client {
        Client::connect(&self.socket(), PATIENCE).unwrap()
    }
}

/// Answers until the client goes.
fn serve(mut stream: UnixStream, mut answer: impl FnMut(&str, Value) -> Reply) {
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    while let Some((request, body)) = receive(&mut requests) {
        let bytes = match answer(&request, body) {
            Reply::Answer(status, Value::Null) => {
                let length = if status == 204 { "" } else { "Content-Length: 0\r\n" };
                format!("HTTP/1.1 {status} \r\nServer: test\r\n{length}\r\n").into_bytes()
            }
            Reply::Answer(status, body) => {
                let body = body.to_string();
                let head = format!("HTTP/1.1 {status} \r\nContent-Type: application/json\r\n");
                format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
            }
            Reply::Bytes(bytes) => {
                let _ = stream.write_all(&bytes);
                return;
            }
            Reply::Silence => continue,
        };
        if stream.write_all(&bytes).is_err() {
            return;
        }
    }
}

fn receive(requests: &mut impl BufRead) -> Option<(String, Value)> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if requests.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    requests.read_exact(&mut body).ok()?;
    let line = head.lines().next()?.strip_suffix(" HTTP/1.1")?.replace("/api/v1/", "");
    Some((line, serde_json::from_slice(&body).unwrap_or_default()))
}

pub const MIB: u64 = 1 << 20;

/// When it is told that a guest lets no memory go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    /// It lets it go.
    Nothing,
    /// While the client waits for the answer, which is 500 then.
    AtOnce,
    /// After the answer.
    Later,
}

/// A VM with the API of husk. Its guest brings one vCPU on-line, or takes one block of memory, between two looks at it.
#[derive(Clone, Debug)]
pub struct Vm {
    pub state: &'static str,
    pub max_vcpus: u32,
    pub vcpus: u32,
    pub online: u32,
    /// Bytes.
    pub boot: u64,
    pub room: u64,
    pub desired: u64,
    pub present: u64,
    pub outcome: &'static str,
    /// Memory of which the guest gives nothing back.
    pub kept: u64,
    /// How the guest says that it lets no memory go, as Linux does of DIMMs that it uses.
    pub keeps: Keeps,
    /// The guest does nothing any more.
    pub deaf: bool,
    /// Larger sizes are refused.
    pub full: bool,
    pub revision: u64,
    pub containers: Value,
    /// Every `vm.resize`.
    pub resizes: Vec<Value>,
}

impl Default for Vm {
    fn default() -> Self {
        Self {
            state: "Running",
            max_vcpus: 8,
            vcpus: 1,
            online: 1,
            boot: 512 * MIB,
            room: 8192 * MIB,
            desired: 512 * MIB,
            present: 512 * MIB,
            outcome: "accepted",
            kept: 0,
            keeps: Keeps::Nothing,
            deaf: false,
            full: false,
            revision: 0,
            containers: Value::Null,
            resizes: Vec::new(),
        }
    }
}

impl Vm {
    /// A server of it, and a look at it.
    pub fn serve(self) -> (Server, Arc<Mutex<Self>>) {
        let vm = Arc::new(Mutex::new(self));
        let served = Arc::clone(&vm);
        let server = Server::new(move |request, body| served.lock().unwrap().answer(request, body));
        (server, vm)
    }

    pub fn answer(&mut self, request: &str, body: Value) -> Reply {
        match request {
            "GET vm.info" => Reply::Answer(200, json!({"state": self.state, "config": {}})),
            "GET vm.resize-status" => {
                let status = self.status();
                self.advance();
                Reply::Answer(200, status)
            }
            "GET vm.containers" => {
                let note = json!({"revision": self.revision, "containers": self.containers});
                Reply::Answer(200, note)
            }
            "PUT vm.set-containers" if body["revision"] != self.revision => Reply::Answer(409, json!(["changed"])),
            "PUT vm.set-containers" => {
                self.revision += 1;
                self.containers = body["containers"].clone();
                Reply::Answer(204, Value::Null)
            }
            "PUT vm.resize"
                if body
                    .get("containers_revision")
                    .is_some_and(|read| *read != self.revision) =>
            {
                Reply::Answer(409, json!(["changed"]))
            }
            "PUT vm.resize" => self.resize(body),
            _ => Reply::Answer(404, json!([format!("no such path: {request}")])),
        }
    }

    fn resize(&mut self, body: Value) -> Reply {
        let memory = body["desired_ram"].as_u64().map_or(self.desired, |bytes| {
            let more = bytes.saturating_sub(self.boot).next_multiple_of(128 * MIB);
            self.boot.saturating_add(more)
        });
        self.resizes.push(body.clone());
        if memory > self.boot + self.room || self.full && memory > self.desired {
            return Reply::Answer(500, json!(["cannot resize the VM", "out of memory"]));
        }
        self.vcpus = body["desired_vcpus"]
            .as_u64()
            .map_or(self.vcpus, |vcpus| vcpus.try_into().unwrap());
        if self.keeps != Keeps::Nothing {
            self.outcome = if memory < self.desired { "refused" } else { "accepted" };
        }
        if self.outcome == "refused" && self.keeps != Keeps::Nothing {
            if self.keeps == Keeps::AtOnce {
                return Reply::Answer(
                    500,
                    json!(["cannot resize the VM", "the guest refused, with code 0x82"]),
                );
            }
        } else {
            self.desired = memory;
        }
        Reply::Answer(204, Value::Null)
    }

    /// The guest refuses what is left: what it has is what there will be.
    pub fn refuse(&mut self) {
        self.outcome = "refused";
        (self.vcpus, self.desired) = (self.online, self.present);
    }

    fn advance(&mut self) {
        if self.deaf {
            return;
        }
        self.online = match self.online {
            online if online < self.vcpus => online + 1,
            online if online > self.vcpus => online - 1,
            online => online,
        };
        self.present = match self.present {
            present if present < self.desired => self.desired.min(present + 128 * MIB),
            present if present > self.desired => self.desired.max(self.kept.min(present)).max(present - 128 * MIB),
            present => present,
        };
    }

    fn status(&self) -> Value {
        let moves = !self.deaf && (self.online != self.vcpus || self.present != self.desired);
        let outcome = if moves { "in-progress" } else { self.outcome };
        json!({
            "vcpus": {"desired": self.vcpus, "present": self.vcpus, "online": self.online, "max": self.max_vcpus, "states": []},
            "memory": {"desired_bytes": self.desired, "present_bytes": self.present, "boot_bytes": self.boot,
                "hotplug_bytes": self.room, "dimms": [], "virtio_mem": null, "balloon": null},
            "last": {"outcome": outcome, "what": "as told", "latency_ms": self.resizes.len()},
        })
    }
}
