//! `vm.resize`: asked, watched, and answered when the guest has acted, or when the client cannot wait any longer.
//!
//! A client is told 204 when everything that it asked for is there or gone, and also when its time is over: shims take
//! any other answer for the pod's failure, and the guest goes on. What it does later is told by events. What it refuses
//! is 500, with what was refused; that is withdrawn, and the rest stays. Several may wait, each for what it has asked
//! for itself. What a later `vm.resize` asks for with another value is no longer wanted: who waits goes on with the
//! rest, or is told 204 where there is none. One whose size was made of a list of containers that has changed since is
//! 409, and nothing is asked for. `vm.resize-status` tells what became of the last one, also when that is known only
//! after its client has been answered, and when the guest has gone: until another one is started.

use std::time::{Duration, Instant};

use husk_devices::error_chain;
use serde_json::{Value, json};

use super::operation::{GiveUp, Operation, Work, superseded};
use super::{ApiError, Controller, Due, Kind, Outcome, Progress, Reply, Resize, existing, of_config};
use crate::api::Command;
use crate::config::{Limits, VmConfig};
use crate::machine::{Change, Machine, Refusal, ResizeError, TargetSize, Why, millis};

/// The guest is waited for.
struct Waiting {
    number: u64,
    since: Instant,
    wanted: Resize,
    /// What of it nobody has asked for with another value since.
    left: Resize,
}

/// How often a `vm.resize` has not come to its end, since this process began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Failures {
    /// The guest would not do something, or the host could not.
    pub(super) refused: u64,
    /// The guest has not done all of it in time.
    pub(super) unanswered: u64,
    /// Another `vm.resize` asked for other values of all of it first, or the VM came to its end.
    pub(super) superseded: u64,
}

/// What became of the last `vm.resize`, for `vm.resize-status`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct LastResize {
    /// How many there were before it: what became of an earlier one is no news of this one.
    number: u64,
    wanted: Resize,
    outcome: &'static str,
    what: String,
    /// When it was asked for.
    since: Instant,
    latency: Option<Duration>,
}

const TIMED_OUT: &str = "timed-out";
const IN_PROGRESS: &str = "in-progress";
/// The guest's end came first.
const ABANDONED: &str = "abandoned";

impl LastResize {
    /// The guest has done all that it is going to do, or `refusals` say what not.
    fn ended(number: u64, wanted: Resize, since: Instant, refusals: &[Refusal]) -> Self {
        let refusals: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        Self {
            number,
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
            *self = Self::ended(self.number, self.wanted, self.since, refusals);
        }
    }

    /// The guest has gone: what it has not done it never will.
    pub(super) fn lose_guest(&mut self) {
        if self.outcome == IN_PROGRESS {
            self.outcome = ABANDONED;
            self.latency = Some(self.since.elapsed());
        }
    }
}

impl Controller {
    pub(super) fn resize(&mut self, wanted: Resize) -> Progress {
        match self.begin_resize(wanted) {
            Ok(true) => {
                let timeout = self.options.resize_timeout.0;
                let waiting = Waiting {
                    number: self.resizes,
                    since: Instant::now(),
                    wanted,
                    left: wanted,
                };
                self.begin(Box::new(waiting), timeout)
            }
            Ok(false) => Progress::Done(Ok(Reply::Done)),
            Err(error) => error.into(),
        }
    }

    /// Asks the guest, if there is one. Whether there is something to wait for.
    fn begin_resize(&mut self, wanted: Resize) -> Result<bool, ApiError> {
        let limits = self.limits();
        // Whom the guest has killed by now, it has not killed for this.
        self.report_kills(Instant::now(), false);
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
        let asked = machine.resize(of_machine(wanted));
        if let Err(error) = asked {
            let told = refused(&error);
            if !error.is_request() {
                self.resizes += 1;
                self.note_refused(wanted, &error);
            }
            return Err(told);
        }
        self.resizes += 1;
        // What has another size now is waited for no more.
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
            self.resizes,
            wanted,
            Instant::now(),
            std::slice::from_ref(&refusal),
        ));
        self.tell_change(&Change::Refused(refusal, Duration::ZERO));
    }

    /// Looks at what the guest has done, and tells the world.
    pub(super) fn follow_resize(&mut self) {
        self.heed_kills();
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

    /// Before more is asked of a guest that may lack memory for it, what it says of that is heard.
    fn heed_kills(&mut self) {
        if self.machine().is_some_and(Machine::is_straining) {
            self.report_kills(Instant::now(), false);
        }
    }

    /// A guest that has said `why` it has no memory left gives none back, and is given none that it
    /// would have to describe, unless that was for the limit of a group of its own (`is_own`).
    pub(super) fn keep_memory(&mut self, why: &str, is_own: bool) {
        let Some(machine) = self.machine_mut() else { return };
        let mut change = machine.stop_shrinking(why);
        if !is_own {
            change = change.or_else(|| machine.stop_growing(why));
        }
        if let Some(change) = change {
            self.tell_change(&change);
            self.follow_resize();
        }
    }

    /// What a guest does after the time of its client is what became of the resize all the same.
    fn note_late_end(&mut self) {
        let Some(vm) = &mut self.vm else { return };
        let Some(wanted) = vm.last_resize.as_ref().map(|last| of_machine(last.wanted)) else {
            return;
        };
        let ended = vm.machine().filter(|machine| machine.resize_pending(wanted).is_none());
        let refusals = ended.map(|machine| machine.resize_refusals(wanted));
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
        let vm = existing(&mut self.vm)?;
        // Without a guest there is nothing but what became of the last one: sizes are the configuration's then.
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

    /// Notes what has become of one, unless there has been a later one.
    fn note_resize(&mut self, new: LastResize) {
        if let Some(vm) = &mut self.vm
            && vm.last_resize.as_ref().is_none_or(|last| last.number <= new.number)
        {
            vm.last_resize = Some(new);
        }
    }
}

/// What a machine is asked for.
fn of_machine(wanted: Resize) -> TargetSize {
    TargetSize {
        vcpus: wanted.desired_vcpus,
        ram_bytes: wanted.desired_ram,
        balloon_bytes: wanted.desired_balloon,
    }
}

/// What of `earlier` is still wanted when `later` has been asked for: what that does not ask for with another value.
fn still_wanted(earlier: Resize, later: Resize) -> Resize {
    fn stays<T: PartialEq>(earlier: Option<T>, later: Option<T>) -> Option<T> {
        earlier.filter(|earlier| later.is_none_or(|later| later == *earlier))
    }
    Resize {
        desired_vcpus: stays(earlier.desired_vcpus, later.desired_vcpus),
        desired_ram: stays(earlier.desired_ram, later.desired_ram),
        desired_balloon: stays(earlier.desired_balloon, later.desired_balloon),
        containers_revision: None,
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
        if let Some(pending) = machine.resize_pending(of_machine(self.left)) {
            owner.note_resize(LastResize {
                number: self.number,
                wanted: self.wanted,
                outcome: IN_PROGRESS,
                what: pending,
                since: self.since,
                latency: None,
            });
            return None;
        }
        let refusals = machine.resize_refusals(of_machine(self.left));
        let last = LastResize::ended(self.number, self.wanted, self.since, &refusals);
        let error = (!refusals.is_empty()).then(|| ApiError::new(Kind::Internal, last.what.clone()));
        owner.note_resize(last);
        Some(error.map_or(Ok(Reply::Done), |error| Err(error.context("cannot resize the VM"))))
    }

    fn yields_to(&mut self, command: &Command) -> bool {
        let Command::Resize(later) = command else { return true };
        self.left = still_wanted(self.left, *later);
        of_machine(self.left) == TargetSize::default()
    }

    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        match why {
            GiveUp::Superseded(by) => {
                owner.resize_failures.superseded += 1;
                match by {
                    "vm.resize" => Ok(Reply::Done),
                    by => Err(superseded(self.command(), by)),
                }
            }
            GiveUp::Late => {
                let machine = owner.vm.as_ref().and_then(|vm| vm.machine());
                let pending = machine.and_then(|machine| machine.resize_pending(of_machine(self.left)));
                let pending = pending.unwrap_or_default();
                let waited = self.since.elapsed();
                log::warn!(
                    "vm.resize: the guest has not done all of it within {:.0} ms: {pending}",
                    millis(waited)
                );
                let what = [("what", json!(pending)), ("latency_ms", json!(millis(waited)))];
                owner.events.emit_with("guest", "resize-unanswered", what);
                owner.resize_failures.unanswered += 1;
                owner.note_resize(LastResize {
                    number: self.number,
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
            number: 1,
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
        // The end of the guest adds nothing to what is known.
        let mut gone = late.clone();
        gone.lose_guest();
        assert_eq!(gone, late);
        let mut gone = LastResize {
            outcome: IN_PROGRESS,
            latency: None,
            ..late.clone()
        };
        gone.lose_guest();
        assert_eq!((gone.outcome, &gone.what), (ABANDONED, &late.what));
        assert!(gone.latency > Some(Duration::from_secs(1)));
        // It ends once.
        let mut ended = LastResize::ended(late.number, late.wanted, late.since, &refusals);
        let before = ended.clone();
        ended.ends_late(&[]);
        assert_eq!(ended, before);
    }

    fn resize(desired_vcpus: Option<u32>, desired_ram: Option<u64>, desired_balloon: Option<u64>) -> Resize {
        Resize {
            desired_vcpus,
            desired_ram,
            desired_balloon,
            containers_revision: None,
        }
    }

    #[test]
    fn a_resize_gives_way_to_another_value_of_what_it_asked_for_and_to_nothing_else() {
        let mut waiting = Waiting {
            number: 1,
            since: Instant::now(),
            wanted: resize(Some(8), Some(1 << 30), None),
            left: resize(Some(8), Some(1 << 30), None),
        };
        let mut yields = |later| {
            let yields = waiting.yields_to(&Command::Resize(later));
            (yields, waiting.left)
        };
        let both = resize(Some(8), Some(1 << 30), None);
        assert_eq!(yields(resize(None, None, Some(4096))), (false, both), "of another kind");
        assert_eq!(yields(both), (false, both), "the same");
        let memory = resize(None, Some(1 << 30), None);
        assert_eq!(yields(resize(Some(4), None, None)), (false, memory));
        assert_eq!(
            yields(resize(Some(8), None, None)),
            (false, memory),
            "it is told of the rest alone"
        );
        assert!(yields(resize(None, Some(0), None)).0);
        assert!(waiting.yields_to(&Command::Shutdown), "whatever it waits for");
    }
}
