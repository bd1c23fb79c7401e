//! `vm.resize`: asked, watched, and answered when the guest has acted, or when the client cannot wait any longer.
//!
//! A client is told 204 when everything that it asked for is there or gone, and also when its time is over: shims take
//! any other answer for the pod's failure, and the guest goes on. What it does later is told by events. What it refuses
//! is 500, with what was refused; that is withdrawn, and the rest stays. A later `vm.resize` takes the place of one
//! that waits, whose client is told 204: what it asked for is no longer wanted. One whose size was made of a list of
//! containers that has changed since is 409, and nothing is asked for. `vm.resize-status` tells what became of the last
//! one, also when that is known only after its client has been answered.

use std::time::{Duration, Instant};

use husk_devices::error_chain;
use serde_json::{Value, json};

use super::operation::{GiveUp, Operation, Work, superseded};
use super::{ApiError, Controller, Due, Kind, Outcome, Progress, Reply, Resize, existing, of_config, running};
use crate::api::Command;
use crate::config::{Limits, VmConfig};
use crate::machine::{Change, Machine, Refusal, ResizeError, TargetSize, Why, millis};

/// The guest is waited for.
struct Waiting {
    since: Instant,
    wanted: Resize,
}

/// How often a `vm.resize` has not come to its end, since this process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// The guest would not do something, or the host could not.
    pub(super) refused: u64,
    /// The guest has not done all of it in time.
    pub(super) unanswered: u64,
}

/// What became of the last `vm.resize`, for `vm.resize-status`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LastResize {
    wanted: Resize,
    outcome: &'static str,
    what: String,
    /// When it was asked for.
    since: Instant,
    latency: Option<Duration>,
}

const TIMED_OUT: &str = "timed-out";

impl LastResize {
    /// The guest has done all that it is going to do, or `refusals` say what not.
    fn ended(wanted: Resize, since: Instant, refusals: &[Refusal]) -> Self {
        let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        Self {
            wanted,
            outcome: if refusals.is_empty() { "accepted" } else { "refused" },
            what: refusals.join(", "),
            since,
            latency: Some(since.elapsed()),
        }
    }

    /// As [`LastResize::ended`], of one whose client could not wait so long.
    fn ends_late(&mut self, refusals: &[Refusal]) {
        if self.outcome == TIMED_OUT {
            *self = Self::ended(self.wanted, self.since, refusals);
        }
    }
}

impl Controller {
    pub(super) fn resize(&mut self, wanted: Resize) -> Progress {
        match self.begin_resize(wanted) {
            Ok(true) => {
                let timeout = self.options.resize_timeout.0;
                let since = Instant::now();
                self.begin(Box::new(Waiting { since, wanted }), timeout)
            }
            Ok(false) => Progress::Done(Ok(Reply::Done)),
            Err(error) => error.into(),
        }
    }

    /// Asks the guest, if there is one. Whether there is something to wait for.
    fn begin_resize(&mut self, wanted: Resize) -> Result<bool, ApiError> {
        let limits = self.limits();
        let vm = existing(&mut self.vm)?;
        if let Some(read) = wanted.containers_revision {
            vm.containers.check(read)?;
        }
        let asks_for_nothing = Resize {
            containers_revision: None,
            ..wanted
        } == Resize::default();
        if asks_for_nothing {
            return Ok(false);
        }
        let Some(machine) = vm.machine_mut() else {
            let mut config = vm.config().clone();
            resize_config(&mut config, wanted, limits)?;
            vm.set_config(config);
            self.publish();
            return Ok(false);
        };
        let asked = machine.resize(TargetSize {
            vcpus: wanted.desired_vcpus,
            ram_bytes: wanted.desired_ram,
            balloon_bytes: wanted.desired_balloon,
        });
        if let Err(error) = asked {
            let told = refused(&error);
            if !error.is_request() {
                self.note_refused(wanted, &error);
            }
            return Err(told);
        }
        // Whoever waited for another size waits for nothing any more.
        self.supersede(&Command::Resize(wanted));
        self.follow_resize();
        self.remind_soon();
        Ok(true)
    }

    /// The host cannot give what is wanted, so the guest was not asked.
    fn note_refused(&mut self, wanted: Resize, error: &ResizeError) {
        let refusal = Refusal {
            what: error_chain(error),
            why: Why::Host,
        };
        self.note_resize(LastResize::ended(
            wanted,
            Instant::now(),
            std::slice::from_ref(&refusal),
        ));
        self.tell_change(&Change::Refused(refusal, Duration::ZERO));
    }

    /// Looks at what the guest has done, and tells the world.
    pub(super) fn follow_resize(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Some(machine) = vm.machine_mut() else { return };
        let changes = machine.advance_resize();
        let (size, poll) = (machine.size(), machine.resize_poll());
        match poll {
            Some(after) => self.timers.set(Due::Look, Instant::now() + after),
            None => self.timers.cancel(Due::Look),
        }
        if vm.set_size(size) || !changes.is_empty() {
            self.publish();
        }
        for change in &changes {
            self.tell_change(change);
        }
        if !changes.is_empty() {
            // What comes next of it may not have been heard.
            self.remind_soon();
        }
        self.note_late_end();
        self.start_fault_polling();
    }

    /// A guest that has said `why` it has no memory left gives none back.
    pub(super) fn keep_memory(&mut self, why: &str) {
        let machine = self.vm.as_mut().and_then(|vm| vm.machine_mut());
        if let Some(change) = machine.and_then(|machine| machine.stop_shrinking(why)) {
            self.tell_change(&change);
            self.follow_resize();
        }
    }

    /// What a guest does after the time of its client is what became of the resize all the same.
    fn note_late_end(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let ended = vm.machine().filter(|machine| machine.resize_pending().is_none());
        let refusals = ended.map(Machine::resize_refusals);
        if let (Some(refusals), Some(last)) = (refusals, &mut vm.last_resize) {
            last.ends_late(&refusals);
        }
    }

    fn tell_change(&mut self, change: &Change) {
        let say = |event, what: (&'static str, Value), took: Duration| {
            log::info!("{event} {}: after {:.1} ms", what.1, millis(took));
            let latency = ("latency_ms", json!(millis(took)));
            self.events.emit_with("guest", event, [what, latency]);
        };
        match change {
            Change::VcpuPresent(id, took) => log::info!("vCPU {id}: the guest took it after {:.1} ms", millis(*took)),
            Change::VcpuOnline(id, took) => say("vcpu-online", ("id", json!(id)), *took),
            Change::VcpuGone(id, took) => say("vcpu-removed", ("id", json!(id)), *took),
            Change::MemoryPlugged(bytes, took) => say("memory-plugged", ("bytes", json!(bytes)), *took),
            Change::MemoryUnplugged(bytes, took) => say("memory-unplugged", ("bytes", json!(bytes)), *took),
            Change::Refused(refusal, took) => {
                log::warn!("{refusal}");
                self.resize_failures.refused += 1;
                let what = [
                    ("what", json!(refusal.what)),
                    ("code", json!(refusal.code())),
                    ("latency_ms", json!(millis(*took))),
                ];
                self.events.emit_with("guest", "resize-refused", what);
            }
        }
    }

    pub(super) fn resize_status(&mut self) -> Outcome {
        let vm = running(&mut self.vm)?;
        let mut status = vm
            .machine()
            .map_or_else(|| json!({}), |machine| machine.resize_status());
        status["last"] = vm.last_resize.as_ref().map_or(Value::Null, |last| {
            json!({
                "outcome": last.outcome,
                "what": last.what,
                "latency_ms": last.latency.map(millis),
                "desired_vcpus": last.wanted.desired_vcpus,
                "desired_ram": last.wanted.desired_ram,
                "desired_balloon": last.wanted.desired_balloon,
            })
        });
        Ok(Reply::Json(status))
    }

    fn note_resize(&mut self, last: LastResize) {
        if let Some(vm) = &mut self.vm {
            vm.last_resize = Some(last);
        }
    }
}

/// Before the boot a size is a matter of the configuration.
fn resize_config(config: &mut VmConfig, wanted: Resize, limits: Limits) -> Result<(), ApiError> {
    if let Some(found) = wanted.desired_vcpus {
        ResizeError::check_vcpus(found, config.cpus.max_vcpus).map_err(|e| refused(&e))?;
        config.cpus.boot_vcpus = found;
    }
    if let Some(bytes) = wanted.desired_ram {
        config.memory.size = bytes;
        config.fit_hotplug(limits);
    }
    match (&mut config.balloon, wanted.desired_balloon) {
        (Some(balloon), Some(bytes)) => balloon.size = bytes,
        (None, Some(_)) => return Err(refused(&ResizeError::NoBalloon)),
        (_, None) => {}
    }
    config.validate(limits).map_err(|e| of_config(&e))
}

fn refused(error: &ResizeError) -> ApiError {
    let kind = if error.is_request() {
        Kind::BadRequest
    } else {
        Kind::Internal
    };
    ApiError::from_error(kind, error).context("cannot resize the VM")
}

impl Work<Controller> for Waiting {
    fn operation(&self) -> Operation {
        Operation::Resize
    }

    fn command(&self) -> &'static str {
        "vm.resize"
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        let machine = owner.vm.as_ref().and_then(|vm| vm.machine())?;
        if let Some(pending) = machine.resize_pending() {
            owner.note_resize(LastResize {
                wanted: self.wanted,
                outcome: "in-progress",
                what: pending,
                since: self.since,
                latency: None,
            });
            return None;
        }
        let refusals = machine.resize_refusals();
        let last = LastResize::ended(self.wanted, self.since, &refusals);
        let error = (!refusals.is_empty()).then(|| ApiError::new(Kind::Internal, last.what.clone()));
        owner.note_resize(last);
        Some(error.map_or(Ok(Reply::Done), |error| Err(error.context("cannot resize the VM"))))
    }

    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        match why {
            GiveUp::Superseded("vm.resize") => Ok(Reply::Done),
            GiveUp::Superseded(by) => Err(superseded(self.command(), by)),
            GiveUp::Late => {
                let machine = owner.vm.as_ref().and_then(|vm| vm.machine());
                let pending = machine.and_then(|machine| machine.resize_pending()).unwrap_or_default();
                let waited = self.since.elapsed();
                log::warn!(
                    "vm.resize: the guest has not done all of it within {:.0} ms: {pending}",
                    millis(waited)
                );
                let what = [("what", json!(pending)), ("latency_ms", json!(millis(waited)))];
                owner.events.emit_with("guest", "resize-unanswered", what);
                owner.resize_failures.unanswered += 1;
                owner.note_resize(LastResize {
                    wanted: self.wanted,
                    outcome: TIMED_OUT,
                    what: pending,
                    since: self.since,
                    latency: Some(waited),
                });
                Ok(Reply::Done)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_does_after_its_time_is_what_became_of_the_resize() {
        let refusal = |why| Refusal {
            what: "add vCPU 3".into(),
            why,
        };
        let refusals = [refusal(Why::Code(0x81)), refusal(Why::Unproven)];
        let late = LastResize {
            wanted: Resize {
                desired_vcpus: Some(4),
                ..Resize::default()
            },
            outcome: TIMED_OUT,
            what: "vCPUs to come: 3".into(),
            since: Instant::now() - Duration::from_secs(2),
            latency: Some(Duration::from_millis(800)),
        };
        let end = |refusals: &[Refusal], mut last: LastResize| {
            last.ends_late(refusals);
            assert!(last.latency > Some(Duration::from_secs(1)), "since it was asked for");
            assert_eq!(last.wanted, late.wanted);
            (last.outcome, last.what)
        };
        assert_eq!(end(&[], late.clone()), ("accepted", String::new()));
        let told = "add vCPU 3: the guest refused, with code 0x81, add vCPU 3: the guest reported success, but does not have it";
        assert_eq!(end(&refusals, late.clone()), ("refused", told.to_owned()));
        // It ends once.
        let mut ended = LastResize::ended(late.wanted, late.since, &refusals);
        let before = ended.clone();
        ended.ends_late(&[]);
        assert_eq!(ended, before);
    }
}
