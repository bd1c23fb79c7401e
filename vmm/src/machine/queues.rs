//! Where driver and device stand in each virtqueue, for whoever has to find out why a device stands still.
//!
//! What is asked for here is looked at elsewhere: a page of the guest's memory may be with the host's swap, and the
//! thread that owns the machine waits for nothing.

use std::sync::Arc;

use husk_devices::error_chain;
use husk_devices::memory::GuestMemory;
use husk_virtio::ring::{QueueProbe, QueueStatus, RingError, RingStatus, ServedBy};
use serde_json::{Value, json};

/// The queues of all virtio devices, to be looked at.
#[derive(Clone, Debug)]
pub struct Queues {
    memory: GuestMemory,
    devices: Vec<(String, Vec<Arc<QueueProbe>>)>,
}

/// Those of the same devices are the same.
impl PartialEq for Queues {
    fn eq(&self, other: &Self) -> bool {
        let names = |queues: &Self| -> Vec<String> { queues.devices.iter().map(|(name, _)| name.clone()).collect() };
        names(self) == names(other)
    }
}

impl Queues {
    /// The queues of `devices`, by name and in the order of their numbers, in the guest's `memory`.
    pub fn new(memory: GuestMemory, devices: Vec<(String, Vec<Arc<QueueProbe>>)>) -> Self {
        Self { memory, devices }
    }

    /// Each queue that a driver has set up, as it is now: a list for each device, by its name. May wait for the host to
    /// have a page of the guest there.
    pub fn look(&self) -> Value {
        let devices = self.devices.iter().map(|(name, probes)| {
            let queues = probes.iter().enumerate().filter_map(|(number, probe)| {
                let status = probe.status(&self.memory)?;
                Some(queue(number, &status))
            });
            (name.clone(), queues.collect::<Value>())
        });
        Value::Object(devices.collect())
    }
}

fn queue(number: usize, status: &QueueStatus) -> Value {
    let [desc, avail, used] = status.addresses;
    let mut told = json!({
        "queue": number,
        "size": status.size,
        "event_idx": status.event_idx,
        "served_by": match status.served_by {
            ServedBy::Husk => "husk",
            ServedBy::BackEnd => "back-end",
            ServedBy::Kernel => "kernel",
        },
        "next_avail": status.next_avail,
        "kick_pending": status.kick_pending,
        "desc": {"address": desc},
        "avail": ring(avail, &status.avail, "used_event"),
        "used": ring(used, &status.used, "avail_event"),
        "interrupt": status.interrupt.map(|state| json!({"masked": state.masked, "pending": state.pending})),
    });
    if let Some(figures) = status.figures {
        told["chains"] = figures.chains.into();
        told["wakeups"] = figures.wakeups.into();
        told["interrupts"] = figures.interrupts.into();
    }
    told
}

fn ring(address: u64, found: &Result<RingStatus, RingError>, event: &str) -> Value {
    match found {
        Ok(RingStatus {
            flags,
            idx,
            event: number,
        }) => {
            json!({"address": address, "flags": flags, "idx": idx, event: number})
        }
        Err(error) => json!({"address": address, "error": error_chain(error)}),
    }
}

#[cfg(test)]
mod tests {
    use husk_devices::memory::GuestMemoryMmap;
    use husk_devices::pci::MaskState;
    use husk_virtio::ring::QueueStats;

    use super::*;

    fn status() -> QueueStatus {
        let ring = |idx, event| {
            Ok(RingStatus {
                flags: 0,
                idx,
                event: Some(event),
            })
        };
        QueueStatus {
            served_by: ServedBy::Husk,
            size: 8,
            event_idx: true,
            addresses: [0x1000, 0x1080, 0x10a0],
            next_avail: Some(3),
            kick_pending: Some(true),
            avail: ring(5, 3),
            used: ring(3, 3),
            interrupt: Some(MaskState {
                masked: false,
                pending: false,
            }),
            figures: Some(QueueStats {
                chains: 3,
                wakeups: 2,
                interrupts: 1,
            }),
        }
    }

    #[test]
    fn a_queue_is_told_as_the_api_describes_it() {
        let told = json!({
            "queue": 1, "size": 8, "event_idx": true, "served_by": "husk", "next_avail": 3, "kick_pending": true,
            "desc": {"address": 0x1000},
            "avail": {"address": 0x1080, "flags": 0, "idx": 5, "used_event": 3},
            "used": {"address": 0x10a0, "flags": 0, "idx": 3, "avail_event": 3},
            "interrupt": {"masked": false, "pending": false},
            "chains": 3, "wakeups": 2, "interrupts": 1,
        });
        assert_eq!(queue(1, &status()), told);
    }

    #[test]
    fn a_ring_that_cannot_be_read_is_told_with_the_reason() {
        let gone = RingError::OutsideMemory {
            queue: 1,
            what: "used ring",
            gpa: 0x10a0,
            size: 70,
        };
        let told = queue(
            1,
            &QueueStatus {
                used: Err(gone),
                figures: None,
                next_avail: None,
                interrupt: None,
                ..status()
            },
        );
        let error = "queue 1: used ring of 70 bytes at 0x10a0 is not all in guest RAM";
        assert_eq!(told["used"], json!({"address": 0x10a0, "error": error}));
        assert!(told["interrupt"].is_null() && told["next_avail"].is_null() && told.get("chains").is_none());
    }

    #[test]
    fn queues_that_no_driver_has_set_up_are_left_out() {
        let memory = GuestMemory::new(GuestMemoryMmap::new());
        let queues = Queues::new(memory, vec![("_disk0".into(), vec![Arc::default()])]);
        assert_eq!(queues.look(), json!({"_disk0": []}));
    }
}
