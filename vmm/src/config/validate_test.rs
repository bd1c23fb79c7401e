use super::super::testing::{HOST, error, good};
use super::*;
use crate::config::{ConsoleConfig, CpusConfig, DiskConfig, FsConfig, NetConfig, VsockConfig};

#[test]
fn a_good_configuration_passes() {
    good().validate(HOST).unwrap();
    good().validate(Limits::ARCHITECTURE).unwrap();
}

#[test]
fn names_of_the_machines_own_devices_are_not_the_clients() {
    assert_eq!(
        error(|c| c.disks[1].id = Some("__rng".into())),
        "id '__rng' begins with '__', which the machine's own devices do"
    );
}

#[test]
fn names_are_no_longer_than_what_tells_of_them_can_bear() {
    let long = |bytes: usize| Some("x".repeat(bytes));
    let mut config = good();
    config.disks[1].id = long(255);
    config.validate(HOST).unwrap();
    assert_eq!(
        error(|c| (c.disks[0].id, c.disks[1].id) = (long(256), long(256))),
        "a device's id has 256 bytes, allowed: 1 to 255"
    );
}

#[test]
fn cpus_are_bounded_by_kvm() {
    assert_eq!(
        error(|c| c.cpus = CpusConfig::fixed(0)),
        "cpus.boot_vcpus: 0 vCPUs asked for, 1 to 8 allowed"
    );
    assert_eq!(
        error(|c| c.cpus = CpusConfig::fixed(9)),
        "cpus.boot_vcpus: 9 vCPUs asked for, 1 to 8 allowed"
    );
    assert_eq!(
        error(|c| c.cpus = CpusConfig {
            boot_vcpus: 1,
            ..CpusConfig::fixed(64)
        }),
        "cpus.max_vcpus: 64 vCPUs asked for, 1 to 8 allowed"
    );
    assert_eq!(
        error(|c| c.cpus = CpusConfig {
            boot_vcpus: 4,
            ..CpusConfig::fixed(2)
        }),
        "cpus: at most 2 vCPUs, fewer than the 4 at boot"
    );
    let mut config = good();
    config.cpus = CpusConfig::fixed(8);
    config.validate(HOST).unwrap();
}

#[test]
fn memory_is_bounded_by_the_boot_structures_and_the_address_space() {
    assert_eq!(
        error(|c| c.memory.size = 0),
        "memory: 0 bytes (0 B) asked for, 2 MiB to 512 GiB allowed"
    );
    assert_eq!(
        error(|c| c.memory.size = 1 << 20),
        "memory: 1048576 bytes (1 MiB) asked for, 2 MiB to 512 GiB allowed"
    );
    assert_eq!(
        error(|c| c.memory.size = (1 << 39) + 4096),
        "memory: 549755817984 bytes (536870916 KiB) asked for, 2 MiB to 512 GiB allowed"
    );
    for size in [MIN_MEMORY_BYTES, 1 << 39] {
        let mut config = good();
        config.memory.size = size;
        config.validate(HOST).unwrap();
    }
}

#[test]
fn memory_is_whole_pages_of_the_kind_asked_for() {
    assert_eq!(
        error(|c| c.memory.size = 2_097_153),
        "memory: 2097153 bytes is not a multiple of the 4096-byte page"
    );
    let huge = |c: &mut VmConfig| {
        c.memory.size = (4 << 20) + 4096;
        c.memory.hugepages = true;
    };
    assert_eq!(
        error(huge),
        "memory: 4198400 bytes is not a multiple of the 2097152-byte page"
    );
}

#[test]
fn huge_pages_are_of_a_size_that_there_is() {
    let huge = |size, bytes| {
        move |c: &mut VmConfig| {
            c.memory.size = size;
            c.memory.hugepages = true;
            c.memory.hugepage_size = Some(bytes);
        }
    };
    assert_eq!(
        error(huge(1 << 30, 4 << 20)),
        "memory: hugepage_size is 4 MiB, allowed: 2 MiB, 1 GiB"
    );
    assert_eq!(
        error(huge((1 << 30) + (2 << 20), 1 << 30)),
        "memory: 1075838976 bytes is not a multiple of the 1073741824-byte page"
    );
    assert_eq!(
        error(|c| c.memory.hugepage_size = Some(2 << 20)),
        "memory: hugepage_size is given, hugepages is off: pages of that size need it on"
    );
    for bytes in HUGE_PAGE_BYTES {
        let mut config = good();
        huge(2 << 30, bytes)(&mut config);
        config.validate(HOST).unwrap();
        assert_eq!(config.memory.page_bytes(), bytes);
    }
}

#[test]
fn a_kernel_is_needed() {
    assert_eq!(error(|c| c.payload.kernel = None), "payload: no kernel given");
}

#[test]
fn disks_differ_in_their_ids_if_they_have_any() {
    let same = |c: &mut VmConfig| c.disks.iter_mut().for_each(|disk| disk.id = Some("root".into()));
    assert_eq!(error(same), "id 'root' is used by two devices, ids must differ");
}

#[test]
fn an_id_that_is_empty_is_none() {
    assert_eq!(
        error(|c| c.disks[0].id = Some(String::new())),
        "a device's id is empty: give it a name, or leave it out"
    );
}

#[test]
fn paths_that_lead_nowhere_are_refused_before_the_boot() {
    assert_eq!(error(|c| c.payload.kernel = Some("".into())), "kernel: no path given");
    assert_eq!(
        error(|c| c.payload.initramfs = Some("".into())),
        "initramfs: no path given"
    );
    assert_eq!(error(|c| c.disks[1].path = "".into()), "disk: no path given");
    assert_eq!(error(|c| c.rng.as_mut().unwrap().src = "".into()), "rng: no path given");
    assert_eq!(error(|c| c.serial = ConsoleConfig::file("")), "serial: no path given");
    assert!(error(|c| c.disks[0].path = "/a\0b".into()).starts_with("disk: the path has a NUL byte"));
    let long = "/".repeat(108);
    assert_eq!(
        error(|c| c.vsock = Some(VsockConfig::new(3, &long))),
        "vsock: the path has 108 bytes, allowed: up to 107"
    );
    let share = |c: &mut VmConfig| {
        c.memory.shared = true;
        c.fs = vec![FsConfig::new("t", &long)];
    };
    assert_eq!(error(share), "fs t: the path has 108 bytes, allowed: up to 107");
}

#[test]
fn a_command_line_that_the_guest_could_not_get_is_refused_before_the_boot() {
    assert_eq!(
        error(|c| c.payload.cmdline = Some("x".repeat(2048))),
        "command line has 2048 bytes; at most 2047 are allowed"
    );
}

#[test]
fn a_socket_on_which_husk_listens_is_nobody_elses() {
    let vsock = || Some(VsockConfig::new(3, "/s"));
    let at = ConsoleConfig::socket("/s");
    assert_eq!(
        error(|c| (c.console, c.vsock) = (at.clone(), vsock())),
        "console and vsock both have the socket /s, only one of them can"
    );
    let shared = |c: &mut VmConfig| {
        c.memory.shared = true;
        c.fs = vec![FsConfig::new("a", "/s"), FsConfig::new("b", "/s")];
    };
    assert_eq!(
        error(|c| (shared(c), c.vsock = vsock()).1),
        "vsock and fs a both have the socket /s, only one of them can"
    );
    assert_eq!(
        error(|c| (shared(c), c.serial = at).1),
        "serial and fs a both have the socket /s, only one of them can"
    );
    let mut config = good();
    shared(&mut config);
    // What two clients of one process have is that process's affair.
    config.validate(HOST).unwrap();
}

#[test]
fn devices_that_no_machine_has_room_for_and_taps_of_two_are_refused_before_anything_is_opened() {
    let disks = |count| (0..count).map(|number| DiskConfig::new(format!("/{number}"))).collect();
    let full = |c: &mut VmConfig| {
        c.memory.hotplug_size = Some(1 << 30);
        (c.balloon, c.console.mode) = (Some(BalloonConfig::default()), ConsoleMode::Pty);
        c.disks = disks(28);
    };
    assert_eq!(
        error(full),
        "32 devices or more, the machine's own included, 31 PCI slots are there"
    );
    let mut config = good();
    full(&mut config);
    config.memory.acpi_only = true;
    config.validate(HOST).unwrap();
    config.disks = disks(29);
    assert!(matches!(config.validate(HOST), Err(ConfigError::Slots { found: 32 })));
    (config.rng, config.balloon, config.console.mode) = (None, None, ConsoleMode::Off);
    config.disks = disks(31);
    config.validate(HOST).unwrap();
    // Whoever comes later is told by the machine, which knows what has gone meanwhile.
    config.disks = disks(32);
    config.validate_added().unwrap();
    let tap = |name: &str| NetConfig {
        tap: Some(name.into()),
        ..NetConfig::new()
    };
    assert_eq!(
        error(|c| c.net = vec![tap("t0"), tap("t1"), tap("t0")]),
        "net: tap t0 is used by two devices, taps must differ"
    );
}

/// RAM that has come, and what may come anew at the next boot, may be more than a VM can be made
/// with: a disk is none of it.
#[test]
fn what_comes_to_a_vm_that_runs_is_looked_at_by_itself() {
    let mut config = good();
    config.memory.hotplug_size = Some(Limits::ARCHITECTURE.max_memory_bytes() - config.memory.size);
    config.validate(Limits::ARCHITECTURE).unwrap();
    config.memory.size *= 2;
    assert!(config.validate(Limits::ARCHITECTURE).is_err());
    config.validate_added().unwrap();
    config.disks[1].num_queues = 0;
    assert!(matches!(config.validate_added(), Err(ConfigError::Queues { .. })));
    config.disks[1].num_queues = 1;
    // The next boot has less that may come, and not none at all.
    config.fit_hotplug(Limits::ARCHITECTURE);
    config.validate(Limits::ARCHITECTURE).unwrap();
    let fits = config.clone();
    config.fit_hotplug(Limits::ARCHITECTURE);
    assert_eq!(config, fits);
}

#[test]
fn fields_that_exclude_each_other_or_mean_nothing_together_are_named() {
    assert_eq!(
        error(|c| c.cpus.max_phys_bits = 31),
        "cpus: max_phys_bits is 31, 32 or more allowed"
    );
    assert_eq!(
        error(|c| (c.memory.acpi_only, c.memory.hotplug_method) = (true, HotplugMethod::VirtioMem)),
        "memory: acpi_only is on, hotplug_method is VirtioMem: one of the two is allowed"
    );
    let file = || ConsoleConfig::file("/f");
    for (port, field, with) in [
        (
            ConsoleConfig {
                limit: Some(1 << 20),
                ..ConsoleConfig::null()
            },
            "limit",
            "mode File",
        ),
        (
            ConsoleConfig {
                keep: Some(1),
                ..ConsoleConfig::null()
            },
            "keep",
            "mode File",
        ),
        (
            ConsoleConfig {
                keep: Some(1),
                ..file()
            },
            "keep",
            "limit",
        ),
        (
            ConsoleConfig {
                identifier: Some("a".into()),
                ..file()
            },
            "identifier",
            "mode Journald",
        ),
        (
            ConsoleConfig {
                journal: Some("/j".into()),
                ..file()
            },
            "journal",
            "mode Journald",
        ),
    ] {
        assert_eq!(
            error(|c| c.console = port),
            format!("console.{field} is given, and has a meaning with {with} alone: leave it out")
        );
    }
}

#[test]
fn a_balloon_of_huge_pages_has_no_size() {
    let with = |size| {
        let mut config = good();
        config.memory.hugepages = true;
        config.balloon = Some(BalloonConfig {
            size,
            free_page_reporting: true,
            ..BalloonConfig::default()
        });
        config.validate(HOST)
    };
    assert_eq!(
        with(2 << 20).unwrap_err().to_string(),
        "balloon.size: RAM of huge pages is not given back to the host; allowed: 0"
    );
    with(0).unwrap();
}

#[test]
fn a_balloon_is_whole_pages_and_leaves_the_guest_some() {
    let balloon = |size| BalloonConfig {
        size,
        ..BalloonConfig::default()
    };
    for size in [1, 4097, good().memory.size, u64::MAX] {
        let why = error(|c| c.balloon = Some(balloon(size)));
        assert!(
            why.starts_with(&format!("balloon: size is {size}, whole pages of 4096 bytes")),
            "{why}"
        );
    }
    let mut config = good();
    config.balloon = Some(balloon(4096));
    config.validate(HOST).unwrap();
}

#[test]
fn what_an_idle_guest_gives_back_takes_between_a_second_and_a_day_and_small_pages() {
    let idle = |seconds| BalloonConfig {
        reclaim_idle: Some(seconds),
        ..BalloonConfig::default()
    };
    for seconds in [0, 86_401, u64::MAX] {
        assert_eq!(
            error(|c| c.balloon = Some(idle(seconds))),
            format!("balloon: reclaim_idle is {seconds}, 1 to 86400 seconds allowed")
        );
    }
    let mut config = good();
    config.balloon = Some(idle(1));
    config.validate(HOST).unwrap();
    let huge = |c: &mut VmConfig| (c.balloon, c.memory.hugepages) = (Some(idle(1)), true);
    assert_eq!(
        error(huge),
        "balloon: reclaim_idle is given, memory.hugepages is on: huge pages are not given back"
    );
}
