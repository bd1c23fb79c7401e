//! The I/O APIC, outside the kernel (Intel 82093AA §3): interrupt pins that become messages.
//!
//! KVM keeps only the local APICs (`KVM_CAP_SPLIT_IRQCHIP`). A pin's redirection entry says just
//! what a message says, so each pin is a message vector whose route follows the entry: a device
//! raises its eventfd and the kernel delivers, and this register file is entered only when the
//! guest programs it.
//!
//! | offset | bytes | R/W | register |
//! |---|---|---|---|
//! | 0x00 | 4 | R/W | IOREGSEL: bits 7:0 select what IOWIN shows |
//! | 0x10 | 4 | R/W | IOWIN |
//! | 0x40 | 4 | W | EOI: there is nothing to end, see below |
//!
//! | IOREGSEL | R/W | IOWIN shows |
//! |---|---|---|
//! | 0x00 | R/W | identification: bits 27:24 |
//! | 0x01 | R | version: bits 7:0 [`VERSION`], bits 23:16 the last redirection entry |
//! | 0x02 | R | arbitration: as identification |
//! | 0x10 + 2n | R/W | redirection entry n, low: vector 7:0, delivery mode 10:8, destination mode 11, polarity 13, |
//! | | | trigger 15, mask 16 |
//! | 0x11 + 2n | R/W | redirection entry n, high: destination 31:24, its upper seven bits 23:17 (extended |
//! | | | destination ID) |
//!
//! Every device raises its pin by an edge. A guest that programs a pin as level-triggered gets one
//! message for each edge, and remote IRR, bit 14, reads 0. Edges of a masked pin wait in its
//! eventfd, and are one message when the kernel is given that again. No register access makes an
//! edge.

use std::io;
use std::sync::Arc;

use crate::bus::{BusDevice, Effect};
use crate::host::{Host, Irq, MsiMessage, MsiVector};
use crate::metrics::{Counter, MetricsSource};

/// Bytes of the window.
pub const SIZE: u64 = 0x1000;
/// Interrupt pins, numbered from 0.
pub const PINS: u8 = 24;
/// Version with an EOI register.
pub const VERSION: u32 = 0x20;

const IOREGSEL: u64 = 0x00;
const IOWIN: u64 = 0x10;
const REG_ID: u8 = 0x00;
const REG_VERSION: u8 = 0x01;
const REG_ARBITRATION: u8 = 0x02;
const REG_REDIRECTION: u8 = 0x10;
const ID_MASK: u32 = 0x0f00_0000;

const ENTRY_MASKED: u64 = 1 << 16;
/// What the guest may change: not delivery status (12) and remote IRR (14).
const ENTRY_WRITABLE: u64 = 0xfffe_0000_0001_afff;
/// Where the local APICs listen (Intel SDM vol. 3A §11.11.1).
const MESSAGE_ADDRESS: u64 = 0xfee0_0000;

/// One pin: its redirection entry, and the vector that carries it once a device uses the pin.
#[derive(Debug)]
struct Pin {
    entry: u64,
    vector: Option<MsiVector>,
    routed: Option<MsiMessage>,
}

/// What an I/O APIC has done since it was made.
#[derive(Debug, Default)]
pub struct IoapicMetrics {
    /// Interrupts that the host would not route.
    pub refused_routes: Counter,
}

impl MetricsSource for IoapicMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![("refused_routes", self.refused_routes.get())]
    }
}

/// An I/O APIC with [`PINS`] pins.
pub struct Ioapic {
    host: Arc<dyn Host>,
    select: u8,
    id: u32,
    pins: [Pin; PINS as usize],
    metrics: Arc<IoapicMetrics>,
}

impl Ioapic {
    /// An I/O APIC in its reset state: every pin masked.
    pub fn new(host: Arc<dyn Host>) -> Self {
        let pin = |_| Pin {
            entry: ENTRY_MASKED,
            vector: None,
            routed: None,
        };
        Self {
            host,
            select: 0,
            id: 0,
            pins: std::array::from_fn(pin),
            metrics: Arc::default(),
        }
    }

    /// The I/O APIC's metrics.
    pub fn metrics(&self) -> Arc<IoapicMetrics> {
        self.metrics.clone()
    }

    /// The interrupt of `pin`, which a device raises by an edge. Callers of the same pin share it.
    ///
    /// # Errors
    /// No such pin, or the host has no GSI left.
    pub fn line(&mut self, pin: u8) -> io::Result<Irq> {
        let host = &self.host;
        let Some(pin) = self.pins.get_mut(usize::from(pin)) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("no pin {pin}: pins are 0 to {}", PINS.saturating_sub(1)),
            ));
        };
        if pin.vector.is_none() {
            pin.vector = Some(host.msi()?);
        }
        pin.vector
            .as_ref()
            .map(|vector| vector.irq.clone())
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_register(&self) -> u32 {
        match self.select {
            REG_ID | REG_ARBITRATION => self.id,
            REG_VERSION => VERSION | (u32::from(PINS.saturating_sub(1)) << 16),
            select => match entry_half(select).and_then(|(pin, high)| Some((self.pins.get(pin)?, high))) {
                Some((pin, high)) => half(pin.entry, high),
                None => 0,
            },
        }
    }

    fn write_register(&mut self, value: u32) {
        if self.select == REG_ID {
            self.id = value & ID_MASK;
        } else if let Some((pin, high)) =
            entry_half(self.select).and_then(|(n, high)| Some((self.pins.get_mut(n)?, high)))
        {
            let written = if high {
                (u64::from(value) << 32) | (pin.entry & u64::from(u32::MAX))
            } else {
                (pin.entry & !u64::from(u32::MAX)) | u64::from(value)
            };
            pin.entry = written & ENTRY_WRITABLE;
            self.metrics
                .refused_routes
                .add(u64::from(pin.follow(&*self.host).is_err()));
        }
    }
}

impl Pin {
    /// Makes the route say what the entry says. A pin that no device uses has none.
    fn follow(&mut self, host: &dyn Host) -> io::Result<()> {
        let Some(vector) = &self.vector else { return Ok(()) };
        let message = (self.entry & ENTRY_MASKED == 0).then(|| message(self.entry));
        if message != self.routed {
            host.route(vector, message)?;
            self.routed = message;
        }
        Ok(())
    }
}

/// Which pin, and whether the upper half of its entry, `select` names.
fn entry_half(select: u8) -> Option<(usize, bool)> {
    let index = select.checked_sub(REG_REDIRECTION)?;
    Some((usize::from(index / 2), index % 2 == 1))
}

#[expect(clippy::cast_possible_truncation, reason = "one half of 64 bits")]
fn half(entry: u64, high: bool) -> u32 {
    if high { (entry >> 32) as u32 } else { entry as u32 }
}

/// A redirection entry as a message (Intel SDM vol. 3A §11.11; KVM cpuid.rst `KVM_FEATURE_MSI_EXT_DEST_ID`).
fn message(entry: u64) -> MsiMessage {
    const VECTOR_AND_DELIVERY: u32 = 0x7ff;
    const DESTINATION_LOGICAL: u64 = 1 << 11;
    let (destination, extended) = ((entry >> 56) & 0xff, (entry >> 49) & 0x7f);
    let logical = u64::from(entry & DESTINATION_LOGICAL != 0);
    MsiMessage {
        address: MESSAGE_ADDRESS | (destination << 12) | (extended << 5) | (logical << 2),
        data: half(entry, false) & VECTOR_AND_DELIVERY,
    }
}

impl BusDevice for Ioapic {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            IOREGSEL => u32::from(self.select),
            IOWIN => self.read_register(),
            _ => 0,
        };
        data.fill(0);
        data.iter_mut()
            .zip(value.to_le_bytes())
            .for_each(|(byte, value)| *byte = value);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        match (offset, data) {
            (IOREGSEL, [select, ..]) => self.select = *select,
            (IOWIN, [a, b, c, d]) => self.write_register(u32::from_le_bytes([*a, *b, *c, *d])),
            _ => {}
        }
        Effect::None
    }
}

#[cfg(test)]
#[path = "ioapic_test.rs"]
mod tests;
