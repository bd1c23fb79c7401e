use super::*;

const GIB: u64 = 1 << 30;
const BLOCK: u64 = 128 * MIB;

fn sizing(shim: Shim) -> Sizing {
    Sizing {
        default_memory_bytes: 512 * MIB,
        ..Sizing::new(shim, 16, 32 * GIB)
    }
}

fn cpu(quota_us: i64, period_us: u64) -> Resources {
    Resources {
        cpu_quota_us: quota_us,
        cpu_period_us: period_us,
        ..Resources::default()
    }
}

fn cpus(list: &str) -> Resources {
    Resources {
        cpus: CpuSet::parse(list).unwrap(),
        ..Resources::default()
    }
}

fn memory(bytes: u64) -> Resources {
    Resources {
        memory_limit_bytes: Some(bytes),
        ..Resources::default()
    }
}

fn pod(vcpus: u32, memory_mib: u64) -> PodSize {
    PodSize {
        vcpus,
        max_vcpus: 8,
        memory_bytes: memory_mib * MIB,
    }
}

#[test]
fn vcpus_of_a_running_pod() {
    let thirds = || vec![cpu(33_333, 99_999), cpu(10_000, 30_000), cpu(1, 3)];
    let quota_and_set = || vec![cpu(50_000, 100_000), cpus("0-7")];
    for (containers, rust, go) in [
        (vec![], 1, 1),
        (vec![cpu(100_000, 100_000)], 2, 2),
        (vec![cpu(1, 100_000)], 2, 2),
        (vec![cpu(50_000, 100_000), cpu(250_000, 500_000)], 2, 2),
        (vec![cpu(50_000, 100_000), cpu(250_001, 500_000)], 3, 3),
        (thirds(), 2, 2),
        (vec![cpu(-1, 100_000), cpu(0, 100_000), cpu(100_000, 0)], 1, 1),
        (vec![cpus("0-1"), cpus("1,3")], 3, 5),
        (quota_and_set(), 2, 2),
        (vec![cpu(2_000_000, 100_000)], 8, 8),
        (vec![cpu(i64::MAX, 1), cpu(i64::MAX, 1)], 8, 8),
    ] {
        for (shim, expected) in [(Shim::Rust, rust), (Shim::Go, go)] {
            let size = sizing(shim)
                .resized(pod(1, 512), &containers, Change::Update, BLOCK)
                .unwrap();
            assert_eq!(size, pod(expected, 512), "{shim:?} {containers:?}");
        }
    }
}

#[test]
fn adding_never_takes_vcpus_away_and_leaving_never_gives_any() {
    let two = [cpu(100_000, 100_000)];
    for (now, change, expected) in [
        (1, Change::Add, 2),
        (4, Change::Add, 4),
        (4, Change::Update, 2),
        (4, Change::Exit, 2),
        (1, Change::Exit, 1),
    ] {
        let size = sizing(Shim::Rust).resized(pod(now, 512), &two, change, BLOCK).unwrap();
        assert_eq!(size.vcpus, expected, "{now} {change:?}");
    }
}

#[test]
fn memory_of_a_running_pod() {
    let huge = Resources {
        hugepage_bytes: 64 * MIB,
        ..memory(64 * MIB)
    };
    for (now, containers, expected) in [
        (512, vec![memory(256 * MIB)], 768),
        (512, vec![memory(1)], 512),
        (512, vec![memory(MIB), memory(MIB - 1)], 640),
        (512, vec![memory(128 * MIB + 1)], 640),
        (512, vec![memory(MIB / 2), memory(MIB / 2)], 640),
        (512, vec![memory(129 * MIB)], 768),
        (576, vec![memory(65 * MIB)], 704),
        (512, vec![huge], 640),
        (512, vec![Resources::default()], 512),
        (2048, vec![memory(256 * MIB)], 2048),
    ] {
        for shim in [Shim::Rust, Shim::Go] {
            let size = sizing(shim)
                .resized(pod(1, now), &containers, Change::Exit, BLOCK)
                .unwrap();
            assert_eq!(size, pod(1, expected), "{shim:?} {now} {containers:?}");
        }
    }
}

#[test]
fn the_shims_disagree_about_too_much_memory() {
    let limited = |shim| Sizing {
        max_memory_bytes: GIB + 64 * MIB,
        ..sizing(shim)
    };
    let resized = |shim, bytes| limited(shim).resized(pod(1, 512), &[memory(bytes)], Change::Add, BLOCK);
    let allowed_bytes = GIB + 64 * MIB;
    let error = |wanted_bytes| {
        Err(SizingError::TooMuchMemory {
            wanted_bytes,
            allowed_bytes,
        })
    };
    assert_eq!(resized(Shim::Rust, 512 * MIB), Ok(pod(1, 1024)));
    assert_eq!(resized(Shim::Rust, 8 * GIB), error(8 * GIB + 512 * MIB));
    assert_eq!(
        resized(Shim::Rust, 513 * MIB),
        error(GIB + 128 * MIB),
        "rounded up beyond the limit"
    );
    assert_eq!(
        resized(Shim::Go, 8 * GIB),
        Ok(pod(1, 1024)),
        "whole blocks up to the limit"
    );
    assert_eq!(resized(Shim::Rust, u64::MAX), error(u64::MAX));
}

#[test]
fn the_go_shim_grows_in_steps() {
    let small = Sizing {
        default_memory_bytes: 64 * MIB,
        ..sizing(Shim::Go)
    };
    let size = small
        .resized(pod(1, 64), &[memory(16 * GIB)], Change::Add, BLOCK)
        .unwrap();
    assert_eq!(size.memory_bytes, 64 * MIB * 49);
    let size = small.resized(size, &[memory(16 * GIB)], Change::Add, BLOCK).unwrap();
    assert_eq!(size.memory_bytes, 64 * MIB + 16 * GIB);
}

#[test]
fn a_guest_without_blocks_cannot_grow() {
    let grow = |bytes| sizing(Shim::Rust).resized(pod(1, 512), &[memory(bytes)], Change::Add, 0);
    assert_eq!(grow(MIB), Err(SizingError::NoBlocks));
    assert_eq!(grow(0), Ok(pod(1, 512)));
}

#[test]
fn a_static_pod_gets_its_workload_and_some() {
    let both = |quota_us, bytes| Resources {
        memory_limit_bytes: Some(bytes),
        ..cpu(quota_us, 100_000)
    };
    let both_and_set = |quota_us| Resources {
        cpus: CpuSet::parse("4-5").unwrap(),
        ..both(quota_us, 256 * MIB)
    };
    for (workload, rust, go) in [
        (Resources::default(), (1, 512), (1, 512)),
        (both(100_000, 256 * MIB), (2, 288), (2, 768)),
        (both(80_000, 255 * MIB), (1, 288), (2, 767)),
        (both(80_001, 256 * MIB + 1), (2, 288), (2, 768)),
        (memory(500_000_000), (1, 508), (1, 988)),
        (memory(MIB - 1), (1, 512), (1, 512)),
        (memory(256 * MIB), (1, 288), (1, 768)),
        (cpus("0-1"), (3, 32), (1, 512)),
        (both_and_set(0), (3, 288), (1, 768)),
        (both_and_set(50_000), (1, 288), (2, 768)),
        (cpu(220_000, 100_000), (3, 32), (4, 512)),
        (cpu(99_000_000, 100_000), (16, 32), (16, 512)),
    ] {
        for (shim, (vcpus, memory_mib)) in [(Shim::Rust, rust), (Shim::Go, go)] {
            let expected = PodSize {
                vcpus,
                max_vcpus: vcpus,
                memory_bytes: memory_mib * MIB,
            };
            assert_eq!(
                sizing(shim).static_start(&workload),
                Ok(expected),
                "{shim:?} {workload:?}"
            );
        }
    }
}

/// The figures of the Rust shim's own tests: `default_vcpus`, `overhead_vcpus`, `default_maxvcpus`, `default_memory`,
/// `overhead_memory`, a workload in thousandths of a CPU and MiB, and what comes of it, in the same units.
#[test]
fn the_rust_shims_own_cases_of_static_pods() {
    for (defaults, workload, expected) in [
        ((3000, 750, 8, 1024, 256), (1250, 1024), (2000, 1280)),
        ((3000, 500, 8, 1024, 128), (1500, 0), (2000, 128)),
        ((3000, 500, 8, 1024, 128), (0, 512), (1000, 640)),
        ((3000, 0, 8, 1024, 0), (1250, 1024), (1250, 1024)),
        ((3000, 0, 8, 1024, 0), (0, 512), (1000, 512)),
        ((1000, 500, 4, 256, 128), (1200, 512), (1700, 640)),
        // The maximum is that of pods that grow.
        ((1000, 1000, 2, 256, 128), (2500, 0), (3500, 128)),
        ((2000, 500, 8, 512, 128), (0, 0), (2000, 512)),
        ((1000, 0, 8, 256, 0), (2200, 512), (2200, 512)),
        ((1000, 0, 8, 256, 0), (0, 513), (1000, 514)),
    ] {
        let (default_vcpus, overhead_vcpus, max_vcpus, default_mib, overhead_mib) = defaults;
        let shim = Sizing {
            default_vcpus: CpuTime::from_millis(default_vcpus),
            max_vcpus,
            default_memory_bytes: default_mib * MIB,
            overhead_vcpus: CpuTime::from_millis(overhead_vcpus),
            overhead_memory_bytes: overhead_mib * MIB,
            ..Sizing::new(Shim::Rust, 16, 32 * GIB)
        };
        let (millis, mib) = workload;
        let workload = Resources {
            memory_limit_bytes: Some(mib * MIB),
            ..cpu(millis, 1000)
        };
        let (millis, mib) = expected;
        let vcpus = CpuTime::from_millis(millis).vcpus();
        let expected = PodSize {
            vcpus,
            max_vcpus: vcpus,
            memory_bytes: mib * MIB,
        };
        assert_eq!(shim.static_start(&workload), Ok(expected), "{defaults:?} {workload:?}");
    }
}

/// The figures of the Go shim's own tests: memory, quota, period and shares, and the CPUs and MiB that are added to the
/// default.
#[test]
fn the_go_shims_own_cases_of_static_pods() {
    for (bytes, quota_us, period_us, cpu_shares, vcpus, mib) in [
        (0, 0, 0, 0, 0, 0),
        (1_048_576, 200, 100, 0, 2, 1),
        (1024, 200, 1, 0, 200, 0),
        (-1_048_576, -100, 1, 0, 0, 0),
        (-1, 100, 1, 0, 100, 0),
        (4_294_967_296, 400, 100, 0, 4, 4096),
        (1_048_576, -1, 100, 2048, 2, 1),
        (0, -1, 100, 1536, 2, 0),
        (0, 0, 100, 2, 0, 0),
        (0, 200, 100, 8192, 2, 0),
        (0, -1, 100, 0, 0, 0),
    ] {
        let shim = Sizing {
            default_memory_bytes: 512 * MIB,
            ..Sizing::new(Shim::Go, 256, 32 * GIB)
        };
        let workload = Resources {
            memory_limit_bytes: Resources::memory_limit(bytes),
            cpu_shares,
            ..cpu(quota_us, period_us)
        };
        let expected = PodSize {
            vcpus: 1 + vcpus,
            max_vcpus: 1 + vcpus,
            memory_bytes: (512 + mib) * MIB,
        };
        assert_eq!(shim.static_start(&workload), Ok(expected), "{workload:?}");
    }
}

/// The figures of the Rust shim's own tests: `default_vcpus` in thousandths, quotas and periods, vCPUs.
#[test]
fn the_rust_shims_own_cases_of_vcpus_that_are_added() {
    for (default_millis, containers, vcpus) in [
        (0, vec![(100_000, 1_000_000); 10], 1),
        (
            10_000,
            vec![
                (32_000_000, 1_000_000),
                (32_000_000, 1_000_000),
                (64_000_000, 1_000_000),
            ],
            138,
        ),
        (3000, vec![(1_000_000, 1_000_000), (1_000_000, 500_000)], 6),
        (3000, vec![(3_000_000, 1_500_000), (1_000_000, 500_000)], 7),
        (1000, vec![(1_000_000, 1_000_000), (900_000, 300_000)], 5),
        (1000, vec![(1_000_000, 1_000_000), (900_000, 299_999)], 6),
        (500, vec![(250_000, 1_000_000)], 1),
        (500, vec![(500_000, 1_000_000)], 1),
        (500, vec![(500_001, 1_000_000)], 2),
    ] {
        let shim = Sizing {
            default_vcpus: CpuTime::from_millis(default_millis),
            ..Sizing::new(Shim::Rust, 256, 32 * GIB)
        };
        let resources: Vec<Resources> = containers.iter().map(|(quota, period)| cpu(*quota, *period)).collect();
        let now = PodSize {
            max_vcpus: 256,
            ..pod(1, 2048)
        };
        let size = shim.resized(now, &resources, Change::Add, BLOCK).unwrap();
        assert_eq!(size.vcpus, vcpus, "{containers:?}");
    }
}

#[test]
fn a_dynamic_pod_starts_with_the_defaults() {
    let mut sizing = Sizing {
        default_vcpus: CpuTime::parse("1.5").unwrap(),
        ..sizing(Shim::Rust)
    };
    for (max_vcpus, host_vcpus, expected) in [
        (0, 16, (2, 16)),
        (4, 16, (2, 4)),
        (64, 16, (2, 16)),
        (0, 1, (1, 1)),
        (0, 999, (2, 256)),
        (256, 999, (2, 256)),
    ] {
        (sizing.max_vcpus, sizing.host_vcpus) = (max_vcpus, host_vcpus);
        let size = sizing.dynamic_start().unwrap();
        assert_eq!((size.vcpus, size.max_vcpus), expected, "{max_vcpus} of {host_vcpus}");
        assert_eq!(size.memory_bytes, 512 * MIB);
    }
    sizing.max_vcpus = 257;
    assert_eq!(sizing.dynamic_start(), Err(SizingError::TooManyVcpus { found: 257 }));
}

#[test]
fn cpu_lists_and_cpu_times_are_read_exactly() {
    for (list, expected) in [
        ("", Some(0)),
        ("0", Some(1)),
        ("0-3,8", Some(5)),
        ("0-3, 2-4,", Some(5)),
        ("3-1", None),
        ("a", None),
        ("-1", None),
        ("0-99999", None),
    ] {
        let cpus = CpuSet::parse(list);
        assert_eq!(cpus.as_ref().map(CpuSet::len), expected, "{list:?}");
        assert_eq!(
            cpus.map(|cpus| cpus.is_empty()),
            expected.map(|count| count == 0),
            "{list:?}"
        );
    }
    for (text, vcpus) in [
        ("0", Some(0)),
        ("0.000000001", Some(1)),
        ("1.0", Some(1)),
        ("1.01", Some(2)),
        ("0.0000000001", None),
        ("1.", None),
        (".5", None),
        ("99999999999999999999", None),
        ("18446744074", None),
    ] {
        assert_eq!(CpuTime::parse(text).map(CpuTime::vcpus), vcpus, "{text:?}");
    }
    for (text, shown) in [
        ("0", "0"),
        ("1.50", "1.5"),
        ("2.000", "2"),
        ("0.000000001", "0.000000001"),
    ] {
        assert_eq!(CpuTime::parse(text).unwrap().to_string(), shown);
    }
}

#[test]
fn a_quota_of_nothing_is_no_limit() {
    for quota_us in [0, -1, i64::MIN] {
        assert_eq!(CpuTime::from_quota(quota_us, 100_000), None, "{quota_us}");
        // So that the set decides, and where there is none the default.
        let set = Resources {
            cpu_quota_us: quota_us,
            cpu_period_us: 100_000,
            ..cpus("0-3")
        };
        for (shim, expected) in [(Shim::Rust, 4), (Shim::Go, 5)] {
            let size = sizing(shim).resized(pod(1, 512), std::slice::from_ref(&set), Change::Update, BLOCK);
            assert_eq!(size, Ok(pod(expected, 512)), "{shim:?} {quota_us}");
        }
        let three = Sizing {
            default_vcpus: CpuTime::from_vcpus(3),
            ..sizing(Shim::Rust)
        };
        let start = three.static_start(&cpu(quota_us, 100_000));
        assert_eq!(start.map(|size| size.vcpus), Ok(3), "{quota_us}");
    }
    assert_eq!(CpuTime::from_quota(1, 0), None, "no period");
    assert!(CpuTime::from_quota(1, 100_000).is_some());
}

#[test]
fn a_pod_may_have_all_that_is_allowed_and_no_more() {
    let limited = |shim, mib| Sizing {
        max_memory_bytes: mib * MIB,
        ..sizing(shim)
    };
    for shim in [Shim::Rust, Shim::Go] {
        let resized = limited(shim, 1024).resized(pod(1, 512), &[memory(512 * MIB)], Change::Add, BLOCK);
        assert_eq!(resized, Ok(pod(1, 1024)), "{shim:?}");
    }
    let start = |shim, mib, bytes| {
        limited(shim, mib)
            .static_start(&memory(bytes))
            .map(|pod| pod.memory_bytes / MIB)
    };
    let error = |wanted_bytes, mib| {
        Err(SizingError::TooMuchMemory {
            wanted_bytes,
            allowed_bytes: mib * MIB,
        })
    };
    assert_eq!(start(Shim::Rust, 288, 256 * MIB), Ok(288));
    assert_eq!(start(Shim::Rust, 287, 256 * MIB), error(288 * MIB, 287));
    assert_eq!(start(Shim::Go, 768, 256 * MIB), Ok(768));
    assert_eq!(start(Shim::Go, 767, 256 * MIB), Ok(767));
    // What is beyond every number is beyond the limit.
    assert_eq!(start(Shim::Rust, 512, u64::MAX), error(u64::MAX, 512));
    assert_eq!(start(Shim::Go, 512, u64::MAX), Ok(512));
}

#[test]
fn a_pod_whose_containers_want_no_vcpus_has_those_of_the_default() {
    for shim in [Shim::Rust, Shim::Go] {
        let three = Sizing {
            default_vcpus: CpuTime::from_vcpus(3),
            ..sizing(shim)
        };
        for containers in [vec![], vec![Resources::default()]] {
            let size = three.resized(pod(1, 512), &containers, Change::Update, BLOCK);
            assert_eq!(size, Ok(pod(3, 512)), "{shim:?}");
        }
    }
}

#[test]
fn a_pod_has_a_vcpu_whatever_the_numbers_say() {
    for shim in [Shim::Rust, Shim::Go] {
        let none = Sizing {
            default_vcpus: CpuTime::from_vcpus(0),
            host_vcpus: 0,
            ..sizing(shim)
        };
        let vcpus = |size: Result<PodSize, SizingError>| size.map(|size| size.vcpus);
        assert_eq!(vcpus(none.dynamic_start()), Ok(1));
        assert_eq!(vcpus(none.static_start(&Resources::default())), Ok(1));
        let limited = Sizing { max_vcpus: 4, ..none };
        assert_eq!(vcpus(limited.dynamic_start()), Ok(1));
        for max_vcpus in [0, 1] {
            let now = PodSize {
                max_vcpus,
                ..pod(1, 512)
            };
            assert_eq!(
                vcpus(limited.resized(now, &[], Change::Update, BLOCK)),
                Ok(1),
                "of {max_vcpus}"
            );
        }
    }
}
