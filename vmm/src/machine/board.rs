//! The buses of one VM, and what becomes of a device's [`Effect`] once the bus is free again.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;

use husk_devices::bus::Bus;
use husk_devices::log_once::LogOnce;
use husk_devices::pci::{BarRange, BarWindow, Bdf, PciFunction, PciRoot};
use husk_devices::{Effect, lock};
use vmm_sys_util::eventfd::EventFd;

use crate::kvm::Port;
use crate::memory::{AddressSpace, MapGeneration};

/// Why the guest ended by itself, or cannot go on. A stop by a client or a signal is none of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest asked for a reset by a triple fault, Linux's last resort.
    TripleFault,
    /// The guest reported that its kernel panicked.
    Panic,
    /// The host cannot run it any further.
    Failed(String),
}

/// What vCPU threads share.
///
/// No two of its locks are ever held at once by a thread, but for [`Board::remap`]: that takes
/// `windows` first and the others, one at a time, under it. Nobody else takes `windows`.
pub struct Board {
    ports: Bus,
    mmio: Bus,
    pci: Arc<Mutex<PciRoot>>,
    /// Where each function's BARs stand on the memory bus.
    windows: Mutex<BTreeMap<Bdf, Vec<BarRange>>>,
    /// What is memory, and so has to have a page of the host behind it.
    memory: OnceLock<Arc<AddressSpace>>,
    /// Whether somebody should look after the files that are memory, and who is told so.
    is_look_due: AtomicBool,
    looker: OnceLock<Waker>,
    /// A guest can move its windows wherever it likes, as often as it likes.
    misplaced: LogOnce,
    ending: OnceLock<Ending>,
    ended: EventFd,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board")
            .field("ending", &self.ending.get())
            .finish_non_exhaustive()
    }
}

impl Board {
    /// A board without devices. `ended` is written once, when the VM ends.
    pub fn new(ended: EventFd) -> Self {
        let pci = Arc::new(Mutex::new(PciRoot::new()));
        Self {
            ports: Bus::default(),
            mmio: Bus::default(),
            pci,
            windows: Mutex::default(),
            memory: OnceLock::new(),
            is_look_due: AtomicBool::new(false),
            looker: OnceLock::new(),
            misplaced: LogOnce::default(),
            ending: OnceLock::new(),
            ended,
        }
    }

    /// Says what is memory. Once.
    pub fn set_memory(&self, memory: Arc<AddressSpace>) {
        let _ = self.memory.set(memory);
    }

    /// Has `looker` woken when [`Board::take_look`] has something to say. Once.
    pub fn set_looker(&self, looker: Waker) {
        let _ = self.looker.set(looker);
    }

    /// Whether a vCPU may be waiting for a page of a file that was shortened, since this was asked last.
    pub fn take_look(&self) -> bool {
        self.is_look_due.swap(false, Ordering::Relaxed)
    }

    /// The I/O port bus.
    pub fn ports(&self) -> &Bus {
        &self.ports
    }

    /// The memory bus.
    pub fn mmio(&self) -> &Bus {
        &self.mmio
    }

    /// The PCI root, whose slots hold every PCI function.
    pub fn pci(&self) -> &Arc<Mutex<PciRoot>> {
        &self.pci
    }

    /// Why the VM ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.get()
    }

    /// Ends the VM. The first reason counts.
    pub fn end(&self, ending: Ending) {
        if self.ending.set(ending).is_ok() {
            // An eventfd that nobody has read takes another 1 for as long as the process lives.
            let _ = self.ended.write(1);
        }
    }

    /// This moment, for [`Board::answer`].
    pub fn memory_generation(&self) -> MapGeneration {
        self.memory.get().map(|memory| memory.generation()).unwrap_or_default()
    }

    /// Serves one exit of a vCPU that entered its guest at `entered`. Returns whether the guest goes on.
    pub fn answer(&self, port: Port<'_>, entered: MapGeneration) -> bool {
        match port {
            // An access that KVM emulates comes as one to a device when there is no page.
            Port::Load(gpa, _) | Port::Store(gpa, _) if self.is_missing(gpa, entered) => {
                return self.end_without(Some(gpa));
            }
            Port::Missing(gpa) => return self.end_without(gpa),
            Port::Look => self.ask_for_look(),
            Port::In(port, data) => self.ports.read(u64::from(port), data),
            Port::Load(gpa, data) => self.mmio.read(gpa, data),
            Port::Out(port, data) => return self.carry_out(self.ports.write(u64::from(port), data)),
            Port::Store(gpa, data) => return self.carry_out(self.mmio.write(gpa, data)),
        }
        true
    }

    /// A file system may take as long as it likes to say how long a file is, and no vCPU waits for one: another thread
    /// is to look.
    fn ask_for_look(&self) {
        let has_files = self.memory.get().is_some_and(|memory| memory.has_files());
        if has_files
            && !self.is_look_due.swap(true, Ordering::Relaxed)
            && let Some(looker) = self.looker.get()
        {
            looker.wake_by_ref();
        }
    }

    /// Whether `gpa` was memory when the guest was `entered`, although KVM takes it for a device.
    /// What has come since was nobody's when the guest touched it, and it had not been told of it:
    /// it reads all ones, as from any such place.
    fn is_missing(&self, gpa: u64, entered: MapGeneration) -> bool {
        let is_memory = || Some(self.memory.get()?.find_in_generation(gpa, entered).is_some());
        !self.mmio.covers(gpa) && is_memory().unwrap_or(false)
    }

    /// The guest cannot go on: the host has no page for memory at `gpa`. `false`, as [`Board::answer`] has it.
    pub fn end_without(&self, gpa: Option<u64>) -> bool {
        let memory = self.memory.get();
        let why = memory.map_or_else(|| "guest memory is missing".into(), |memory| memory.missing(gpa));
        self.end(Ending::Failed(why));
        false
    }

    fn carry_out(&self, effect: Effect) -> bool {
        match effect {
            Effect::None => return true,
            Effect::Remap(bdf) => {
                self.remap(bdf);
                return true;
            }
            Effect::Shutdown => self.end(Ending::PowerOff),
            Effect::Reboot => self.end(Ending::Reset),
            Effect::Panic => self.end(Ending::Panic),
        }
        false
    }
}

impl Board {
    /// Makes the memory bus agree with what function `bdf` decodes now. A window that would overlap
    /// another is left out, and the first is logged: the guest asked for it, so the guest lives
    /// with reads of all ones there, until the other one has gone: then it is placed, as both
    /// registers say by then (PCIe 5.0 §7.5.1.2.1).
    ///
    /// One at a time: of two threads that both remap a function, or of which one takes it away, the
    /// later one sees what the other has done. Not to be called with a lock held, nor by a thread
    /// that may not wait for vCPUs.
    pub fn remap(&self, bdf: Bdf) {
        let mut windows = lock(&self.windows);
        let mut made_room = self.agree(&mut windows, bdf);
        // From the start again whenever one has made more room, until none has. Ends: a vCPU that
        // has changed another function waits for this before it can change more.
        while made_room {
            let all: Vec<Bdf> = windows.keys().copied().collect();
            made_room = all.into_iter().any(|bdf| self.agree(&mut windows, bdf));
        }
    }

    /// As [`Board::remap`], for `bdf` alone; whether windows of it have gone.
    fn agree(&self, windows: &mut BTreeMap<Bdf, Vec<BarRange>>, bdf: Bdf) -> bool {
        let function = lock(&self.pci).function(bdf);
        let wanted = function
            .as_ref()
            .map_or_else(Vec::new, |function| lock(function).decoded());
        let old = windows.remove(&bdf).unwrap_or_default();
        let (mut kept, gone): (Vec<_>, Vec<_>) = old.into_iter().partition(|window| wanted.contains(window));
        for window in &gone {
            self.mmio.remove(window.base);
        }
        let Some(function) = function else {
            return !gone.is_empty();
        };
        for window in gone.iter().filter(|gone| wanted.iter().all(|new| new.bar != gone.bar)) {
            self.follow(&function, bdf, window.bar, None);
        }
        for window in wanted {
            if !kept.contains(&window) && self.place(&function, bdf, window) {
                kept.push(window);
            }
        }
        windows.insert(bdf, kept);
        !gone.is_empty()
    }

    fn place(&self, function: &Arc<Mutex<dyn PciFunction>>, bdf: Bdf, window: BarRange) -> bool {
        let device = Arc::new(Mutex::new(BarWindow::new(function.clone(), window.bar)));
        let placed = self.mmio.insert(window.base, window.size, device);
        if let Err(error) = &placed
            && self.misplaced.is_first()
        {
            log::warn!("{bdf} BAR {}: {error}", window.bar);
        }
        self.follow(function, bdf, window.bar, placed.is_ok().then_some(window.base));
        placed.is_ok()
    }

    /// Lets a function's doorbells follow its window.
    fn follow(&self, function: &Mutex<dyn PciFunction>, bdf: Bdf, bar: u8, to: Option<u64>) {
        if let Err(error) = lock(function).bar_moved(bar, to)
            && self.misplaced.is_first()
        {
            log::warn!("{bdf} BAR {bar}: its doorbells cannot follow it: {error}");
        }
    }
}

#[cfg(test)]
#[path = "board_test.rs"]
mod tests;
