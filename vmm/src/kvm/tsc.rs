//! How far a vCPU's time stamp counter is from the host's (KVM vcpu.rst 4.1 `KVM_VCPU_TSC_OFFSET`).

#![expect(unsafe_code, reason = "kvm-ioctls has no device attributes of vCPUs on x86")]

use std::io;
use std::os::fd::AsRawFd;

use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, kvm_device_attr};
use kvm_ioctls::VcpuFd;

vmm_sys_util::ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);
vmm_sys_util::ioctl_iow_nr!(KVM_GET_DEVICE_ATTR, KVMIO, 0xe2, kvm_device_attr);

/// The offset of a vCPU that does not run.
///
/// # Errors
/// This host's KVM does not say (before Linux 5.16).
pub(super) fn offset(vcpu: &VcpuFd) -> io::Result<u64> {
    let mut offset = 0;
    attribute(vcpu, KVM_GET_DEVICE_ATTR(), &mut offset)?;
    Ok(offset)
}

/// Sets the offset of a vCPU that does not run.
///
/// # Errors
/// As [`offset`].
pub(super) fn set_offset(vcpu: &VcpuFd, mut offset: u64) -> io::Result<()> {
    attribute(vcpu, KVM_SET_DEVICE_ATTR(), &mut offset)
}

fn attribute(vcpu: &VcpuFd, request: libc::c_ulong, value: &mut u64) -> io::Result<()> {
    let attribute = kvm_device_attr {
        group: KVM_VCPU_TSC_CTRL,
        attr: u64::from(KVM_VCPU_TSC_OFFSET),
        addr: &raw mut *value as u64,
        flags: 0,
    };
    // SAFETY: KVM reads the attribute, and reads or writes the eight bytes at its address, both alive until it returns.
    let done = unsafe { libc::ioctl(vcpu.as_raw_fd(), request, &raw const attribute) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
