//! What is told of a resize of memory.

use husk_hotplug::Plug;
use husk_virtio::balloon::BalloonHandle;
use husk_virtio::mem::MemSize;
use serde_json::{Value, json};

use super::super::dimms::{Dimms, plugged};
use super::super::{Latency, millis};
use super::MemoryResize;
use crate::metrics::Ram;

impl MemoryResize {
    /// What the guest has not answered.
    pub fn pending(&self) -> Option<String> {
        if let Some(in_flight) = &self.in_flight {
            let verb = if in_flight.comes { "come" } else { "go" };
            return Some(format!(
                "memory slot {} of {} MiB to {verb}",
                in_flight.slot,
                in_flight.bytes >> 20
            ));
        }
        if let Some(readying) = &self.readying {
            return Some(format!("the host to find {} MiB of memory", readying.bytes >> 20));
        }
        if self.is_held_up || self.is_leaving {
            return Some("the host to take memory back".into());
        }
        if let Some(reason) = &self.held_reason {
            return Some(reason.clone());
        }
        owed(self.blocks.as_ref()?.size())
    }

    /// How long the guest has taken.
    pub fn latencies(&self) -> [(&'static str, &Latency); 2] {
        [("memory_plugged", &self.plugged), ("memory_unplugged", &self.unplugged)]
    }

    /// RAM of the start, and what the guest has of DIMMs.
    pub fn figures(&self, dimms: &Dimms) -> Ram {
        Ram {
            boot_bytes: self.parts.boot_bytes,
            dimm_bytes: plugged(dimms),
        }
    }

    /// For `vm.resize-status`.
    pub fn status(&self, dimms: &Dimms, balloon: Option<&BalloonHandle>) -> Value {
        let slots = dimms.as_ref().map_or_else(Vec::new, |dimms| {
            let there = dimms.states().into_iter().filter(|(_, state)| state.name() != "absent");
            there
                .map(|(slot, state)| {
                    let extent = dimms.plug().extent(slot);
                    json!({"slot": slot, "base": extent.base, "bytes": extent.size_bytes, "state": state.name()})
                })
                .collect()
        });
        let blocks = self.blocks.as_ref().map(|blocks| {
            let size = blocks.size();
            json!({
                "requested_bytes": size.requested_bytes,
                "plugged_bytes": size.plugged_bytes,
                "usable_bytes": size.usable_bytes,
                "block_bytes": size.block_bytes,
                "driver": size.driver,
            })
        });
        let balloon = balloon.map(|balloon| {
            let size = balloon.size();
            let said = balloon.stats();
            let stats: serde_json::Map<String, Value> = said
                .named()
                .map(|(name, value)| (name.to_owned(), value.into()))
                .collect();
            json!({
                "target_bytes": size.target_bytes,
                "actual_bytes": size.actual_bytes,
                "driver": size.driver,
                "stats": stats,
                "stats_age_ms": said.at.map(|at| millis(at.elapsed())),
            })
        });
        json!({
            "desired_bytes": self.wanted_bytes(),
            "present_bytes": self.present_bytes(dimms),
            "boot_bytes": self.parts.boot_bytes,
            "hotplug_bytes": self.max_added_bytes(),
            "dimms": slots,
            "virtio_mem": blocks,
            "balloon": balloon,
            "latency": {
                "present": self.present.json(),
                "gone": self.gone.json(),
                "plugged": self.plugged.json(),
                "unplugged": self.unplugged.json(),
            },
        })
    }
}

/// What the driver of virtio-mem has still to do.
pub(super) fn owed(size: MemSize) -> Option<String> {
    let (plugged, requested) = (size.plugged_bytes, size.requested_bytes);
    if plugged != requested {
        return Some(format!("virtio-mem: {plugged} of {requested} bytes"));
    }
    (!size.settled).then(|| format!("virtio-mem: {plugged} bytes to be added"))
}
