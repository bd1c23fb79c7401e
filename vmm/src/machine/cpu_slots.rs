//! The vCPU slots: slot number, vCPU number and local APIC ID are one.
//!
//! Linux 6.1 numbers its CPUs in the order of their coming. So they are added in ascending order and removed in descending order, and
//! what the guest calls CPU *n* is vCPU *n*. The first one is there for good.

use std::sync::Arc;

use husk_firmware::layout;
use husk_hotplug::bank::SlotKind;
use husk_hotplug::{Plug, PlugError};

use super::hotplug::Slots;
use super::resize::Vcpus;
use crate::cpus::{CpuState, Cpus};
use crate::kvm::{Topology, Vm};

/// The slots of `max` vCPUs.
pub const fn slots(max: u32) -> Slots {
    Slots {
        kind: SlotKind::Cpu,
        address: layout::CPU_BANK,
        count: max,
        pinned: 1,
    }
}

/// What makes vCPUs real.
pub struct CpuPlug {
    /// The vCPUs.
    pub cpus: Cpus,
    vm: Arc<Vm>,
    topology: Topology,
}

impl CpuPlug {
    /// `cpus` of `vm`, with `topology` for those that come.
    pub fn new(cpus: Cpus, vm: Arc<Vm>, topology: Topology) -> Self {
        Self { cpus, vm, topology }
    }
}

impl Plug for CpuPlug {
    type Unit = ();

    /// The vCPUs of the start are there before their slots are.
    fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
        if self.cpus.state(slot) != CpuState::Absent {
            return Ok(());
        }
        self.cpus
            .add(slot, &self.vm, &self.topology)
            .map_err(|source| PlugError {
                what: format!("add vCPU {slot}"),
                source: source.into(),
            })
    }

    fn retire(&mut self, slot: u32) -> bool {
        self.cpus.retire(slot)
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        if self.cpus.retire(slot) {
            self.cpus.remove(slot);
            return Ok(());
        }
        Err(PlugError {
            what: format!("remove vCPU {slot}"),
            source: "it has not left the guest yet".into(),
        })
    }
}

impl Vcpus for CpuPlug {
    fn max(&self) -> u32 {
        self.cpus.max()
    }

    fn is_online(&self, id: u32) -> bool {
        self.cpus.is_online(id)
    }

    fn is_starting(&self, id: u32) -> bool {
        self.cpus.is_starting(id)
    }
}
