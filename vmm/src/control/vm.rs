//! The VM that a controller owns: its configuration, what clients passed for it, and its machine while it runs.

use std::os::fd::OwnedFd;

use crate::api::VmState;
use crate::config::{NewDevice, RunOptions, VmConfig};
use crate::machine::{BuildError, Machine, Passed, Pending, net};
use crate::terminal::StdoutSink;

/// A configured VM.
pub(super) struct Vm {
    config: VmConfig,
    passed: Passed,
    state: VmState,
    machine: Option<Machine>,
    /// What the guest has not answered yet.
    pub(super) pending: Vec<Pending>,
}

impl Vm {
    pub(super) fn new(config: VmConfig) -> Self {
        Self {
            config,
            passed: Passed::new(),
            state: VmState::Created,
            machine: None,
            pending: Vec::new(),
        }
    }

    pub(super) fn config(&self) -> &VmConfig {
        &self.config
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
    pub(super) fn boot(&mut self, options: &RunOptions, stdout: &StdoutSink) -> Result<(), BuildError> {
        let mut machine = Machine::build(&self.config, &self.passed, options, stdout)?;
        machine.start()?;
        self.machine = Some(machine);
        self.state = VmState::Running;
        Ok(())
    }

    /// Ends the guest and takes the machine apart.
    pub(super) fn shutdown(&mut self) {
        self.machine = None;
        self.pending.clear();
        self.state = VmState::Shutdown;
    }

    pub(super) fn pause(&mut self) {
        self.with_machine(Machine::pause);
        self.state = VmState::Paused;
    }

    pub(super) fn resume(&mut self) {
        self.with_machine(Machine::resume);
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
