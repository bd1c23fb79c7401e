//! Devices that come and go.

use std::time::{Duration, Instant};

use husk_devices::error_chain;
use serde_json::{Value, json};

use super::operation::{GiveUp, Operation, Work, superseded};
use super::vm::{OpenFailure, OpenResult};
use super::{
    ApiError, Controller, Due, Kind, Outcome, Progress, Reply, conflict, existing, file_conflict, of_build, of_config,
};
use crate::api::PassedFd;
use crate::background::DropInBackground;
use crate::config::NewDevice;
use crate::events::Events;
use crate::machine::{Machine, Pending, STOP_DEADLINE, Update, net};

/// How soon, and at the latest how often, a guest that does not listen yet is reminded of what it has been told.
const REMIND: std::ops::RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_secs(1);
/// When a device that could not be taken apart is tried again: what the host refuses for the
/// moment, it grants a moment later.
const RETRY: Duration = Duration::from_secs(1);
/// How long opening a device may take. A back-end has its own, shorter limit; what is left is storage that is slow.
pub(crate) const ADD_DEADLINE: Duration = Duration::from_secs(60);

/// `vm.add-…` of a VM that runs, until the device is open.
struct Add {
    command: &'static str,
    id: String,
}

impl Controller {
    /// Before the boot a device joins the configuration; afterwards it is opened, then it is real
    /// and the guest is told.
    pub(super) fn add(&mut self, device: NewDevice, descriptors: Vec<PassedFd>) -> Progress {
        let command = device.command();
        match self.begin_add(device, descriptors) {
            Ok(Some(id)) => self.begin(Box::new(Add { command, id }), ADD_DEADLINE),
            Ok(None) => Progress::Done(Ok(Reply::Done)),
            Err(error) => error.into(),
        }
    }

    /// Takes the device in, or begins to open it: its name then.
    fn begin_add(&mut self, mut device: NewDevice, descriptors: Vec<PassedFd>) -> Result<Option<String>, ApiError> {
        // What the guest has let go of gives its slot and its name back first.
        self.collect();
        let limits = self.limits();
        let vm = existing(&mut self.vm)?;
        let mut config = vm.config_to_be();
        if let Some(id) = device.id().filter(|id| config.ids().any(|taken| taken == *id)) {
            return Err(conflict(format!("id '{id}' is taken by another device")));
        }
        if config.is_full_for(&device) {
            let kind = device.kind();
            return Err(conflict(format!(
                "there is a {kind} device already, a VM has one at most"
            )));
        }
        device.refuse_foreign().map_err(|e| of_config(&e))?;
        config.name(&mut device);
        config.insert(device.clone());
        let valid = match vm.machine() {
            Some(_) => config.validate_added(),
            None => config.validate(limits),
        };
        valid
            .and_then(|()| config.validate_beside(&self.options.own_sockets))
            .and_then(|()| config.validate_beside_files(&self.options.own_files))
            .map_err(|e| of_config(&e))?;
        if let NewDevice::Net(net) = &device {
            net::check(net, descriptors.len()).map_err(of_build)?;
        }
        let id = device.id().unwrap_or_default().to_owned();
        if vm.machine().is_none() {
            log::info!("{id} is to be there at the boot");
            vm.insert(device, descriptors.into_iter().map(PassedFd::into_owned).collect());
            self.publish();
            return Ok(None);
        }
        let begun = vm.open(device, descriptors, &self.outputs);
        begun.map_err(|error| of_build(error).context(format!("cannot add {id}")))?;
        Ok(Some(id))
    }

    /// Gives the guest the device called `id`, once it is open.
    fn opened(&mut self, id: &str) -> Option<Outcome> {
        let vm = self.vm.as_mut()?;
        let (device, opened) = vm.opened(id)?;
        Some(self.give(id, device, opened))
    }

    fn give(&mut self, id: &str, device: NewDevice, opened: OpenResult) -> Outcome {
        let vm = existing(&mut self.vm)?;
        let Some(machine) = vm.machine_mut() else {
            return Err(conflict("the VM does not run any more"));
        };
        let given = opened.and_then(|opened| {
            let (opened, passed) = opened.into_inner();
            let passed = DropInBackground::new(passed);
            let (at, pending) = machine.add(id, opened)?;
            Ok((at, pending, passed.into_inner()))
        });
        let (at, pending, passed) = given.map_err(|failure: OpenFailure| {
            let holder = failure.conflicting_device.as_deref();
            let leaving = holder.is_some_and(|holder| vm.leaving().iter().any(|(id, _)| id == holder));
            let why = holder.map_or_else(String::new, |holder| file_conflict::reason(holder, leaving));
            of_build(failure.why).context(format!("cannot add {id}{why}"))
        })?;
        vm.pending.push(pending);
        vm.insert(device, passed.into_values().flatten().collect());
        let bdf = at.to_string();
        log::info!("{id} is at {bdf}, and the guest is told");
        self.events.emit_with("vm", "device-added", properties(id, &bdf));
        self.publish();
        self.remind_soon();
        Ok(Reply::Json(json!({"id": id, "bdf": bdf})))
    }

    /// Before the boot a device leaves the configuration; afterwards the guest is asked to let go
    /// of it, and it goes when it has.
    pub(super) fn remove(&mut self, id: &str) -> Outcome {
        let vm = existing(&mut self.vm)?;
        let unknown = || {
            let why = match id.strip_prefix("__") {
                Some(_) => format!("'{id}' is no device that can be removed: names with __ are the machine's own"),
                None => format!("there is no device '{id}'"),
            };
            ApiError::new(Kind::NotFound, why)
        };
        if vm.is_opening(id) {
            return Err(conflict(format!(
                "{id} is being added, it can be removed once it is there"
            )));
        }
        if vm.config().ids().all(|known| known != id) {
            return Err(unknown());
        }
        match vm.machine_mut() {
            None => {
                vm.forget(id);
                self.publish();
            }
            Some(machine) => {
                let mut pending = machine
                    .remove(id)
                    .map_err(|e| ApiError::from_error(Kind::Conflict, &e).context(format!("cannot remove {id}")))?;
                log::info!("vm.remove-device: the guest is asked to let go of {id}");
                if let Some(earlier) = vm.pending.iter().find(|pending| pending.is_removal_of(id)) {
                    pending.follow(earlier);
                }
                vm.pending.push(pending);
                self.collect();
                self.remind_soon();
            }
        }
        Ok(Reply::Done)
    }

    /// Has what the guest has let go of taken apart, as far as it has stopped, and tells the world of what is gone.
    pub(super) fn collect(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Some(machine) = vm.machine_mut() else { return };
        let collected = machine.collect();
        let stopping: Vec<String> = machine.stopping().into_iter().map(Into::into).collect();
        if let Some(error) = collected.failure {
            log::error!("a removed device cannot be taken apart yet: {}", error_chain(&error));
            self.timers.set_if_sooner(Due::Retry, Instant::now() + RETRY);
        }
        vm.stopping.update(stopping, Instant::now(), STOP_DEADLINE);
        if let Some(deadline) = vm.stopping.deadline() {
            self.timers.set(Due::Stuck, deadline);
        }
        for (id, at) in &collected.gone {
            vm.forget(id);
            log::info!("{id} is gone");
            self.events
                .emit_with("vm", "device-removed", properties(id, &at.to_string()));
        }
        if !collected.gone.is_empty() {
            self.publish();
            self.collect_memory(Instant::now());
        }
    }

    /// Has the host have back what went with a device and was still in use, now or as soon as it is not.
    pub(super) fn collect_memory(&mut self, now: Instant) {
        if self.machine_mut().is_some_and(Machine::collect_memory) {
            self.timers.set_if_sooner(Due::Memory, now + RETRY);
        }
    }

    /// Devices that were asked back go with the machine that ends, whatever the guest has made of
    /// that: no other one begins with them.
    pub(super) fn end_removals(&mut self) {
        // What the guest has refused stays, and what is gone is gone.
        self.report_answers();
        self.collect();
        let Some(vm) = &mut self.vm else { return };
        for (id, at) in vm.leaving() {
            vm.forget(&id);
            log::info!("{id} is gone, with the machine that it was to be removed from");
            self.events
                .emit_with("vm", "device-removed", properties(&id, &at.to_string()));
        }
    }

    /// Tells of devices that have not stopped in time. They are watched further, and collected
    /// should they stop after all.
    pub(super) fn look_for_stuck(&mut self, now: Instant) {
        let Some(vm) = &mut self.vm else { return };
        let stuck = vm.stopping.take_late(now);
        if let Some(next) = vm.stopping.deadline() {
            self.timers.set(Due::Stuck, next);
        }
        self.tell_stuck(&stuck);
    }

    /// Says what the guest has answered, or that it has not for long.
    pub(super) fn report_answers(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let (events, now) = (&self.events, Instant::now());
        vm.pending.retain_mut(|pending| {
            pending.update(now).is_none_or(|update| {
                report(events, pending, update);
                !update.is_last()
            })
        });
        match vm.pending.iter().filter_map(Pending::deadline).min() {
            Some(next) => self.timers.set(Due::Patience, next),
            None => self.timers.cancel(Due::Patience),
        }
    }

    /// The guest has been told something: it is reminded should it not have heard.
    pub(super) fn remind_soon(&mut self) {
        if let Some(vm) = &mut self.vm {
            vm.patience = *REMIND.start();
            self.timers.set(Due::Remind, Instant::now() + vm.patience);
        }
        self.report_answers();
    }

    /// Tells the guest again, more and more seldom, until it has heard.
    pub(super) fn remind(&mut self, now: Instant) {
        let Some(vm) = &mut self.vm else { return };
        if vm.machine().is_some_and(Machine::remind) {
            vm.patience = vm.patience.saturating_mul(2).min(*REMIND.end());
            self.timers.set(Due::Remind, now + vm.patience);
        }
    }
}

impl Work<Controller> for Add {
    fn operation(&self) -> Operation {
        Operation::Add
    }

    fn command(&self) -> &'static str {
        self.command
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        owner.opened(&self.id)
    }

    /// Who has given up asks again, and must find name and file free: nobody else knows that there is such a device.
    fn asker_has_gone(&mut self, owner: &mut Controller) -> Option<Outcome> {
        log::warn!("{}: {} is not added, who asked for it has gone", self.command, self.id);
        if let Some(vm) = &mut owner.vm {
            vm.leave_opening(&self.id);
        }
        Some(Err(conflict(format!(
            "cannot add {}: who asked for it has gone",
            self.id
        ))))
    }

    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        match why {
            // Who takes its place waits for what is half open.
            GiveUp::Superseded(by) => Err(superseded(self.command, by)),
            GiveUp::Late => {
                if let Some(vm) = &mut owner.vm {
                    vm.leave_opening(&self.id);
                }
                let seconds = ADD_DEADLINE.as_secs();
                let what = format!("it is not open after {seconds} s");
                Err(ApiError::new(Kind::Internal, what).context(format!("cannot add {}", self.id)))
            }
        }
    }
}

/// Says what became of a request: all of it in the log, and what a client cannot see otherwise as an event.
fn report(events: &Events, of: &Pending, update: Update) {
    let (id, request) = (of.id.as_str(), of.request.name());
    let say = |event, what: Option<(&'static str, Value)>| {
        let properties = [("id", id.into()), ("request", request.into())];
        events.emit_with("guest", event, properties.into_iter().chain(what));
    };
    match update {
        Update::Done(latency) => log::info!("{request} {id}: the guest took {} ms", latency.as_millis()),
        Update::Refused(code) => {
            log::warn!("{request} {id}: the guest refused, with code {code:#x}");
            say("device-refused", Some(("code", code.into())));
        }
        Update::Unproven => {
            log::warn!("{request} {id}: the guest reported success, but does not have it");
            say("device-refused", None);
        }
        Update::Overdue(waited) => {
            log::warn!("{request} {id}: no answer of the guest for {} s", waited.as_secs());
            say("device-unanswered", None);
        }
        Update::Withdrawn => {
            log::debug!("{request} {id}: overtaken by a later request, or of nothing that the guest has heard of")
        }
    }
}

fn properties(id: &str, bdf: &str) -> [(&'static str, Value); 2] {
    [("id", id.into()), ("bdf", bdf.into())]
}
