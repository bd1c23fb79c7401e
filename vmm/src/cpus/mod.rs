//! The vCPUs of one VM, each in a state of its own, on threads named `vcpu0`, `vcpu1`, …
//!
//! | state | thread | vCPU | from there |
//! |---|---|---|---|
//! | `Absent` | none | none, or with the control thread | [`Cpus::add`] |
//! | `Parked` | waits | none yet, or with the control thread | [`Cpus::run`], [`Cpus::retire`] |
//! | `Running` | in the guest, or waiting in KVM to be started | with the thread | [`Cpus::pause`], [`Cpus::retire`] |
//! | `Held` | waits | with the control thread | [`Cpus::resume`], [`Cpus::retire`] |
//!
//! Nothing here waits: vCPUs are asked, and the waker is woken when one has come where it was asked
//! to. A vCPU cannot be taken back from KVM, so one that is unplugged is kept for the time when it
//! comes again. Its thread ends: what a pod does not have costs it nothing.

mod cores;
mod handover;

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::task::Waker;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::config::CpusConfig;
use crate::cpu_time;
use crate::kvm::{BETWEEN_LOOKS, Kicker, KvmError, Reminder, Stats, Topology, Vcpu, VcpuExit};
use crate::machine::board::{Board, Ending};
use crate::metrics;
use crate::seccomp::{Mode, Role};
use crate::trace::Trace;

use cores::Cores;
use handover::{Handover, VcpuCommand};

/// A vCPU thread needs little: the run loop, a device's register write, and what a panic message takes.
const STACK_BYTES: usize = 128 << 10;

/// What `vm.counters` shows of a vCPU, as KVM calls it.
const COUNTERS: [&str; 6] = [
    "exits",
    "io_exits",
    "mmio_exits",
    "halt_exits",
    "irq_exits",
    "signal_exits",
];

/// For how long a vCPU has waited in KVM for an interrupt, in nanoseconds, as KVM calls it.
const HALTED: &str = "halt_wait_ns";

/// The state of one possible vCPU, by what has its file descriptor at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CpuState {
    /// There is no thread for it: it was never added, or it was removed.
    Absent,
    /// Its thread exists and is not to run the guest: the VM has not started, is stopping, or the vCPU was retired.
    Parked,
    /// Its thread is in `KVM_RUN`, about to enter it, or on its way out of it.
    Running,
    /// Out of the guest for a pause, and with the control thread.
    Held,
}

/// All vCPUs that there may be. Belongs to the control thread.
#[derive(Debug)]
pub struct Cpus {
    common: Common,
    slots: Vec<VcpuSlot>,
    /// The guest has been let run.
    started: bool,
    /// What every thread is to do, once it is.
    command: VcpuCommand,
    /// How far the first vCPU's time stamp counter was from the host's when it could last be read.
    tsc_offset: Option<u64>,
}

/// Why a vCPU cannot be added. There is none then, as before.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// KVM refused to create or set up the vCPU.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// The host has no thread left.
    #[error("cannot start its thread")]
    Thread(#[source] io::Error),
    /// KVM has not made it: see [`Cpus::needs_vcpu`].
    #[error("vCPU {id} was not made")]
    Unmade {
        /// Which.
        id: u32,
    },
    /// Not among those that there may be, or there already.
    #[error("there is no vCPU {id} to add")]
    Taken {
        /// Which.
        id: u32,
    },
}

/// What every vCPU thread needs.
#[derive(Clone, Debug)]
struct Common {
    board: Arc<Board>,
    kicker: Kicker,
    cores: Cores,
    seccomp: Mode,
    trace: Trace,
    waker: Waker,
}

/// One possible vCPU.
#[derive(Debug, Default)]
struct VcpuSlot {
    thread: Option<Thread>,
    /// The vCPU while there is no thread for it.
    parked: Option<Vcpu>,
    stats: Option<Stats>,
    /// What [`Stats::exits`] was before the guest could start it.
    exits_before: u64,
    /// Asked to leave, for good.
    retired: bool,
}

#[derive(Debug)]
struct Thread {
    handle: JoinHandle<()>,
    handover: Arc<Handover<Vcpu>>,
    /// The processor time that it had used when it was last [reminded](Cpus::remind).
    reminded: Duration,
}

impl Cpus {
    /// Starts a thread for each vCPU that `config` has at the start, confined as `seccomp` says,
    /// while the rest of the machine is still being built: neither the thread nor its filter is
    /// waited for when the guest can run. `waker` is woken by every thread that has come where it
    /// was asked to.
    ///
    /// # Errors
    /// What the host says when it has no thread left; those already started end.
    pub fn prepare(
        config: &CpusConfig,
        board: &Arc<Board>,
        kicker: Kicker,
        seccomp: Mode,
        trace: &Trace,
        waker: &Waker,
    ) -> io::Result<Self> {
        let mut cpus = Self {
            common: Common {
                board: board.clone(),
                kicker,
                cores: Cores::new(config.core_scheduling),
                seccomp,
                trace: trace.clone(),
                waker: waker.clone(),
            },
            slots: (0..config.max_vcpus).map(|_| VcpuSlot::default()).collect(),
            started: false,
            command: VcpuCommand::Wait,
            tsc_offset: None,
        };
        for (id, slot) in (0..config.boot_vcpus).zip(&mut cpus.slots) {
            slot.thread = Some(cpus.common.start(id, VcpuCommand::Wait)?);
        }
        Ok(cpus)
    }

    /// Gives the threads that wait their vCPUs, ready for their first instruction.
    pub fn put(&mut self, vcpus: Vec<Vcpu>) {
        for (vcpu, slot) in vcpus.into_iter().zip(&mut self.slots) {
            if vcpu.id() == 0 {
                self.tsc_offset = vcpu.tsc_offset();
            }
            slot.count_from_here(&vcpu);
            if let Some(thread) = &slot.thread {
                thread.handover.put(vcpu);
            }
        }
    }

    /// Lets the guest run, once. The first vCPU alone has work at once, the others wait in KVM for
    /// the guest to start them (Intel SDM vol. 3A §9.4, INIT-SIPI).
    pub fn run(&mut self) {
        self.started = true;
        self.command_all(VcpuCommand::Run);
    }

    /// Whether the guest was let run.
    pub const fn has_started(&self) -> bool {
        self.started
    }

    /// Where vCPU `id` is.
    pub fn state(&self, id: u32) -> CpuState {
        let Some((slot, thread)) = self.slot(id).and_then(|slot| Some((slot, slot.thread.as_ref()?))) else {
            return CpuState::Absent;
        };
        if !self.started {
            return CpuState::Parked;
        }
        match self.command {
            _ if !thread.handover.is_out() => CpuState::Running,
            VcpuCommand::Run if !slot.retired => CpuState::Running,
            VcpuCommand::Wait if !slot.retired => CpuState::Held,
            _ => CpuState::Parked,
        }
    }

    /// The most vCPUs that this VM can have (`cpus.max_vcpus`); ids are 0 to this less one.
    pub fn max(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("made of a u32")
    }

    /// Whether KVM has yet to make vCPU `id` ([`Vm::create_vcpu`](crate::kvm::Vm::create_vcpu))
    /// before it can come. That waits for KVM's memory slots, so a thread is to do it, which nobody
    /// waits for.
    pub fn needs_vcpu(&self, id: u32) -> bool {
        let slot = self.slot(id);
        slot.is_some_and(|slot| slot.thread.is_none() && slot.parked.is_none())
    }

    /// Takes a vCPU that was [needed](Cpus::needs_vcpu) and has been made.
    pub fn park(&mut self, vcpu: Vcpu) {
        if let Some(slot) = self.slot_mut(vcpu.id()) {
            slot.parked = Some(vcpu);
        }
    }

    /// Woken by every thread that has come where it was asked to.
    pub const fn waker(&self) -> &Waker {
        &self.common.waker
    }

    /// Lets vCPU `id` come, which has been here before or was [made](Cpus::park): reset, with its
    /// part of `topology`. The guest finds it waiting to be started; while the VM is paused it
    /// waits with the others.
    ///
    /// # Errors
    /// See [`AddError`].
    pub fn add(&mut self, id: u32, topology: &Topology) -> Result<(), AddError> {
        let slot = usize::try_from(id).ok().and_then(|id| self.slots.get_mut(id));
        let slot = slot.filter(|slot| slot.thread.is_none());
        let slot = slot.ok_or(AddError::Taken { id })?;
        // Kept whatever fails from here on: KVM makes one of each number only.
        let vcpu = slot.parked.as_mut().ok_or(AddError::Unmade { id })?;
        vcpu.prepare(topology)?;
        if let Some(offset) = self.tsc_offset {
            vcpu.set_tsc_offset(offset)?;
        }
        let thread = self.common.start(id, self.command).map_err(AddError::Thread)?;
        slot.retired = false;
        if let Some(vcpu) = slot.parked.take() {
            slot.count_from_here(&vcpu);
            thread.handover.put(vcpu);
        }
        slot.thread = Some(thread);
        Ok(())
    }

    /// Asks vCPU `id` out of the guest, for good, and its thread to end. Whether both is done, so that another thread
    /// may take its place: called again until then, and followed by [`Cpus::remove`].
    pub fn retire(&mut self, id: u32) -> bool {
        let kicker = self.common.kicker;
        let Some(slot) = self.slot_mut(id) else { return true };
        let Some(thread) = &slot.thread else { return true };
        if !slot.retired {
            slot.retired = true;
            thread.command(kicker, VcpuCommand::End);
        }
        thread.handover.is_gone()
    }

    /// Forgets the thread of vCPU `id`, which is [retired](Cpus::retire), and keeps the vCPU.
    pub fn remove(&mut self, id: u32) {
        let Some(slot) = self.slot_mut(id) else { return };
        if let Some(thread) = slot.thread.take_if(|_| slot.retired) {
            slot.parked = thread.handover.take_back();
        }
    }

    /// Whether the guest has started vCPU `id`. Disturbs nobody.
    pub fn is_online(&self, id: u32) -> bool {
        let Some(slot) = self.slot(id) else { return false };
        match slot.stats.as_ref().and_then(Stats::exits) {
            Some(exits) => exits > slot.exits_before,
            // Hosts before Linux 5.14: the guest has sent INIT, and will have sent SIPI.
            None => slot.thread.as_ref().is_some_and(|thread| thread.handover.has_begun()),
        }
    }

    /// Whether the guest is about to start vCPU `id`, so that it is worth asking again soon.
    pub fn is_starting(&self, id: u32) -> bool {
        let thread = self.slot(id).and_then(|slot| slot.thread.as_ref());
        thread.is_some_and(|thread| thread.handover.has_begun()) && !self.is_online(id)
    }

    /// What KVM has counted of each vCPU that there is, by number.
    pub fn counters(&self) -> impl Iterator<Item = (u32, Vec<(&'static str, u64)>)> {
        let there = (0..).zip(&self.slots).filter(|(_, slot)| slot.thread.is_some());
        there.map(|(id, slot)| {
            let count = |name| Some((name, slot.stats.as_ref()?.get(name)?));
            (id, COUNTERS.into_iter().filter_map(count).collect())
        })
    }

    /// What each vCPU that there is has done with its time.
    pub fn figures(&self) -> Vec<metrics::Vcpu> {
        let there = (0..).zip(&self.slots);
        let there = there.filter_map(|(id, slot)| Some((id, slot, slot.thread.as_ref()?)));
        there
            .map(|(id, slot, thread)| metrics::Vcpu {
                id,
                // The first vCPU runs from the start, and nobody starts it.
                online: id == 0 || self.is_online(id),
                ran: cpu_time::of_thread(&thread.handle),
                halted: slot
                    .stats
                    .as_ref()
                    .and_then(|stats| stats.get(HALTED))
                    .map(Duration::from_nanos),
            })
            .collect()
    }

    /// Whether a thread has no timer of its own, so that [`Cpus::remind`] is to be called every [`BETWEEN_LOOKS`].
    pub fn is_untimed(&self) -> bool {
        self.threads().any(|thread| thread.handover.is_untimed())
    }

    /// Does for threads without a timer what a [`Reminder`] does for the others: each is kicked that has used
    /// [`BETWEEN_LOOKS`] of processor time since it last was.
    pub fn remind(&mut self) {
        let kicker = self.common.kicker;
        let threads = self.slots.iter_mut().filter_map(|slot| slot.thread.as_mut());
        for thread in threads.filter(|thread| thread.handover.is_untimed()) {
            let used = cpu_time::of_thread(&thread.handle).unwrap_or(thread.reminded);
            if used.saturating_sub(thread.reminded) >= BETWEEN_LOOKS {
                thread.reminded = used;
                kicker.kick(&thread.handle);
            }
        }
    }

    /// Asks every vCPU out of the guest, and returns at once: see [`Cpus::is_paused`]. Their
    /// threads stay, for [`Cpus::resume`].
    pub fn pause(&mut self) {
        self.command_all(VcpuCommand::Wait);
    }

    /// Whether every vCPU is out of the guest, after [`Cpus::pause`].
    pub fn is_paused(&self) -> bool {
        self.threads().all(|thread| thread.handover.is_out())
    }

    /// Lets the guest go on after [`Cpus::pause`].
    pub fn resume(&mut self) {
        for thread in self.threads() {
            thread.handover.with(|vcpu| vcpu.mark_stopped());
        }
        self.command_all(VcpuCommand::Run);
    }

    /// Asks every vCPU out of the guest, for good, and returns at once: see [`Cpus::is_stopped`].
    pub fn stop(&mut self) {
        self.command_all(VcpuCommand::End);
    }

    /// Whether every vCPU's thread is at its end, after [`Cpus::stop`].
    pub fn is_stopped(&self) -> bool {
        self.threads().all(|thread| thread.handover.is_gone())
    }

    /// Stops every vCPU and waits for its thread. Not to be called on a vCPU thread.
    pub fn join(&mut self) {
        self.stop();
        for thread in self.slots.iter_mut().filter_map(|slot| slot.thread.take()) {
            if thread.handle.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }

    fn command_all(&mut self, command: VcpuCommand) {
        self.command = command;
        let kicker = self.common.kicker;
        for slot in self.slots.iter().filter(|slot| !slot.retired) {
            if let Some(thread) = &slot.thread {
                thread.command(kicker, command);
            }
        }
    }

    fn threads(&self) -> impl Iterator<Item = &Thread> {
        self.slots.iter().filter_map(|slot| slot.thread.as_ref())
    }

    fn slot(&self, id: u32) -> Option<&VcpuSlot> {
        self.slots.get(usize::try_from(id).ok()?)
    }

    fn slot_mut(&mut self, id: u32) -> Option<&mut VcpuSlot> {
        self.slots.get_mut(usize::try_from(id).ok()?)
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.join();
    }
}

impl VcpuSlot {
    /// The guest has not started `vcpu`, which is about to go to its thread: what KVM counts from
    /// here on is the guest's doing.
    fn count_from_here(&mut self, vcpu: &Vcpu) {
        if self.stats.is_none() {
            self.stats = vcpu.stats();
        }
        self.exits_before = self.stats.as_ref().and_then(Stats::exits).unwrap_or_default();
    }
}

impl Thread {
    fn command(&self, kicker: Kicker, command: VcpuCommand) {
        self.handover.command(command);
        if command != VcpuCommand::Run {
            kicker.kick(&self.handle);
        }
    }
}

impl Common {
    fn start(&self, id: u32, command: VcpuCommand) -> io::Result<Thread> {
        let handover = Arc::new(Handover::new(command, self.waker.clone()));
        let (common, theirs) = (self.clone(), handover.clone());
        let builder = thread::Builder::new().name(format!("vcpu{id}")).stack_size(STACK_BYTES);
        let handle = builder.spawn(move || common.serve(id, &theirs))?;
        Ok(Thread {
            handle,
            handover,
            reminded: Duration::ZERO,
        })
    }

    /// A vCPU's thread.
    fn serve(&self, id: u32, handover: &Handover<Vcpu>) {
        let _exit_guard = handover.exit_guard();
        if let Err(error) = self.cores.join(id) {
            let why = format!("vCPU {id}: cannot set who shares a core with it: {error}");
            return self.board.end(Ending::Failed(why));
        }
        if let Err(error) = self.seccomp.enter(Role::Vcpu) {
            return self.board.end(Ending::Failed(format!("vCPU {id}: {error:?}")));
        }
        let reminder = Reminder::new();
        if let Err(error) = &reminder {
            log::info!("vCPU {id} has no timer, the main thread looks after it: {error}");
            handover.go_untimed();
        }
        while let Some(mut vcpu) = handover.next() {
            self.trace.enter_guest();
            let exit = self.run(&mut vcpu, handover);
            handover.give_back(vcpu);
            match exit {
                VcpuExit::Stopped | VcpuExit::Begun if self.board.ending().is_none() => {}
                VcpuExit::Stopped | VcpuExit::Begun => return,
                VcpuExit::TripleFault => return self.board.end(Ending::TripleFault),
                VcpuExit::Failed(why) => return self.board.end(Ending::Failed(format!("vCPU {id}: {why}"))),
            }
        }
    }

    /// The guest, until the thread is called out of it or it can go on no longer.
    fn run(&self, vcpu: &mut Vcpu, handover: &Handover<Vcpu>) -> VcpuExit {
        // Of the last two entries: of an access of more than 8 bytes KVM brings one half an entry,
        // and has looked for memory before the first of them.
        let entered = Cell::new([self.board.memory_generation(); 2]);
        // Asked before each entry.
        let calls_out = || {
            let [_, last] = entered.get();
            entered.set([last, self.board.memory_generation()]);
            handover.calls_out()
        };
        loop {
            match vcpu.run(calls_out, |port| self.board.answer(port, entered.get()[0])) {
                VcpuExit::Begun => handover.begin(),
                exit => return exit,
            }
        }
    }
}

#[cfg(test)]
#[path = "cpus_test.rs"]
mod tests;
