//! `vm.pause`, `vm.shutdown`, `vm.reboot`, `vm.delete` and `vmm.shutdown`: everybody is asked,
//! watched and collected, and nobody is waited for.

use std::time::{Duration, Instant};

use super::building::{BUILD_DEADLINE, late};
use super::operation::{GiveUp, Operation, Work, superseded};
use super::vm::Vm;
use super::{Controller, Due, Progress, conflict, running};
use crate::api::{ApiError, Command, Kind, Outcome, Reply, Responder, VmState};
use crate::background;
use crate::machine::{Machine, STOP_DEADLINE};

/// How long a pause may take. What a device has to finish first is bounded (a disk: the requests
/// that its host has), and a busy disk does that in seconds; a client that gives up sooner finds
/// the VM paused or running, never between.
const PAUSE_DEADLINE: Duration = Duration::from_secs(5);

/// What has failed when there is no machine after a reboot.
const NOT_AGAIN: &str = "cannot boot the VM again: it is shut down";

/// Everything comes to rest.
struct Pause;

/// Everything comes to its end, and what follows.
struct Stop {
    then: AfterStop,
    /// When everything should have stopped.
    deadline: Instant,
    /// It has stopped, and is given back to the host to be built anew, until then.
    ended_by: Option<Instant>,
    /// It is built anew until then.
    rebuilt_by: Option<Instant>,
}

/// What the end of the machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterStop {
    Keep,
    Delete,
    Reboot,
    Exit,
}

impl AfterStop {
    /// Who asked for it.
    fn command(self) -> &'static str {
        let command = match self {
            Self::Keep => Command::Shutdown,
            Self::Delete => Command::Delete,
            Self::Reboot => Command::Reboot,
            Self::Exit => Command::ShutdownVmm,
        };
        command.name()
    }

    /// What has come of it, for the log.
    fn outcome(self, had_vm: bool) -> &'static str {
        match (self, had_vm) {
            (Self::Exit, true) => "the VM has ended, and husk ends",
            (Self::Exit, false) => "husk ends",
            (_, false) => "there is no VM",
            (Self::Keep, true) => "the VM has ended",
            (Self::Delete, true) => "the VM has ended and is forgotten",
            (Self::Reboot, true) => "the VM has ended and is built anew",
        }
    }
}

/// What a client is told whose VM has ended but for a vCPU that does not leave the guest.
fn still_in_guest() -> Outcome {
    let what = "__vcpus did not leave the guest: its devices are taken away, but it may compute until husk ends";
    Err(ApiError::new(Kind::Internal, what).context("a VM that has ended is left behind"))
}

impl Controller {
    pub(super) fn pause(&mut self) -> Progress {
        let vm = match running(&mut self.vm) {
            Ok(vm) if vm.state() == VmState::Paused => return conflict("the VM is paused already").into(),
            Ok(vm) => vm,
            Err(error) => return error.into(),
        };
        vm.pause();
        self.events.emit("vm", "pausing");
        self.begin(Box::new(Pause), PAUSE_DEADLINE)
    }

    pub(super) fn resume(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        if vm.state() == VmState::Running && !self.operations.any(|operation| operation == Operation::Pause) {
            return Err(conflict("the VM is not paused"));
        }
        self.events.emit("vm", "resuming");
        self.supersede(&Command::Resume);
        self.release();
        log::info!("the VM runs on");
        Ok(Reply::Done)
    }

    /// Lets go on who was asked to hold.
    fn release(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.resume();
        }
        self.events.emit("vm", "resumed");
        self.publish();
    }

    pub(super) fn shutdown(&mut self) -> Progress {
        match self.running_or_building() {
            Ok(()) => self.stop_then(AfterStop::Keep, &Command::Shutdown),
            Err(error) => error.into(),
        }
    }

    pub(super) fn reboot(&mut self) -> Progress {
        match self.running_or_building() {
            Ok(()) => {
                self.events.emit("vm", "rebooting");
                self.stop_then(AfterStop::Reboot, &Command::Reboot)
            }
            Err(error) => error.into(),
        }
    }

    fn running_or_building(&mut self) -> Result<(), ApiError> {
        match &self.vm {
            Some(vm) if vm.is_building() => Ok(()),
            _ => running(&mut self.vm).map(drop),
        }
    }

    pub(super) fn delete(&mut self) -> Progress {
        self.stop_then(AfterStop::Delete, &Command::Delete)
    }

    /// Stops everything before the answer: whoever asked may kill the process as soon as it has come.
    pub(super) fn shutdown_vmm(&mut self) -> Progress {
        self.stop_then(AfterStop::Exit, &Command::ShutdownVmm)
    }

    fn stop_then(&mut self, then: AfterStop, command: &Command) -> Progress {
        self.supersede(command);
        let asked = self.vm.as_mut().and_then(|vm| vm.stop());
        let Some(asked) = asked else {
            let done = self.finish(then);
            // Asked again, after a stop that has failed for this.
            let runs_on = then == AfterStop::Delete && self.abandoned.iter().any(|machine| !machine.has_left_guest());
            return Progress::Done(if runs_on { still_in_guest() } else { done });
        };
        // One deadline for the whole: what another command has asked to stop already gets no more time by this one.
        let deadline = asked + STOP_DEADLINE;
        let stop = Stop {
            then,
            deadline,
            ended_by: None,
            rebuilt_by: None,
        };
        self.begin_until(Box::new(stop), deadline)
    }

    /// What the machine was stopped for.
    fn finish(&mut self, then: AfterStop) -> Outcome {
        let had_vm = self.vm.is_some();
        log::info!("{}: {}", then.command(), then.outcome(had_vm));
        let limits = self.limits();
        if let Some(vm) = &mut self.vm {
            vm.fit_hotplug(limits);
        }
        match then {
            AfterStop::Keep => self.events.emit("vm", "shutdown"),
            AfterStop::Delete => {
                if let Some(vm) = self.vm.take() {
                    vm.discard();
                    self.events.emit("vm", "deleted");
                }
            }
            AfterStop::Reboot => {}
            AfterStop::Exit => {
                self.vm.take().into_iter().for_each(Vm::discard);
                self.events.emit_with("vmm", "shutdown", [("reason", "asked".into())]);
                self.leaving = true;
            }
        }
        self.publish();
        Ok(Reply::Done)
    }

    /// Says which devices did not stop in time.
    pub(super) fn tell_stuck(&self, names: &[String]) {
        for name in names {
            log::error!("{name} has not stopped within {} s", STOP_DEADLINE.as_secs());
            self.events
                .emit_with("vm", "device-stuck", [("id", name.as_str().into())]);
        }
    }

    /// Has what nobody uses any more of machines that were left behind taken apart.
    pub(super) fn collect_abandoned(&mut self) {
        let ended = |machine: &mut Machine| machine.unstopped().is_empty();
        self.abandoned
            .extract_if(.., ended)
            .for_each(background::drop_in_background);
    }
}

impl Work<Controller> for Pause {
    fn operation(&self) -> Operation {
        Operation::Pause
    }

    fn command(&self) -> &'static str {
        Command::Pause.name()
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        let vm = owner.vm.as_mut()?;
        if vm.machine_mut().is_some_and(|machine| !machine.unheld().is_empty()) {
            return None;
        }
        vm.paused();
        log::info!("vm.pause: the VM is at rest");
        owner.events.emit("vm", "paused");
        owner.publish();
        Some(Ok(Reply::Done))
    }

    /// Everything goes on as if nobody had asked. Before a stop it does not matter, and before a
    /// resume it is what comes next.
    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        match why {
            GiveUp::Superseded(by) => return Err(superseded(self.command(), by)),
            GiveUp::Late => {}
        }
        let machine = owner.vm.as_mut().and_then(|vm| vm.machine_mut());
        let names = machine.map(Machine::unheld).unwrap_or_default().join(", ");
        owner.release();
        let seconds = PAUSE_DEADLINE.as_secs();
        // Who has not come may not be back in the guest either.
        let what = format!("{names} did not come to rest within {seconds} s: all others go on");
        Err(ApiError::new(Kind::Internal, what).context("cannot pause the VM"))
    }
}

impl Stop {
    /// Whether it is the rest of a machine that has not come in time, which has stopped.
    fn is_late_to_end(&self, owner: &Controller) -> bool {
        owner.vm.as_ref().is_some_and(Vm::is_ending)
    }

    /// Whether a reboot goes on without the devices that are still being opened: nobody wants them any more.
    fn leaves_opening(&self, vm: &mut Vm) -> bool {
        let leaves = self.then == AfterStop::Reboot && Instant::now() >= self.deadline && vm.is_machine_stopped();
        if leaves {
            let names: Vec<&str> = vm.opening().collect();
            log::warn!(
                "{}: not open yet, left behind by a VM that is built anew",
                names.join(", ")
            );
        }
        leaves
    }
}

impl Work<Controller> for Stop {
    fn operation(&self) -> Operation {
        match self.then {
            AfterStop::Exit => Operation::Leave,
            AfterStop::Keep | AfterStop::Delete | AfterStop::Reboot => Operation::Stop,
        }
    }

    fn command(&self) -> &'static str {
        self.then.command()
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        if self.rebuilt_by.is_some() {
            return owner.built(NOT_AGAIN);
        }
        if owner
            .vm
            .as_mut()
            .is_some_and(|vm| !vm.is_stopped() && !self.leaves_opening(vm))
        {
            return None;
        }
        if owner.machine().is_some() {
            owner.end_removals();
            // The next guest needs the room, which the host may take seconds to find again.
            self.ended_by = (self.then == AfterStop::Reboot).then(|| Instant::now() + BUILD_DEADLINE);
        }
        if owner.vm.as_mut().is_some_and(|vm| !vm.end_machine()) {
            return None;
        }
        let done = owner.finish(self.then);
        if self.then != AfterStop::Reboot || done.is_err() {
            return Some(done);
        }
        if let Err(error) = owner.build() {
            return Some(Err(error.context(NOT_AGAIN)));
        }
        self.rebuilt_by = Some(Instant::now() + BUILD_DEADLINE);
        None
    }

    fn deadline(&self) -> Option<Instant> {
        self.rebuilt_by.or(self.ended_by)
    }

    /// The machine is left behind, which ends the VM all the same: that is what was asked for, so it is no failure of
    /// the command, unless a vCPU has not come, whose guest may run on until the process ends. A reboot has failed,
    /// since nothing is built over what may still be used.
    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        if let GiveUp::Superseded(by) = why {
            return Err(superseded(self.command(), by));
        }
        if self.rebuilt_by.is_some() {
            return Err(late(owner).context(NOT_AGAIN));
        }
        if self.is_late_to_end(owner) {
            log::warn!(
                "{}: the machine has stopped, but its memory and files are not given back yet",
                self.command()
            );
            drop(owner.vm.as_mut().and_then(Vm::take_machine));
            if self.then != AfterStop::Reboot {
                return owner.finish(self.then);
            }
            owner.finish(AfterStop::Keep)?;
            let seconds = BUILD_DEADLINE.as_secs();
            let what = format!("its memory and files were not given back within {seconds} s");
            return Err(ApiError::new(Kind::Internal, what).context(NOT_AGAIN));
        }
        owner.end_removals();
        let unbuilt = owner.vm.as_ref().map(Vm::unbuilt).unwrap_or_default();
        let runs_on = owner.machine().is_some_and(|machine| !machine.has_left_guest());
        let machine = owner.machine_mut().map(Machine::unstopped);
        let names = [machine.unwrap_or_default(), unbuilt].concat();
        let told = |name: &str| owner.vm.as_ref().is_some_and(|vm| vm.stopping.is_told(name));
        let untold: Vec<String> = names.iter().filter(|name| !told(name)).cloned().collect();
        owner.tell_stuck(&untold);
        let mut machine = owner.vm.as_mut().and_then(Vm::take_machine);
        if let Some(machine) = &mut machine {
            machine.withdraw_devices();
        }
        owner.abandoned.extend(machine);
        // If it was not the machine that did not come, it has stopped.
        owner.collect_abandoned();
        let names = names.join(", ");
        log::warn!("{names}: left behind by a VM that ends; what was not acknowledged to the guest may be lost");
        match self.then {
            AfterStop::Keep | AfterStop::Delete if runs_on => {
                owner.finish(self.then)?;
                return still_in_guest();
            }
            AfterStop::Keep | AfterStop::Delete | AfterStop::Exit => return owner.finish(self.then),
            AfterStop::Reboot => owner.finish(AfterStop::Keep)?,
        };
        let seconds = STOP_DEADLINE.as_secs();
        let what = format!("{names} did not stop within {seconds} s and was left behind");
        Err(ApiError::new(Kind::Internal, what).context(NOT_AGAIN))
    }
}

impl Controller {
    /// Begins an operation that may take `limit`.
    pub(super) fn begin(&mut self, work: Box<dyn Work<Self>>, limit: Duration) -> Progress {
        self.begin_until(work, Instant::now() + limit)
    }

    fn begin_until(&mut self, work: Box<dyn Work<Self>>, deadline: Instant) -> Progress {
        let id = self.operations.begin(work, deadline);
        self.watch_operations();
        Progress::Later(id)
    }

    /// Ends what `command` takes the place of. To be called once nothing can keep `command` from being carried out.
    pub(super) fn supersede(&mut self, command: &Command) {
        self.with_operations(|operations, owner| operations.supersede(owner, command));
    }

    /// Lets the operations in progress go on, but for what nobody waits for and nobody would know of; the answers of
    /// those that have ended wait in [`Controller::take_answers`].
    pub(super) fn advance(&mut self) {
        self.with_operations(|operations, owner| {
            let mut answers = operations.leave_unawaited(owner, Responder::is_awaited);
            answers.extend(operations.advance(owner, Instant::now()));
            answers
        });
    }

    fn with_operations(&mut self, act: impl FnOnce(&mut super::Operations<Self>, &mut Self) -> super::Answers) {
        let mut operations = std::mem::take(&mut self.operations);
        let answers = act(&mut operations, self);
        self.answers.extend(answers);
        operations.extend(std::mem::take(&mut self.operations));
        self.operations = operations;
        self.watch_operations();
    }

    fn watch_operations(&mut self) {
        match self.operations.deadline() {
            Some(deadline) => self.timers.set(Due::Operation, deadline),
            None => self.timers.cancel(Due::Operation),
        }
    }
}
