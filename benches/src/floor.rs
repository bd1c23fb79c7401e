//! The floor under VMM start-up: a bare program that does only the KVM calls no VMM can do without.
//!
//! `husk-floor ELF [MIB]` opens `/dev/kvm`, makes a VM with one memory slot, in-kernel local APICs
//! and one vCPU with the host's CPUID, enters the built-in payload in flat 32-bit mode, passes COM1
//! on to standard output, and exits when the guest powers off. It checks nothing, serves no device
//! and cleans nothing up: whatever a VMM takes beyond it is the VMM's own.

#![expect(unsafe_code, reason = "the floor is made of system calls")]

use std::io::{self, Write};
use std::ptr;

use kvm_bindings::{
    KVM_CAP_SPLIT_IRQCHIP, KVM_MAX_CPUID_ENTRIES, kvm_enable_cap, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VmFd};

fn main() {
    let mut args = std::env::args().skip(1);
    let path = args.next().expect("usage: husk-floor ELF [MIB]");
    let bytes = args
        .next()
        .map_or(512, |mib| mib.parse::<usize>().expect("a number of MiB"))
        << 20;
    let elf = std::fs::read(path).expect("the payload can be read");
    let code = &elf[husk_benches::CODE_OFFSET..];

    let kvm = Kvm::new().expect("/dev/kvm opens");
    let vm = kvm.create_vm().expect("a VM");
    let entry = usize::try_from(husk_benches::ENTRY).expect("32 bits fit");
    map_ram(&vm, bytes, entry, code);
    let mut split = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    split.args[0] = 24;
    vm.enable_cap(&split).expect("local APICs");
    let mut vcpu = vm.create_vcpu(0).expect("a vCPU");
    vcpu.set_cpuid2(&kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).expect("CPUID"))
        .expect("CPUID is taken");
    enter_flat(&vcpu, entry);

    let mut out = io::stdout();
    loop {
        match vcpu.run().expect("KVM_RUN") {
            VcpuExit::IoOut(0x3f8, data) => out.write_all(data).and_then(|()| out.flush()).expect("standard output"),
            VcpuExit::IoOut(0x600 | 0x64, _) => std::process::exit(0),
            VcpuExit::IoOut(..) => {}
            exit => panic!("unexpected {exit:?}"),
        }
    }
}

fn map_ram(vm: &VmFd, bytes: usize, entry: usize, code: &[u8]) {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: a new anonymous mapping, kept until the process ends.
    let ram = unsafe { libc::mmap(ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    assert_ne!(ram, libc::MAP_FAILED, "RAM of {bytes} bytes");
    // SAFETY: the name is a constant string, the range the mapping just made.
    unsafe {
        libc::prctl(
            libc::PR_SET_VMA,
            libc::PR_SET_VMA_ANON_NAME,
            ram,
            bytes,
            c"guest-ram".as_ptr(),
        )
    };
    let end = entry.checked_add(code.len());
    assert!(
        end.is_some_and(|end| end <= bytes),
        "RAM of {bytes} bytes has no room for the payload"
    );
    // SAFETY: inside the mapping, as just asserted; nobody else knows of it.
    unsafe { ptr::copy_nonoverlapping(code.as_ptr(), ram.cast::<u8>().add(entry), code.len()) };
    let slot = kvm_userspace_memory_region {
        memory_size: bytes as u64,
        userspace_addr: ram as u64,
        ..Default::default()
    };
    // SAFETY: the mapping is never unmapped.
    unsafe { vm.set_user_memory_region(slot) }.expect("a memory slot");
}

/// Flat 32-bit protected mode, as PVH defines it.
fn enter_flat(vcpu: &kvm_ioctls::VcpuFd, entry: usize) {
    let flat = |type_| kvm_segment {
        limit: 0xffff_ffff,
        type_,
        present: 1,
        db: 1,
        s: 1,
        g: 1,
        ..Default::default()
    };
    let mut sregs = vcpu.get_sregs().expect("system registers");
    sregs.cs = kvm_segment {
        selector: 8,
        ..flat(11)
    };
    (sregs.ds, sregs.es, sregs.ss) = (flat(3), flat(3), flat(3));
    sregs.cr0 = 1;
    vcpu.set_sregs(&sregs).expect("system registers are taken");
    let regs = kvm_bindings::kvm_regs {
        rip: entry as u64,
        rflags: 2,
        ..Default::default()
    };
    vcpu.set_regs(&regs).expect("registers are taken");
}
