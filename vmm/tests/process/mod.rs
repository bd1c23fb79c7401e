//! The API process as a shim starts it, and one of its clients.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod fuse;

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use husk_devices::testing::until;
pub use rustix::process::Signal;
use rustix::process::{Pid, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::Value;
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

pub const HUSK: &str = env!("CARGO_BIN_EXE_husk");

/// Whether a guest can run here. Says so if not: what needs one is not tested then.
pub fn has_kvm() -> bool {
    let kvm = opens_kvm();
    if !kvm {
        println!("skipped: needs /dev/kvm");
    }
    kvm
}

/// Whether this user may open `/dev/kvm`.
pub fn opens_kvm() -> bool {
    fs::File::options().read(true).write(true).open("/dev/kvm").is_ok()
}

/// What there is no VM for: `reason`, unless there can be none because of `/dev/kvm`, which is opened first.
pub fn refusal(reason: &str) -> &str {
    if opens_kvm() { reason } else { "cannot open /dev/kvm" }
}

/// A folder for one process, and the process. Killed at the end, should it still be there.
pub struct Husk {
    pub folder: TempDir,
    pub child: Child,
}

impl Husk {
    /// Starts husk as the Rust shim does: working directory `/`, no input, two pipes.
    pub fn start(options: &[&str]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), options)
    }

    pub fn start_in(folder: TempDir, options: &[&str]) -> Self {
        let child = command(&folder.path().join("api.sock"), options).spawn().unwrap();
        let husk = Self { folder, child };
        husk.ready();
        husk
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("api.sock")
    }

    /// A process that listens, started by a shell in `folder` that does `first` before.
    pub fn start_by(folder: TempDir, first: &str, options: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{first} exec {HUSK} --api-socket api.sock {options}")]);
        command.current_dir(&folder).stdin(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        let husk = Self { folder, child };
        husk.ready();
        husk
    }

    /// Waits until it listens.
    #[track_caller]
    pub fn ready(&self) {
        ready(&self.child, &self.socket());
    }

    pub fn client(&self) -> Client {
        Client(BufReader::new(UnixStream::connect(self.socket()).unwrap()))
    }

    pub fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Ends it as the shims do, and returns how it ended.
    pub fn shut_down(&mut self) -> ExitStatus {
        assert_eq!(self.client().put("vmm.shutdown", None), (204, Value::Null));
        self.child.wait().unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// How it ends by itself, and what it has said on standard error.
    #[track_caller]
    pub fn end(mut self) -> (ExitStatus, String) {
        let mut status = None;
        until(|| {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        let mut said = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        (status.unwrap(), said)
    }
}

/// Waits until `child` listens at `socket`.
///
/// # Panics
/// When it ends before that, with what it has said on standard error if that is a pipe.
#[track_caller]
pub fn ready(child: &Child, socket: &Path) {
    let id = WaitId::Pid(Pid::from_child(child));
    // Its status stays for who waits for it.
    let looks = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    until(|| {
        let listens = UnixStream::connect(socket).is_ok();
        if !listens && let Some(ended) = waitid(id.clone(), looks).unwrap() {
            let mut said = String::new();
            if let Some(stderr) = &child.stderr {
                let mut stderr = fs::File::from(stderr.as_fd().try_clone_to_owned().unwrap());
                stderr.read_to_string(&mut said).unwrap();
            }
            let (code, signal) = (ended.exit_status(), ended.terminating_signal());
            panic!("it ended before it listened, code {code:?}, signal {signal:?}: {said}");
        }
        listens
    });
}

impl Drop for Husk {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn command(socket: &Path, options: &[&str]) -> Command {
    // A signal that the tests' own parent ignores would stay ignored: `env` becomes husk after it has made that undone.
    let mut command = Command::new("env");
    command.args(["--default-signal", HUSK]);
    command.arg("--api-socket").arg(socket).args(options);
    command.current_dir("/").stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A connection that stays open, as the shims' do.
pub struct Client(pub BufReader<UnixStream>);

impl Client {
    /// A request in the pieces in which the Rust shim sends it; descriptors go with the first.
    pub fn send(&mut self, method: &str, name: &str, body: Option<&str>, fds: &[RawFd]) {
        let head = format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        let stream = self.0.get_mut();
        assert_eq!(stream.send_with_fds(&[head.as_bytes()], fds).unwrap(), head.len());
        if let Some(body) = body {
            stream
                .write_all(format!("Content-Length: {}\r\n", body.len()).as_bytes())
                .unwrap();
        }
        stream.write_all(b"\r\n").unwrap();
        stream.write_all(body.unwrap_or_default().as_bytes()).unwrap();
    }

    pub fn answer(&mut self) -> (u16, Value) {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert_ne!(self.0.read_line(&mut head).unwrap(), 0, "closed after {head:?}");
        }
        let line = head.lines().next().unwrap();
        // What the Rust shim's client takes for the status.
        let status = line.strip_prefix("HTTP/1.1 ").unwrap().trim().parse().unwrap();
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
        let Some(length) = length else {
            return (status, Value::Null);
        };
        assert!(head.contains("\r\nContent-Type: application/json\r\n"), "{head}");
        let mut body = vec![0; length.parse().unwrap()];
        self.0.read_exact(&mut body).unwrap();
        assert!(body.is_ascii());
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Asks for the figures, and returns their media type and text; or the status and what was said in place of them.
    pub fn scrape(&mut self, path: &str, accept: &str) -> Result<(String, String), (u16, String)> {
        let head = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: {accept}\r\n\r\n");
        // Whoever is turned away is told so, and not heard.
        let _ = self.0.get_mut().write_all(head.as_bytes());
        let (mut status, mut kind, mut length) = (0, String::new(), 0);
        loop {
            let mut line = String::new();
            assert_ne!(self.0.read_line(&mut line).unwrap(), 0, "closed");
            match line.trim().split_once(' ') {
                None => break,
                Some(("HTTP/1.1", code)) => status = code.trim().parse().unwrap(),
                Some(("Content-Type:", value)) => kind = value.into(),
                Some(("Content-Length:", value)) => length = value.parse().unwrap(),
                Some(_) => {}
            }
        }
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).unwrap();
        let body = String::from_utf8(body).unwrap();
        if status == 200 {
            Ok((kind, body))
        } else {
            Err((status, body))
        }
    }

    pub fn get(&mut self, name: &str) -> (u16, Value) {
        self.send("GET", name, None, &[]);
        self.answer()
    }

    pub fn put(&mut self, name: &str, body: Option<Value>) -> (u16, Value) {
        let body = body.map(|body| serde_json::to_string_pretty(&body).unwrap());
        self.send("PUT", name, body.as_deref(), &[]);
        self.answer()
    }
}

/// The warning on a KVM that emulates.
pub const NO_HARDWARE: &str = "WARN: this processor shows neither VMX nor SVM";

/// What husk has said, but for the warning that this machine is owed.
pub fn complaints(output: &Output) -> Vec<&str> {
    let said = std::str::from_utf8(&output.stderr).unwrap().lines();
    said.filter(|line| !line.starts_with(NO_HARDWARE)).collect()
}

/// Makes a FIFO.
pub fn make_fifo(path: &Path) {
    use rustix::fs::{CWD, FileType, Mode, mknodat};
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
}
