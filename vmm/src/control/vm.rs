//! The VM that a controller owns: its configuration, what clients passed for it, and its machine while it runs.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_virtio::threads::Threads;
use serde_json::Value;

use super::building::Building;
use super::resize::LastResize;
use super::stopping::Stopping;
use crate::api::{Containers, VmState};
use crate::config::{NewDevice, RunOptions, VmConfig};
use crate::machine::{BuildError, Machine, MachineSize, Passed, Pending, net};
use crate::terminal::StdoutSink;

/// A configured VM.
pub(super) struct Vm {
    config: VmConfig,
    passed: Passed,
    state: VmState,
    machine: Option<Machine>,
    /// The machine that there will be.
    building: Option<Building>,
    /// The size that was shown last.
    size: Option<MachineSize>,
    /// What the guest has not answered yet.
    pub(super) pending: Vec<Pending>,
    /// Devices that the guest has let go of, until they have stopped.
    pub(super) stopping: Stopping,
    /// What became of the last resize.
    pub(super) last_resize: Option<LastResize>,
    /// What clients have noted of the guest's containers.
    pub(super) containers: Containers,
    /// How long the guest is given before it is reminded again.
    pub(super) patience: Duration,
    /// When everything was asked to stop.
    stopped: Option<Instant>,
}

impl Vm {
    pub(super) fn new(config: VmConfig) -> Self {
        Self {
            config,
            passed: Passed::new(),
            state: VmState::Created,
            machine: None,
            building: None,
            size: None,
            pending: Vec::new(),
            stopping: Stopping::default(),
            last_resize: None,
            containers: Containers::default(),
            patience: Duration::ZERO,
            stopped: None,
        }
    }

    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// Takes another configuration in, of a VM that does not run.
    pub(super) fn set_config(&mut self, config: VmConfig) {
        self.config = config;
    }

    /// The configuration shows how large the machine is. Whether any of it is new, what the guest has now included.
    pub(super) fn set_size(&mut self, size: MachineSize) -> bool {
        (self.config.cpus.boot_vcpus, self.config.memory.size) = (size.vcpus, size.ram_bytes);
        self.size.replace(size) != Some(size)
    }

    pub(super) fn state(&self) -> VmState {
        self.state
    }

    pub(super) fn machine(&self) -> Option<&Machine> {
        self.machine.as_ref()
    }

    pub(super) fn machine_mut(&mut self) -> Option<&mut Machine> {
        self.machine.as_mut()
    }

    pub(super) fn with_machine(&self, act: impl FnOnce(&Machine)) {
        if let Some(machine) = &self.machine {
            act(machine);
        }
    }

    pub(super) fn name_devices(&mut self) {
        self.config.name_devices();
    }

    /// Takes the descriptors that the process was started with for its network devices.
    pub(super) fn inherit(&mut self) -> Result<(), BuildError> {
        for (number, net) in self
            .config
            .net
            .iter_mut()
            .enumerate()
            .filter(|(_, net)| net.fds.is_some())
        {
            let id = net.id.get_or_insert_with(|| format!("net{number}")).clone();
            self.passed.insert(id, net::inherited(net)?);
        }
        Ok(())
    }

    /// Builds the machine and lets the guest run. On an error nothing has changed.
    pub(super) fn boot(
        &mut self,
        options: &RunOptions,
        stdout: &StdoutSink,
        threads: &Arc<dyn Threads>,
    ) -> Result<(), BuildError> {
        let machine = Machine::build(&self.config, &self.passed, options, stdout, threads)?;
        self.start(machine);
        Ok(())
    }

    /// Begins to build the machine beside this thread: see [`Vm::built`].
    pub(super) fn build(
        &mut self,
        options: RunOptions,
        stdout: &StdoutSink,
        threads: &Arc<dyn Threads>,
    ) -> Result<(), BuildError> {
        self.building = Some(Building::begin(&self.config, &self.passed, options, stdout, threads)?);
        Ok(())
    }

    /// The machine that was being built, or why there is none, and what to say of it; `None` as long as it is not known.
    pub(super) fn built(&mut self) -> Option<(Result<Machine, BuildError>, String)> {
        let building = self.building.as_ref()?;
        let built = building.take()?;
        let told = building.told();
        self.building = None;
        Some((built, told))
    }

    /// Lets the guest of `machine` run.
    pub(super) fn start(&mut self, mut machine: Machine) {
        machine.start();
        self.machine = Some(machine);
        self.state = VmState::Running;
    }

    pub(super) fn is_building(&self) -> bool {
        self.building.is_some()
    }

    /// Takes apart what was being built, once it is; whether nothing is any more.
    pub(super) fn is_building_over(&mut self) -> bool {
        drop(self.built());
        self.building.is_none()
    }

    /// Leaves what is being built to its thread.
    pub(super) fn leave_building(&mut self) {
        self.building = None;
    }

    /// Asks everything to stop; since when it has been, if there is a machine or is to be one.
    pub(super) fn stop(&mut self) -> Option<Instant> {
        match &mut self.machine {
            Some(machine) => machine.stop(),
            None if self.building.is_some() => {}
            None => return None,
        }
        Some(*self.stopped.get_or_insert_with(Instant::now))
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopped.is_some()
    }

    /// Parts with the machine, which has stopped or is left behind, and with one that is being built.
    pub(super) fn take_machine(&mut self) -> Option<Machine> {
        self.building = None;
        self.pending.clear();
        self.stopping = Stopping::default();
        self.stopped = None;
        self.containers.replace(Value::Null);
        self.state = VmState::Shutdown;
        self.machine.take()
    }

    /// Asks everything to hold: it is [paused](Self::paused) when it does.
    pub(super) fn pause(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.pause();
        }
    }

    pub(super) fn paused(&mut self) {
        self.state = VmState::Paused;
    }

    pub(super) fn resume(&mut self) {
        if let Some(machine) = &mut self.machine {
            machine.resume();
        }
        self.state = VmState::Running;
    }

    /// Makes `device` part of the configuration, with the descriptors that belong to it.
    pub(super) fn insert(&mut self, device: NewDevice, descriptors: Vec<OwnedFd>) {
        if let Some(id) = device.id().filter(|_| !descriptors.is_empty()) {
            self.passed.insert(id.into(), descriptors);
        }
        self.config.insert(device);
    }

    /// Forgets the device called `id`; whether there was one.
    pub(super) fn forget(&mut self, id: &str) -> bool {
        self.passed.remove(id);
        self.config.remove(id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guest lets go of memory, or fills a balloon, bit by bit, long before all of a resize is done.
    #[test]
    fn a_size_is_new_when_only_what_the_guest_has_is() {
        let mut vm = Vm::new(VmConfig::default());
        let size = |actual_bytes| MachineSize {
            vcpus: 1,
            ram_bytes: 256 << 20,
            actual_bytes,
        };
        assert!(vm.set_size(size(512 << 20)));
        assert!(!vm.set_size(size(512 << 20)));
        assert!(vm.set_size(size(258 << 20)));
        assert_eq!((vm.config().cpus.boot_vcpus, vm.config().memory.size), (1, 256 << 20));
    }
}
