use serde_json::json;

use super::*;
use crate::config::{CpusConfig, FsConfig};

const HOST: Limits = Limits {
    max_vcpus: 8,
    phys_bits: 40,
};

fn good() -> VmConfig {
    let mut config = VmConfig::default();
    config.payload.kernel = Some("/k".into());
    config.disks = vec![DiskConfig::new("/a"), DiskConfig::new("/b")];
    config
}

/// The message when `change` is made to a good configuration.
fn error(change: impl FnOnce(&mut VmConfig)) -> String {
    let mut config = good();
    change(&mut config);
    config.validate(HOST).unwrap_err().to_string()
}

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
fn memory_that_may_come_fits_the_address_space_too() {
    assert_eq!(
        error(|c| {
            c.memory.size = 1 << 30;
            c.memory.hotplug_size = Some(512 << 30);
        }),
        "memory: 1 GiB at the start and 512 GiB more later asked for, 512 GiB allowed together"
    );
    assert!(error(|c| c.memory.hotplug_size = Some(u64::MAX)).contains("more later asked for"));
    let mut config = good();
    config.memory.size = 1 << 30;
    config.memory.hotplug_size = Some(511 << 30);
    config.validate(HOST).unwrap();
}

#[test]
fn an_absurd_address_width_does_not_overflow() {
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 64
        }
        .max_memory_bytes(),
        MAX_RAM_BYTES
    );
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 255
        }
        .max_memory_bytes(),
        MAX_RAM_BYTES
    );
    assert_eq!(
        Limits {
            max_vcpus: 1,
            phys_bits: 0
        }
        .max_memory_bytes(),
        0
    );
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
fn disk_queues_are_bounded() {
    assert_eq!(
        error(|c| c.disks[1].num_queues = 0),
        "disk /b: 0 queues asked for, 1 to 255 allowed"
    );
    assert_eq!(
        error(|c| c.disks[0].num_queues = 256),
        "disk /a: 256 queues asked for, 1 to 255 allowed"
    );
    for size in [0, 1, 8, 100, 1025, 2048, u16::MAX] {
        assert_eq!(
            error(|c| c.disks[0].queue_size = size),
            format!("disk /a: queue size {size} is not a power of two from 16 to 1024")
        );
    }
}

#[test]
fn any_name_is_a_disks_and_a_serial_number_is_bounded() {
    let mut config = good();
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    config.disks[0].id = Some(uuid.into());
    config.disks[1].id = Some("naïve\n".repeat(36));
    config.validate(HOST).unwrap();
    assert_eq!(config.disks[0].serial_number(), "6ba7b810-9dad-11d1-8");
    assert_eq!(config.disks[1].serial_number(), "na_ve_na_ve_na_ve_na");
    config.disks[0].serial = Some("0123456789abcdefghij".into());
    config.validate(HOST).unwrap();
    assert_eq!(config.disks[0].serial_number(), "0123456789abcdefghij");
    assert_eq!(
        error(|c| c.disks[1].serial = Some(uuid.into())),
        format!("disk /b: serial '{uuid}' has 36 bytes, up to 20 of printable ASCII are allowed")
    );
    assert_eq!(
        error(|c| c.disks[0].serial = Some("a\tb".into())),
        "disk /a: serial 'a\\tb' has 4 bytes, up to 20 of printable ASCII are allowed"
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
fn a_port_at_a_socket_needs_one_that_no_other_has() {
    let at = |socket: &str| ConsoleConfig::socket(socket);
    assert_eq!(
        error(|c| c.console = ConsoleConfig::new(ConsoleMode::Socket)),
        "console: mode Socket needs a socket"
    );
    assert_eq!(error(|c| c.serial = at("")), "serial.socket: no path given");
    assert_eq!(
        error(|c| c.serial = at(&"/".repeat(108))),
        "serial.socket: the path has 108 bytes, allowed: up to 107"
    );
    assert_eq!(
        error(|c| (c.serial, c.console) = (at("/s"), at("/s"))),
        "serial and console both have the socket /s, only one of them can"
    );
    let mut config = good();
    (config.serial, config.console) = (at("/s"), ConsoleConfig::new(ConsoleMode::Pty));
    // What it means for another mode is nothing.
    config.console.socket = Some("/s".into());
    config.validate(HOST).unwrap();
}

#[test]
fn a_file_with_a_limit_is_one_ports_alone() {
    let limited = |path: &str| ConsoleConfig {
        limit: Some(4096),
        keep: Some(1),
        ..ConsoleConfig::file(path)
    };
    for (serial, console, file) in [
        (limited("/l"), limited("/l"), "/l"),
        (limited("/l"), ConsoleConfig::file("/l"), "/l"),
        (ConsoleConfig::file("/l"), limited("/l"), "/l"),
        (limited("/l"), ConsoleConfig::file("/l.1"), "/l.1"),
        (ConsoleConfig::file("/l.1"), limited("/l"), "/l.1"),
    ] {
        assert_eq!(
            error(|c| (c.serial, c.console) = (serial, console)),
            format!("serial and console both have the file {file}: with a limit only one of them can")
        );
    }
    for (serial, console) in [
        (ConsoleConfig::file("/l"), ConsoleConfig::file("/l")),
        (limited("/l"), ConsoleConfig::file("/l.2")),
        (limited("/l"), limited("/m")),
    ] {
        let mut config = good();
        (config.serial, config.console) = (serial, console);
        config.validate(HOST).unwrap();
    }
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

/// RAM that has come, and what may come anew at the next boot, may be more than a VM can be made with: a disk is none of it.
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

/// What comes lies above 4 GiB, wherever there would be room below.
#[test]
fn nothing_is_promised_beyond_the_addresses_that_a_vm_is_given() {
    let with = |bits, size, hotplug: Option<u64>| {
        let mut config = good();
        config.cpus.max_phys_bits = bits;
        (config.memory.size, config.memory.hotplug_size) = (size, hotplug);
        config
    };
    let refused = |config: &VmConfig| config.validate(HOST).unwrap_err().to_string();
    assert_eq!(
        refused(&with(32, 512 << 20, Some(512 << 20))),
        "memory: 512 MiB at the start and 512 MiB more later asked for, 512 MiB allowed together"
    );
    with(32, 2 << 30, None).validate(HOST).unwrap();
    // From 4 GiB up to persistent memory, which begins at 6.
    with(33, 2 << 30, Some(2 << 30)).validate(HOST).unwrap();
    let mut grown = with(33, 7 << 29, Some(1 << 29));
    assert!(grown.validate(HOST).is_err(), "RAM is in the way, up to 4.5 GiB");
    grown.fit_hotplug(HOST);
    assert_eq!(grown.memory.hotplug_size, Some(0));
    grown.validate(HOST).unwrap();
    // What hosts have is room enough for as much again as there may be.
    for bits in [36, 39, 40, 46, 52] {
        let host = Limits {
            phys_bits: bits,
            ..HOST
        };
        let most = host.max_memory_bytes();
        for size in [2 << 20, 1 << 30, most / 2, most - (1 << 30)] {
            let config = with(bits, size, Some(most - size));
            config
                .validate(host)
                .unwrap_or_else(|error| panic!("{bits} {size:#x}: {error}"));
        }
    }
    let pmem = |bits, size| {
        let mut config = with(bits, 512 << 20, None);
        let file = json!({"file": "/f", "size": size});
        config.pmem = vec![serde_json::from_value(file).unwrap()];
        config
    };
    assert_eq!(
        refused(&pmem(32, json!(null))),
        "pmem: 2 MiB of addresses are needed, 0 B allowed: the last quarter of cpus.max_phys_bits and of what the host has"
    );
    pmem(40, json!(256_u64 << 30)).validate(HOST).unwrap();
    assert!(refused(&pmem(46, json!((256_u64 << 30) + (2 << 20)))).contains("256 GiB allowed"));
}

#[test]
fn addresses_are_as_wide_as_the_host_and_the_vm_both_have_them() {
    let mut config = good();
    assert_eq!(config.phys_bits(HOST), 40, "46 unless said");
    assert_eq!(config.phys_bits(Limits::ARCHITECTURE), 46);
    config.cpus.max_phys_bits = 36;
    assert_eq!(config.phys_bits(HOST), 36);
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

#[test]
fn the_kernel_as_a_back_end_has_no_socket_and_no_limits() {
    for allowed in [
        json!({"vsock": {"cid": 3, "backend": "vhost"}}),
        json!({"vsock": {"cid": 3, "backend": "vhost", "socket": null}}),
        json!({"vsock": {"cid": 3, "backend": null, "socket": "/s"}}),
        json!({"net": [{"tap": "t0", "backend": "vhost", "rate_limiter_config": null}]}),
    ] {
        let mut wire = serde_json::to_value(good()).unwrap();
        merge(&mut wire, allowed);
        let config: VmConfig = serde_json::from_value(wire).unwrap();
        config.validate(HOST).unwrap();
    }
    for (bad, expected) in [
        (
            json!({"vsock": {"cid": 3, "backend": "vhost", "socket": "/s"}}),
            "vsock: socket is given, and with backend=vhost the host reaches the guest by its cid: leave it out",
        ),
        (json!({"vsock": {"cid": 3}}), "vsock: no socket given"),
        (
            json!({"vsock": {"cid": 2, "backend": "vhost"}}),
            "vsock: cid 2 is reserved, allowed: 3 to 4294967294",
        ),
        (
            json!({"net": [{"tap": "t0", "backend": "vhost", "rate_limiter_config": {"ops": {"size": 1, "refill_time": 1}}}]}),
            "net t0: rate limits are for backend=husk; vhost has none",
        ),
    ] {
        assert_eq!(wire_error(bad), expected);
    }
}

#[test]
fn consoles_need_their_files_and_only_one_has_stdio() {
    assert_eq!(
        error(|c| c.serial.mode = ConsoleMode::File),
        "serial: mode File needs a file"
    );
    assert_eq!(
        error(|c| c.console.mode = ConsoleMode::File),
        "console: mode File needs a file"
    );
    let limited = |limit: Option<u64>, keep: Option<u32>| {
        error(|c| {
            c.serial = ConsoleConfig {
                limit,
                keep,
                ..ConsoleConfig::file("/f")
            }
        })
    };
    assert_eq!(
        limited(Some(4_095), None),
        "serial.limit: 4095 is not supported, allowed: 4096 bytes or more"
    );
    assert_eq!(
        limited(Some(4_096), Some(100)),
        "serial.keep: 100 is not supported, allowed: 0 to 99 files"
    );
    let named = |c: &mut VmConfig| c.console.identifier = Some("a\nPRIORITY=0".into());
    assert_eq!(
        error(named),
        "console.identifier: 'a\\nPRIORITY=0' is not supported, allowed: 1 to 64 letters, digits, _, . and -"
    );
    let both = |c: &mut VmConfig| (c.serial.mode, c.console.mode) = (ConsoleMode::Tty, ConsoleMode::Tty);
    assert_eq!(error(both), "serial and console both use stdio, only one of them can");
}

/// A change to a configuration as it is written on the wire.
fn wire_error(change: serde_json::Value) -> String {
    let mut wire = serde_json::to_value(good()).unwrap();
    merge(&mut wire, change);
    let config: VmConfig = serde_json::from_value(wire).unwrap();
    config.validate(HOST).unwrap_err().to_string()
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into.as_object_mut(), from) {
        (Some(fields), serde_json::Value::Object(new)) => {
            for (key, value) in new {
                merge(fields.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (_, from) => *into = from,
    }
}

#[test]
fn what_husk_cannot_honour_is_refused_by_name() {
    for (change, field) in [
        (
            json!({"devices": [{"path": "/sys/bus/pci/devices/0000:41:00.0"}]}),
            "devices",
        ),
        (json!({"watchdog": true}), "watchdog"),
        (json!({"tpm": {"socket": "/s"}}), "tpm"),
        (
            json!({"debug_console": {"mode": "Tty", "iobase": 233}}),
            "debug_console",
        ),
        (json!({"cpus": {"kvm_hyperv": true}}), "cpus.kvm_hyperv"),
        (
            json!({"cpus": {"affinity": [{"vcpu": 0, "host_cpus": [1]}]}}),
            "cpus.affinity",
        ),
        (
            json!({"memory": {"zones": [{"id": "mem0", "size": 4096}]}}),
            "memory.zones",
        ),
        (json!({"payload": {"firmware": "/f"}}), "payload.firmware"),
        (json!({"platform": {"tdx": true}}), "platform.tdx"),
        (json!({"platform": {"iommu_segments": [0]}}), "platform.iommu_segments"),
        (
            json!({"disks": [{"path": "/a"}, {"path": "/b", "vhost_user": true}]}),
            "disks[1].vhost_user",
        ),
        (
            json!({"disks": [{"path": "/a", "image_type": "Qcow2"}]}),
            "disks[0].image_type",
        ),
        (
            json!({"disks": [{"vhost_user": true, "vhost_socket": "/s"}]}),
            "disks[0].vhost_socket",
        ),
        (
            json!({"disks": [{"path": null, "vhost_user": true}]}),
            "disks[0].vhost_user",
        ),
        (json!({"net": [{"vhost_user": true}]}), "net[0].vhost_user"),
        (
            json!({"fs": [{"tag": "t", "socket": "/s", "iommu": true}]}),
            "fs[0].iommu",
        ),
        (json!({"pmem": [{"file": "/p", "iommu": true}]}), "pmem[0].iommu"),
        (
            json!({"vsock": {"cid": 3, "socket": "/s", "iommu": true}}),
            "vsock.iommu",
        ),
        (json!({"rng": {"iommu": true}}), "rng.iommu"),
        (json!({"serial": {"iommu": true}}), "serial.iommu"),
    ] {
        let error = wire_error(change);
        assert!(
            error.starts_with(&format!("{field}: ")) && error.contains("is not supported"),
            "{error}"
        );
    }
    let threads = json!({"cpus": {"topology": {"threads_per_core": 2, "cores_per_die": 4, "dies_per_package": 1, "packages": 1}}});
    assert!(
        wire_error(threads).starts_with("cpus.topology: 2 threads x 4 cores x 1 dies x 1 packages is not supported")
    );
}

#[test]
fn a_disk_without_a_path_is_one_without_an_image() {
    for disk in [json!({}), json!({"path": null}), json!({"path": ""})] {
        assert_eq!(wire_error(json!({"disks": [disk]})), "disk: no path given");
    }
}

#[test]
fn neutral_forms_of_what_husk_lacks_are_accepted() {
    let mut wire = serde_json::to_value(good()).unwrap();
    merge(
        &mut wire,
        json!({"devices": [], "iommu": false, "watchdog": false, "landlock_enable": false, "tpm": null, "numa": null,
               "debug_console": {"mode": "Off"},
               "cpus": {"boot_vcpus": 1, "max_vcpus": 8, "kvm_hyperv": false, "features": {"amx": false},
                        "topology": {"threads_per_core": 1, "cores_per_die": 8, "dies_per_package": 1, "packages": 1}},
               "memory": {"hotplug_method": "Acpi", "zones": null},
               "payload": {"firmware": null, "mrconfigid": null, "host_data": null},
               "platform": {"num_pci_segments": 2, "tdx": false, "sev_snp": false}}),
    );
    serde_json::from_value::<VmConfig>(wire)
        .unwrap()
        .validate(HOST)
        .unwrap();
}

#[test]
fn network_queues_come_in_pairs_of_a_size_that_rings_have() {
    let message = |net: serde_json::Value| {
        let config = json!({"payload": {"kernel": "/k"}, "net": [net]});
        let config: VmConfig = serde_json::from_value(config).unwrap();
        config.validate(Limits::ARCHITECTURE).map_err(|error| error.to_string())
    };
    assert_eq!(
        message(json!({"tap": "t", "num_queues": 254, "queue_size": 1024})),
        Ok(())
    );
    for queues in [0, 1, 3, 255, 256] {
        let expected = format!("net t: {queues} queues asked for, 2 to 254 allowed, two for each pair");
        assert_eq!(message(json!({"tap": "t", "num_queues": queues})), Err(expected));
    }
    for size in [0, 8, 255, 2048] {
        let expected = format!("net t: queue size {size} is not a power of two from 16 to 1024");
        assert_eq!(message(json!({"tap": "t", "queue_size": size})), Err(expected));
    }
    assert_eq!(
        message(json!({"mac": "02:00:00:00:00:01", "mtu": 67})),
        Err("net 02:00:00:00:00:01: mtu is 67, allowed: 68 to 65535".into())
    );
}

#[test]
fn persistent_memory_is_a_file_and_whole_huge_pages() {
    let message = |pmem: serde_json::Value| {
        let config = json!({"payload": {"kernel": "/k"}, "pmem": [pmem]});
        let config: VmConfig = serde_json::from_value(config).unwrap();
        config.validate(Limits::ARCHITECTURE).map_err(|error| error.to_string())
    };
    assert_eq!(message(json!({"file": "/f"})), Ok(()));
    assert_eq!(message(json!({"file": "/f", "size": 4 << 20})), Ok(()));
    assert_eq!(message(json!({"file": ""})), Err("pmem: no file given".into()));
    for size in [0, 1, 4096, (2 << 20) + 1] {
        let expected = format!("pmem /f: {size} bytes are not a multiple of 2097152, and at least that");
        assert_eq!(message(json!({"file": "/f", "size": size})), Err(expected));
    }
}
