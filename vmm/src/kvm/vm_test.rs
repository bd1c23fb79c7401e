//! Needs `/dev/kvm`.

use std::fs;
use std::os::fd::AsRawFd;

use vm_memory::{Bytes, VolatileMemory};

use super::*;
use crate::kvm::{Kvm, Port, VcpuExit};

/// An empty VM for `vcpus` vCPUs; `None`, said in a line, where there is no KVM.
fn vm(vcpus: u32) -> Option<Vm> {
    let vm = Kvm::for_test()?.create_vm().unwrap();
    vm.create_irqchip(vcpus, 0xfffb_d000).unwrap();
    Some(vm)
}

const fn message(address: u64, data: u32) -> Option<MsiMessage> {
    Some(MsiMessage { address, data })
}

#[test]
fn a_message_that_kvm_refuses_keeps_no_other_device_from_its_own() {
    // With 8-bit APIC IDs KVM ignores the upper half of an address, with 32-bit ones the lowest byte of it has to be 0
    // (KVM api.rst 4.52).
    for (vcpus, is_refused) in [(1, false), (255, false), (256, true)] {
        let Some(vm) = vm(vcpus) else { return };
        let (bad, good) = (vm.msi().unwrap(), vm.msi().unwrap());
        for attempt in 0..2 {
            let refused = vm.route(&bad, message(0xfee0_0000 | 1 << 32, 0x40)).is_err();
            assert_eq!(refused, is_refused, "{vcpus} vCPUs, attempt {attempt}");
        }
        vm.route(&good, message(0xfee0_0000, 0x41)).unwrap();
        vm.route(&bad, message(0xfee0_0000, 0x42)).unwrap();
        vm.release(&bad);
        vm.route(&good, message(0xfee0_0000, 0x43)).unwrap();
    }
}

#[test]
fn the_event_of_a_vector_keeps_nobody_waiting_and_no_other_program_has_it() {
    let Some(vm) = vm(1) else { return };
    let vector = vm.msi().unwrap();
    let event = fs::read_to_string(format!("/proc/self/fdinfo/{}", vector.irq.event().as_raw_fd())).unwrap();
    let flags = event.lines().find_map(|line| line.strip_prefix("flags:")).unwrap();
    let flags = i32::from_str_radix(flags.trim(), 8).unwrap();
    assert_eq!(flags & libc::O_NONBLOCK, libc::O_NONBLOCK, "{event}");
    assert_eq!(flags & libc::O_CLOEXEC, libc::O_CLOEXEC, "{event}");
}

/// A vCPU whose local APIC is on and in x2APIC mode, as a kernel leaves it.
fn in_x2apic_mode(vm: &Vm, kvm: &Kvm, id: u32) -> kvm_ioctls::VcpuFd {
    const ENABLED: u64 = 1 << 11;
    const X2APIC: u64 = 1 << 10;
    /// Spurious interrupt vector register: vector 0xff, and the APIC is on by software as well
    /// (Intel SDM vol. 3A §11.9).
    const SVR: (usize, u8) = (0xf0, 0x1);
    let vcpu = vm.fd.create_vcpu(u64::from(id)).unwrap();
    let cpuid = kvm.topology(512).cpuid(id, None);
    vcpu.set_cpuid2(&cpuid).unwrap();
    let mut sregs = vcpu.get_sregs().unwrap();
    for mode in [ENABLED, ENABLED | X2APIC] {
        sregs.apic_base |= mode;
        vcpu.set_sregs(&sregs).unwrap();
    }
    let mut lapic = vcpu.get_lapic().unwrap();
    lapic.regs[SVR.0] = -1;
    lapic.regs[SVR.0 + 1] = SVR.1.cast_signed();
    vcpu.set_lapic(&lapic).unwrap();
    vcpu
}

/// Whether `vector` waits in the APIC's interrupt request register (offset 0x200, 32 vectors every 16 bytes).
fn is_requested(vcpu: &kvm_ioctls::VcpuFd, vector: u8) -> bool {
    let at = 0x200 + usize::from(vector / 32) * 16 + usize::from(vector % 32 / 8);
    vcpu.get_lapic().unwrap().regs[at].cast_unsigned() & 1 << (vector % 8) != 0
}

#[test]
fn a_message_reaches_a_vcpu_whose_number_has_more_than_8_bits() {
    let Some(kvm) = Kvm::for_test() else { return };
    let vm = kvm.create_vm().unwrap();
    vm.create_irqchip(512, 0xfffb_d000).unwrap();
    // 300 is 44 in the lower eight bits.
    let vcpus = [0, 44, 300].map(|id| in_x2apic_mode(&vm, &kvm, id));
    for (address, data, meant) in [(0xfee2_c000, 0x51, 1), (0xfee2_c020, 0x52, 2), (0xfee0_0000, 0x53, 0)] {
        let vector = vm.msi().unwrap();
        vm.route(&vector, message(address, u32::from(data))).unwrap();
        vector.irq.event().write(1).unwrap();
        let start = std::time::Instant::now();
        // An eventfd's interrupt may be left to a worker of the host's kernel.
        while !is_requested(&vcpus[meant], data) {
            assert!(start.elapsed().as_secs() < 60, "{address:#x} never arrives");
            std::thread::yield_now();
        }
        let reached = vcpus.iter().filter(|vcpu| is_requested(vcpu, data)).count();
        assert_eq!(reached, 1, "{address:#x} went to others too");
    }
}

/// Whether KVM listens to the event of `vector`: it takes none twice.
fn is_connected(vm: &Vm, vector: &MsiVector) -> bool {
    match vm.fd.register_irqfd(vector.irq.event(), vector.gsi) {
        Ok(()) => {
            vm.fd.unregister_irqfd(vector.irq.event(), vector.gsi).unwrap();
            false
        }
        Err(errno) => {
            assert_eq!(errno.errno(), libc::EBUSY);
            true
        }
    }
}

#[test]
fn kvm_listens_to_the_event_of_a_vector_while_it_has_a_message() {
    let Some(vm) = vm(1) else { return };
    let vector = vm.msi().unwrap();
    assert!(!is_connected(&vm, &vector));
    vm.route(&vector, message(0xfee0_0000, 0x40)).unwrap();
    assert!(is_connected(&vm, &vector));
    vm.route(&vector, None).unwrap();
    assert!(!is_connected(&vm, &vector));
    vm.route(&vector, message(0xfee0_0000, 0x40)).unwrap();
    assert!(is_connected(&vm, &vector));
    vm.release(&vector);
    assert!(!is_connected(&vm, &vector));
}

#[test]
fn a_vector_may_be_disconnected_and_connected_again_and_again() {
    let Some(vm) = vm(1) else { return };
    let vector = vm.msi().unwrap();
    for round in 0..3 {
        vm.route(&vector, message(0xfee0_0000, 0x40 + round)).unwrap();
        vm.route(&vector, None).unwrap();
        vm.route(&vector, None).unwrap();
    }
    vm.release(&vector);
    assert_eq!(vm.msi().unwrap().gsi, vector.gsi, "its number is free again");
}

#[test]
fn one_address_has_one_doorbell() {
    let Some(vm) = vm(1) else { return };
    let (first, second) = (EventFd::new(0).unwrap(), EventFd::new(0).unwrap());
    vm.doorbell(0xc000_0000, &first, true).unwrap();
    assert!(vm.doorbell(0xc000_0000, &second, true).is_err());
    assert!(
        vm.doorbell(0xc000_0000, &second, false).is_err(),
        "not the one that is there"
    );
    vm.doorbell(0xc000_0000, &first, false).unwrap();
    vm.doorbell(0xc000_0000, &second, true).unwrap();
}

#[test]
fn memory_slots_come_and_go_and_do_not_overlap() {
    const PAGE: u64 = 4096;
    let Some(vm) = vm(1) else { return };
    let ram = vm_memory::mmap::MmapRegion::<()>::new(4 * 4096).unwrap();
    // SAFETY: the mapping outlives the VM, which has no vCPU.
    let map = |slot, gpa, len| unsafe { vm.map(slot, gpa, ram.as_ptr(), len, Access::ReadWrite) };
    map(0, 3 * PAGE, PAGE).unwrap();
    map(1, 0, 2 * PAGE).unwrap();
    let error = map(2, PAGE, PAGE).unwrap_err();
    assert_eq!(error.to_string(), "KVM refused to map 0x1000 bytes of RAM at 0x1000");
    vm.unmap(1).unwrap();
    assert!(vm.unmap(1).is_err(), "it is gone");
    map(2, PAGE, PAGE).unwrap();
    assert!(map(3, 3 * PAGE, PAGE).is_err(), "no other one has gone with it");
}

#[test]
fn what_a_guest_writes_to_read_only_memory_leaves_it_and_changes_nothing() {
    const PAGE: usize = 4096;
    let Some(vm) = vm(1) else { return };
    let ram = vm_memory::mmap::MmapRegion::<()>::new(3 * PAGE).unwrap();
    for (slot, access) in (0..).zip([Access::ReadWrite, Access::ReadWrite, Access::ReadOnly]) {
        let at = slot as usize * PAGE;
        // SAFETY: a page of the mapping.
        let host = unsafe { ram.as_ptr().add(at) };
        // SAFETY: the mapping outlives the vCPU's run.
        unsafe { vm.map(slot, at as u64, host, PAGE as u64, access) }.unwrap();
    }
    // mov byte [0x1000], 0x11; the same with 0x22 to the next page, and with 0x33 to the one after
    // that, where nothing is.
    let code = [
        0xc6, 0x06, 0, 0x10, 0x11, 0xc6, 0x06, 0, 0x20, 0x22, 0xc6, 0x06, 0, 0x30, 0x33,
    ];
    ram.as_volatile_slice().write_slice(&code, 0).unwrap();
    let mut vcpu = vm.create_vcpu(0).unwrap();
    let mut system = vcpu.system_registers().unwrap();
    (system.cs.base, system.cs.selector) = (0, 0);
    let registers = kvm_bindings::kvm_regs {
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_registers(&registers, &system).unwrap();
    let mut stores = Vec::new();
    let exit = vcpu.run(
        || false,
        |port| {
            if let Port::Store(address, bytes) = port {
                stores.push((address, bytes.to_vec()));
            }
            stores.len() < 2
        },
    );
    assert!(matches!(exit, VcpuExit::Stopped), "{exit:?}");
    assert_eq!(stores, [(0x2000, vec![0x22]), (0x3000, vec![0x33])]);
    let byte = |at| ram.as_volatile_slice().read_obj::<u8>(at).unwrap();
    assert_eq!((byte(0x1000), byte(0x2000)), (0x11, 0));
}

#[test]
fn a_vm_shows_how_many_pages_kvm_has_mapped_where_kvm_counts() {
    let Some(vm) = vm(1) else { return };
    let counts = vm.fd.check_extension_raw(kvm_bindings::KVM_CAP_BINARY_STATS_FD.into()) > 0;
    let pages = vm.stats().and_then(|stats| stats.get("pages_4k"));
    assert_eq!(pages, counts.then_some(0));
}

#[test]
fn a_vcpu_has_its_number_and_there_is_one_of_each() {
    let Some(vm) = vm(2) else { return };
    assert_eq!(vm.create_vcpu(1).unwrap().id(), 1);
    let error = vm.create_vcpu(1).unwrap_err();
    assert_eq!(error.to_string(), "KVM refused to create vCPU 1");
}
