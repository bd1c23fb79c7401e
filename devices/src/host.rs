//! Everything a device may ask of the machine: interrupts and doorbells.
//!
//! `Host` has one real implementation, over KVM, and one fake for unit tests (`fake::FakeHost`,
//! with feature `test-utils`).

use std::io;
use std::sync::Arc;

use vmm_sys_util::eventfd::EventFd;

#[cfg(any(test, feature = "test-utils"))]
pub mod fake;

/// An interrupt that a device raises by writing an eventfd (KVM api.rst `KVM_IRQFD`). Cheap to clone.
#[derive(Clone, Debug)]
pub struct Irq(Arc<EventFd>);

impl Irq {
    /// Wraps an eventfd that is, or will be, connected to an interrupt.
    pub fn new(event: EventFd) -> Self {
        Self(Arc::new(event))
    }

    /// Raises the interrupt once (edge). Never blocks.
    pub fn raise(&self) {
        // The counter saturates only after 2^64-2 unconsumed events, and then the interrupt is pending anyway.
        let _ = self.0.write(1);
    }

    /// The eventfd behind the interrupt.
    pub fn event(&self) -> &EventFd {
        &self.0
    }
}

/// The address and data that an MSI-X table entry holds (PCIe 5.0 §7.7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address: low and high dword joined.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// An MSI source: a GSI and the interrupt that fires it. It delivers nothing until it has been routed.
#[derive(Clone, Debug)]
pub struct MsiVector {
    /// Global system interrupt number, outside the IOAPIC's range.
    pub gsi: u32,
    /// What a device raises.
    pub irq: Irq,
}

/// The machine as a device sees it. All methods are called on vCPU or control threads and do not wait for either.
pub trait Host: Send + Sync {
    /// Reserves a GSI for a message-signalled interrupt. Nothing is registered with KVM until [`Host::route`].
    fn msi(&self) -> io::Result<MsiVector>;

    /// Routes `vector` to `message`, or, with `None`, disconnects it.
    ///
    /// # Errors
    /// The host refused: the vector sends what it sent before, and no other vector is touched.
    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()>;

    /// Gives back a GSI that [`Host::msi`] reserved, disconnecting it first.
    fn release(&self, vector: &MsiVector);

    /// Makes any guest write to guest-physical address `addr` signal `kick` instead of leaving the kernel (KVM api.rst
    /// `KVM_IOEVENTFD`, any length, no data match), or, with `on == false`, stops that.
    fn doorbell(&self, addr: u64, kick: &EventFd, on: bool) -> io::Result<()>;
}
