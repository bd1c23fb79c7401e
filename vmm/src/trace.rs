//! Where the time of a VM's life goes: phases of the start, marks of the guest, the way out.
//!
//! Phases on the main thread follow one another: [`Trace::mark`] ends one where the next begins.
//! Work on another thread is a [`Trace::span`]. The guest marks its own progress with bytes written
//! to I/O port 0x80. A trace that is off is one `None` and costs a branch for each mark.
//!
//! Time counts from exec, which no clock records: it is taken to lie as long before `main` as the
//! process has used CPU time by then. That is exact for a process that has not slept; it includes
//! what the process did between fork and exec, which is little unless a program that had worked for
//! long executes husk in its own place.

mod render;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use husk_devices::lock;

use crate::cpu_time;

/// More marks than this are counted, not kept: a guest can write to port 0x80 for ever.
const MAX_GUEST_MARKS: usize = 1024;

/// A part of a VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// From exec to the first line of `main`.
    Exec,
    /// Command line to configuration.
    Args,
    /// Opening and checking `/dev/kvm`.
    KvmOpen,
    /// `KVM_CREATE_VM`.
    VmCreate,
    /// Guest RAM and its slots.
    Ram,
    /// The in-kernel interrupt controller.
    Irqchip,
    /// vCPUs and their CPUID.
    Vcpus,
    /// Devices and buses.
    Devices,
    /// Reading and placing the kernel and initramfs.
    KernelLoad,
    /// Waiting for the kernel to be in its place.
    KernelWait,
    /// Boot structures, ACPI tables and the first vCPU's registers.
    Tables,
    /// Starting threads, up to the first `KVM_RUN`.
    FirstRun,
    /// From the first `KVM_RUN` to the end of the guest.
    Guest,
    /// From the end of the guest to the end of the machine.
    Teardown,
}

impl Phase {
    /// The phase as the trace shows it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exec => "exec",
            Self::Args => "args",
            Self::KvmOpen => "kvm open",
            Self::VmCreate => "vm create",
            Self::Ram => "ram",
            Self::Irqchip => "irqchip",
            Self::Vcpus => "vcpus",
            Self::Devices => "devices",
            Self::KernelLoad => "kernel load",
            Self::KernelWait => "kernel wait",
            Self::Tables => "tables",
            Self::FirstRun => "first KVM_RUN",
            Self::Guest => "guest",
            Self::Teardown => "teardown",
        }
    }
}

/// A row of the trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Track {
    Main = 1,
    Beside = 2,
    Guest = 3,
}

impl Track {
    const ALL: [(Self, &'static str); 3] = [(Self::Main, "main"), (Self::Beside, "loader"), (Self::Guest, "guest")];
}

#[derive(Clone, Copy, Debug)]
struct Record {
    track: Track,
    phase: Phase,
    start: Duration,
    end: Duration,
}

#[derive(Debug, Default)]
struct Log {
    records: Vec<Record>,
    /// Where the main thread's current phase began.
    current: Duration,
    guest_from: Option<Duration>,
    guest_to: Option<Duration>,
    guest_marks: Vec<(u8, Duration)>,
    guest_marks_lost: u64,
}

#[derive(Debug)]
struct Recorder {
    zero: Instant,
    /// Marks of the guest are kept.
    guest: bool,
    log: Mutex<Log>,
}

/// The first moment of `main`, for [`Trace::on_since`].
#[derive(Clone, Copy, Debug)]
pub struct Begin {
    entered: Instant,
    cpu_used: Duration,
}

impl Begin {
    /// Takes the clock and the processor time used so far: one system call. To be called first in `main`.
    pub fn now() -> Self {
        Self {
            entered: Instant::now(),
            cpu_used: cpu_time::of_process(),
        }
    }

    fn exec(self) -> Instant {
        self.entered.checked_sub(self.cpu_used).unwrap_or(self.entered)
    }
}

/// A boot trace, on or off. Clones share one record; any thread may call any method.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Recorder>>);

impl Trace {
    /// A trace that records nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// A trace that begins at exec. `main` was entered at `begin`: [`Phase::Exec`] is recorded, and
    /// the next mark counts from there.
    pub fn on_since(begin: Begin) -> Self {
        let zero = begin.exec();
        let trace = Self(Some(Arc::new(Recorder {
            zero,
            guest: true,
            log: Mutex::default(),
        })));
        trace.record(|log| log.finish(Phase::Exec, begin.entered.saturating_duration_since(zero)));
        trace
    }

    /// A trace that begins now and has the phases of the start alone: marks of the guest cost it nothing.
    pub fn of_start() -> Self {
        Self(Some(Arc::new(Recorder {
            zero: Instant::now(),
            guest: false,
            log: Mutex::default(),
        })))
    }

    /// What has been recorded of the start so far, phases beside the main thread included.
    pub fn start(&self) -> Vec<(Phase, Duration)> {
        let Some(recorder) = &self.0 else { return Vec::new() };
        let log = recorder.locked();
        let start = log.records.iter().filter(|record| record.track != Track::Guest);
        let phases = start.map(|record| (record.phase, record.end.saturating_sub(record.start)));
        phases.collect()
    }

    /// The same in a line: `kvm open 0.1 ms, ram 2.3 ms`.
    pub fn phases(&self) -> String {
        let phases = self.start().into_iter();
        let phases = phases.map(|(phase, took)| format!("{} {:.1} ms", phase.name(), took.as_secs_f64() * 1e3));
        phases.collect::<Vec<_>>().join(", ")
    }

    /// Whether anything is recorded.
    pub const fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Ends `phase` of the main thread now; the next one begins.
    pub fn mark(&self, phase: Phase) {
        self.record_now(|log, now| log.finish(phase, now));
    }

    /// Records `phase` on a thread of its own, from now until the span is dropped.
    pub fn span(&self, phase: Phase) -> Span<'_> {
        let start = self
            .0
            .as_ref()
            .map_or(Duration::ZERO, |recorder| recorder.zero.elapsed());
        Span {
            trace: self,
            phase,
            start,
        }
    }

    /// The first vCPU is about to enter the guest for the first time. Ends [`Phase::FirstRun`];
    /// later calls change nothing.
    pub fn enter_guest(&self) {
        self.record_now(|log, now| {
            if log.guest_from.is_none() {
                log.guest_from = Some(now);
                log.finish(Phase::FirstRun, now);
            }
        });
    }

    /// The guest wrote `byte` to port 0x80. Called on vCPU threads.
    pub fn guest_mark(&self, byte: u8) {
        if self.0.as_ref().is_none_or(|recorder| !recorder.guest) {
            return;
        }
        self.record_now(|log, now| {
            if log.guest_marks.len() < MAX_GUEST_MARKS {
                log.guest_marks.push((byte, now));
            } else {
                log.guest_marks_lost = log.guest_marks_lost.saturating_add(1);
            }
        });
    }

    /// The guest has ended: [`Phase::Teardown`] begins. Later calls change nothing.
    pub fn leave_guest(&self) {
        self.record_now(|log, now| {
            if log.guest_to.is_some() {
                return;
            }
            (log.guest_to, log.current) = (Some(now), now);
            if let Some(start) = log.guest_from {
                let (track, phase) = (Track::Guest, Phase::Guest);
                log.records.push(Record {
                    track,
                    phase,
                    start,
                    end: now,
                });
            }
        });
    }

    fn record_now(&self, change: impl FnOnce(&mut Log, Duration)) {
        if let Some(recorder) = &self.0 {
            let now = recorder.zero.elapsed();
            change(&mut recorder.locked(), now);
        }
    }

    fn record(&self, change: impl FnOnce(&mut Log)) {
        if let Some(recorder) = &self.0 {
            change(&mut recorder.locked());
        }
    }
}

impl Recorder {
    fn locked(&self) -> MutexGuard<'_, Log> {
        lock(&self.log)
    }
}

impl Log {
    fn finish(&mut self, phase: Phase, now: Duration) {
        self.records.push(Record {
            track: Track::Main,
            phase,
            start: self.current,
            end: now,
        });
        self.current = now;
    }
}

/// A phase under way on another thread. Dropping it records the phase.
#[derive(Debug)]
#[must_use]
pub struct Span<'a> {
    trace: &'a Trace,
    phase: Phase,
    start: Duration,
}

impl Drop for Span<'_> {
    fn drop(&mut self) {
        let (phase, start) = (self.phase, self.start);
        self.trace.record_now(|log, end| {
            log.records.push(Record {
                track: Track::Beside,
                phase,
                start,
                end,
            })
        });
    }
}

#[cfg(test)]
#[path = "trace_test.rs"]
mod tests;
