//! The thread that owns the VM: it carries commands out, serves the guest in between, and waits for nobody.
//!
//! | state | a configuration | a machine | entered by |
//! |---|---|---|---|
//! | none | no | no | start, `vm.delete` |
//! | `Created` | yes | no | `vm.create` |
//! | `Running` | yes | yes | the end of `vm.boot`, `vm.resume`, `vm.reboot` |
//! | `Paused` | yes | yes | `vm.pause` |
//! | `Shutdown` | yes | no | `vm.shutdown` |
//!
//! A command either succeeds, or leaves everything as it was and says why. One that depends on
//! others, devices or the guest, is an operation in progress (`operation.rs`) that wakeups and
//! timers drive on, until it is answered. A guest that ends by itself ends the process, in
//! `event_loop.rs`; a reboot by command builds the machine anew.

mod boot_trace;
mod building;
mod containers;
mod devices;
mod event_loop;
mod fault_poller;
mod figures;
mod file_conflict;
mod lifecycle;
mod memory_events;
mod messages;
mod operation;
mod resize;
mod run;
mod serve;
mod stopping;
mod timers;
mod vm;

use std::sync::Arc;
use std::time::{Duration, Instant};

use husk_virtio::threads::Threads;
use serde_json::{Value, json};

use crate::api::{self, ApiError, Command, Execute, Info, Kind, Outcome, Reply, Resize, Responder, VmInfo};
use crate::background;
use crate::config::{ConfigError, Limits, RunOptions, Size, VmConfig};
use crate::events::Events;
use crate::kvm::{BETWEEN_LOOKS, Kvm};
use crate::machine::{BuildError, Counted, Ending, Machine, STOP_DEADLINE, Tail, net};
use crate::metrics::ProcessFiles;
use crate::terminal::ProcessOutputs;
use crate::trace::Trace;
use crate::wakeup::Wakeup;

pub(crate) use building::BUILD_DEADLINE;
pub(crate) use devices::ADD_DEADLINE;
pub use event_loop::{Ended, run_event_loop};
use fault_poller::FaultPoller;
pub(crate) use file_conflict::{check_outputs, is_in_use};
pub use operation::OperationId;
use operation::{Answers, Operations};
pub use run::{Exit, conclude, run};
pub use serve::serve;
use timers::Timers;
use vm::Vm;

/// After so long the host is asked again for a thread that it did not have.
const BETWEEN_THREADS: Duration = Duration::from_secs(1);

/// Owner of at most one VM.
pub struct Controller {
    info: Info,
    events: Events,
    options: RunOptions,
    outputs: ProcessOutputs,
    wakeup: Wakeup,
    threads: Arc<dyn Threads>,
    timers: Timers<Due>,
    operations: Operations<Controller>,
    /// Of commands that have been carried out, to be sent.
    answers: Answers,
    vm: Option<Vm>,
    /// Machines that have ended, but for devices that did not stop.
    abandoned: Vec<Machine>,
    /// What the host allows, once somebody has asked.
    limits: Option<Limits>,
    /// How many machines have been built.
    boots: u64,
    /// How many `vm.resize` have begun, or could not for the host's sake.
    resizes: u64,
    /// Of `vm.resize`.
    resize_failures: resize::Failures,
    /// The next answer is the last one.
    leaving: bool,
    /// Why the VM that this process is for cannot be had.
    failure: Option<BuildError>,
    /// Of the last start.
    trace: Trace,
    /// What that was made of, once it is over and somebody has asked.
    phases: Vec<(&'static str, Duration)>,
    /// What the kernel knows of the process, once somebody has asked.
    process: Option<Arc<ProcessFiles>>,
    /// What those who listen are told of.
    faults: FaultPoller,
}

/// What the main thread has to do at a certain time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    /// Keys wait for a guest that had no room for them.
    Keys,
    /// An operation's deadline has come.
    Operation,
    /// A device that the guest let go of has not stopped in time.
    Stuck,
    /// A device that could not be taken apart is tried again.
    Retry,
    /// A file was still in use when it was removed from the guest's memory.
    Memory,
    /// The guest has not answered for long.
    Patience,
    /// The guest may not have heard what it was told.
    Remind,
    /// The guest is about to start a vCPU.
    Look,
    /// A vCPU's thread has no timer that has it looked at.
    Untimed,
    /// What the start needed can go.
    Trim,
    /// Somebody listens: what has gone wrong is looked for.
    PollFaults,
    /// Something waits for a thread that the host did not have.
    Thread,
}

/// How far a command has come.
type Progress = api::Progress<OperationId>;

impl From<ApiError> for Progress {
    fn from(error: ApiError) -> Self {
        Self::Done(Err(error))
    }
}

impl Controller {
    /// No VM yet. `info` and `events` are kept up to date; `outputs` is what a console in mode
    /// `Tty` prints on; `threads` start what serves devices, and wake the waker of `wakeup`.
    pub fn new(
        info: Info,
        events: Events,
        mut options: RunOptions,
        outputs: ProcessOutputs,
        wakeup: Wakeup,
        threads: Arc<dyn Threads>,
    ) -> Self {
        if events.is_enabled() {
            options.tail = Tail::new();
            options.tail.keep(events.has_listeners());
        }
        Self {
            info,
            events,
            options,
            outputs,
            wakeup,
            threads,
            timers: Timers::new(),
            operations: Operations::default(),
            answers: Answers::new(),
            vm: None,
            abandoned: Vec::new(),
            limits: None,
            boots: 0,
            resizes: 0,
            resize_failures: resize::Failures::default(),
            leaving: false,
            failure: None,
            trace: Trace::off(),
            phases: Vec::new(),
            process: None,
            faults: FaultPoller::default(),
        }
    }

    /// The machine, while there is one.
    pub fn machine(&self) -> Option<&Machine> {
        self.vm.as_ref()?.machine()
    }

    fn machine_mut(&mut self) -> Option<&mut Machine> {
        self.vm.as_mut()?.machine_mut()
    }

    /// Takes in a configuration that was made of this process's own command line, and begins to
    /// boot it. The loop serves signals meanwhile: a kernel's file system may take as long as it
    /// likes. `Controller::take_failure` says then why it cannot be had.
    ///
    /// # Errors
    /// Why it cannot be begun.
    pub fn start(&mut self, config: VmConfig) -> Result<(), anyhow::Error> {
        let mut vm = Vm::new(config);
        vm.inherit()?;
        vm.begin_containers(&self.options.containers);
        log::info!("{}", messages::vm_summary(vm.config()));
        self.events.emit("vm", "booting");
        self.begin_start(vm)?;
        self.publish();
        Ok(())
    }

    /// Says on standard error which pseudo-terminals lead to the guest: whoever wrote the command line has to know.
    fn tell_terminals(&self) {
        for (port, path) in self.machine().into_iter().flat_map(Machine::terminals) {
            crate::log::tell(&format!("husk: {port} is at {}\n", path.display()));
        }
    }

    /// Why the VM that this process is for cannot be had, once that is known.
    pub(super) fn take_failure(&mut self) -> Option<BuildError> {
        self.failure.take()
    }

    /// There is one machine more, with these options.
    fn count_boot(&mut self) -> RunOptions {
        self.boots += 1;
        let mut options = self.options.clone();
        if !options.trace.is_on() {
            options.trace = Trace::of_start();
        }
        self.trace = options.trace.clone();
        self.phases.clear();
        options
    }

    /// Ends the VM within [`STOP_DEADLINE`], and forgets it. Commands in progress are answered that
    /// husk is ending. For the end of the process: this waits.
    pub fn stop(&mut self) {
        self.operations = Operations::default();
        if let Some(vm) = &mut self.vm
            && let Some(asked) = vm.stop()
        {
            let deadline = asked + STOP_DEADLINE;
            self.wakeup.wait_until(deadline, || {
                vm.is_stopped() && (vm.machine().is_some() || vm.end_machine())
            });
            let (mut stuck, told) = (vm.unbuilt(), std::mem::take(&mut vm.stopping));
            let machine = vm.take_machine();
            stuck.extend(
                machine
                    .into_iter()
                    .flat_map(|machine| machine.stop_by(&self.wakeup, deadline)),
            );
            stuck.retain(|name| !told.is_told(name));
            self.tell_stuck(&stuck);
        }
        self.vm.take().into_iter().for_each(Vm::discard);
        self.collect_abandoned();
        self.abandoned.drain(..).for_each(Machine::abandon);
        self.info.set(None);
    }

    /// Readable when [`Controller::on_wakeup`] has something to do.
    pub(super) fn wakeup(&self) -> &Wakeup {
        &self.wakeup
    }

    /// Answers that are ready, with whom to give them to.
    pub(super) fn take_answers(&mut self) -> Answers {
        std::mem::take(&mut self.answers)
    }

    /// Has the operation `id` answer by `respond`.
    pub(super) fn keep(&mut self, id: OperationId, respond: Responder) {
        self.operations.keep(id, respond);
        // What has nobody to wait for is done at once.
        self.advance();
    }

    /// Looks after everything that others may have changed.
    pub(super) fn on_wakeup(&mut self) {
        self.wakeup.clear();
        if let Some(machine) = self.machine_mut() {
            machine.look_after_files();
        }
        self.collect();
        self.collect_abandoned();
        self.report_answers();
        self.follow_resize();
        self.advance();
        // Of a machine that is there only now as well.
        self.time_vcpus(Instant::now());
    }

    /// Does what is due, and says what of it is not the controller's.
    fn on_time(&mut self, now: Instant) -> Vec<Due> {
        let mut others = Vec::new();
        for due in self.timers.take_due(now) {
            match due {
                Due::Operation => self.advance(),
                Due::Stuck => self.look_for_stuck(now),
                Due::Retry => {
                    self.collect();
                    self.follow_resize();
                }
                Due::Look => {
                    self.follow_resize();
                    self.advance();
                }
                Due::Memory => self.collect_memory(now),
                Due::Patience => self.report_answers(),
                Due::Remind => self.remind(now),
                Due::Untimed => self.remind_vcpus(now),
                Due::PollFaults => self.poll_faults(now),
                Due::Thread => background::retry(),
                Due::Keys | Due::Trim => others.push(due),
            }
        }
        others
    }

    /// Tries again from time to time to find a thread for what waits for one.
    pub(super) fn time_threads(&mut self) {
        if background::is_short() {
            self.timers.set_if_sooner(Due::Thread, Instant::now() + BETWEEN_THREADS);
        }
    }

    /// Has vCPUs looked at from time to time whose threads have no timer for it.
    fn time_vcpus(&mut self, now: Instant) {
        if self.machine().is_some_and(Machine::has_untimed_vcpus) {
            self.timers.set_if_sooner(Due::Untimed, now + BETWEEN_LOOKS);
        }
    }

    fn remind_vcpus(&mut self, now: Instant) {
        if let Some(machine) = self.machine_mut() {
            machine.remind_vcpus();
        }
        self.time_vcpus(now);
    }

    /// Whether the guest's end is what a client has asked for.
    pub(super) fn is_stopping(&self) -> bool {
        self.vm.as_ref().is_some_and(Vm::is_stopping)
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
    pub(super) fn tell_ending(&mut self, ending: &Ending) {
        // What went wrong before may be why.
        self.report_faults(Instant::now(), true);
        let what = match ending {
            Ending::Panic => {
                let text = self.options.tail.last_words();
                text.map(|text| ("text", Value::from(text)))
            }
            Ending::Failed(why) => Some(("reason", Value::from(why.as_str()))),
            Ending::PowerOff | Ending::Reset | Ending::TripleFault => None,
        };
        log::info!("{}", messages::ended_message(ending));
        self.events.emit_with("guest", messages::ending_event(ending), what);
    }

    /// Says that the process ends for this reason, without having been asked to by a client.
    pub(super) fn tell_end(&self, reason: &'static str) {
        log::info!("husk ends");
        self.events.emit_with("vmm", "shutdown", [("reason", reason.into())]);
    }

    fn create(&mut self, mut config: VmConfig) -> Outcome {
        if self.vm.is_some() {
            return Err(conflict("there is a VM already: vm.delete it first"));
        }
        if let Some(id) = config.duplicate_id() {
            return Err(conflict(format!("id '{id}' is used by two devices, ids must differ")));
        }
        self.options.reclaim.apply(&mut config);
        self.options.hotplug.apply(&mut config.memory);
        self.options.core_scheduling.apply(&mut config.cpus);
        let limits = self.limits();
        // Shims ask for all that the host has, whatever the pod may come to: beyond that there is
        // nothing to be refused.
        let asked = config.memory.hotplug_size;
        config.fit_hotplug(limits);
        let valid = config.validate(limits);
        let valid = valid
            .and_then(|()| config.validate_beside(&self.options.own_sockets))
            .and_then(|()| config.validate_beside_files(&self.options.own_files));
        let valid = valid.map_err(|e| of_config(&e)).and_then(|()| {
            // Descriptors come with vm.add-net alone.
            let nets = config.net.iter().try_for_each(|net| net::check(net, 0));
            nets.map_err(of_build)
        });
        valid.map_err(|error| error.context("cannot create the VM"))?;
        let vm = Vm::new(config);
        let fits = vm.config().memory.hotplug_size;
        if let (Some(asked), Some(fits)) = (asked, fits)
            && fits < asked
        {
            log::warn!(
                "vm.create: memory.hotplug_size is {} and not {}, there are addresses for no more",
                Size(fits),
                Size(asked)
            );
        }
        log::info!("vm.create: {}", messages::vm_summary(vm.config()));
        self.vm = Some(vm);
        self.publish();
        Ok(Reply::Done)
    }

    /// What a VM may have here: what the host allows, or where it cannot be asked what no host exceeds.
    fn limits(&mut self) -> Limits {
        let host = || Kvm::open().map_or(Limits::ARCHITECTURE, |kvm| kvm.limits());
        *self.limits.get_or_insert_with(host)
    }

    fn press_power_button(&mut self) -> Outcome {
        running(&mut self.vm)?.with_machine(|machine| machine.press_power_button());
        self.remind_soon();
        Ok(Reply::Done)
    }

    fn counters(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        let mut all = json!({});
        if let Some(machine) = vm.machine() {
            for Counted { name, counters, .. } in machine.counters() {
                all[&name] = counters
                    .into_iter()
                    .map(|(what, value)| (what.to_owned(), Value::from(value)))
                    .collect();
            }
        }
        Ok(Reply::Json(all))
    }

    fn queues(&mut self) -> Outcome {
        let queues = running(&mut self.vm)?.machine().map(Machine::queues);
        let queues = queues.map(|queues| Reply::Queues(Box::new(queues)));
        Ok(queues.unwrap_or_else(|| Reply::Json(json!({}))))
    }

    /// Shows the VM as it is to `vm.info`.
    fn publish(&self) {
        self.info.set(self.vm.as_ref().map(|vm| {
            VmInfo {
                config: vm.config_as_is(),
                state: vm.state(),
                memory_actual_size: vm
                    .machine()
                    .map_or(vm.config().memory.size, |machine| machine.size().actual_bytes),
            }
        }));
    }
}

impl Execute for Controller {
    type Id = OperationId;

    fn execute(&mut self, command: Command) -> Progress {
        if let Some(refusal) = self.operations.refusal(&command) {
            return refusal.into();
        }
        let now = match command {
            Command::Boot => return self.boot(),
            Command::Pause => return self.pause(),
            Command::Shutdown => return self.shutdown(),
            Command::Delete => return self.delete(),
            Command::Reboot => return self.reboot(),
            Command::ShutdownVmm => return self.shutdown_vmm(),
            Command::Resize(wanted) => return self.resize(wanted),
            Command::Add(device, descriptors) => return self.add(*device, descriptors),
            Command::Create(config) => self.create(*config),
            Command::PowerButton => self.press_power_button(),
            Command::Resume => self.resume(),
            Command::Counters => self.counters(),
            Command::Queues => self.queues(),
            Command::Metrics => self.figures(),
            Command::Events => self.listen(),
            Command::ResizeStatus => self.resize_status(),
            Command::Containers => self.containers(),
            Command::SetContainers(wanted) => self.set_containers(wanted),
            Command::Remove(id) => self.remove(&id),
        };
        Progress::Done(now)
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

/// A description that cannot be is its client's to mend; one that only asks for more room than there is, or for an
/// image that another device has, would fit without something else.
fn of_config(error: &ConfigError) -> ApiError {
    let kind = match error {
        ConfigError::Slots { .. } | ConfigError::TwoImages { .. } => Kind::Conflict,
        _ => Kind::BadRequest,
    };
    ApiError::from_error(kind, error)
}

/// What the client can mend is its fault, what the host refuses is not.
fn of_build(error: BuildError) -> ApiError {
    let kind = match &error {
        error if is_in_use(error) => Kind::Conflict,
        BuildError::Config(error) => return of_config(error),
        BuildError::NoKernel | BuildError::Load(_) | BuildError::CommandLine(_) | BuildError::Device { .. } => {
            Kind::BadRequest
        }
        BuildError::Full { .. } => Kind::Conflict,
        _ => Kind::Internal,
    };
    ApiError::from_error(kind, &error)
}
