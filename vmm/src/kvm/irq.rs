//! GSI routes: which message an irqfd fires (KVM api.rst 4.52 `KVM_SET_GSI_ROUTING`).
//!
//! KVM replaces the whole table at once, and waits for its readers each time; so a table is sent
//! only when it has changed.

use std::collections::BTreeMap;
use std::io;

use husk_devices::{MsiMessage, MsiVector};
use kvm_bindings::{KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_irq_routing_msi};
use vmm_sys_util::eventfd::EventFd;

/// GSIs that KVM takes for pins of an I/O APIC outside the kernel, and whose level-triggered
/// interrupts it reports the end of. husk's pins are edge-triggered messages like any others, so
/// none of these is used.
pub const RESERVED_PINS: u32 = 24;
/// First GSI for messages.
const FIRST_MSI: u32 = RESERVED_PINS;
/// KVM's own limit on GSI numbers (`KVM_MAX_IRQ_ROUTES`).
const LAST_MSI: u32 = 4095;

/// The calls that change interrupts: of a virtual machine, or of what stands for one in a test.
pub trait Wires {
    /// Takes `routes`, each a GSI and what it sends, in place of those before (KVM api.rst 4.52).
    ///
    /// # Errors
    /// The host refused; those before stay.
    fn replace(&self, routes: &[(u32, MsiMessage)]) -> io::Result<()>;

    /// Has `event` fire `gsi` (KVM api.rst 4.75 `KVM_IRQFD`).
    ///
    /// # Errors
    /// The host refused.
    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()>;

    /// Undoes [`Wires::connect`].
    ///
    /// # Errors
    /// The host refused.
    fn disconnect(&self, event: &EventFd, gsi: u32) -> io::Result<()>;
}

/// Reserved message GSIs, as KVM has them: nothing is written down here before KVM has accepted it,
/// since one message that it refuses would keep every later table from being accepted.
#[derive(Debug, Default)]
pub struct Routes {
    sources: BTreeMap<u32, Source>,
}

/// One reserved GSI.
#[derive(Clone, Copy, Debug, Default)]
struct Source {
    /// What KVM's table says. It stays there when the GSI is disconnected, since nothing fires it then.
    message: Option<MsiMessage>,
    /// Whether the vector's eventfd fires it.
    connected: bool,
}

impl Routes {
    /// Reserves the lowest free GSI; `None` when all 4072 are taken.
    pub fn reserve(&mut self) -> Option<u32> {
        let gsi = (FIRST_MSI..=LAST_MSI).find(|gsi| !self.sources.contains_key(gsi))?;
        self.sources.insert(gsi, Source::default());
        Some(gsi)
    }

    /// Has `vector` send `message`, or, without one, nothing.
    ///
    /// # Errors
    /// The GSI is not reserved, or the host refused: then the vector is as it was, but for one that
    /// was not connected before and stays so.
    pub fn route(&mut self, wires: &dyn Wires, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        let gsi = vector.gsi;
        let source = self.sources.get(&gsi).copied().ok_or_else(|| not_reserved(gsi))?;
        let Some(message) = message else {
            return self.disconnect(wires, vector);
        };
        // Before it is connected, so that the eventfd never fires what was there.
        if source.message != Some(message) {
            wires.replace(&self.with(gsi, message))?;
            self.sources.entry(gsi).or_default().message = Some(message);
        }
        if !source.connected {
            wires.connect(vector.irq.event(), gsi)?;
            self.sources.entry(gsi).or_default().connected = true;
        }
        Ok(())
    }

    /// Gives the GSI of `vector` back, disconnected.
    ///
    /// # Errors
    /// The host keeps it connected, until the last descriptor of its eventfd is closed. It is given back all the same.
    pub fn release(&mut self, wires: &dyn Wires, vector: &MsiVector) -> io::Result<()> {
        let disconnected = self.disconnect(wires, vector);
        self.sources.remove(&vector.gsi);
        disconnected
    }

    fn disconnect(&mut self, wires: &dyn Wires, vector: &MsiVector) -> io::Result<()> {
        match self.sources.get_mut(&vector.gsi) {
            Some(source) if source.connected => {
                wires.disconnect(vector.irq.event(), vector.gsi)?;
                source.connected = false;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// All routes, with `message` for `gsi`.
    fn with(&self, gsi: u32, message: MsiMessage) -> Vec<(u32, MsiMessage)> {
        let others = self.sources.iter().filter(|(other, _)| **other != gsi);
        let others = others.filter_map(|(other, source)| Some((*other, source.message?)));
        others.chain([(gsi, message)]).collect()
    }
}

/// `routes` as KVM takes them.
///
/// # Errors
/// More than KVM has room for.
pub fn table(routes: &[(u32, MsiMessage)]) -> io::Result<KvmIrqRouting> {
    let entries: Vec<_> = routes
        .iter()
        .map(|(gsi, message)| message_entry(*gsi, *message))
        .collect();
    KvmIrqRouting::from_entries(&entries).map_err(|e| io::Error::other(format!("{e:?}")))
}

fn not_reserved(gsi: u32) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, format!("GSI {gsi} is not reserved"))
}

/// Bits of a message's lower half that have bits 8 to 14 of the destination, as
/// `KVM_FEATURE_MSI_EXT_DEST_ID` lets guests write them (KVM cpuid.rst), and how far these are from
/// where KVM reads them in the upper half (api.rst 4.52).
const EXTENDED_DESTINATION: u32 = 0xfe0;
const EXTENDED_DESTINATION_SHIFT: u32 = 3;
/// The message is in the format of an IOMMU that remaps interrupts, and those bits mean something
/// else (Intel VT-d §5.1.2.2).
const REMAPPABLE: u32 = 1 << 4;

/// The halves of a message's address as KVM takes them, with the whole destination where 32-bit
/// APIC IDs are looked for. With 8-bit ones KVM does not look at the upper half, and the bits that
/// are moved are reserved.
#[expect(clippy::cast_possible_truncation, reason = "the two halves of the address")]
fn halves(address: u64) -> (u32, u32) {
    let (low, high) = (address as u32, (address >> 32) as u32);
    if high != 0 || low & REMAPPABLE != 0 {
        return (low, high);
    }
    let extended = low & EXTENDED_DESTINATION;
    (low & !EXTENDED_DESTINATION, extended << EXTENDED_DESTINATION_SHIFT)
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry {
        gsi,
        type_: KVM_IRQ_ROUTING_MSI,
        ..Default::default()
    };
    let (address_lo, address_hi) = halves(message.address);
    entry.u.msi = kvm_irq_routing_msi {
        address_lo,
        address_hi,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
#[path = "irq_test.rs"]
mod tests;
