//! A 16550A serial port, over vm-superio (TI PC16550D §8).
//!
//! | offset | bytes | R/W | meaning |
//! |---|---|---|---|
//! | 0 | 1 | RW | receive buffer, transmit holding; with DLAB divisor low |
//! | 1 | 1 | RW | interrupt enable; with DLAB divisor high |
//! | 2 | 1 | RW | interrupt identification; FIFO control |
//! | 3 | 1 | RW | line control, bit 7 is DLAB |
//! | 4 | 1 | RW | modem control |
//! | 5 | 1 | R | line status |
//! | 6 | 1 | R | modem status |
//! | 7 | 1 | RW | scratch |
//!
//! **Output.** Each byte goes to the sink at once, on the vCPU thread that wrote it; whether and
//! how to buffer is the sink's business, and it must not block for long: a sink for a pipe, a
//! terminal or a socket is to fail with `WouldBlock` when that is full. What the sink does not take
//! is lost and counted; the guest is never told to wait, as on a wire without flow control.
//!
//! **Input.** The receive FIFO is 64 bytes long. [`Serial::enqueue`] takes what fits; who is left
//! with a rest keeps it, stops reading its source, and goes on when the event given to
//! [`Serial::set_drained_event`] fires.

use std::convert::Infallible;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use acpi_tables::Aml;
use acpi_tables::aml::{Device, EISAName, IO, Interrupt, Name, Path, ResourceTemplate, ZERO};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Effect};
use crate::host::Irq;
use crate::metrics::{Counter, MetricsSource};

/// Length of the register block.
pub const SIZE: u64 = 8;
const SIZE_U8: u8 = 8;
/// Offset of modem control.
const MODEM_CONTROL: u8 = 4;
/// Modem control: what is sent is received, and nothing else is.
const LOOPBACK: u8 = 1 << 4;

/// A serial port.
pub struct Serial {
    uart: vm_superio::Serial<IrqTrigger, Events, Box<dyn Write + Send>>,
}

/// The port's interrupt, as vm-superio raises it.
struct IrqTrigger(Irq);

impl Trigger for IrqTrigger {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        self.0.raise();
        Ok(())
    }
}

/// What a serial port has done since it was made.
#[derive(Debug, Default)]
pub struct SerialMetrics {
    /// Bytes typed that the guest has read.
    pub rx_bytes: Counter,
    /// Bytes printed.
    pub tx_bytes: Counter,
    /// Bytes of output that were lost: the sink did not take them. A sink that loses what it has taken may count it
    /// here as well.
    pub tx_lost_bytes: Arc<Counter>,
}

impl MetricsSource for SerialMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("rx_bytes", self.rx_bytes.get()),
            ("tx_bytes", self.tx_bytes.get()),
            ("tx_lost_bytes", self.tx_lost_bytes.get()),
        ]
    }
}

/// What vm-superio tells of its work.
#[derive(Default)]
struct Events {
    metrics: Arc<SerialMetrics>,
    /// The last [`Serial::enqueue`] left bytes behind.
    waiting: AtomicBool,
    drained: OnceLock<EventFd>,
}

impl Events {
    fn wake_source(&self) {
        if self.waiting.swap(false, Ordering::Relaxed)
            && let Some(event) = self.drained.get()
        {
            // Fails only when the counter is full, and then the event has fired.
            let _ = event.write(1);
        }
    }
}

impl SerialEvents for Events {
    fn buffer_read(&self) {
        self.metrics.rx_bytes.inc();
    }

    fn out_byte(&self) {
        self.metrics.tx_bytes.inc();
    }

    fn tx_lost_byte(&self) {
        self.metrics.tx_lost_bytes.inc();
    }

    fn in_buffer_empty(&self) {
        self.wake_source();
    }
}

impl Serial {
    /// A serial port that raises `irq` and writes to `output`; see the module for what is asked of `output`.
    pub fn new(irq: Irq, output: Box<dyn Write + Send>) -> Self {
        Self {
            uart: vm_superio::Serial::with_events(IrqTrigger(irq), Events::default(), output),
        }
    }

    /// The port's metrics.
    pub fn metrics(&self) -> Arc<SerialMetrics> {
        self.uart.events().metrics.clone()
    }

    /// Writes 1 to `event` whenever the guest has emptied the receive FIFO after
    /// [`Serial::enqueue`] had to leave bytes behind. Only the first event given counts.
    pub fn set_drained_event(&mut self, event: EventFd) {
        // The first event is kept, as documented.
        let _ = self.uart.events().drained.set(event);
    }

    /// Gives input to the guest and returns how many bytes were taken: fewer than given when the
    /// FIFO is full, none while the guest has the port in loopback mode.
    pub fn enqueue(&mut self, bytes: &[u8]) -> usize {
        // The interrupt cannot fail, so the only error is a full FIFO.
        let taken = self.uart.enqueue_raw_bytes(bytes).unwrap_or(0);
        if taken < bytes.len() {
            self.uart.events().waiting.store(true, Ordering::Relaxed);
        }
        taken
    }

    /// The device `COM1` with 8 I/O ports from `port` on and the edge-triggered, active-high
    /// interrupt `gsi`. For `\_SB`.
    pub fn aml(port: u16, gsi: u32) -> Vec<u8> {
        let mut aml = Vec::new();
        let ports = IO::new(port, port, 1, SIZE_U8);
        let interrupt = Interrupt::new(true, true, false, false, gsi);
        Device::new(
            Path::new("COM1"),
            vec![
                &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                &Name::new(Path::new("_UID"), &ZERO),
                &Name::new(Path::new("_CRS"), &ResourceTemplate::new(vec![&ports, &interrupt])),
            ],
        )
        .to_aml_bytes(&mut aml);
        aml
    }

    fn write_byte(&mut self, register: u8, value: u8) {
        // A byte that the sink refused has been counted; the guest goes on.
        let _ = self.uart.write(register, value);
        if register == MODEM_CONTROL && value & LOOPBACK == 0 && self.uart.fifo_capacity() > 0 {
            // Input refused in loopback mode is welcome again, and no read of the guest would say so.
            self.uart.events().wake_source();
        }
    }
}

impl BusDevice for Serial {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        for (byte, at) in data.iter_mut().zip(offset..=u64::MAX) {
            *byte = register(at).map_or(0xff, |register| self.uart.read(register));
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        for (value, at) in data.iter().zip(offset..=u64::MAX) {
            if let Some(register) = register(at) {
                self.write_byte(register, *value);
            }
        }
        Effect::None
    }
}

/// The register at an offset, as vm-superio numbers it.
fn register(offset: u64) -> Option<u8> {
    u8::try_from(offset).ok().filter(|register| *register < SIZE_U8)
}

#[cfg(test)]
#[path = "serial_test.rs"]
mod tests;
