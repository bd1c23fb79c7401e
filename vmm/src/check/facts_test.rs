use std::fs;

use super::*;
use crate::check::testing::host;

const CPUINFO: &str = "processor\t: 0
model name\t: A CPU
flags\t\t: fpu sse4_1 sse4_2 svm hypervisor
bugs\t\t: vmx

processor\t: 1
flags\t\t: vmx
";

#[test]
fn flags_are_whole_words_of_the_first_processors_flags() {
    let cpu = Cpu::parse(CPUINFO);
    let expected = Cpu {
        model: "A CPU".into(),
        virtualization: Some(Virtualization::Svm),
        sse4: true,
        hypervisor: true,
    };
    assert_eq!(cpu, expected);
    let cpu = Cpu::parse("flags : vmx_x sse4_1 sse4_2x\n");
    assert_eq!((cpu.virtualization, cpu.sse4), (None, false));
    assert_eq!(Cpu::parse("flags: vmx\n").virtualization, Some(Virtualization::Vmx));
    assert_eq!(Cpu::parse(""), Cpu::default());
}

#[test]
fn a_whole_host_is_read_from_its_files() {
    let root = host(&[
        ("proc/cpuinfo", CPUINFO),
        ("proc/sys/kernel/osrelease", "6.1.0-18-amd64\n"),
        ("proc/meminfo", "MemTotal: 1 kB\nHugePages_Total:     512\n"),
        ("sys/module/kvm/initstate", "live\n"),
        ("sys/module/kvm_amd/parameters/npt", "Y\n"),
        ("sys/class/dmi/id/sys_vendor", "Amazon EC2\n"),
        ("sys/class/dmi/id/product_name", "m7a.metal-48xl\n"),
        ("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n"),
        ("dev/vhost-net", ""),
    ]);
    let facts = Facts::gather(root.path());
    assert_eq!(
        (facts.kvm, facts.kvm_intel, facts.kvm_amd),
        (Module::Loaded, Module::Absent, Module::BuiltIn)
    );
    assert_eq!(facts.kernel_release, "6.1.0-18-amd64");
    assert_eq!(
        (facts.vendor.as_str(), facts.product.as_str()),
        ("Amazon EC2", "m7a.metal-48xl")
    );
    assert_eq!((facts.vhost_net, facts.vhost_vsock), (true, false));
    assert_eq!(
        facts.huge_pages,
        HugePages {
            transparent: "madvise".into(),
            reserved: 512
        }
    );
    assert_eq!(facts.device, KvmDevice::Missing);
}

#[test]
fn a_built_in_module_without_parameters_is_in_the_builds_list() {
    let root = host(&[
        ("proc/sys/kernel/osrelease", "6.1\n"),
        (
            "lib/modules/6.1/modules.builtin",
            "kernel/arch/x86/kvm/kvm.ko\nkernel/arch/x86/kvm/kvm-intel.ko\n",
        ),
    ]);
    let facts = Facts::gather(root.path());
    assert_eq!(
        (facts.kvm, facts.kvm_intel, facts.kvm_amd),
        (Module::BuiltIn, Module::BuiltIn, Module::Absent)
    );
}

#[test]
fn an_empty_host_is_no_error() {
    let root = host(&[]);
    let facts = Facts::gather(root.path());
    assert_eq!((facts.kvm, facts.kernel_release.as_str()), (Module::Absent, ""));
    assert_eq!(facts.huge_pages, HugePages::default());
}

#[test]
fn a_device_node_that_cannot_be_opened_says_why() {
    let root = host(&[]);
    fs::create_dir(root.path().join("dev")).unwrap();
    std::os::unix::fs::symlink("kvm", root.path().join("dev/kvm")).unwrap();
    let KvmDevice::Broken(error) = Facts::gather(root.path()).device else {
        panic!("a link to itself opened")
    };
    assert!(error.contains("symbolic link"), "{error}");
}
