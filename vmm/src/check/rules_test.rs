use super::*;
use crate::check::{Cpu, HugePages, Limits, Node, Report, Serving};
use crate::kvm::probe::KvmFacts;

/// A bare-metal Intel host with everything.
fn good() -> Facts {
    Facts {
        cpu: Cpu {
            model: "A CPU".into(),
            virtualization: Some(Virtualization::Vmx),
            sse4: true,
            hypervisor: false,
        },
        kernel_release: "6.1.0-18-amd64".into(),
        kvm: Module::Loaded,
        kvm_intel: Module::Loaded,
        kvm_amd: Module::Absent,
        device: KvmDevice::Open(kvm()),
        vendor: "Dell Inc.".into(),
        product: "R750".into(),
        vhost_net: true,
        vhost_vsock: true,
        limits: Limits::default(),
        huge_pages: HugePages {
            transparent: "madvise".into(),
            reserved: 0,
        },
        serving: Serving {
            landlock: 7,
            capabilities: u64::MAX,
            user_namespaces: 0,
        },
        fips: false,
        node: Node {
            containerd: Some("2.1.5".into()),
            kata: "4.1.0".into(),
            shims: vec!["Rust", "Go"],
            handlers: vec!["kata-husk".into()],
            total_bytes: (64 << 30) - 1,
            available_bytes: 2 << 30,
            ..Node::default()
        },
    }
}

fn kvm() -> KvmFacts {
    KvmFacts {
        api_version: 12,
        missing: vec![],
        max_vcpus: 1024,
        create_vm_error: None,
    }
}

/// The checks that are not ok, and whether pods can run, after `change` to a good host.
fn verdict(change: impl FnOnce(&mut Facts)) -> (Vec<(&'static str, Status)>, bool) {
    let mut facts = good();
    change(&mut facts);
    let report = Report::new(apply(&facts), features(&facts));
    let bad = report.checks().iter().filter(|check| check.status != Status::Ok);
    (
        bad.map(|check| (check.name, check.status)).collect(),
        report.is_eligible(),
    )
}

fn found(name: &str, change: impl FnOnce(&mut Facts)) -> Check {
    let mut facts = good();
    change(&mut facts);
    apply(&facts).into_iter().find(|check| check.name == name).unwrap()
}

#[test]
fn a_good_host_passes_everything() {
    assert_eq!(verdict(|_| {}), (vec![], true));
}

#[test]
fn everything_that_is_not_ok_has_a_remedy() {
    let empty = |facts: &mut Facts| {
        *facts = Facts {
            cpu: Cpu::default(),
            kernel_release: String::new(),
            kvm: Module::Absent,
            kvm_intel: Module::Absent,
            device: KvmDevice::Missing,
            vhost_net: false,
            vhost_vsock: false,
            limits: Limits {
                memlock_bytes: Some(0),
                memory_bytes: Some(0),
                pids: Some(0),
            },
            huge_pages: HugePages::default(),
            serving: Serving::default(),
            fips: false,
            node: Node::default(),
            ..good()
        }
    };
    let mut facts = good();
    empty(&mut facts);
    let checks = apply(&facts);
    assert!(
        checks
            .iter()
            .filter(|check| check.status != Status::Ok)
            .all(|check| check.remedy.is_some())
    );
    assert!(
        checks
            .iter()
            .filter(|check| check.mandatory)
            .all(|check| check.status == Status::Fail)
    );
    assert_eq!(checks.iter().filter(|check| check.status == Status::Warn).count(), 13);
    assert!(apply(&good()).iter().all(|check| check.remedy.is_none()));
}

#[test]
fn a_software_virtualised_host_is_named() {
    let software = |facts: &mut Facts| {
        facts.cpu.virtualization = None;
        facts.cpu.hypervisor = true;
        facts.kvm_intel = Module::Absent;
    };
    let (bad, eligible) = verdict(software);
    assert_eq!(
        bad,
        [
            ("cpu virtualization", Status::Fail),
            ("kvm vendor module", Status::Fail),
            ("kvm hardware", Status::Fail),
            ("bare metal", Status::Warn),
        ]
    );
    assert!(!eligible);
    assert!(
        found("kvm hardware", software)
            .found
            .starts_with("software-virtualised: /dev/kvm answers")
    );
}

#[test]
fn each_mandatory_fact_decides_alone() {
    type Change = (fn(&mut Facts), &'static str);
    let changes: [Change; 7] = [
        (|facts| facts.cpu.sse4 = false, "cpu sse4"),
        (|facts| facts.kernel_release = "5.9.16".into(), "kernel version"),
        (|facts| facts.kernel_release = "new".into(), "kernel version"),
        (|facts| facts.kvm_intel = Module::Absent, "kvm vendor module"),
        (
            |facts| {
                facts.device = KvmDevice::Open(KvmFacts {
                    missing: vec!["KVM_CAP_IRQFD"],
                    ..kvm()
                })
            },
            "kvm api",
        ),
        (
            |facts| {
                facts.device = KvmDevice::Open(KvmFacts {
                    api_version: 11,
                    ..kvm()
                })
            },
            "kvm api",
        ),
        (
            |facts| {
                facts.device = KvmDevice::Open(KvmFacts {
                    create_vm_error: Some("busy".into()),
                    ..kvm()
                })
            },
            "kvm api",
        ),
    ];
    for (change, name) in changes {
        assert_eq!(verdict(change), (vec![(name, Status::Fail)], false));
    }
}

#[test]
fn a_device_that_does_not_open_says_what_to_do() {
    let remedy = |device| found("/dev/kvm", |facts| facts.device = device).remedy.unwrap();
    assert!(remedy(KvmDevice::Denied).contains("usermod -aG kvm"));
    assert!(remedy(KvmDevice::Missing).contains("modprobe kvm_intel"));
    assert!(remedy(KvmDevice::Broken("no such device".into())).contains("dmesg"));
    let (bad, _) = verdict(|facts| facts.device = KvmDevice::Denied);
    assert_eq!(
        bad.iter().map(|(name, _)| *name).collect::<Vec<_>>(),
        ["/dev/kvm", "kvm api", "kvm hardware"]
    );
}

#[test]
fn a_built_in_module_counts_if_the_cpu_is_its_own() {
    let amd = |facts: &mut Facts| {
        facts.cpu.virtualization = Some(Virtualization::Svm);
        (facts.kvm, facts.kvm_intel, facts.kvm_amd) = (Module::BuiltIn, Module::BuiltIn, Module::BuiltIn);
    };
    assert_eq!(verdict(amd), (vec![], true));
    assert_eq!(found("kvm vendor module", amd).found, "kvm_amd built in");
    let other = |facts: &mut Facts| (facts.kvm_intel, facts.kvm_amd) = (Module::Absent, Module::BuiltIn);
    assert_eq!(found("kvm vendor module", other).status, Status::Fail);
}

#[test]
fn aws_metal_is_recognised_and_its_virtual_machines_too() {
    let aws = |product: &'static str, hypervisor| {
        move |facts: &mut Facts| {
            (facts.vendor, facts.product) = ("Amazon EC2".into(), product.into());
            facts.cpu.hypervisor = hypervisor;
        }
    };
    assert_eq!(
        found("bare metal", aws("c6i.metal", false)).found,
        "yes, AWS bare metal (c6i.metal)"
    );
    assert_eq!(
        found("bare metal", aws("m7i.metal-24xl", false)).found,
        "yes, AWS bare metal (m7i.metal-24xl)"
    );
    let nested = found("bare metal", aws("m5.large", true));
    assert_eq!(
        (nested.status, nested.found.as_str()),
        (Status::Warn, "no, a virtual machine (Amazon EC2 m5.large)")
    );
    assert!(nested.remedy.unwrap().contains(".metal"));
    assert!(
        verdict(aws("m5.large", true)).1,
        "nested virtualization is slower, not impossible"
    );
}

#[test]
fn a_machine_without_dmi_is_still_told_apart() {
    let nameless = |facts: &mut Facts| (facts.vendor, facts.product) = (String::new(), String::new());
    assert_eq!(found("bare metal", nameless).found, "yes (unknown machine)");
}

#[test]
fn tight_limits_warn_and_do_not_decide() {
    let tight = |facts: &mut Facts| {
        facts.limits = Limits {
            memlock_bytes: Some(64 << 10),
            memory_bytes: Some(128 << 20),
            pids: Some(10),
        };
        facts.huge_pages.transparent = "never".into();
    };
    let (bad, eligible) = verdict(tight);
    let names: Vec<_> = bad.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        (names.as_slice(), eligible),
        (&["memlock", "cgroup memory", "cgroup pids", "huge pages"][..], true)
    );
    assert_eq!(
        verdict(|facts| facts.limits.memory_bytes = Some(256 << 20)),
        (vec![], true)
    );
}

#[test]
fn what_holds_those_who_serve_files_is_told() {
    let landlock = |landlock| found("share landlock", |facts| facts.serving.landlock = landlock);
    assert_eq!(
        (landlock(2).status, landlock(7).found.as_str()),
        (Status::Ok, "version 7")
    );
    assert_eq!((landlock(1).status, landlock(0).found.as_str()), (Status::Warn, "none"));
    // DAC_READ_SEARCH and SYS_ADMIN (capabilities(7)).
    let users = |bits| found("share users", |facts| facts.serving.capabilities = bits);
    assert_eq!(users(u64::MAX).status, Status::Ok);
    let fewer = users(!(1 << 2));
    assert!(
        fewer.status == Status::Warn && fewer.found.ends_with("no dac_read_search"),
        "{fewer:?}"
    );
    let sandbox = |capabilities, user_namespaces| {
        found("share sandbox", |facts| {
            facts.serving.capabilities = capabilities;
            facts.serving.user_namespaces = user_namespaces;
        })
    };
    assert_eq!(sandbox(1 << 21, 0).status, Status::Ok);
    assert_eq!(sandbox(0, 9).found, "user, mount, network and IPC namespaces");
    assert_eq!(sandbox(0, 0).status, Status::Warn);
}

#[test]
fn what_an_installation_needs_is_told_with_its_version() {
    let found = |name| found(name, |_| {}).found;
    assert_eq!(found("container engine"), "containerd 2.1.5");
    assert_eq!(found("kata"), "4.1.0, shims: Rust, Go");
    assert_eq!(found("kata handlers"), "kata-husk");
    assert_eq!(found("free memory"), "2048 MiB, enough for 3 pods of 512 MiB");
    // One that brings its own, into which husk does not install.
    let of_k3s = |name| {
        self::found(name, |facts| {
            facts.node.containerd = None;
            facts.node.distribution = Some("k3s");
            facts.node.handlers.clear();
        })
    };
    assert_eq!(of_k3s("container engine").found, "k3s's own containerd");
    assert!(of_k3s("kata handlers").remedy.unwrap().contains("by hand"));
    let (bad, eligible) = verdict(|facts| facts.node.available_bytes = 641 << 20);
    assert_eq!((bad, eligible), (vec![("free memory", Status::Warn)], true));
}

#[test]
fn features_are_labels_and_stay_while_the_host_runs() {
    let mut facts = good();
    let told = features(&facts);
    assert!(told.contains(&("husk.memory-gib", "63".into())) && told.contains(&("husk.bare-metal", "true".into())));
    // Kubernetes' labels: up to 63 of these, alphanumeric at both ends.
    let fits = |text: &str| {
        let inside = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        text.len() <= 63 && text.chars().all(inside) && end(text.chars().next()) && end(text.chars().last())
    };
    assert!(told.iter().all(|(name, value)| fits(name) && fits(value)), "{told:?}");
    facts.node.available_bytes = 0;
    assert_eq!(features(&facts), told);
}

#[test]
fn kernel_versions_compare_by_number() {
    for (release, good) in [
        ("5.10", true),
        ("5.10.0-30", true),
        ("10.0", true),
        ("5.9.99", false),
        ("4.19.0", false),
    ] {
        let check = found("kernel version", |facts| facts.kernel_release = release.into());
        assert_eq!(check.status == Status::Ok, good, "{release}");
    }
}

#[test]
fn a_host_in_fips_mode_says_that_its_guests_will_be() {
    assert_eq!(found("fips", |_| {}).found, "off");
    let on = found("fips", |facts| facts.fips = true);
    assert!(
        on.status == Status::Ok && on.found.starts_with("on: guests are started with fips=1"),
        "{on:?}"
    );
}
