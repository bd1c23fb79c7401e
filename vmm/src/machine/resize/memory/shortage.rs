//! A guest that says that it has no memory left, while it gives some back or some comes.

use super::super::dimms::{Dimms, filled};
use super::super::{Change, Refusal, Why};
use super::MemoryResize;

/// What a guest that has run out of memory gets again of what it gave back, in bytes.
const RELIEF: u64 = 64 << 20;

impl MemoryResize {
    /// Whether the guest is giving memory back, and has not stood still for long.
    pub fn is_shrinking(&self, dimms: &Dimms) -> bool {
        let is_at_work = self.in_flight.is_some() || self.retry.due().is_some();
        is_at_work && self.refusals.is_empty() && self.added(dimms) > self.wanted
    }

    /// The guest has said `why` it has no memory left: if that may be for what it gives back, it keeps the rest, and
    /// gets some of it again where that comes in blocks. A DIMM that it has been asked for already may still go.
    pub fn stop_shrinking(&mut self, dimms: &Dimms, why: &str) -> Option<Change> {
        if !self.is_shrinking(dimms) {
            return None;
        }
        if let Some(blocks) = &self.blocks {
            // It was the guest's a moment ago, and it may need the last of it to come to itself.
            let gone = self.reported_bytes.saturating_sub(self.added(dimms));
            self.request(blocks.size().plugged_bytes.saturating_add(gone.min(RELIEF)));
        }
        let what = format!("remove memory: the guest is out of memory: {why}");
        let mut changes = Vec::new();
        self.refuse(Refusal { what, why: Why::Host }, &mut changes);
        if self.in_flight.is_none() {
            self.accept_current_size(dimms);
        }
        changes.pop()
    }

    /// Whether a DIMM is to come that the guest has to describe.
    pub fn is_growing(&self, dimms: &Dimms) -> bool {
        let comes = match &self.in_flight {
            Some(in_flight) => in_flight.comes,
            None => dimms.is_some() && !self.has_driver() && self.dimm_goal_bytes() > filled(dimms),
        };
        comes && self.refusals.is_empty()
    }

    /// The guest has said `why` it has no memory left: if that may be for what comes, no more does.
    /// A DIMM that it has been told of may still come.
    pub fn stop_growing(&mut self, dimms: &mut Dimms, why: &str) -> Option<Change> {
        if !self.is_growing(dimms) {
            return None;
        }
        if let (Some(readying), Some(dimms)) = (self.readying.take(), dimms.as_mut()) {
            dimms.plug_mut().abandon(readying);
        }
        self.is_held_up = false;
        let what = format!("add memory: the guest is out of memory: {why}");
        let mut changes = Vec::new();
        self.refuse(Refusal { what, why: Why::Host }, &mut changes);
        self.accept_current_size(dimms);
        changes.pop()
    }
}
