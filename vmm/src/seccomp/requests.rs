//! ioctl request numbers (ioctl(2), asm-generic/ioctl.h) that no crate has as constants.

const NONE: u32 = 0;
const WRITE: u32 = 1;
const READ: u32 = 2;

/// The kernel takes a request number as an `unsigned int`: direction, size of what it points to, kind, number.
const fn request(direction: u32, kind: u32, number: u32, bytes: u32) -> u32 {
    direction << 30 | bytes << 16 | kind << 8 | number
}

const KVMIO: u32 = 0xae;

const fn kvm(number: u32) -> u32 {
    request(NONE, KVMIO, number, 0)
}

const fn kvm_read(number: u32, bytes: u32) -> u32 {
    request(READ, KVMIO, number, bytes)
}

const fn kvm_write(number: u32, bytes: u32) -> u32 {
    request(WRITE, KVMIO, number, bytes)
}

const fn kvm_both(number: u32, bytes: u32) -> u32 {
    request(READ | WRITE, KVMIO, number, bytes)
}

// KVM api.rst §4, in the order of their numbers.
pub(super) const KVM_GET_API_VERSION: u32 = kvm(0x00);
pub(super) const KVM_CREATE_VM: u32 = kvm(0x01);
pub(super) const KVM_CHECK_EXTENSION: u32 = kvm(0x03);
pub(super) const KVM_GET_VCPU_MMAP_SIZE: u32 = kvm(0x04);
pub(super) const KVM_GET_SUPPORTED_CPUID: u32 = kvm_both(0x05, 8);
pub(super) const KVM_CREATE_VCPU: u32 = kvm(0x41);
pub(super) const KVM_SET_USER_MEMORY_REGION: u32 = kvm_write(0x46, 32);
pub(super) const KVM_SET_TSS_ADDR: u32 = kvm(0x47);
pub(super) const KVM_SET_GSI_ROUTING: u32 = kvm_write(0x6a, 8);
pub(super) const KVM_IRQFD: u32 = kvm_write(0x76, 32);
pub(super) const KVM_IOEVENTFD: u32 = kvm_write(0x79, 64);
pub(super) const KVM_RUN: u32 = kvm(0x80);
pub(super) const KVM_GET_REGS: u32 = kvm_read(0x81, 144);
pub(super) const KVM_SET_REGS: u32 = kvm_write(0x82, 144);
pub(super) const KVM_GET_SREGS: u32 = kvm_read(0x83, 312);
pub(super) const KVM_SET_SREGS: u32 = kvm_write(0x84, 312);
pub(super) const KVM_SET_MSRS: u32 = kvm_write(0x89, 8);
pub(super) const KVM_GET_LAPIC: u32 = kvm_read(0x8e, 1024);
pub(super) const KVM_SET_LAPIC: u32 = kvm_write(0x8f, 1024);
pub(super) const KVM_SET_CPUID2: u32 = kvm_write(0x90, 8);
pub(super) const KVM_GET_MP_STATE: u32 = kvm_read(0x98, 4);
pub(super) const KVM_SET_MP_STATE: u32 = kvm_write(0x99, 4);
pub(super) const KVM_GET_VCPU_EVENTS: u32 = kvm_read(0x9f, 64);
pub(super) const KVM_SET_VCPU_EVENTS: u32 = kvm_write(0xa0, 64);
pub(super) const KVM_GET_TSC_KHZ: u32 = kvm(0xa3);
pub(super) const KVM_ENABLE_CAP: u32 = kvm_write(0xa3, 104);
pub(super) const KVM_KVMCLOCK_CTRL: u32 = kvm(0xad);
pub(super) const KVM_GET_STATS_FD: u32 = kvm(0xce);
pub(super) const KVM_SET_DEVICE_ATTR: u32 = kvm_write(0xe1, 24);
pub(super) const KVM_GET_DEVICE_ATTR: u32 = kvm_write(0xe2, 24);

// Terminals (ioctl_tty(2)).
pub(super) const TCGETS: u32 = 0x5401;
pub(super) const TCSETS: u32 = 0x5402;
pub(super) const TIOCGPGRP: u32 = 0x540f;
pub(super) const TIOCGWINSZ: u32 = 0x5413;
// Pseudo-terminals: unlocked, named, the other side opened.
pub(super) const TIOCSPTLCK: u32 = request(WRITE, 0x54, 0x31, 4);
pub(super) const TIOCGPTN: u32 = request(READ, 0x54, 0x30, 4);
pub(super) const TIOCGPTPEER: u32 = request(NONE, 0x54, 0x41, 0);
/// What newer C libraries use in place of `TCGETS` and `TCSETS`.
pub(super) const TCGETS2: u32 = 0x802c_542a;
pub(super) const TCSETS2: u32 = 0x402c_542b;

/// Files of any kind (ioctl(2)).
pub(super) const FIONBIO: u32 = 0x5421;
pub(super) const SIOCOUTQ: u32 = 0x5411;

// Block devices (linux/fs.h).
pub(super) const BLKGETSIZE64: u32 = request(READ, 0x12, 114, 8);
pub(super) const BLKROGET: u32 = request(NONE, 0x12, 94, 0);
pub(super) const BLKSSZGET: u32 = request(NONE, 0x12, 104, 0);
pub(super) const BLKIOMIN: u32 = request(NONE, 0x12, 120, 0);
pub(super) const BLKIOOPT: u32 = request(NONE, 0x12, 121, 0);
pub(super) const BLKPBSZGET: u32 = request(NONE, 0x12, 123, 0);

// Taps (linux/if_tun.h).
pub(super) const TUNSETIFF: u32 = request(WRITE, 0x54, 202, 4);
pub(super) const TUNSETOFFLOAD: u32 = request(WRITE, 0x54, 208, 4);
pub(super) const TUNGETIFF: u32 = request(READ, 0x54, 210, 4);
pub(super) const TUNSETVNETHDRSZ: u32 = request(WRITE, 0x54, 216, 4);
pub(super) const TUNSETQUEUE: u32 = request(WRITE, 0x54, 217, 4);

// Rings that the kernel serves (linux/vhost.h), in the order of their numbers.
const VHOST_VIRTIO: u32 = 0xaf;
pub(super) const VHOST_GET_FEATURES: u32 = request(READ, VHOST_VIRTIO, 0x00, 8);
pub(super) const VHOST_SET_FEATURES: u32 = request(WRITE, VHOST_VIRTIO, 0x00, 8);
pub(super) const VHOST_SET_OWNER: u32 = request(NONE, VHOST_VIRTIO, 0x01, 0);
pub(super) const VHOST_SET_MEM_TABLE: u32 = request(WRITE, VHOST_VIRTIO, 0x03, 8);
pub(super) const VHOST_SET_VRING_NUM: u32 = request(WRITE, VHOST_VIRTIO, 0x10, 8);
pub(super) const VHOST_SET_VRING_ADDR: u32 = request(WRITE, VHOST_VIRTIO, 0x11, 40);
pub(super) const VHOST_SET_VRING_BASE: u32 = request(WRITE, VHOST_VIRTIO, 0x12, 8);
pub(super) const VHOST_GET_VRING_BASE: u32 = request(READ | WRITE, VHOST_VIRTIO, 0x12, 8);
pub(super) const VHOST_SET_VRING_KICK: u32 = request(WRITE, VHOST_VIRTIO, 0x20, 8);
pub(super) const VHOST_SET_VRING_CALL: u32 = request(WRITE, VHOST_VIRTIO, 0x21, 8);
pub(super) const VHOST_SET_VRING_ERR: u32 = request(WRITE, VHOST_VIRTIO, 0x22, 8);
pub(super) const VHOST_NET_SET_BACKEND: u32 = request(WRITE, VHOST_VIRTIO, 0x30, 8);
pub(super) const VHOST_VSOCK_SET_GUEST_CID: u32 = request(WRITE, VHOST_VIRTIO, 0x60, 8);
pub(super) const VHOST_VSOCK_SET_RUNNING: u32 = request(WRITE, VHOST_VIRTIO, 0x61, 4);

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
        assert_eq!(BLKROGET, 0x125e);
        assert_eq!(BLKSSZGET, 0x1268);
        assert_eq!(TUNSETIFF, 0x4004_54ca);
        assert_eq!(TUNSETVNETHDRSZ, 0x4004_54d8);
    }

    #[test]
    fn numbers_of_vhost_are_those_that_the_crate_asks_by() {
        use vhost::vhost_kern::vhost_binding as asked;
        for (request, asked) in [
            (VHOST_GET_FEATURES, asked::VHOST_GET_FEATURES()),
            (VHOST_SET_FEATURES, asked::VHOST_SET_FEATURES()),
            (VHOST_SET_OWNER, asked::VHOST_SET_OWNER()),
            (VHOST_SET_MEM_TABLE, asked::VHOST_SET_MEM_TABLE()),
            (VHOST_SET_VRING_NUM, asked::VHOST_SET_VRING_NUM()),
            (VHOST_SET_VRING_ADDR, asked::VHOST_SET_VRING_ADDR()),
            (VHOST_SET_VRING_BASE, asked::VHOST_SET_VRING_BASE()),
            (VHOST_GET_VRING_BASE, asked::VHOST_GET_VRING_BASE()),
            (VHOST_SET_VRING_KICK, asked::VHOST_SET_VRING_KICK()),
            (VHOST_SET_VRING_CALL, asked::VHOST_SET_VRING_CALL()),
            (VHOST_SET_VRING_ERR, asked::VHOST_SET_VRING_ERR()),
            (VHOST_NET_SET_BACKEND, asked::VHOST_NET_SET_BACKEND()),
            (VHOST_VSOCK_SET_GUEST_CID, asked::VHOST_VSOCK_SET_GUEST_CID()),
            (VHOST_VSOCK_SET_RUNNING, asked::VHOST_VSOCK_SET_RUNNING()),
        ] {
            assert_eq!(libc::c_ulong::from(request), asked);
        }
    }

    #[test]
    fn sizes_are_those_of_what_is_passed() {
        let passed = [
            (KVM_GET_SUPPORTED_CPUID, size_of::<kvm_bindings::kvm_cpuid2>()),
            (
                KVM_SET_USER_MEMORY_REGION,
                size_of::<kvm_bindings::kvm_userspace_memory_region>(),
            ),
            (KVM_SET_GSI_ROUTING, size_of::<kvm_bindings::kvm_irq_routing>()),
            (KVM_IRQFD, size_of::<kvm_bindings::kvm_irqfd>()),
            (KVM_IOEVENTFD, size_of::<kvm_bindings::kvm_ioeventfd>()),
            (KVM_GET_REGS, size_of::<kvm_bindings::kvm_regs>()),
            (KVM_SET_REGS, size_of::<kvm_bindings::kvm_regs>()),
            (KVM_GET_SREGS, size_of::<kvm_bindings::kvm_sregs>()),
            (KVM_SET_SREGS, size_of::<kvm_bindings::kvm_sregs>()),
            (KVM_SET_MSRS, size_of::<kvm_bindings::kvm_msrs>()),
            (KVM_SET_CPUID2, size_of::<kvm_bindings::kvm_cpuid2>()),
            (KVM_GET_LAPIC, size_of::<kvm_bindings::kvm_lapic_state>()),
            (KVM_SET_LAPIC, size_of::<kvm_bindings::kvm_lapic_state>()),
            (KVM_GET_VCPU_EVENTS, size_of::<kvm_bindings::kvm_vcpu_events>()),
            (KVM_SET_VCPU_EVENTS, size_of::<kvm_bindings::kvm_vcpu_events>()),
            (KVM_SET_DEVICE_ATTR, size_of::<kvm_bindings::kvm_device_attr>()),
            (KVM_GET_DEVICE_ATTR, size_of::<kvm_bindings::kvm_device_attr>()),
            (KVM_GET_MP_STATE, size_of::<kvm_bindings::kvm_mp_state>()),
            (KVM_SET_MP_STATE, size_of::<kvm_bindings::kvm_mp_state>()),
            (KVM_ENABLE_CAP, size_of::<kvm_bindings::kvm_enable_cap>()),
        ];
        for (request, bytes) in passed {
            assert_eq!(usize::try_from(request >> 16 & 0x3fff).unwrap(), bytes, "{request:#x}");
        }
    }
}
