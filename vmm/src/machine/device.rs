//! How a device becomes part of a machine: one function for a device on I/O ports, one for a virtio device of any kind.

use std::io;
use std::sync::{Arc, Mutex};

use husk_devices::ioapic::{self, Ioapic};
use husk_devices::memory::GuestMemory;
use husk_devices::pci::{BarAllocator, Bdf, PciFunction, PciRoot, Window};
use husk_devices::{BusDevice, Host, Irq};
use husk_firmware::layout;
use husk_virtio::device::VirtioDevice;
use husk_virtio::threads::Threads;
use husk_virtio::transport::pci::VirtioPci;

use super::board::{Board, lock};
use super::build::BuildError;

/// The devices of one VM.
pub struct Devices {
    board: Arc<Board>,
    host: Arc<dyn Host>,
    memory: GuestMemory,
    threads: Arc<dyn Threads>,
    bars: BarAllocator,
    ioapic: Arc<Mutex<Ioapic>>,
    virtio: Vec<Arc<Mutex<VirtioPci>>>,
    aml: Vec<Vec<u8>>,
}

impl Devices {
    /// A machine with nothing but a PCI root and an I/O APIC, whose devices get their threads from `threads`.
    ///
    /// # Errors
    /// [`BuildError::Device`].
    pub fn new(
        board: Arc<Board>,
        host: Arc<dyn Host>,
        memory: GuestMemory,
        threads: Arc<dyn Threads>,
    ) -> Result<Self, BuildError> {
        let ecam = Window {
            base: layout::ECAM,
            size: layout::ECAM_LEN,
        };
        let mmio = Window {
            base: layout::PCI32,
            size: layout::PCI32_LEN,
        };
        let bars = BarAllocator::new(mmio).map_err(|e| BuildError::device("PCI root", e))?;
        let placed = board.mmio().insert(ecam.base, ecam.size, board.pci().clone());
        placed.map_err(|e| BuildError::device("PCI root", e))?;
        let ioapic = Arc::new(Mutex::new(Ioapic::new(host.clone())));
        let placed = board
            .mmio()
            .insert(u64::from(layout::IOAPIC), ioapic::SIZE, ioapic.clone());
        placed.map_err(|e| BuildError::device("I/O APIC", e))?;
        let aml = vec![PciRoot::aml(ecam, mmio, Window { base: 0, size: 0 })];
        Ok(Self {
            board,
            host,
            memory,
            threads,
            bars,
            ioapic,
            virtio: Vec::new(),
            aml,
        })
    }

    /// The interrupt of I/O APIC pin `gsi`, raised by an edge.
    ///
    /// # Errors
    /// No such pin, or no GSI left.
    pub fn line(&self, gsi: u32) -> io::Result<Irq> {
        lock(&self.ioapic).line(u8::try_from(gsi).unwrap_or(u8::MAX))
    }

    /// Puts a device on `len` I/O ports from `base`, and its ACPI description, if it has one, into the DSDT.
    ///
    /// # Errors
    /// When the ports are taken.
    pub fn add_ports(
        &mut self,
        name: &str,
        base: u16,
        len: u64,
        device: Arc<Mutex<dyn BusDevice>>,
        aml: Option<Vec<u8>>,
    ) -> Result<(), BuildError> {
        self.board
            .ports()
            .insert(u64::from(base), len, device)
            .map_err(|e| BuildError::device(name, e))?;
        self.aml.extend(aml);
        Ok(())
    }

    /// Puts a virtio device of any kind into the first free PCI slot, its BAR placed and decoding. `name` is what its threads are
    /// called, after `io-`.
    ///
    /// # Errors
    /// When slots, addresses or interrupts have run out.
    pub fn add_virtio(&mut self, name: &str, device: Box<dyn VirtioDevice>) -> Result<Bdf, BuildError> {
        let fault = |source: Box<dyn std::error::Error + Send + Sync>| BuildError::device(name, source);
        let mut function = VirtioPci::new(device, name.into(), self.host.clone(), self.memory.clone())
            .map_err(|e| fault(Box::new(e)))?;
        function.set_threads(self.threads.clone());
        for (index, bar) in function.config().bars() {
            let base = self.bars.allocate(bar.size()).map_err(|e| fault(Box::new(e)))?;
            function
                .config_mut()
                .place_bar(index, base)
                .map_err(|e| fault(Box::new(e)))?;
        }
        let function = Arc::new(Mutex::new(function));
        let bdf = lock(self.board.pci())
            .insert(None, function.clone())
            .map_err(|e| fault(Box::new(e)))?;
        self.board.remap(bdf);
        self.virtio.push(function);
        Ok(bdf)
    }

    /// The ACPI descriptions of all devices, for `\_SB`.
    pub fn aml(&self) -> &[Vec<u8>] {
        &self.aml
    }

    /// Keeps every device from doing anything until [`Devices::release`]. Only when no vCPU runs.
    pub fn hold(&self) {
        for function in &self.virtio {
            lock(function).hold();
        }
    }

    /// Lets the devices go on.
    pub fn release(&self) {
        for function in &self.virtio {
            lock(function).release();
        }
    }

    /// Stops every device thread: requests in flight are completed, then guest memory is left alone. Not to be called on a vCPU
    /// thread, and only when all of these have stopped.
    pub fn stop(&mut self) {
        for function in &self.virtio {
            lock(function).shutdown();
        }
    }
}
