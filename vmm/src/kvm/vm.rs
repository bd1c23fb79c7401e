//! One KVM virtual machine: memory slots, the interrupt controller, and the real [`Host`].

#![expect(unsafe_code, reason = "KVM_SET_USER_MEMORY_REGION takes a host address on trust")]

use std::io;
use std::sync::Mutex;

use husk_devices::{Host, Irq, MsiMessage, MsiVector, lock};
use kvm_bindings::{
    KVM_CAP_DISABLE_QUIRKS2, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API, KVM_MEM_READONLY,
    KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS, KVM_X86_QUIRK_SLOT_ZAP_ALL, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::eventfd::EventFd;

use super::irq::{RESERVED_PINS, Routes, Wires, table};
use super::stats::Stats;
use super::vcpu::Vcpu;
use super::{Context, KvmError};

/// vCPUs that 8-bit APIC IDs can name; more need x2APIC identifiers.
const MAX_XAPIC_VCPUS: u32 = 255;

/// What a guest may do with a memory slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read, write, execute.
    ReadWrite,
    /// Writes leave to the VMM as MMIO.
    ReadOnly,
}

/// A virtual machine.
///
/// Lock order: `routes` is taken alone, and never while a device is locked by the same thread for
/// longer than one register write.
#[derive(Debug)]
pub struct Vm {
    fd: VmFd,
    routes: Mutex<Routes>,
}

impl Vm {
    /// What KVM counts of the whole of it, if this host's KVM does.
    pub fn stats(&self) -> Option<Stats> {
        Stats::of(&self.fd).ok()
    }

    pub(super) fn new(fd: VmFd) -> Result<Self, KvmError> {
        // When a slot goes, KVM may forget the pages of that slot alone, and the guest need not
        // fault all others in again (KVM api.rst, `KVM_CAP_DISABLE_QUIRKS2`, Linux 6.12). A KVM
        // that does not know this refuses the bit, and goes on as it always has.
        let _ = fd.enable_cap(&capability(KVM_CAP_DISABLE_QUIRKS2, KVM_X86_QUIRK_SLOT_ZAP_ALL.into()));
        Ok(Self {
            fd,
            routes: Mutex::default(),
        })
    }

    /// Maps `len` bytes at `host` into the guest at `gpa` (KVM api.rst 4.35). Adding slots before
    /// [`Vm::create_irqchip`] and before any doorbell saves several milliseconds on Linux 6.18 and
    /// later.
    ///
    /// # Errors
    /// [`KvmError::Refused`], for example when the slot overlaps another.
    ///
    /// # Safety
    /// `host..host + len` must stay mapped, and must be meant for the guest, for as long as the slot exists.
    pub unsafe fn map(&self, slot: u32, gpa: u64, host: *mut u8, len: u64, access: Access) -> Result<(), KvmError> {
        let region = kvm_userspace_memory_region {
            slot,
            flags: if access == Access::ReadOnly {
                KVM_MEM_READONLY
            } else {
                0
            },
            guest_phys_addr: gpa,
            memory_size: len,
            userspace_addr: host as u64,
        };
        // SAFETY: the caller answers for the host range.
        unsafe { self.fd.set_user_memory_region(region) }
            .or_refused(|| format!("map {len:#x} bytes of RAM at {gpa:#x}"))
    }

    /// Takes back what [`Vm::map`] mapped in `slot`: the guest's accesses become MMIO.
    ///
    /// # Errors
    /// [`KvmError::Refused`], for example when there is no such slot.
    pub fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        let nothing = kvm_userspace_memory_region {
            slot,
            ..Default::default()
        };
        // SAFETY: a slot of no bytes refers to no memory.
        unsafe { self.fd.set_user_memory_region(nothing) }.or_refused(|| format!("take memory slot {slot} back"))
    }

    /// Creates the local APICs in the kernel, without PIC, I/O APIC and PIT (KVM api.rst 7.5
    /// `KVM_CAP_SPLIT_IRQCHIP`). Only before the first vCPU.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn create_irqchip(&self, vcpus: u32, tss: u64) -> Result<(), KvmError> {
        let tss = usize::try_from(tss).expect("x86_64: a guest-physical address below 4 GiB fits a usize");
        self.fd
            .set_tss_address(tss)
            .or_refused(|| format!("place its task state segment at {tss:#x}"))?;
        self.fd
            .enable_cap(&capability(KVM_CAP_SPLIT_IRQCHIP, RESERVED_PINS.into()))
            .or_refused(|| "create the interrupt controller".into())?;
        if vcpus <= MAX_XAPIC_VCPUS {
            return Ok(());
        }
        let identifiers = KVM_X2APIC_API_USE_32BIT_IDS | KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        self.fd
            .enable_cap(&capability(KVM_CAP_X2APIC_API, identifiers.into()))
            .or_refused(|| format!("use 32-bit APIC IDs for {vcpus} vCPUs"))
    }

    /// Creates vCPU number `id`, which is also its APIC ID.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn create_vcpu(&self, id: u32) -> Result<Vcpu, KvmError> {
        let fd = self
            .fd
            .create_vcpu(u64::from(id))
            .or_refused(|| format!("create vCPU {id}"))?;
        Ok(Vcpu::new(id, fd))
    }

    fn locked_routes(&self) -> std::sync::MutexGuard<'_, Routes> {
        lock(&self.routes)
    }
}

/// A capability of a VM, with the one argument that those here take (KVM api.rst 4.37).
fn capability(cap: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap {
        cap,
        args: [argument, 0, 0, 0],
        ..Default::default()
    }
}

impl Wires for VmFd {
    fn replace(&self, routes: &[(u32, MsiMessage)]) -> io::Result<()> {
        self.set_gsi_routing(&table(routes)?).map_err(from_errno)
    }

    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.register_irqfd(event, gsi).map_err(from_errno)
    }

    fn disconnect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.unregister_irqfd(event, gsi).map_err(from_errno)
    }
}

impl Host for Vm {
    fn msi(&self) -> io::Result<MsiVector> {
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        let gsi = self
            .locked_routes()
            .reserve()
            .ok_or_else(|| io::Error::other("all 4072 message GSIs are taken"))?;
        Ok(MsiVector {
            gsi,
            irq: Irq::new(event),
        })
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        self.locked_routes().route(&self.fd, vector, message)
    }

    fn release(&self, vector: &MsiVector) {
        if let Err(error) = self.locked_routes().release(&self.fd, vector) {
            log::warn!("cannot disconnect GSI {}: {error}", vector.gsi);
        }
    }

    fn doorbell(&self, addr: u64, kick: &EventFd, on: bool) -> io::Result<()> {
        let addr = IoEventAddress::Mmio(addr);
        let changed = if on {
            self.fd.register_ioevent(kick, &addr, NoDatamatch)
        } else {
            self.fd.unregister_ioevent(kick, &addr, NoDatamatch)
        };
        changed.map_err(from_errno)
    }
}

fn from_errno(errno: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(errno.errno())
}

#[cfg(test)]
#[path = "vm_test.rs"]
mod tests;
