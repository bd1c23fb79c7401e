//! A pod as Kata's shims start, use and stop one: the process, the API calls in their order, the agent behind vsock.
//!
//! Nothing here panics: a test unwraps, and the soak and the demo report.

mod files;
mod launch;

use std::fmt;
use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::AGENT_PORT;
use serde_json::Value;

use crate::agent::{self, Agent};
use crate::api::{Api, Response, Shim};
use crate::body::Shape;
use crate::info::{PciDevice, State, VmInfo};
use crate::threads::vcpu_threads;
use crate::witness::Witness;
use crate::{end_of, kill};

pub use files::{api_socket, events, vsock};
pub use launch::Launch;
use launch::{await_ping, command, read_to, spawn};

/// How long anything of a pod may take: the shims' windows, and as much more as an emulated host on
/// a busy machine needs.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// How often the agent is dialled. The shims do so every 10 ms; while an emulated host boots a
/// guest, a tenth of its only processor would go into that.
const DIAL_POLL: Duration = Duration::from_millis(50);

/// A running VMM, with the VM that was asked of it. It is killed when this is dropped.
#[derive(Debug)]
pub struct Pod {
    shape: Shape,
    vmm: Vmm,
    api: Api,
    folder: PathBuf,
    output: Arc<Mutex<Vec<u8>>>,
    readers: Vec<JoinHandle<()>>,
    /// Tells the readers of the output to close their ends.
    hung_up: Arc<AtomicBool>,
}

/// A VMM whose shim has died, with everything that was the shim's closed. Killed when dropped.
#[derive(Debug)]
pub struct Vmm(Child);

impl Vmm {
    /// Waits for its end.
    ///
    /// # Errors
    ///
    /// It does not end.
    pub fn wait(mut self) -> Result<ExitStatus> {
        end_of(&mut self.0, PATIENCE)?.context("the VMM does not end")
    }
}

impl Drop for Vmm {
    fn drop(&mut self) {
        let _ = kill(&mut self.0);
    }
}

/// How a VMM that was told to stop has ended.
#[derive(Clone, Debug)]
pub struct StoppedPod {
    /// Its status.
    pub status: ExitStatus,
    /// How long it took from the answer to `vmm.shutdown`, or from the end of the guest.
    pub took: Duration,
    /// Everything on its standard streams.
    pub output: String,
}

/// A guest whose agent never answered, though its VMM lives: how often it was dialled, and what the VM did meanwhile.
#[derive(Debug)]
pub struct AgentTimeout(String);

impl AgentTimeout {
    /// One of which `what` is known.
    pub fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl fmt::Display for AgentTimeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for AgentTimeout {}

impl Pod {
    /// Starts the VMM with its sockets in `folder` and waits until it answers, as the shim does.
    ///
    /// # Errors
    ///
    /// It does not start, or does not answer.
    pub fn launch(shape: Shape, folder: &Path) -> Result<Self> {
        Self::launch_with(shape, folder, Launch::default())
    }

    /// As [`Pod::launch`], but not as usual.
    ///
    /// # Errors
    ///
    /// As [`Pod::launch`].
    pub fn launch_with(shape: Shape, folder: &Path, launch: Launch) -> Result<Self> {
        let socket = api_socket(shape.shim, folder);
        let mut command = command(&shape, folder, &launch);
        let (mut child, sources) = spawn(&mut command, &shape)?;
        let output = Arc::new(Mutex::new(Vec::new()));
        let hung_up = Arc::new(AtomicBool::new(false));
        let readers: Vec<_> = sources
            .into_iter()
            .map(|source| read_to(source, &output, &hung_up))
            .collect();
        match await_ping(&mut child, &socket, shape.shim) {
            Ok(api) => Ok(Self {
                shape,
                vmm: Vmm(child),
                api,
                folder: folder.into(),
                output,
                readers,
                hung_up,
            }),
            Err(error) => {
                let _ = kill(&mut child);
                for reader in readers {
                    let _ = reader.join();
                }
                Err(error.context(format!("{command:?} said: {}", text(&output))))
            }
        }
    }

    /// The VMM's process.
    pub fn pid(&self) -> u32 {
        self.vmm.0.id()
    }

    /// What was asked for.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The API, for calls of one's own.
    pub fn api(&mut self) -> &mut Api {
        &mut self.api
    }

    /// Where the API listens.
    pub fn api_socket(&self) -> PathBuf {
        api_socket(self.shape.shim, &self.folder)
    }

    /// Where the host's programs reach the guest.
    pub fn vsock(&self) -> PathBuf {
        vsock(self.shape.shim, &self.folder)
    }

    /// What the VMM has said so far.
    pub fn output(&self) -> String {
        text(&self.output)
    }

    /// `vm.create` and what the shim does around it.
    ///
    /// # Errors
    ///
    /// It is refused, or the VM is not as it should be then.
    pub fn create(&mut self) -> Result<()> {
        let body = self.shape.create(&self.vsock());
        self.put("vm.create", Some(&body))?.done()?;
        if self.shape.shim == Shim::Go {
            self.expect_state(State::Created)?;
        }
        Ok(())
    }

    /// `vm.add-net` before the boot, with the descriptor of a tap. The shim may close its own when this is answered.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn add_net(&mut self, tap: &fs::File) -> Result<()> {
        let body = self.shape.add_net(tap.as_raw_fd());
        self.api.put_with_fds("vm.add-net", &body, &[tap.as_raw_fd()])?.done()
    }

    /// `vm.boot`. The vCPU threads exist when it is answered, under the names by which a shim finds them.
    ///
    /// # Errors
    ///
    /// As [`Pod::create`].
    pub fn boot(&mut self) -> Result<()> {
        self.put("vm.boot", None)?.done()?;
        let vcpus = u32::try_from(vcpu_threads(self.pid())?.len())?;
        ensure!(
            vcpus == self.shape.vcpus,
            "{vcpus} vCPU threads, asked for {}",
            self.shape.vcpus
        );
        if self.shape.shim == Shim::Go {
            self.expect_state(State::Running)?;
        }
        Ok(())
    }

    /// Creates, boots, and waits for the agent.
    ///
    /// # Errors
    ///
    /// As the steps.
    pub fn start(&mut self) -> Result<Agent> {
        self.create()?;
        self.boot()?;
        Ok(self.agent()?.0)
    }

    /// Dials the agent until it answers, as the shims do, but less often; the number of refusals before.
    ///
    /// # Errors
    ///
    /// It never answers ([`AgentTimeout`]), or the VMM has gone.
    pub fn agent(&mut self) -> Result<(Agent, u32)> {
        let start = Instant::now();
        let mut refused = 0;
        loop {
            // A VM that has ended takes its socket along; what was written last may say why it did.
            let dialled = self.dial(AGENT_PORT);
            if let Some(stream) = dialled.with_context(|| format!("no agent: {}", self.output()))? {
                return Ok((Agent::new(stream).watched_by(self.witness()), refused));
            }
            refused += 1;
            if let Some(status) = self.vmm.0.try_wait()? {
                bail!("the VMM has ended ({status}): {}", self.output());
            }
            if start.elapsed() >= PATIENCE {
                let doing = self.witness().doing();
                let what = format!("no agent after {refused} tries; {doing}; {}", self.output());
                return Err(AgentTimeout::new(what).into());
            }
            thread::sleep(DIAL_POLL);
        }
    }

    /// Who says what the VM does, when nothing comes of it.
    pub fn witness(&self) -> Witness {
        Witness {
            socket: self.api_socket(),
            shim: self.shape.shim,
            pid: self.vmm.0.id(),
        }
    }

    /// Dials a port of the guest once.
    ///
    /// # Errors
    ///
    /// As [`agent::dial`].
    pub fn dial(&self, port: u32) -> Result<Option<std::os::unix::net::UnixStream>> {
        agent::dial(&self.vsock(), port, self.shape.shim)
    }

    /// A connection to the agent that has answered before.
    ///
    /// # Errors
    ///
    /// It refuses.
    pub fn one_more(&self) -> Result<Agent> {
        let stream = self.dial(AGENT_PORT)?.context("the agent refuses")?;
        Ok(Agent::new(stream).watched_by(self.witness()))
    }

    /// `vm.info`, read as strictly as the Rust shim does.
    ///
    /// # Errors
    ///
    /// The shim could not read it.
    pub fn info(&mut self) -> Result<VmInfo> {
        self.api.get("vm.info")?.json()
    }

    /// A request; that there is no answer is explained by what became of the VMM.
    ///
    /// # Errors
    ///
    /// There is none, or one that the shim would not understand.
    pub fn put(&mut self, name: &str, body: Option<&Value>) -> Result<Response> {
        let answered = self.api.put(name, body);
        if answered.is_err() {
            thread::sleep(Duration::from_millis(200));
        }
        answered.with_context(|| match self.vmm.0.try_wait() {
            Ok(None) => format!("the VMM runs and says: {}", self.output()),
            ended => format!("the VMM has ended ({ended:?}): {}", self.output()),
        })
    }

    /// Asserts the state in `vm.info`.
    ///
    /// # Errors
    ///
    /// It is another one.
    pub fn expect_state(&mut self, state: State) -> Result<()> {
        let found = self.info()?.state;
        ensure!(found == state, "expected {state:?}, the VM is {found:?}");
        Ok(())
    }

    /// `vm.add-disk` in a running VM.
    ///
    /// # Errors
    ///
    /// It is refused, or in a place that no shim can use.
    pub fn add_disk(&mut self, path: &Path) -> Result<PciDevice> {
        let body = self.shape.add_disk(path);
        let device: PciDevice = self.put("vm.add-disk", Some(&body))?.json()?;
        ensure!(device.is_on_bus_0(), "{device:?} is not on bus 0");
        Ok(device)
    }

    /// `vm.remove-device`.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn remove(&mut self, device: &PciDevice) -> Result<()> {
        let body = serde_json::json!({"id": device.id});
        self.put("vm.remove-device", Some(&body))?.done()
    }

    /// `vm.resize` to what the VM has already, as the Go shim sends it for each container.
    ///
    /// # Errors
    ///
    /// It is refused.
    pub fn resize_to_the_same(&mut self) -> Result<()> {
        let info = self.info()?;
        let vcpus = self.shape.resize_vcpus(info.config.cpus.boot_vcpus);
        self.put("vm.resize", Some(&vcpus))?.done()?;
        let memory = self.shape.resize_memory(info.memory_actual_size);
        self.put("vm.resize", Some(&memory))?.done()
    }

    /// Stops the VMM as the shim does, and checks that it left neither socket.
    ///
    /// # Errors
    ///
    /// It does not answer, does not end, or leaves something behind.
    pub fn stop(mut self) -> Result<StoppedPod> {
        if self.shape.shim == Shim::Go {
            let _: Value = self.api.get("vmm.ping")?.json()?;
        }
        self.put("vmm.shutdown", None)?.done()?;
        self.ended()
    }

    /// Waits until the VMM has ended by itself, and checks that it left neither socket.
    ///
    /// # Errors
    ///
    /// As [`Pod::stop`].
    pub fn ended(mut self) -> Result<StoppedPod> {
        let start = Instant::now();
        let status = end_of(&mut self.vmm.0, PATIENCE)?;
        let status = status.with_context(|| format!("the VMM does not end: {}", self.output()))?;
        let took = start.elapsed();
        for reader in self.readers.drain(..) {
            let _ = reader.join();
        }
        let output = self.output();
        for socket in [self.api_socket(), self.vsock()] {
            ensure!(!socket.exists(), "{} is left behind: {output}", socket.display());
        }
        Ok(StoppedPod { status, took, output })
    }

    /// Kills the VMM, as a shim that has lost patience.
    ///
    /// # Errors
    ///
    /// There is no such process.
    pub fn kill(&mut self) -> Result<()> {
        kill(&mut self.vmm.0)?;
        Ok(())
    }

    /// Dies as a shim that is killed: everything that it held is closed, and the VMM is on its own.
    pub fn abandon(self) -> Vmm {
        self.hung_up.store(true, Ordering::Relaxed);
        for reader in self.readers {
            let _ = reader.join();
        }
        self.vmm
    }
}

fn text(output: &Mutex<Vec<u8>>) -> String {
    String::from_utf8_lossy(&output.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
}
