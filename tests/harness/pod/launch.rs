//! The VMM's process as the shims start it: its command, its standard streams, and until its API answers.

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::PATIENCE;
use super::files::{EVENTS, api_socket};
use crate::api::{Api, Shim};
use crate::body::Shape;
use crate::{husk, process, pty};

/// What differs between launches.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    /// The program and its first words; husk if there is none.
    pub program: Vec<String>,
    /// `disable_seccomp`.
    pub without_seccomp: bool,
    /// The limit of open files.
    pub nofile: Option<u64>,
    /// What happens is told to the file that [`events`](super::events) reads.
    pub with_events: bool,
}

/// How often each shim looks for the API.
const RUST_POLL: Duration = Duration::from_millis(50);
const GO_POLL: Duration = Duration::from_millis(10);

/// The command that starts the VMM, without its standard output.
pub(super) fn command(shape: &Shape, folder: &Path, launch: &Launch) -> Command {
    let mut command = match launch.program.split_first() {
        Some((program, words)) => {
            let mut command = Command::new(program);
            command.args(words);
            command
        }
        None => husk(),
    };
    command.arg("--api-socket").arg(api_socket(shape.shim, folder));
    if shape.debug {
        command.arg("-v");
    }
    if launch.without_seccomp {
        command.args(["--seccomp", "false"]);
    }
    if launch.with_events {
        let mut monitor = OsString::from("path=");
        monitor.push(folder.join(EVENTS));
        command.arg("--event-monitor").arg(monitor);
    }
    if shape.shim == Shim::Rust || shape.debug {
        command.env("RUST_BACKTRACE", "full");
    }
    if shape.shim == Shim::Rust {
        command.current_dir("/");
    }
    command.stdin(Stdio::null());
    process::isolate(&mut command, launch.nofile);
    command
}

/// Starts the VMM with the standard output that the shim gives it; what to read there.
pub(super) fn spawn(command: &mut Command, shape: &Shape) -> Result<(Child, Vec<fs::File>)> {
    let started = |command: &mut Command| command.spawn().with_context(|| format!("cannot start {command:?}"));
    match (shape.shim, shape.debug) {
        (Shim::Rust, _) => {
            let mut child = started(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
            let stdout = child.stdout.take().map(OwnedFd::from);
            let stderr = child.stderr.take().map(OwnedFd::from);
            Ok((child, stdout.into_iter().chain(stderr).map(fs::File::from).collect()))
        }
        (Shim::Go, true) => {
            // The VMM has the master of a terminal, and the shim reads the other side.
            let (master, slave) = process::terminal()?;
            let child = started(command.stdout(master.try_clone()?).stderr(master))?;
            command.stdout(Stdio::null()).stderr(Stdio::null());
            Ok((child, vec![slave.into()]))
        }
        (Shim::Go, false) => Ok((
            started(command.stdout(Stdio::null()).stderr(Stdio::null()))?,
            Vec::new(),
        )),
    }
}

/// Collects what `source` says until its end. A terminal whose other side is closed reads as an error.
pub(super) fn read_to(mut source: fs::File, output: &Arc<Mutex<Vec<u8>>>, hung_up: &Arc<AtomicBool>) -> JoinHandle<()> {
    let (output, hung_up) = (Arc::clone(output), Arc::clone(hung_up));
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while !hung_up.load(Ordering::Relaxed) {
            if !pty::readable(&source, Duration::from_millis(50)) {
                continue;
            }
            let Ok(count @ 1..) = source.read(&mut piece) else {
                return;
            };
            let read = piece.get(..count).unwrap_or_default();
            output
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(read);
        }
    })
}

/// Connects and pings until that works. The Rust shim keeps the connection.
pub(super) fn await_ping(child: &mut Child, socket: &Path, shim: Shim) -> Result<Api> {
    let start = Instant::now();
    loop {
        let answered = Api::connect(socket, shim).and_then(|mut api| {
            let ping: Value = api.get("vmm.ping")?.json()?;
            Ok((api, ping))
        });
        match answered {
            Ok((api, ping)) => {
                let features = ping.get("features").and_then(Value::as_array);
                ensure!(features.is_some(), "no list of features in {ping}");
                return Ok(api);
            }
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(error) => {
                if let Some(status) = child.try_wait()? {
                    return Err(error.context(format!("the VMM has ended ({status})")));
                }
            }
        }
        thread::sleep(if shim == Shim::Rust { RUST_POLL } else { GO_POLL });
    }
}
