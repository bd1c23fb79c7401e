//! Needs `/dev/kvm`.

use super::*;
use crate::kvm::Kvm;

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
    // Bit 32 of an address names nobody, with 8-bit APIC IDs and with 32-bit ones, which have their upper bits there from 40 on.
    for vcpus in [1, 300] {
        let Some(vm) = vm(vcpus) else { return };
        let (bad, good) = (vm.msi().unwrap(), vm.msi().unwrap());
        let refused = |vm: &Vm| vm.route(&bad, message(0xfee0_0000 | 1 << 32, 0x40)).is_err();
        assert_eq!(refused(&vm), refused(&vm), "the same answer again");
        vm.route(&good, message(0xfee0_0000, 0x41)).unwrap();
        vm.route(&bad, message(0xfee0_0000, 0x42)).unwrap();
        vm.release(&bad);
        vm.route(&good, message(0xfee0_0000, 0x43)).unwrap();
    }
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
    map(0, 0, 2 * PAGE).unwrap();
    let error = map(1, PAGE, PAGE).unwrap_err();
    assert_eq!(error.to_string(), "KVM refused to map 0x1000 bytes of RAM at 0x1000");
    vm.unmap(0).unwrap();
    assert!(vm.unmap(0).is_err(), "it is gone");
    map(1, PAGE, PAGE).unwrap();
}

#[test]
fn a_vcpu_has_its_number_and_there_is_one_of_each() {
    let Some(vm) = vm(2) else { return };
    assert_eq!(vm.create_vcpu(1).unwrap().id(), 1);
    let error = vm.create_vcpu(1).unwrap_err();
    assert_eq!(error.to_string(), "KVM refused to create vCPU 1");
}
