//! The VM that a controller owns: its configuration, what clients passed for it, and its machine while it runs.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_devices::pci::Bdf;
use husk_virtio::device::VirtioDevice;
use husk_virtio::threads::Threads;
use serde_json::Value;

use super::building::{Building, duplicate};
use super::resize::LastResize;
use super::stopping::Stopping;
use super::{file_conflict, messages};
use crate::api::{Containers, JsonText, PassedFd, VmState};
use crate::background::{self, BackgroundTask, DropInBackground};
use crate::config::{ConsoleMode, Limits, NewDevice, RunOptions, VmConfig};
use crate::machine::{BuildError, Machine, MachineSize, Passed, Pending, net};
use crate::terminal::ProcessOutputs;
use crate::trace::Trace;

/// What a machine that is being built is called, among devices.
const BUILDER: &str = "__builder";

/// A device that has been opened, with the descriptors that belong to it. What is not given to the
/// guest, a thread closes.
pub(super) type OpenedDevice = DropInBackground<(Box<dyn VirtioDevice>, Passed)>;

/// A device that has been opened, or why there is none.
pub(super) type OpenResult = Result<OpenedDevice, OpenFailure>;

/// Why a device is not there.
pub(super) struct OpenFailure {
    pub(super) why: BuildError,
    /// The device of this VM that has its file.
    pub(super) conflicting_device: Option<String>,
}

impl From<BuildError> for OpenFailure {
    fn from(why: BuildError) -> Self {
        Self {
            why,
            conflicting_device: None,
        }
    }
}

/// A device that is being opened, for a machine that runs.
struct Opening {
    device: NewDevice,
    // Its thread drops what nobody takes: only then is nothing of it left.
    building: Building<(Box<dyn VirtioDevice>, Passed), OpenFailure>,
}

impl Opening {
    fn is(&self, id: &str) -> bool {
        self.device.id() == Some(id)
    }
}

/// What becomes of a machine that is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AfterBuild {
    /// Its guest waits: whoever asked for it may have called it off.
    Wait,
    /// Its guest runs at once: nobody else can want it.
    Run,
}

/// A configured VM.
pub(super) struct Vm {
    config: VmConfig,
    passed: Passed,
    state: VmState,
    machine: Option<Machine>,
    /// The machine that there will be, and where its time goes.
    building: Option<(Building<Machine>, Trace)>,
    /// Devices that there will be.
    opening: Vec<Opening>,
    /// The machine that has stopped, on its way back to the host.
    ending: Option<BackgroundTask<()>>,
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
    /// What is noted of them while there are none.
    no_containers: JsonText,
    /// How long the guest is given before it is reminded again.
    pub(super) patience: Duration,
    /// When everything was asked to stop.
    stopped: Option<Instant>,
}

impl Vm {
    /// A VM of this configuration, whose devices have a name each from here on.
    pub(super) fn new(mut config: VmConfig) -> Self {
        config.name_devices();
        Self {
            config,
            passed: Passed::new(),
            state: VmState::Created,
            machine: None,
            building: None,
            opening: Vec::new(),
            ending: None,
            size: None,
            pending: Vec::new(),
            stopping: Stopping::default(),
            last_resize: None,
            containers: Containers::default(),
            no_containers: JsonText::default(),
            patience: Duration::ZERO,
            stopped: None,
        }
    }

    /// What is noted of the containers of each guest of this VM while there are none.
    pub(super) fn begin_containers(&mut self, list: &Value) {
        self.no_containers = list.into();
        self.containers.containers = self.no_containers.clone();
    }

    pub(super) fn config(&self) -> &VmConfig {
        &self.config
    }

    /// The configuration as it is shown: with the pseudo-terminals that there are at present.
    pub(super) fn config_as_is(&self) -> VmConfig {
        let mut config = self.config.clone();
        let terminals: BTreeMap<_, _> = self.machine.iter().flat_map(Machine::terminals).collect();
        for (name, port) in [("serial", &mut config.serial), ("console", &mut config.console)] {
            if port.mode == ConsoleMode::Pty {
                port.file = terminals.get(name).map(|path| path.to_path_buf());
            }
        }
        config
    }

    /// Takes another configuration in, of a VM that does not run.
    pub(super) fn set_config(&mut self, config: VmConfig) {
        self.config = config;
    }

    /// What RAM has come to is what the next machine begins with: see [`VmConfig::fit_hotplug`].
    pub(super) fn fit_hotplug(&mut self, limits: Limits) {
        self.config.fit_hotplug(limits);
    }

    /// The configuration shows how large the machine is. Whether any of it is new, what the guest has now included.
    pub(super) fn set_size(&mut self, size: MachineSize) -> bool {
        (self.config.cpus.boot_vcpus, self.config.memory.size) = (size.vcpus, size.ram_bytes);
        if let (Some(balloon), Some(bytes)) = (&mut self.config.balloon, size.balloon_bytes) {
            balloon.size = bytes;
        }
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

    /// Takes the descriptors that the process was started with for its network devices.
    pub(super) fn inherit(&mut self) -> Result<(), BuildError> {
        for net in self.config.net.iter().filter(|net| net.fds.is_some()) {
            let id = net.id.clone().unwrap_or_default();
            self.passed.insert(id, net::inherited(net)?);
        }
        Ok(())
    }

    /// Begins to build the machine beside this thread: see [`Vm::built`].
    pub(super) fn build(
        &mut self,
        options: RunOptions,
        outputs: &ProcessOutputs,
        threads: &Arc<dyn Threads>,
        then: AfterBuild,
    ) -> Result<(), BuildError> {
        let passed = duplicate(&self.passed).map_err(|source| BuildError::Host {
            what: "duplicate a descriptor",
            source,
        })?;
        let (config, outputs, threads) = (self.config.clone(), outputs.clone(), threads.clone());
        let (trace, waker) = (options.trace.clone(), threads.waker());
        let build = move || {
            // Here, where files may be looked at, and before any is opened.
            file_conflict::check_outputs(&config, outputs.protected_files())?;
            let built = Machine::build(&config, &passed, &options, &outputs, &threads);
            let mut machine = built.map_err(|error| file_conflict::name_both(error, &config))?;
            if then == AfterBuild::Run {
                machine.start();
            }
            Ok(machine)
        };
        self.building = Some((Building::begin(waker, build)?, trace));
        Ok(())
    }

    /// The machine that was being built, or why there is none, and what to say of it; `None` as
    /// long as it is not known.
    pub(super) fn built(&mut self) -> Option<(Result<Machine, BuildError>, String)> {
        let (building, trace) = self.building.as_ref()?;
        let built = building.take_result()?;
        let told = messages::started_message(building.took(), trace);
        self.building = None;
        Some((built, told))
    }

    /// Lets the guest of `machine` run, unless it does.
    pub(super) fn start(&mut self, mut machine: Machine) {
        machine.start();
        self.machine = Some(machine);
        // This guest has not been asked for anything.
        self.last_resize = None;
        self.state = VmState::Running;
    }

    pub(super) fn is_building(&self) -> bool {
        self.building.is_some()
    }

    /// Has what was being built or opened taken apart, once it is; whether nothing is left of it.
    pub(super) fn is_building_over(&mut self) -> bool {
        self.building.take_if(|(building, _)| building.abandon());
        self.opening.retain(|opening| !opening.building.abandon());
        self.building.is_none() && self.opening.is_empty()
    }

    /// Begins to open `device`, whose name nobody has, beside this thread, for the machine that
    /// runs: see [`Vm::opened`]. None of the files that `outputs` or its ports write is one for a
    /// device.
    pub(super) fn open(
        &mut self,
        device: NewDevice,
        descriptors: Vec<PassedFd>,
        outputs: &ProcessOutputs,
    ) -> Result<(), BuildError> {
        let Some(machine) = &self.machine else { return Ok(()) };
        let (opener, waker) = (machine.opener(), machine.waker());
        let (wanted, id) = (device.clone(), device.id().unwrap_or_default().to_owned());
        let (others, outputs) = (self.config_to_be(), outputs.clone());
        let open = move || {
            // From here on they are this thread's to close; without a thread they are nobody's who may wait.
            let descriptors = descriptors.into_iter().map(PassedFd::into_owned).collect();
            let passed = Passed::from([(id, descriptors)]);
            let opened = file_conflict::check_added(&wanted, &others, outputs.protected_files())
                .map_err(BuildError::from)
                .and_then(|()| opener.open(&wanted, &passed));
            match opened {
                Ok(opened) => Ok((opened, passed)),
                Err(why) => {
                    // Here, where files may be looked at: those of a slow file system keep nobody waiting.
                    let conflicting_device = file_conflict::conflicting_device(&why, &others, &wanted);
                    Err(OpenFailure {
                        conflicting_device,
                        why,
                    })
                }
            }
        };
        let building = Building::begin(waker, open)?;
        self.opening.push(Opening { device, building });
        Ok(())
    }

    /// The device called `id` that was being opened, with its descriptors, or why there is none;
    /// `None` as long as it is not known.
    pub(super) fn opened(&mut self, id: &str) -> Option<(NewDevice, OpenResult)> {
        let at = self.opening.iter().position(|opening| opening.is(id))?;
        let opened = self.opening.get(at)?.building.take_result()?.map(DropInBackground::new);
        Some((self.opening.remove(at).device, opened))
    }

    /// Whether a device called `id` is being opened.
    pub(super) fn is_opening(&self, id: &str) -> bool {
        self.opening.iter().any(|opening| opening.is(id))
    }

    /// The names of the devices that are being opened.
    pub(super) fn opening(&self) -> impl Iterator<Item = &str> {
        self.opening.iter().filter_map(|opening| opening.device.id())
    }

    /// Leaves the device called `id` that is being opened to its thread.
    pub(super) fn leave_opening(&mut self, id: &str) {
        self.opening.retain(|opening| !opening.is(id));
    }

    /// The configuration, and what it will have once all is there that is being opened.
    pub(super) fn config_to_be(&self) -> VmConfig {
        let mut config = self.config.clone();
        for opening in &self.opening {
            config.insert(opening.device.clone());
        }
        config
    }

    /// Whether nothing of the VM is at work any more, after [`Vm::stop`]. A device that opens
    /// slowly keeps no other from being stopped.
    pub(super) fn is_stopped(&mut self) -> bool {
        let is_over = self.is_building_over();
        self.is_machine_stopped() && is_over
    }

    /// Whether nothing of the machine is at work any more, nor one being built. Devices may be:
    /// they are no part of it yet.
    pub(super) fn is_machine_stopped(&mut self) -> bool {
        let machine = self.machine.as_mut();
        machine.is_none_or(|machine| machine.unstopped().is_empty()) && self.building.is_none()
    }

    /// What is still being built or opened, as it is called among devices.
    pub(super) fn unbuilt(&self) -> Vec<String> {
        let builder = self.building.as_ref().map(|_| BUILDER);
        self.opening().chain(builder).map(str::to_owned).collect()
    }

    /// Leaves what is being built to its thread.
    pub(super) fn leave_building(&mut self) {
        self.building = None;
    }

    /// Asks everything to stop; since when it has been, if there is a machine or is to be one.
    pub(super) fn stop(&mut self) -> Option<Instant> {
        match &mut self.machine {
            Some(machine) => machine.stop(),
            None if self.building.is_some() || self.ending.is_some() => {}
            None => return None,
        }
        Some(*self.stopped.get_or_insert_with(Instant::now))
    }

    /// Has a thread drop the machine, which has stopped. Whether nothing is left of it, and the VM
    /// has none any more; to be called again until then. Never waits.
    pub(super) fn end_machine(&mut self) -> bool {
        if self.ending.is_none() {
            self.ending = self.take_machine().map(Machine::take_apart);
        }
        self.ending.take_if(|ending| ending.take_result().is_some());
        self.ending.is_none()
    }

    /// Whether there is something left of a machine that has stopped.
    pub(super) fn is_ending(&self) -> bool {
        self.ending.is_some()
    }

    /// Forgets it all. Descriptors of clients are closed by a thread.
    pub(super) fn discard(self) {
        if !self.passed.is_empty() {
            background::drop_in_background(self.passed);
        }
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopped.is_some()
    }

    /// Parts with the machine, which has stopped or is left behind, and with what is being built,
    /// opened, or [ended](Self::end_machine).
    pub(super) fn take_machine(&mut self) -> Option<Machine> {
        self.ending = None;
        self.building = None;
        self.opening.clear();
        self.pending.clear();
        self.stopping = Stopping::default();
        if let Some(last) = &mut self.last_resize {
            last.lose_guest();
        }
        self.stopped = None;
        self.containers.replace(self.no_containers.clone());
        self.state = VmState::Shutdown;
        self.machine.take()
    }

    /// The devices of the machine that a client has asked back, unless the guest refused, and where they are.
    pub(super) fn leaving(&self) -> Vec<(String, Bdf)> {
        let asked = |id: &str| self.pending.iter().any(|pending| pending.is_removal_of(id));
        let leaving = self.machine.as_ref().map(|machine| machine.leaving(asked));
        leaving.unwrap_or_default()
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
        if let Some(passed) = self.passed.remove(id) {
            background::drop_in_background(passed);
        }
        self.config.remove(id)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::config::{BalloonConfig, DiskConfig, NetConfig};

    /// Descriptors are found by the name that the device has everywhere.
    #[test]
    fn devices_have_names_that_differ_and_descriptors_go_by_them() {
        let null = File::open("/dev/null").unwrap();
        let tap = NetConfig {
            tap: Some("tap0".into()),
            ..NetConfig::new()
        };
        let passed = NetConfig {
            fds: Some(vec![null.as_raw_fd()]),
            ..NetConfig::new()
        };
        let config = VmConfig {
            disks: vec![DiskConfig::new("/a")],
            net: vec![tap, passed],
            ..VmConfig::default()
        };
        let mut vm = Vm::new(config);
        vm.inherit().unwrap();
        let names: Vec<_> = vm.config().ids().collect();
        assert_eq!(names, ["_disk0", "_net0", "_net1"]);
        let passed: Vec<_> = vm.passed.iter().map(|(id, fds)| (id.as_str(), fds.len())).collect();
        assert_eq!(passed, [("_net1", 1)]);
    }

    /// A guest lets go of memory, or fills a balloon, bit by bit, long before all of a resize is done.
    #[test]
    fn a_size_is_new_when_only_what_the_guest_has_is() {
        let mut vm = Vm::new(VmConfig {
            balloon: Some(BalloonConfig::default()),
            ..VmConfig::default()
        });
        let size = |actual_bytes| MachineSize {
            vcpus: 1,
            ram_bytes: 256 << 20,
            balloon_bytes: Some(64 << 20),
            actual_bytes,
        };
        assert!(vm.set_size(size(512 << 20)));
        assert!(!vm.set_size(size(512 << 20)));
        assert!(vm.set_size(size(258 << 20)));
        assert_eq!((vm.config().cpus.boot_vcpus, vm.config().memory.size), (1, 256 << 20));
        assert_eq!(vm.config().balloon.as_ref().map(|balloon| balloon.size), Some(64 << 20));
    }
}
