//! Where the time of a VM's life goes: phases of the start, marks of the guest, the way out.
//!
//! Phases on the main thread follow one another: [`Trace::mark`] ends one where the next begins. Work on another thread is a
//! [`Trace::span`]. The guest marks its own progress with bytes written to I/O port 0x80. A trace that is off is one `None` and
//! costs a branch for each mark.
//!
//! Time counts from exec, which no clock records: it is taken to be as long ago as the process has used CPU time when the trace is
//! made. That is exact for a process that has not slept; it includes what the process did between fork and exec, which is little
//! unless a program that had worked for long executes husk in its own place.

#![expect(unsafe_code, reason = "clock_gettime of the process's CPU time")]

use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// More marks than this are counted, not kept: a guest can write to port 0x80 for ever.
const MAX_GUEST_MARKS: usize = 1024;
/// How many guest marks the table shows.
const TABLE_GUEST_MARKS: usize = 16;

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
    log: Mutex<Log>,
}

/// A boot trace, on or off. Clones share one record; any thread may call any method.
#[derive(Clone, Debug, Default)]
pub struct Trace(Option<Arc<Recorder>>);

impl Trace {
    /// A trace that records nothing.
    pub const fn off() -> Self {
        Self(None)
    }

    /// A trace that begins at exec and whose first phase is still to be marked.
    pub fn on() -> Self {
        Self::starting_at(exec_instant())
    }

    /// As [`Trace::on`], with `main` entered at `entered`: [`Phase::Exec`] is recorded, and the next mark counts from there.
    pub fn on_since(entered: Instant) -> Self {
        let trace = Self::starting_at(exec_instant().min(entered));
        trace.record(|log, zero| log.finish(Phase::Exec, entered.saturating_duration_since(zero)));
        trace
    }

    fn starting_at(zero: Instant) -> Self {
        Self(Some(Arc::new(Recorder {
            zero,
            log: Mutex::default(),
        })))
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

    /// The first vCPU is about to enter the guest for the first time. Ends [`Phase::FirstRun`]; later calls change nothing.
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
            if let (Some(start), None) = (log.guest_from, log.guest_to) {
                log.records.push(Record {
                    track: Track::Guest,
                    phase: Phase::Guest,
                    start,
                    end: now,
                });
                log.guest_to = Some(now);
            }
            log.current = now;
        });
    }

    fn record_now(&self, change: impl FnOnce(&mut Log, Duration)) {
        if let Some(recorder) = &self.0 {
            let now = recorder.zero.elapsed();
            change(&mut recorder.locked(), now);
        }
    }

    fn record(&self, change: impl FnOnce(&mut Log, Instant)) {
        if let Some(recorder) = &self.0 {
            change(&mut recorder.locked(), recorder.zero);
        }
    }
}

impl Recorder {
    fn locked(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
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

/// What became of it, for people and for programs.
impl Trace {
    /// Writes the trace event format that `chrome://tracing` and Perfetto read ("Trace Event Format", JSON object form). Writes an
    /// empty trace when off.
    ///
    /// # Errors
    /// What writing to `out` says.
    pub fn write_json(&self, mut out: impl Write) -> io::Result<()> {
        let events = self
            .0
            .as_ref()
            .map_or_else(Vec::new, |recorder| events(&recorder.locked()));
        serde_json::to_writer(&mut out, &json!({ "displayTimeUnit": "ms", "traceEvents": events }))?;
        writeln!(out)
    }

    /// The phases in the order in which they began, then the guest's marks, one a line, in milliseconds since exec. Empty when off.
    pub fn table(&self) -> String {
        self.0
            .as_ref()
            .map_or_else(String::new, |recorder| table(&recorder.locked()))
    }
}

fn events(log: &Log) -> Vec<Value> {
    let pid = std::process::id();
    let mut events = vec![json!({"ph": "M", "name": "process_name", "pid": pid, "args": {"name": "husk"}})];
    events.extend(Track::ALL.iter().map(|(track, name)| {
        json!({"ph": "M", "name": "thread_name", "pid": pid, "tid": *track as u32, "args": {"name": name}})
    }));
    events.extend(log.records.iter().map(|record| {
        json!({
            "ph": "X", "cat": "phase", "name": record.phase.name(), "pid": pid, "tid": record.track as u32,
            "ts": micros(record.start), "dur": micros(record.end.saturating_sub(record.start)),
        })
    }));
    events.extend(log.guest_marks.iter().map(|(byte, at)| {
        json!({
            "ph": "i", "s": "t", "cat": "guest", "name": format!("mark {byte:#04x}"), "pid": pid, "tid": Track::Guest as u32,
            "ts": micros(*at), "args": {"byte": byte},
        })
    }));
    if log.guest_marks_lost > 0 {
        events.push(json!({
            "ph": "M", "name": "thread_labels", "pid": pid, "tid": Track::Guest as u32,
            "args": {"labels": format!("{} more marks not kept", log.guest_marks_lost)},
        }));
    }
    events
}

fn table(log: &Log) -> String {
    let mut rows: Vec<(Duration, Option<Duration>, String)> = log
        .records
        .iter()
        .map(|record| {
            (
                record.start,
                Some(record.end.saturating_sub(record.start)),
                record.phase.name().to_string(),
            )
        })
        .collect();
    let marks = log.guest_marks.iter().take(TABLE_GUEST_MARKS);
    rows.extend(marks.map(|(byte, at)| (*at, None, format!("guest mark {byte:#04x}"))));
    rows.sort_by_key(|(start, ..)| *start);
    let mut text = format!("{:>10} {:>10}  phase (ms since exec)\n", "from", "for");
    for (start, length, name) in rows {
        let length = length.map_or_else(String::new, |length| format!("{:.3}", millis(length)));
        text.push_str(&format!("{:>10.3} {length:>10}  {name}\n", millis(start)));
    }
    let more = log.guest_marks.len().saturating_sub(TABLE_GUEST_MARKS) as u64;
    match more.saturating_add(log.guest_marks_lost) {
        0 => {}
        more => text.push_str(&format!("{:>23}{more} more guest marks\n", "")),
    }
    text
}

fn micros(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// When this process was executed, estimated as the module says.
fn exec_instant() -> Instant {
    let mut cpu = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid clock and a valid place for its time.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut cpu) };
    let used = Duration::new(
        u64::try_from(cpu.tv_sec).unwrap_or(0),
        u32::try_from(cpu.tv_nsec).unwrap_or(0),
    );
    let now = Instant::now();
    now.checked_sub(used).unwrap_or(now)
}

#[cfg(test)]
#[path = "trace_test.rs"]
mod tests;
