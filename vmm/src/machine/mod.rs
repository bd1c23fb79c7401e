//! One virtual machine from its description to its end.

pub mod board;
mod build;
mod cpu_slots;
mod device;
pub mod fips;
mod fs;
mod hotplug;
mod look;
pub mod net;
mod output;
mod pending;
pub mod pmem;
mod populate;
mod port_input;
mod queues;
pub mod resize;
mod slots;
mod stop;
mod tail;
mod vsock;

use std::cell::OnceCell;
use std::sync::Arc;
use std::task::Waker;

use husk_devices::pci::Bdf;
use husk_hotplug::Hotplug;
use husk_virtio::device::VirtioDevice;
use husk_virtio::threads::Threads;
use vmm_sys_util::eventfd::EventFd;

use crate::background::BackgroundTask;
use crate::config::NewDevice;
use crate::kvm::{Stats, Vm, page_table_bytes};
use crate::memory::AddressSpace;
use crate::metrics::{Figures, Mapped};

use board::Board;
use cpu_slots::CpuPlug;
use device::Devices;
use look::Look;
use port_input::{AttachablePort, PortInput};
use resize::{Dimms, Resizes};
use stop::HoldState;

pub use board::Ending;
pub use build::BuildError;
pub use device::{Collected, Counted, SlotError};
pub use pending::{Pending, Request, Update};
pub use pmem::PmemError;
pub use populate::Passed;
pub use queues::Queues;
pub use resize::{Change, Latency, MachineSize, Refusal, ResizeError, TargetSize, Why, millis};
pub use slots::SLOTS as PCI_SLOTS;
pub use stop::STOP_DEADLINE;
pub use tail::Tail;

/// A virtual machine.
///
/// vCPUs leave the guest, then devices let go of RAM, then RAM goes: fields are dropped in this order.
pub struct Machine {
    cpus: Hotplug<CpuPlug>,
    resizes: Resizes,
    /// What the devices have been asked for.
    hold_state: HoldState,
    devices: Devices,
    /// Memory that came while the guest ran. Devices use it.
    dimms: Dimms,
    board: Arc<Board>,
    ended: EventFd,
    stdin_port: Option<PortInput>,
    /// Until everything is asked to stop: nobody types any more.
    chardevs: Vec<AttachablePort>,
    /// Chardevs that are being closed, by the names of their ports.
    closing: Vec<(String, BackgroundTask<()>)>,
    /// A look after files that were the guest's memory.
    collecting: Option<BackgroundTask<()>>,
    /// A look whether those that are were shortened.
    looking: Option<Look>,
    vm: Arc<Vm>,
    /// What KVM counts of the whole of it, once somebody has asked.
    stats: OnceCell<Option<Stats>>,
    memory: Arc<AddressSpace>,
}

/// Opens devices for a machine that runs. What it opens may outlive the machine, and keeps its memory until then.
pub struct Opener {
    memory: Arc<AddressSpace>,
    threads: Arc<dyn Threads>,
}

impl Opener {
    /// Opens `device` with the descriptors in `passed`. May wait: for a back-end, or for storage.
    ///
    /// # Errors
    /// It cannot be had; nothing is left behind.
    pub fn open(&self, device: &NewDevice, passed: &Passed) -> Result<Box<dyn VirtioDevice>, BuildError> {
        populate::open(device, passed, &self.memory, &self.threads)
    }
}

impl Machine {
    /// Lets the guest run, once.
    pub fn start(&mut self) {
        if self.cpus.plug().cpus.has_started() {
            return;
        }
        self.cpus.plug_mut().cpus.run();
        // The guest runs: what is only said is said now.
        self.memory.warn_of_limits(0);
    }

    /// What opens devices for this machine, on any thread.
    pub fn opener(&self) -> Opener {
        Opener {
            memory: self.memory.clone(),
            threads: self.devices.threads().clone(),
        }
    }

    /// Wakes the machine's owner.
    pub fn waker(&self) -> Waker {
        self.devices.threads().waker()
    }

    /// Gives the guest the device called `id`, which was opened for this machine, and tells it. Never waits.
    ///
    /// # Errors
    /// There is no place for it; the guest has heard nothing.
    pub fn add(&mut self, id: &str, opened: Box<dyn VirtioDevice>) -> Result<(Bdf, Pending), BuildError> {
        let (at, receiver) = self.devices.offer_virtio(id, opened)?;
        Ok((at, Pending::new(id, Request::Add, receiver)))
    }

    /// Asks the guest to let go of the device called `id`.
    ///
    /// # Errors
    /// There is none, or it is on its way out already.
    pub fn remove(&mut self, id: &str) -> Result<Pending, SlotError> {
        let receiver = self.devices.ask_back(id)?;
        Ok(Pending::new(id, Request::Remove, receiver))
    }

    /// Has a thread take apart what the guest has let go of, as far as it has stopped, and says
    /// what is gone. Never waits: to be called again at each wakeup, and after a failure.
    pub fn collect(&mut self) -> Collected {
        self.devices.collect()
    }

    /// Has a thread give memory back that was in use when it was removed and is not any more: to
    /// close a file may take long. Returns whether there is a file: then it is to be called again.
    /// Never waits.
    pub fn collect_memory(&mut self) -> bool {
        let is_looked_after = self
            .collecting
            .as_ref()
            .is_some_and(|looks| looks.take_result().is_none());
        if !is_looked_after && self.memory.has_left() {
            let memory = self.memory.clone();
            let look = move || {
                memory.collect();
            };
            self.collecting = BackgroundTask::spawn(self.waker(), look).ok();
        }
        self.memory.has_left_file()
    }

    /// Has a thread look whether a file that is the guest's memory was shortened, if a vCPU may be waiting for a page
    /// of it, and ends the VM if one was: to ask a file system may take long. One look at a time. Never waits: to be
    /// called when there is news.
    pub fn look_after_files(&mut self) {
        if let Some(looking) = &self.looking {
            let Some(shortened) = looking.take() else { return };
            self.looking = None;
            if let Some(gpa) = shortened {
                self.board.end_without(Some(gpa));
            }
        }
        if self.board.take_look()
            && let Some(files) = self.memory.files()
        {
            // Without a thread the vCPU asks again.
            self.looking = Look::begin(self.waker(), files).ok();
        }
    }

    /// Devices that the guest has let go of, whose threads have yet to stop or that are being taken apart.
    pub fn stopping(&self) -> Vec<&str> {
        self.devices.stopping()
    }

    /// The devices on their way out, and where they are: those that `asked` says the guest was
    /// asked for, and those that it has let go of.
    pub fn leaving(&self, asked: impl Fn(&str) -> bool) -> Vec<(String, Bdf)> {
        self.devices.leaving(asked)
    }

    /// Tells the guest again of what it has not asked about yet; whether there is such a thing.
    pub fn remind(&self) -> bool {
        self.devices.hotplug().remind()
    }

    /// Whether [`Machine::remind_vcpus`] is to be called every [`BETWEEN_LOOKS`](crate::kvm::BETWEEN_LOOKS): the host
    /// has no timer left for a vCPU's thread.
    pub fn has_untimed_vcpus(&self) -> bool {
        self.cpus.plug().cpus.is_untimed()
    }

    /// See [`Machine::has_untimed_vcpus`].
    pub fn remind_vcpus(&mut self) {
        self.cpus.plug_mut().cpus.remind();
    }

    /// Presses the guest's power button.
    pub fn press_power_button(&self) {
        self.devices.hotplug().press_power_button();
    }

    /// What the devices have counted, and KVM of each vCPU that there is, by name.
    pub fn counters(&self) -> Vec<Counted> {
        let mut all = self.devices.counters();
        let vcpus = self.cpus.plug().cpus.counters();
        all.extend(vcpus.map(|(id, counters)| Counted {
            // No device can be given such a name.
            name: format!("__vcpu{id}"),
            kind: "vcpu",
            counters,
            queues: Vec::new(),
        }));
        all
    }

    /// The virtqueues of the devices, to be looked at by a thread that may wait for the guest's memory.
    pub fn queues(&self) -> Queues {
        self.devices.queues()
    }

    /// What is known of the machine at this moment. Takes no lock that a vCPU may want.
    pub fn figures(&self) -> Figures {
        Figures {
            counted: self.counters(),
            vcpus: self.cpus.plug().cpus.figures(),
            resizes: self.resizes.latencies(),
            ram: Some(self.resizes.ram(&self.dimms)),
            mapped: self.mapped(),
            ..Figures::default()
        }
    }

    /// What KVM has mapped for the guest, by the size of its pages (Linux' `struct kvm_vm_stat` of x86).
    fn mapped(&self) -> Option<Mapped> {
        let stats = self.stats.get_or_init(|| self.vm.stats()).as_ref()?;
        let (small, large, huge) = (stats.get("pages_4k")?, stats.get("pages_2m")?, stats.get("pages_1g")?);
        Some(Mapped {
            bytes: (small << 12) + (large << 21) + (huge << 30),
            page_table_bytes: page_table_bytes(small, large, huge),
        })
    }

    /// Why the guest ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.board.ending()
    }

    /// Readable when the guest has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }
}
