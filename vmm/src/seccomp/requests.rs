//! ioctl request numbers (ioctl(2), asm-generic/ioctl.h) that no crate has as constants.

use kvm_bindings::{
    kvm_clock_data, kvm_cpuid2, kvm_enable_cap, kvm_ioeventfd, kvm_irq_routing, kvm_irqfd, kvm_mp_state, kvm_msi,
    kvm_msrs, kvm_regs, kvm_sregs, kvm_userspace_memory_region,
};
use vmm_sys_util::ioctl::{_IOC_NONE, _IOC_READ, _IOC_WRITE, ioctl_expr};

/// The kernel takes a request number as an `unsigned int`.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the fields of a request number fill 32 bits"
)]
const fn request(direction: u32, kind: u32, number: u32, bytes: usize) -> u32 {
    ioctl_expr(direction, kind, number, bytes as u32) as u32
}

const KVMIO: u32 = 0xae;

const fn kvm(number: u32) -> u32 {
    request(_IOC_NONE, KVMIO, number, 0)
}

const fn kvm_read<T>(number: u32) -> u32 {
    request(_IOC_READ, KVMIO, number, size_of::<T>())
}

const fn kvm_write<T>(number: u32) -> u32 {
    request(_IOC_WRITE, KVMIO, number, size_of::<T>())
}

const fn kvm_both<T>(number: u32) -> u32 {
    request(_IOC_READ | _IOC_WRITE, KVMIO, number, size_of::<T>())
}

// KVM api.rst §4, in the order of their numbers.
pub(super) const KVM_GET_API_VERSION: u32 = kvm(0x00);
pub(super) const KVM_CREATE_VM: u32 = kvm(0x01);
pub(super) const KVM_CHECK_EXTENSION: u32 = kvm(0x03);
pub(super) const KVM_GET_VCPU_MMAP_SIZE: u32 = kvm(0x04);
pub(super) const KVM_GET_SUPPORTED_CPUID: u32 = kvm_both::<kvm_cpuid2>(0x05);
pub(super) const KVM_CREATE_VCPU: u32 = kvm(0x41);
pub(super) const KVM_SET_USER_MEMORY_REGION: u32 = kvm_write::<kvm_userspace_memory_region>(0x46);
pub(super) const KVM_SET_TSS_ADDR: u32 = kvm(0x47);
pub(super) const KVM_SET_GSI_ROUTING: u32 = kvm_write::<kvm_irq_routing>(0x6a);
pub(super) const KVM_IRQFD: u32 = kvm_write::<kvm_irqfd>(0x76);
pub(super) const KVM_IOEVENTFD: u32 = kvm_write::<kvm_ioeventfd>(0x79);
pub(super) const KVM_SET_CLOCK: u32 = kvm_write::<kvm_clock_data>(0x7b);
pub(super) const KVM_GET_CLOCK: u32 = kvm_read::<kvm_clock_data>(0x7c);
pub(super) const KVM_RUN: u32 = kvm(0x80);
pub(super) const KVM_GET_REGS: u32 = kvm_read::<kvm_regs>(0x81);
pub(super) const KVM_SET_REGS: u32 = kvm_write::<kvm_regs>(0x82);
pub(super) const KVM_GET_SREGS: u32 = kvm_read::<kvm_sregs>(0x83);
pub(super) const KVM_SET_SREGS: u32 = kvm_write::<kvm_sregs>(0x84);
pub(super) const KVM_SET_MSRS: u32 = kvm_write::<kvm_msrs>(0x89);
pub(super) const KVM_SET_CPUID2: u32 = kvm_write::<kvm_cpuid2>(0x90);
pub(super) const KVM_GET_MP_STATE: u32 = kvm_read::<kvm_mp_state>(0x98);
pub(super) const KVM_SET_MP_STATE: u32 = kvm_write::<kvm_mp_state>(0x99);
pub(super) const KVM_GET_TSC_KHZ: u32 = kvm(0xa3);
pub(super) const KVM_ENABLE_CAP: u32 = kvm_write::<kvm_enable_cap>(0xa3);
pub(super) const KVM_SIGNAL_MSI: u32 = kvm_write::<kvm_msi>(0xa5);
pub(super) const KVM_KVMCLOCK_CTRL: u32 = kvm(0xad);

// Terminals (ioctl_tty(2)).
pub(super) const TCGETS: u32 = 0x5401;
pub(super) const TCSETS: u32 = 0x5402;
pub(super) const TCSETSW: u32 = 0x5403;
pub(super) const TCSETSF: u32 = 0x5404;
pub(super) const TIOCGPGRP: u32 = 0x540f;
pub(super) const TIOCGWINSZ: u32 = 0x5413;
/// What newer C libraries use in place of `TCGETS` and `TCSETS`.
pub(super) const TCGETS2: u32 = 0x802c_542a;
pub(super) const TCSETS2: u32 = 0x402c_542b;

/// Files of any kind (ioctl(2)).
pub(super) const FIONBIO: u32 = 0x5421;
pub(super) const FIONREAD: u32 = 0x541b;

// Block devices (linux/fs.h).
pub(super) const BLKGETSIZE64: u32 = request(_IOC_READ, 0x12, 114, size_of::<usize>());
pub(super) const BLKSSZGET: u32 = request(_IOC_NONE, 0x12, 104, 0);
pub(super) const BLKIOMIN: u32 = request(_IOC_NONE, 0x12, 120, 0);
pub(super) const BLKIOOPT: u32 = request(_IOC_NONE, 0x12, 121, 0);
pub(super) const BLKPBSZGET: u32 = request(_IOC_NONE, 0x12, 123, 0);

// Taps (linux/if_tun.h).
pub(super) const TUNSETIFF: u32 = request(_IOC_WRITE, 0x54, 202, 4);
pub(super) const TUNGETFEATURES: u32 = request(_IOC_READ, 0x54, 207, 4);
pub(super) const TUNSETOFFLOAD: u32 = request(_IOC_WRITE, 0x54, 208, 4);
pub(super) const TUNGETIFF: u32 = request(_IOC_READ, 0x54, 210, 4);
pub(super) const TUNSETVNETHDRSZ: u32 = request(_IOC_WRITE, 0x54, 216, 4);
pub(super) const TUNSETQUEUE: u32 = request(_IOC_WRITE, 0x54, 217, 4);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernel_headers() {
        // From a C program that prints them, on Linux 6.12.
        assert_eq!(KVM_RUN, 0xae80);
        assert_eq!(KVM_GET_SUPPORTED_CPUID, 0xc008_ae05);
        assert_eq!(KVM_SET_USER_MEMORY_REGION, 0x4020_ae46);
        assert_eq!(KVM_SET_GSI_ROUTING, 0x4008_ae6a);
        assert_eq!(KVM_IRQFD, 0x4020_ae76);
        assert_eq!(KVM_IOEVENTFD, 0x4040_ae79);
        assert_eq!(KVM_GET_REGS, 0x8090_ae81);
        assert_eq!(KVM_SET_SREGS, 0x4138_ae84);
        assert_eq!(KVM_ENABLE_CAP, 0x4068_aea3);
        assert_eq!(BLKGETSIZE64, 0x8008_1272);
        assert_eq!(BLKSSZGET, 0x1268);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETVNETHDRSZ, 0x4004_54d8);
    }
}
