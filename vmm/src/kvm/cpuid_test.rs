use proptest::prelude::*;

use super::*;

fn host() -> CpuId {
    let leaf = |function, index, eax, ebx, ecx, edx| kvm_cpuid_entry2 {
        function,
        index,
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    };
    CpuId::from_entries(&[
        leaf(0, 0, 0x1f, 0, 0, 0),
        leaf(1, 0, 0, 0x0510_0800, 0, 0),
        leaf(4, 0, 0xfc00_4121, 0, 0, 0),
        leaf(4, 3, 0xfc1f_c163, 0, 0, 0),
        leaf(4, 4, 0, 0, 0, 0),
        leaf(0xb, 0, 1, 2, 0x100, 7),
        leaf(0x15, 0, 2, 100, 0, 0),
        leaf(0x1f, 0, 1, 2, 0x100, 7),
        leaf(KVM_SIGNATURE, 0, KVM_FEATURES, 0x4b4d_564b, 0x564b_4d56, 0x4d),
        leaf(KVM_FEATURES, 0, 0x0100_7efb, 0, 0, 0),
        leaf(0x8000_0001, 0, 0, 0, 1 << 6, 0),
        leaf(0x8000_0008, 0, 0x3030, 0, 0x7007, 0),
        leaf(0x8000_001d, 3, 0x0003_c163, 0, 0, 0),
        leaf(0x8000_001e, 0, 5, 0x105, 0x101, 0),
        leaf(0x8000_0026, 0, 1, 2, 3, 4),
    ])
    .unwrap()
}

fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
    *cpuid
        .as_slice()
        .iter()
        .find(|e| (e.function, e.index) == (function, index))
        .unwrap()
}

#[test]
fn one_vcpu_is_one_core_of_one_thread() {
    let cpuid = Topology::new(&host(), 1, true).cpuid(0, None);
    let one = find(&cpuid, 1, 0);
    assert_eq!(one.ebx, 0x0001_0800);
    assert_eq!(one.edx & FEATURE_HTT, 0);
    assert_eq!(one.ecx, FEATURE_HYPERVISOR | FEATURE_TSC_DEADLINE);
    assert_eq!(find(&cpuid, 0xb, 1).eax, 0);
    assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0);
    assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx & AMD_CMP_LEGACY, 0);
}

#[test]
fn destinations_of_15_bits_are_offered_where_there_may_be_such_and_page_faults_by_interrupt_never() {
    for (vcpus, offered) in [(1, 0x0100_3efb), (255, 0x0100_3efb), (256, 0x0100_befb)] {
        let cpuid = Topology::new(&host(), vcpus, true).cpuid(0, None);
        assert_eq!(find(&cpuid, KVM_FEATURES, 0).eax, offered, "{vcpus} vCPUs");
    }
}

#[test]
fn a_timer_that_the_host_lacks_is_not_offered() {
    let cpuid = Topology::new(&host(), 1, false).cpuid(0, None);
    assert_eq!(find(&cpuid, 1, 0).ecx & FEATURE_TSC_DEADLINE, 0);
}

#[test]
fn five_vcpus_need_three_bits_of_apic_id() {
    let cpuid = Topology::new(&host(), 5, true).cpuid(4, None);
    assert_eq!(find(&cpuid, 1, 0).ebx, 0x0405_0800);
    for leaf in [0xb, 0x1f] {
        let (smt, core, end) = (find(&cpuid, leaf, 0), find(&cpuid, leaf, 1), find(&cpuid, leaf, 2));
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (0, 1, 0x100, 4));
        assert_eq!((core.eax, core.ebx, core.ecx, core.edx), (3, 5, 0x201, 4));
        assert_eq!((end.eax, end.ebx, end.ecx, end.edx), (0, 0, 2, 4));
    }
    assert_eq!(find(&cpuid, 0x8000_0008, 0).ecx, 0x3004);
    assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 4);
    assert!(cpuid.as_slice().iter().all(|e| e.function != 0x8000_0026));
}

#[test]
fn addresses_have_no_more_bits_than_the_vm_is_given() {
    let sizes = |eax| {
        let leaf = kvm_cpuid_entry2 {
            function: ADDRESS_SIZES,
            eax,
            ..Default::default()
        };
        CpuId::from_entries(&[leaf]).unwrap()
    };
    for (host, bits, guest) in [
        (0x3030, 40, 0x3028),
        (0x0030_3934, 40, 0x0028_3928),
        (0x0030_3934, 50, 0x0030_3932),
        (0x3930, 52, 0x3930),
    ] {
        let topology = Topology::new(&sizes(host), 1, true).with_phys_bits(bits);
        assert_eq!(find(&topology.cpuid(0, None), ADDRESS_SIZES, 0).eax, guest, "{host:#x}");
    }
}

#[test]
fn the_last_level_cache_is_shared_by_all_and_the_first_by_none() {
    let cpuid = Topology::new(&host(), 8, true).cpuid(0, None);
    assert_eq!(find(&cpuid, 4, 0).eax >> 14 & 0xfff, 0);
    assert_eq!(find(&cpuid, 4, 3).eax >> 14 & 0xfff, 7);
    assert_eq!(find(&cpuid, 4, 0).eax >> 26, 7);
    assert_eq!(find(&cpuid, 4, 4).eax, 0, "the end of the list stays the end");
    assert_eq!(find(&cpuid, 0x8000_001d, 3).eax >> 14 & 0xfff, 7);
}

#[test]
fn frequencies_are_published_where_the_guest_looks() {
    let cpuid = Topology::new(&host(), 1, true).cpuid(0, Some(2_900_000));
    assert_eq!(find(&cpuid, KVM_SIGNATURE, 0).eax, HYPERVISOR_TIMING);
    assert_eq!(find(&cpuid, HYPERVISOR_TIMING, 0).eax, 2_900_000);
    assert_eq!(find(&cpuid, 0x15, 0).ecx, 2_900_000_000);
}

/// The name in the leaves of `cpuid`.
fn brand(cpuid: &CpuId) -> String {
    let words = BRAND.into_iter().flat_map(|leaf| {
        let kvm_cpuid_entry2 { eax, ebx, ecx, edx, .. } = find(cpuid, leaf, 0);
        [eax, ebx, ecx, edx]
    });
    let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
    String::from_utf8_lossy(&bytes).trim_matches(['\0', ' ']).to_string()
}

#[test]
fn the_guest_sees_the_name_of_the_hosts_processor_whatever_kvm_lists() {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap();
    let (_, name) = text.lines().find_map(|line| line.split_once("model name\t: ")).unwrap();
    let of_host = host_brand().unwrap();
    let mut listed = host().as_slice().to_vec();
    listed.extend(BRAND.map(|function| kvm_cpuid_entry2 {
        function,
        ..Default::default()
    }));
    for supported in [host(), CpuId::from_entries(&listed).unwrap()] {
        let cpuid = Topology::new(&supported, 2, true).with_brand(of_host).cpuid(1, None);
        assert_eq!(brand(&cpuid), name.trim());
        let leaves = cpuid.as_slice().iter().filter(|entry| BRAND.contains(&entry.function));
        assert_eq!(leaves.count(), 3);
    }
}

proptest! {
    #[test]
    fn any_count_gives_every_vcpu_an_id_that_fits(vcpus in 1_u32..4096) {
        let topology = Topology::new(&host(), vcpus, true);
        let last = topology.cpuid(vcpus - 1, Some(1));
        let core = find(&last, 0xb, 1);
        prop_assert_eq!(core.edx, vcpus - 1);
        prop_assert!(u64::from(core.edx) < 1_u64 << core.eax);
        prop_assert!(core.eax == 0 || 1_u64 << (core.eax - 1) < u64::from(vcpus));
    }
}

#[test]
fn without_nesting_there_is_neither_vmx_nor_svm() {
    let leaf = |function, ecx| kvm_cpuid_entry2 {
        function,
        ecx,
        eax: u32::from(function == SVM_FEATURES),
        ..Default::default()
    };
    let leaves = [
        leaf(1, FEATURE_VMX | 1),
        leaf(0x8000_0001, FEATURE_SVM | 1),
        leaf(SVM_FEATURES, 7),
    ];
    let host = CpuId::from_entries(&leaves).unwrap();
    let with = Topology::new(&host, 1, true).cpuid(0, None);
    assert_ne!(find(&with, 1, 0).ecx & FEATURE_VMX, 0);
    assert_ne!(find(&with, 0x8000_0001, 0).ecx & FEATURE_SVM, 0);
    let without = Topology::new(&host, 1, true).without_nesting().cpuid(0, None);
    assert_eq!(find(&without, 1, 0).ecx & (FEATURE_VMX | 1), 1);
    assert_eq!(find(&without, 0x8000_0001, 0).ecx & (FEATURE_SVM | 1), 1);
    assert_eq!(
        (find(&without, SVM_FEATURES, 0).eax, find(&without, SVM_FEATURES, 0).ecx),
        (0, 0)
    );
}

#[test]
fn without_cache_control_there_are_neither_mtrrs_nor_pat_and_the_rest_stays() {
    let leaf = |function| kvm_cpuid_entry2 {
        function,
        edx: u32::MAX,
        ..Default::default()
    };
    let host = CpuId::from_entries(&[leaf(1), leaf(2), leaf(0x8000_0001)]).unwrap();
    let of = |topology: Topology| [1, 2, 0x8000_0001].map(|function| find(&topology.cpuid(0, None), function, 0).edx);
    let with = Topology::new(&host, 2, true);
    assert_eq!(of(with.clone()), [u32::MAX; 3]);
    let hidden = !(FEATURE_MTRR | FEATURE_PAT);
    assert_eq!(of(with.without_cache_control()), [hidden, u32::MAX, hidden]);
}
