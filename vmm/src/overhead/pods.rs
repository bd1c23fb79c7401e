//! The VMs that are measured, and their end.

#![expect(
    unsafe_code,
    reason = "what a process does between fork and exec is a closure that must keep to system calls"
)]

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Signal, getpid, getppid, set_parent_process_death_signal};
use serde_json::json;

use super::smaps::share;
use super::{Figures, MeasureError, Options};
use crate::ctl::client::{Client, ClientError};
use crate::fatal;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);
/// What a figure may change by and still be at rest.
const STILL_BYTES: u64 = 64 << 10;

/// A process that ends with its owner, and with this process however that ends.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(command: &mut Command, log: PathBuf) -> Result<Self, MeasureError> {
        let file = File::create(&log).map_err(|error| MeasureError::Io(format!("write {}", log.display()), error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
        let own = getpid();
        let bind = move || {
            set_parent_process_death_signal(Some(Signal::KILL))?;
            // It may have gone before that.
            match getppid() == Some(own) {
                true => Ok(()),
                false => Err(std::io::ErrorKind::NotFound.into()),
            }
        };
        // SAFETY: two system calls that touch no memory, and an error of a kind alone, which allocates nothing.
        unsafe { command.pre_exec(bind) };
        let child = command.spawn();
        let program = || command.get_program().to_string_lossy().into_owned();
        let child = child.map_err(|error| MeasureError::Io(format!("start {}", program()), error))?;
        Ok(Self { child, log })
    }

    /// What it said, if it has ended.
    fn ended(&mut self) -> Option<String> {
        let status = self.child.try_wait().ok()??;
        let said = fs::read_to_string(&self.log).unwrap_or_default();
        let said = said.lines().last().unwrap_or_default();
        Some(format!("{said} ({status})"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether it is to go on: nobody has asked this process to end.
fn go_on() -> Result<(), MeasureError> {
    match fatal::is_asked_to_end() {
        true => Err(MeasureError::Interrupted),
        false => Ok(()),
    }
}

/// One VM with its file server, which is to end after it.
struct Pod {
    vmm: Process,
    server: Process,
}

/// All of them, and the folder of their sockets.
pub(super) struct Pods {
    pods: Vec<Pod>,
    folder: PathBuf,
}

impl Drop for Pods {
    fn drop(&mut self) {
        self.pods.clear();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

impl Pods {
    /// Starts them one after the other. All guests run when this returns, and may be booting.
    pub fn start(options: &Options) -> Result<Self, MeasureError> {
        let folder = std::env::temp_dir().join(format!("husk-overhead-{}", std::process::id()));
        let make = |folder: &Path| {
            // Nobody else's sockets, and nobody's links: what is there is not used.
            DirBuilder::new()
                .mode(0o700)
                .create(folder)
                .map_err(|error| MeasureError::Io(format!("make {}", folder.display()), error))
        };
        make(&folder)?;
        let mut pods = Self {
            pods: Vec::new(),
            folder: folder.clone(),
        };
        make(&folder.join("shared"))?;
        for pod in 1..=options.pods {
            go_on()?;
            let pod = pods.start_one(options, pod)?;
            pods.pods.push(pod);
        }
        Ok(pods)
    }

    fn start_one(&self, options: &Options, pod: usize) -> Result<Pod, MeasureError> {
        let place = |name: &str| self.folder.join(format!("{pod}-{name}"));
        let mut server = Process::start(
            Command::new(&options.program)
                .arg("fs")
                .arg("--shared-dir")
                .arg(self.folder.join("shared"))
                .arg("--socket-path")
                .arg(place("fs.sock")),
            place("fs.log"),
        )?;
        let mut vmm = Process::start(
            Command::new(&options.program)
                .arg("--api-socket")
                .arg(place("api.sock")),
            place("vmm.log"),
        )?;
        let failed = |said| MeasureError::Start {
            pod,
            pods: options.pods,
            said,
        };
        // A file server takes one connection, its VMM's. A socket of the API is there a moment before somebody listens.
        let serves = || place("fs.sock").exists();
        let listens = || UnixStream::connect(place("api.sock")).is_ok();
        for (process, is_ready) in [(&mut server, &serves as &dyn Fn() -> bool), (&mut vmm, &listens)] {
            while !is_ready() {
                if let Some(said) = process.ended() {
                    go_on()?;
                    return Err(failed(said));
                }
                go_on()?;
                thread::sleep(Duration::from_millis(5));
            }
        }
        let vm = json!({
            "cpus": {"boot_vcpus": options.cpus, "max_vcpus": options.cpus},
            // As Kata asks for it.
            "memory": {"size": options.memory_bytes, "shared": true},
            "payload": {"kernel": options.kernel, "initramfs": options.initramfs},
            "fs": [{"tag": "kataShared", "socket": place("fs.sock"), "num_queues": 1, "queue_size": 1024}],
            "serial": {"mode": "Null"},
            "console": {"mode": "Off"},
        });
        let boot = || -> Result<(), ClientError> {
            let mut client = Client::connect(&place("api.sock"), options.patience)?;
            client.put("vm.create", Some(&vm))?;
            client.put("vm.boot", None).map(drop)
        };
        match boot() {
            Ok(()) => Ok(Pod { vmm, server }),
            Err(error) => {
                go_on()?;
                Err(failed(format!("{:#}", anyhow::Error::new(error))))
            }
        }
    }

    /// Looks at all of them until none has changed for as long as is asked for.
    pub fn at_rest(&mut self, options: &Options) -> Result<Vec<Figures>, MeasureError> {
        let begin = Instant::now();
        let (mut before, mut since) = (self.look(options)?, Instant::now());
        while since.elapsed() < options.rest {
            if begin.elapsed() > options.patience {
                return Err(MeasureError::Restless(options.patience.as_secs()));
            }
            go_on()?;
            thread::sleep(LOOK);
            let now = self.look(options)?;
            let moved = |(old, new): (&Figures, &Figures)| old.sum().abs_diff(new.sum()) > STILL_BYTES;
            if before.iter().zip(&now).any(moved) {
                (before, since) = (now, Instant::now());
            }
        }
        self.look(options)
    }

    fn look(&mut self, options: &Options) -> Result<Vec<Figures>, MeasureError> {
        // Whoever asks by a key asks the VMs as well: that they end is no failure of theirs.
        go_on()?;
        let mut figures = Vec::new();
        for (index, pod) in self.pods.iter_mut().enumerate() {
            for process in [&mut pod.vmm, &mut pod.server] {
                if let Some(said) = process.ended() {
                    go_on()?;
                    let (pod, pods) = (index + 1, options.pods);
                    return Err(MeasureError::Ended { pod, pods, said });
                }
            }
            let read = |process: &Process| {
                let pid = process.child.id();
                share(pid).map_err(|error| MeasureError::Io(format!("look into process {pid}"), error))
            };
            figures.push(Figures {
                vmm: read(&pod.vmm)?,
                server: read(&pod.server)?,
            });
        }
        Ok(figures)
    }
}
