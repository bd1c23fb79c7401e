//! What sits in the slots of a bank.

use crate::ged::GedEvent;

/// What sits in the slots of a bank, and with it how the guest's word is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotKind {
    /// Processors. The second sign is `_SUN`, which Linux evaluates once a processor's local APIC
    /// has been given a logical number, and before `_OST`. A guest that did not evaluate it for a
    /// processor that was there at its start is one that never does, and is believed without.
    Cpu,
    /// Memory. The guest is told of the slot a second time: one that has the memory answers without
    /// looking at `_CRS` again, one that has not starts anew and reads it.
    Memory,
    /// PCI functions, which show themselves in configuration space: `_OST` is enough.
    Pci,
}

impl SlotKind {
    /// The GED event that announces a change.
    pub const fn event(self) -> GedEvent {
        match self {
            Self::Cpu => GedEvent::Cpu,
            Self::Memory => GedEvent::Memory,
            Self::Pci => GedEvent::Pci,
        }
    }

    /// Whether a guest that has taken the request to let go is told of it once more when the host
    /// asks once more: somebody who asks for a device does so by hand, and the driver may have lost
    /// the first request, or its kernel been replaced (kexec). Processors and memory are asked for
    /// by resizes, which a guest has begun to carry out.
    pub(super) const fn repeats_requests(self) -> bool {
        matches!(self, Self::Pci)
    }

    /// Whether guests look at `_STA` once `_EJ0` has returned, and rely on what it says.
    pub(super) const fn verifies_ejections(self) -> bool {
        match self {
            Self::Cpu | Self::Memory => true,
            // Linux's acpiphp believes `_EJ0`.
            Self::Pci => false,
        }
    }
}
