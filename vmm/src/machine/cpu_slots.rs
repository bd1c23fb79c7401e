//! The vCPU slots: slot number, vCPU number and local APIC ID are one.
//!
//! Linux 6.1 numbers its CPUs in the order of their coming. So they are added in ascending order
//! and removed in descending order, and what the guest calls CPU *n* is vCPU *n*. The first one is
//! there for good.

use std::sync::Arc;

use husk_firmware::layout;
use husk_hotplug::bank::SlotKind;
use husk_hotplug::{Plug, PlugError};

use super::hotplug::Slots;
use super::resize::Vcpus;
use crate::background::BackgroundTask;
use crate::cpus::{AddError, CpuState, Cpus};
use crate::kvm::{KvmError, Topology, Vcpu, Vm};

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
    /// Those that KVM makes at present, beside the control thread.
    making: Option<BackgroundTask<Vec<Result<Vcpu, KvmError>>>>,
    /// Why there is not one more, for whoever asks for it next.
    refusal: Option<AddError>,
}

impl CpuPlug {
    /// `cpus` of `vm`, with `topology` for those that come.
    pub fn new(cpus: Cpus, vm: Arc<Vm>, topology: Topology) -> Self {
        Self {
            cpus,
            vm,
            topology,
            making: None,
            refusal: None,
        }
    }
}

impl Plug for CpuPlug {
    type Unit = ();

    /// The vCPUs of the start are there before their slots are.
    fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
        if self.cpus.state(slot) != CpuState::Absent {
            return Ok(());
        }
        let is_made = !self.cpus.needs_vcpu(slot);
        let refusal = self.refusal.take().filter(|_| !is_made);
        let added = refusal.map_or_else(|| self.cpus.add(slot, &self.topology), Err);
        added.map_err(|source| PlugError {
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

    /// KVM makes a vCPU when it has changed its memory slots, and doorbells, which waits for vCPUs (ADR 36).
    fn ready(&mut self, ids: &[u32]) -> bool {
        self.refusal = None;
        if let Some(making) = &self.making {
            let Some(made) = making.take_result() else { return false };
            self.making = None;
            for vcpu in made {
                match vcpu {
                    Ok(vcpu) => self.cpus.park(vcpu),
                    Err(error) => self.refusal = Some(error.into()),
                }
            }
        }
        let needed = ids.iter().copied().filter(|id| self.cpus.needs_vcpu(*id));
        let needed: Vec<u32> = needed.collect();
        if needed.is_empty() || self.refusal.is_some() {
            return true;
        }
        let vm = self.vm.clone();
        let make = move || {
            let mut made = Vec::new();
            for id in needed {
                made.push(vm.create_vcpu(id));
                if made.last().is_some_and(Result::is_err) {
                    break;
                }
            }
            made
        };
        match BackgroundTask::spawn(self.cpus.waker().clone(), make) {
            Ok(making) => self.making = Some(making),
            Err(error) => self.refusal = Some(AddError::Thread(error)),
        }
        self.refusal.is_some()
    }

    fn is_online(&self, id: u32) -> bool {
        self.cpus.is_online(id)
    }

    fn is_starting(&self, id: u32) -> bool {
        self.cpus.is_starting(id)
    }
}
