//! Devices that come and go.

use std::os::fd::OwnedFd;
use std::time::Instant;

use serde_json::{Value, json};

use super::{ApiError, Controller, Kind, Outcome, Reply, bad_request, conflict, existing, image, of_build};
use crate::config::{Limits, NewDevice};
use crate::events::Events;
use crate::machine::{News, Passed, Pending};

impl Controller {
    /// Before the boot a device joins the configuration; afterwards it is real at once, and the guest is told.
    pub(super) fn add(&mut self, mut device: NewDevice, descriptors: Vec<OwnedFd>) -> Outcome {
        // What the guest has let go of gives its slot and its name back first.
        self.settle();
        let vm = existing(&mut self.vm)?;
        let mut config = vm.config().clone();
        if let Some(id) = device.id().filter(|id| config.ids().any(|taken| taken == *id)) {
            return Err(conflict(format!("id '{id}' is taken by another device")));
        }
        if matches!(device, NewDevice::Vsock(_)) && config.vsock.is_some() {
            return Err(conflict("there is a vsock device already, a VM has one at most"));
        }
        config.name(&mut device);
        config.insert(device.clone());
        config.validate(Limits::ARCHITECTURE).map_err(|e| bad_request(&e))?;
        let id = device.id().unwrap_or_default().to_owned();
        let Some(machine) = vm.machine_mut() else {
            vm.insert(device, descriptors);
            self.publish();
            return Ok(Reply::Done);
        };
        let passed = Passed::from([(id.clone(), descriptors)]);
        let (at, pending) = machine.add(&device, &passed).map_err(|error| {
            let rival = image::rival(&error, vm.config(), &device);
            let leaving = rival.is_some_and(|rival| vm.pending.iter().any(|pending| pending.is_removal_of(rival)));
            let why = rival.map_or_else(String::new, |rival| image::reason(rival, leaving));
            of_build(error).context(format!("cannot add {id}{why}"))
        })?;
        vm.pending.push(pending);
        vm.insert(device, passed.into_values().flatten().collect());
        let bdf = at.to_string();
        self.events.emit_with("vm", "device-added", properties(&id, &bdf));
        self.publish();
        Ok(Reply::Json(json!({"id": id, "bdf": bdf})))
    }

    /// Before the boot a device leaves the configuration; afterwards the guest is asked to let go of it, and it goes when it has.
    pub(super) fn remove(&mut self, id: &str) -> Outcome {
        let vm = existing(&mut self.vm)?;
        let unknown = || ApiError::new(Kind::NotFound, format!("there is no device '{id}'"));
        if vm.config().ids().all(|known| known != id) {
            return Err(unknown());
        }
        match vm.machine_mut() {
            None => {
                vm.forget(id);
                self.publish();
            }
            Some(machine) => {
                let pending = machine
                    .remove(id)
                    .map_err(|e| ApiError::from_error(Kind::Conflict, &e).context(format!("cannot remove {id}")))?;
                vm.pending.push(pending);
                self.settle();
            }
        }
        Ok(Reply::Done)
    }

    /// Takes apart what the guest has let go of, and tells the world.
    pub(super) fn settle(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Some(machine) = vm.machine_mut() else { return };
        let gone = machine.settle().unwrap_or_else(|error| {
            log::error!("a removed device cannot be taken apart: {error}");
            Vec::new()
        });
        for (id, at) in &gone {
            vm.forget(id);
            self.events
                .emit_with("vm", "device-removed", properties(id, &at.to_string()));
        }
        if !gone.is_empty() {
            self.publish();
        }
    }

    /// Looks after what the guest has been told of: reminds it, and says what it answered. Whether there is more to wait for.
    pub(super) fn follow_up(&mut self) -> bool {
        let Some(vm) = &mut self.vm else { return false };
        let mut pending = std::mem::take(&mut vm.pending);
        let (events, now) = (&self.events, Instant::now());
        pending.retain_mut(|pending| {
            pending.news(now).is_none_or(|news| {
                report(events, pending, news);
                !news.is_last()
            })
        });
        vm.pending = pending;
        let reminded = vm.machine().is_some_and(crate::machine::Machine::nudge);
        reminded || !vm.pending.is_empty()
    }
}

/// Says what became of a request: all of it in the log, and what a client cannot see otherwise as an event.
fn report(events: &Events, of: &Pending, news: News) {
    let (id, request) = (of.id.as_str(), of.request.name());
    let say = |event, what: Option<(&str, Value)>| {
        let properties = [("id", id.into()), ("request", request.into())];
        events.emit_with("guest", event, properties.into_iter().chain(what));
    };
    match news {
        News::Done(latency) => log::info!("{request} {id}: the guest took {} ms", latency.as_millis()),
        News::Refused(code) => {
            log::warn!("{request} {id}: the guest refused, with code {code:#x}");
            say("device-refused", Some(("code", code.into())));
        }
        News::Unproven => {
            log::warn!("{request} {id}: the guest reported success, but does not have it");
            say("device-refused", None);
        }
        News::Overdue(waited) => {
            log::warn!("{request} {id}: no answer of the guest for {} s", waited.as_secs());
            say("device-unanswered", None);
        }
        News::Withdrawn => log::debug!("{request} {id}: overtaken by a later request"),
    }
}

fn properties<'a>(id: &str, bdf: &str) -> [(&'a str, Value); 2] {
    [("id", id.into()), ("bdf", bdf.into())]
}
