//! GSI routes: which message an irqfd fires (KVM api.rst 4.52 `KVM_SET_GSI_ROUTING`).
//!
//! KVM replaces the whole table at once, and waits for its readers each time; so a table is sent only when it has changed.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use husk_devices::MsiMessage;
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};

/// GSIs that KVM takes for pins of an I/O APIC outside the kernel, and whose level-triggered interrupts it reports the end of.
/// husk's pins are edge-triggered messages like any others, so none of these is used.
pub const RESERVED_PINS: u32 = 24;
/// First GSI for messages.
const FIRST_MSI: u32 = RESERVED_PINS;
/// KVM's own limit on GSI numbers (`KVM_MAX_IRQ_ROUTES`).
const LAST_MSI: u32 = 4095;

/// Reserved message GSIs, each with its message once the guest has given one.
#[derive(Debug, Default)]
pub struct Routes {
    messages: BTreeMap<u32, Option<MsiMessage>>,
}

impl Routes {
    /// Reserves the lowest free GSI; `None` when all 4072 are taken.
    pub fn reserve(&mut self) -> Option<u32> {
        let gsi = (FIRST_MSI..=LAST_MSI).find(|gsi| !self.messages.contains_key(gsi))?;
        self.messages.insert(gsi, None);
        Some(gsi)
    }

    /// Gives a GSI back. Returns whether the table has changed.
    pub fn release(&mut self, gsi: u32) -> bool {
        self.messages.remove(&gsi).flatten().is_some()
    }

    /// Sets or clears the message of a reserved GSI. Returns what it had before, or `None` if `gsi` is not reserved.
    pub fn set(&mut self, gsi: u32, message: Option<MsiMessage>) -> Option<Option<MsiMessage>> {
        match self.messages.entry(gsi) {
            Entry::Occupied(mut entry) => Some(entry.insert(message)),
            Entry::Vacant(_) => None,
        }
    }

    /// The whole table as KVM takes it.
    pub fn table(&self) -> Result<KvmIrqRouting, vmm_sys_util::fam::Error> {
        let messages = self
            .messages
            .iter()
            .filter_map(|(gsi, message)| message.map(|m| message_entry(*gsi, m)));
        KvmIrqRouting::from_entries(&messages.collect::<Vec<_>>())
    }
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    #[expect(clippy::cast_possible_truncation, reason = "the two halves of the address")]
    let (address_lo, address_hi) = (message.address as u32, (message.address >> 32) as u32);
    entry.u.msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: MsiMessage = MsiMessage {
        address: 0xfee0_1000,
        data: 0x4321,
    };

    #[test]
    fn gsis_are_reused_after_release() {
        let mut routes = Routes::default();
        assert_eq!((routes.reserve(), routes.reserve()), (Some(24), Some(25)));
        assert!(!routes.release(24), "a GSI without a message is not in the table");
        assert_eq!(routes.reserve(), Some(24));
    }

    #[test]
    fn gsis_run_out_without_reaching_a_reserved_one() {
        let mut routes = Routes::default();
        assert_eq!(std::iter::from_fn(|| routes.reserve()).count(), 4072);
        assert_eq!(routes.reserve(), None);
    }

    #[test]
    fn only_reserved_gsis_take_messages() {
        let mut routes = Routes::default();
        assert_eq!(routes.set(30, Some(MESSAGE)), None);
        let gsi = routes.reserve().unwrap();
        assert_eq!(routes.set(gsi, Some(MESSAGE)), Some(None));
        assert_eq!(routes.set(gsi, None), Some(Some(MESSAGE)));
    }

    #[test]
    fn the_table_holds_the_gsis_that_have_a_message() {
        let mut routes = Routes::default();
        let (first, _second) = (routes.reserve().unwrap(), routes.reserve().unwrap());
        routes.set(first, Some(MESSAGE));
        let table = routes.table().unwrap();
        let entries = table.as_slice();
        assert_eq!(entries.len(), 1);
        assert_eq!((entries[0].gsi, entries[0].type_), (24, KVM_IRQ_ROUTING_MSI));
    }
}
