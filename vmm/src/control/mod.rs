//! The thread that owns the VM: it carries commands out, one after another, and attends to the guest in between.
//!
//! | state | a configuration | a machine | entered by |
//! |---|---|---|---|
//! | none | no | no | start, `vm.delete` |
//! | `Created` | yes | no | `vm.create` |
//! | `Running` | yes | yes | `vm.boot`, `vm.resume`, `vm.reboot` |
//! | `Paused` | yes | yes | `vm.pause` |
//! | `Shutdown` | yes | no | `vm.shutdown` |
//!
//! A command either succeeds, or leaves everything as it was and says why. A guest that ends by itself ends the process, in
//! `attend.rs`; a reboot by command builds the machine anew.

mod attend;
mod devices;
mod image;
mod run;
mod serve;
mod vm;

use serde_json::{Value, json};

use crate::api::{ApiError, Command, Execute, Info, Kind, Reply, Resize, VmInfo, VmState};
use crate::config::{Limits, RunOptions, VmConfig};
use crate::events::Events;
use crate::machine::{BuildError, Ending, Machine};
use crate::terminal::StdoutSink;

pub use attend::{Ended, attend};
pub use run::{Exit, conclude, run};
pub use serve::serve;
use vm::Vm;

/// Owner of at most one VM.
pub struct Controller {
    info: Info,
    events: Events,
    options: RunOptions,
    stdout: StdoutSink,
    vm: Option<Vm>,
    /// How many machines have been built.
    boots: u64,
    /// The next answer is the last one.
    leaving: bool,
}

type Outcome = Result<Reply, ApiError>;

impl Controller {
    /// No VM yet. `info` and `events` are kept up to date; `stdout` is what a console in mode `Tty` prints on.
    pub fn new(info: Info, events: Events, options: RunOptions, stdout: StdoutSink) -> Self {
        Self {
            info,
            events,
            options,
            stdout,
            vm: None,
            boots: 0,
            leaving: false,
        }
    }

    /// The machine, while there is one.
    pub fn machine(&self) -> Option<&Machine> {
        self.vm.as_ref()?.machine()
    }

    /// Takes in a configuration that was made of this process's own command line, and boots it.
    ///
    /// # Errors
    /// Why it cannot be built.
    pub fn start(&mut self, config: VmConfig) -> Result<(), anyhow::Error> {
        let mut vm = Vm::new(config);
        vm.inherit()?;
        vm.boot(&self.options, &self.stdout)?;
        self.boots += 1;
        self.vm = Some(vm);
        self.publish();
        Ok(())
    }

    /// Ends the VM, devices first stopped, and forgets it.
    pub fn stop(&mut self) {
        self.vm = None;
        self.info.set(None);
    }

    /// How many machines there have been: tells one from the next.
    pub(super) fn boots(&self) -> u64 {
        self.boots
    }

    /// Whether the last command was the last one.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// Says how the guest ended to whoever listens.
    pub(super) fn say_how(&self, ending: &Ending) {
        let event = match ending {
            Ending::PowerOff => "power-off",
            Ending::Reset | Ending::TripleFault => "reset",
            Ending::Panic => "panic",
            Ending::Failed(_) => "failed",
        };
        self.events.emit("guest", event);
    }

    /// Says that the process ends, without having been asked to by a client.
    pub(super) fn say_goodbye(&self) {
        self.events.emit("vmm", "shutdown");
    }

    fn create(&mut self, config: VmConfig) -> Outcome {
        if self.vm.is_some() {
            return Err(conflict("there is a VM already: vm.delete it first"));
        }
        if let Some(id) = config.duplicate_id() {
            return Err(conflict(format!("id '{id}' is used by two devices, ids must differ")));
        }
        config.validate(Limits::ARCHITECTURE).map_err(|e| bad_request(&e))?;
        let mut vm = Vm::new(config);
        vm.name_devices();
        self.vm = Some(vm);
        self.publish();
        Ok(Reply::Done)
    }

    fn boot(&mut self) -> Outcome {
        let vm = existing(&mut self.vm)?;
        if vm.machine().is_some() {
            return Err(conflict("the VM runs already"));
        }
        self.events.emit("vm", "booting");
        vm.boot(&self.options, &self.stdout)
            .map_err(|e| of_build(e).context("cannot boot the VM"))?;
        self.boots += 1;
        self.events.emit("vm", "booted");
        self.publish();
        Ok(Reply::Done)
    }

    fn shutdown(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        vm.shutdown();
        self.events.emit("vm", "shutdown");
        self.publish();
        Ok(Reply::Done)
    }

    fn delete(&mut self) -> Outcome {
        if self.vm.take().is_some() {
            self.events.emit("vm", "deleted");
            self.publish();
        }
        Ok(Reply::Done)
    }

    fn reboot(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        self.events.emit("vm", "rebooting");
        vm.shutdown();
        let booted = vm.boot(&self.options, &self.stdout);
        self.boots += 1;
        self.publish();
        booted.map_err(|e| of_build(e).context("cannot boot the VM again: it is shut down"))?;
        self.events.emit("vm", "booted");
        Ok(Reply::Done)
    }

    fn press_power_button(&mut self) -> Outcome {
        running(&mut self.vm)?.with_machine(|machine| machine.press_power_button());
        Ok(Reply::Done)
    }

    fn pause(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        if vm.state() == VmState::Paused {
            return Err(conflict("the VM is paused already"));
        }
        self.events.emit("vm", "pausing");
        vm.pause();
        self.events.emit("vm", "paused");
        self.publish();
        Ok(Reply::Done)
    }

    fn resume(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        if vm.state() != VmState::Paused {
            return Err(conflict("the VM is not paused"));
        }
        self.events.emit("vm", "resuming");
        vm.resume();
        self.events.emit("vm", "resumed");
        self.publish();
        Ok(Reply::Done)
    }

    fn counters(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        let mut all = json!({});
        if let Some(machine) = vm.machine() {
            for (name, counters) in machine.counters() {
                all[name] = counters
                    .into_iter()
                    .map(|(what, value)| (what.to_owned(), Value::from(value)))
                    .collect();
            }
        }
        Ok(Reply::Json(all))
    }

    /// The size that the VM has is granted, since a shim always asks for one.
    fn resize(&mut self, wanted: Resize) -> Outcome {
        let config = existing(&mut self.vm)?.config();
        let refusals = [
            (
                "desired_vcpus",
                wanted.desired_vcpus.map(u64::from),
                u64::from(config.cpus.boot_vcpus),
            ),
            ("desired_ram", wanted.desired_ram, config.memory.size),
            ("desired_balloon", wanted.desired_balloon, 0),
        ];
        let refused = refusals
            .into_iter()
            .find(|(_, wanted, present)| wanted.is_some_and(|wanted| wanted != *present));
        match refused {
            Some((field, wanted, present)) => Err(ApiError::new(
                Kind::NotImplemented,
                format!(
                    "{field}: {} asked for, the VM has {present}: resizing is not implemented",
                    wanted.unwrap_or_default()
                ),
            )),
            None => Ok(Reply::Done),
        }
    }

    /// Stops everything before the answer: whoever asked may kill the process as soon as it has come.
    fn shutdown_vmm(&mut self) -> Outcome {
        self.stop();
        self.events.emit("vmm", "shutdown");
        self.leaving = true;
        Ok(Reply::Done)
    }

    /// Shows the VM as it is to `vm.info`.
    fn publish(&self) {
        self.info.set(self.vm.as_ref().map(|vm| VmInfo {
            config: vm.config().clone(),
            state: vm.state(),
            memory_actual_size: vm.config().memory.size,
        }));
    }
}

impl Execute for Controller {
    fn execute(&mut self, command: Command) -> Outcome {
        match command {
            Command::Create(config) => self.create(*config),
            Command::Boot => self.boot(),
            Command::Shutdown => self.shutdown(),
            Command::Delete => self.delete(),
            Command::Reboot => self.reboot(),
            Command::PowerButton => self.press_power_button(),
            Command::Pause => self.pause(),
            Command::Resume => self.resume(),
            Command::Counters => self.counters(),
            Command::Resize(wanted) => self.resize(wanted),
            Command::Add(device, descriptors) => self.add(*device, descriptors),
            Command::Remove(id) => self.remove(&id),
            Command::ShutdownVmm => self.shutdown_vmm(),
        }
    }
}

fn existing(vm: &mut Option<Vm>) -> Result<&mut Vm, ApiError> {
    vm.as_mut()
        .ok_or_else(|| ApiError::new(Kind::NotFound, "there is no VM: vm.create one first"))
}

fn running(vm: &mut Option<Vm>) -> Result<&mut Vm, ApiError> {
    let vm = existing(vm)?;
    if vm.machine().is_none() {
        return Err(conflict("the VM does not run: vm.boot it first"));
    }
    Ok(vm)
}

fn conflict(what: impl Into<String>) -> ApiError {
    ApiError::new(Kind::Conflict, what)
}

fn bad_request(error: &(dyn std::error::Error + 'static)) -> ApiError {
    ApiError::from_error(Kind::BadRequest, error)
}

/// What the client can mend is its fault, what the host refuses is not.
fn of_build(error: BuildError) -> ApiError {
    let kind = match &error {
        error if image::is_taken(error) => Kind::Conflict,
        BuildError::NoKernel
        | BuildError::Config(_)
        | BuildError::Load(_)
        | BuildError::CommandLine(_)
        | BuildError::Device { .. } => Kind::BadRequest,
        BuildError::Full { .. } => Kind::Conflict,
        _ => Kind::Internal,
    };
    ApiError::from_error(kind, &error)
}
