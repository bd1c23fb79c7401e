use std::fs;

use super::*;

/// A host whose files are these.
fn host(files: &[(&str, &str)]) -> (tempfile::TempDir, Host) {
    let root = crate::check::testing::host(files);
    let host = Host::at(root.path());
    (root, host)
}

fn oom() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOMEM)
}

const HUGE: Pages = Pages::Huge { bytes: 2 << 20 };
const MEMINFO: (&str, &str) = (
    "proc/meminfo",
    "MemTotal:  100 kB\nMemAvailable:  2048 kB\nCommitLimit:  5120 kB\nCommitted_AS:  2048 kB\n",
);

#[test]
fn huge_pages_that_are_promised_to_others_are_not_free() {
    let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
    let files = [
        ("nr_hugepages", "8\n"),
        ("free_hugepages", "6\n"),
        ("resv_hugepages", "4\n"),
    ];
    let files = files.map(|(name, text)| (format!("{pool}/{name}"), text));
    let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
    let (_root, host) = host(&files);
    let error = host.explain(HUGE, 7 << 20, FailedRequest::Mapping, oom());
    assert_eq!(
        error.to_string(),
        "huge pages of 2 MiB: 4 needed, 2 of 8 free (see /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)"
    );
    // What populating says when a control group limits huge pages.
    let error = host.explain(
        HUGE,
        7 << 20,
        FailedRequest::Prefault,
        io::Error::from_raw_os_error(libc::EFAULT),
    );
    assert!(
        error.to_string().starts_with("huge pages of 2 MiB: 4 needed"),
        "{error}"
    );
}

#[test]
fn what_is_kept_open_is_read_anew_and_needs_no_other_file() {
    let (root, host) = host(&[("proc/sys/vm/overcommit_memory", "2\n"), MEMINFO]);
    let host = host.keep_open(HUGE);
    let refused = |host: &Host| {
        host.explain(Pages::Usual, 4 << 20, FailedRequest::Mapping, oom())
            .to_string()
    };
    assert!(refused(&host).contains("promise 3 MiB more"), "{}", refused(&host));
    fs::write(
        root.path().join(MEMINFO.0),
        "CommitLimit:  5120 kB\nCommitted_AS:  3072 kB\n",
    )
    .unwrap();
    assert!(refused(&host).contains("promise 2 MiB more"), "{}", refused(&host));
    // Nothing is opened again.
    fs::remove_dir_all(root.path().join("proc")).unwrap();
    assert!(refused(&host).contains("promise 2 MiB more"), "{}", refused(&host));
}

#[test]
fn what_could_not_be_opened_at_the_start_is_not_opened_later() {
    let (root, host) = host(&[]);
    let host = host.keep_open(HUGE);
    for (path, text) in [("proc/sys/vm/overcommit_memory", "2\n"), MEMINFO] {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let error = host.explain(Pages::Usual, 4 << 20, FailedRequest::Mapping, oom());
    assert!(matches!(error, HostError::Other(_)), "{error}");
}

#[test]
fn a_page_size_that_the_host_does_not_have_is_named() {
    let (_root, host) = host(&[]);
    let error = host.explain(Pages::Huge { bytes: 1 << 30 }, 1 << 30, FailedRequest::Mapping, oom());
    assert_eq!(
        error.to_string(),
        "this host has no huge pages of 1 GiB (no /sys/kernel/mm/hugepages/hugepages-1048576kB)"
    );
}

#[test]
fn a_host_that_promises_no_more_than_it_has_is_named_with_what_is_left() {
    let (_root, host) = host(&[("proc/sys/vm/overcommit_memory", "2\n"), MEMINFO]);
    let error = host.explain(Pages::Usual, 4 << 20, FailedRequest::Mapping, oom());
    assert_eq!(
        error.to_string(),
        "4 MiB needed, the host may promise 3 MiB more (vm.overcommit_memory is 2, see CommitLimit in /proc/meminfo)"
    );
}

#[test]
fn shared_memory_is_checked_before_since_the_kernel_promises_it_page_by_page() {
    let backing = |shared| {
        let config = crate::config::MemoryConfig {
            shared,
            ..Default::default()
        };
        Backing::new(&config, 4 << 20, c"test").unwrap()
    };
    let (_root, strict) = host(&[("proc/sys/vm/overcommit_memory", "2\n"), MEMINFO]);
    assert!(strict.check(&backing(true), 4 << 20).is_err());
    strict.check(&backing(true), 3 << 20).unwrap();
    strict.check(&backing(false), 4 << 20).unwrap();
    let (_root, generous) = host(&[("proc/sys/vm/overcommit_memory", "0\n"), MEMINFO]);
    generous.check(&backing(true), 4 << 20).unwrap();
}

#[test]
fn huge_pages_that_the_pool_may_still_get_can_be_afforded() {
    let pool = "sys/kernel/mm/hugepages/hugepages-2048kB";
    let afford = |pages: u64, counters: &[(&str, &str)]| {
        let files: Vec<_> = counters
            .iter()
            .map(|(name, text)| (format!("{pool}/{name}"), *text))
            .collect();
        let files: Vec<_> = files.iter().map(|(path, text)| (path.as_str(), *text)).collect();
        let (_root, host) = host(&files);
        host.afford(HUGE, pages << 21).map_err(|error| error.to_string())
    };
    let own = [
        ("nr_hugepages", "8\n"),
        ("free_hugepages", "6\n"),
        ("resv_hugepages", "4\n"),
    ];
    assert_eq!(afford(2, &own), Ok(()));
    let why = "huge pages of 2 MiB: 3 needed, 2 of 8 free (see /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages)";
    assert_eq!(afford(3, &own), Err(why.into()));
    let surplus = [("nr_overcommit_hugepages", "5\n"), ("surplus_hugepages", "1\n")];
    let both = [own.as_slice(), surplus.as_slice()].concat();
    assert_eq!(afford(6, &both), Ok(()));
    assert!(afford(7, &both).is_err());
    assert_eq!(afford(7, &[]), Ok(()), "the kernel is to say");
}

#[test]
fn usual_pages_are_limited_by_what_the_host_promises_and_by_the_control_groups() {
    let group = [
        ("proc/self/cgroup", "0::/pod/vmm\n"),
        ("sys/fs/cgroup/pod/memory.max", "4194304\n"),
    ];
    let strict = [("proc/sys/vm/overcommit_memory", "2\n"), MEMINFO];
    let (_root, host) = host(&[group, strict].concat());
    host.afford(Pages::Usual, 3 << 20).unwrap();
    assert!(matches!(
        host.afford(Pages::Usual, 4 << 20),
        Err(HostError::Commit {
            needed: 0x40_0000,
            left: 0x30_0000
        })
    ));
    host.allows(4 << 20).unwrap();
    assert_eq!(
        host.allows(5 << 20).unwrap_err().to_string(),
        "5 MiB beside what the VM started with, the control group allows 4194304 bytes (/sys/fs/cgroup/pod/memory.max)"
    );
}

#[test]
fn running_out_while_pages_are_touched_is_no_bad_address() {
    let (_root, host) = host(&[("proc/sys/vm/overcommit_memory", "0\n"), MEMINFO]);
    for code in [libc::EFAULT, libc::ENOMEM] {
        let error = host.explain(
            Pages::Usual,
            4 << 20,
            FailedRequest::Prefault,
            io::Error::from_raw_os_error(code),
        );
        assert_eq!(
            error.to_string(),
            "out of memory: 4 MiB needed, 2 MiB available on the host"
        );
    }
    let error = host.explain(
        Pages::Usual,
        4 << 20,
        FailedRequest::Mapping,
        io::Error::from_raw_os_error(libc::EINVAL),
    );
    assert!(matches!(error, HostError::Other(_)));
}

#[test]
fn the_least_limit_above_a_group_counts_in_both_hierarchies() {
    let (_root, v2) = host(&[
        ("proc/self/cgroup", "0::/pods/pod1/vmm\n"),
        ("sys/fs/cgroup/pods/pod1/vmm/memory.max", "max\n"),
        ("sys/fs/cgroup/pods/pod1/memory.max", "1000\n"),
        ("sys/fs/cgroup/pods/memory.max", "2000\n"),
    ]);
    let limit = v2.group_limit_below(1500).unwrap();
    assert_eq!(
        limit.to_string(),
        "the control group allows 1000 bytes (/sys/fs/cgroup/pods/pod1/memory.max)"
    );
    assert_eq!(v2.group_limit_below(1000), None);
    let (_root, v1) = host(&[
        ("proc/self/cgroup", "9:cpu:/x\n4:memory:/y\n0::/\n"),
        ("sys/fs/cgroup/memory/y/memory.limit_in_bytes", "500\n"),
    ]);
    assert_eq!(v1.group_limit_below(501).unwrap().bytes, 500);
    let (_root, bare) = host(&[]);
    assert_eq!(bare.group_limit_below(u64::MAX), None);
}

#[test]
fn a_limit_of_the_process_is_named_if_it_is_what_was_exceeded() {
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max file size             102400               unlimited            bytes     \n\
        Max data size             unlimited            unlimited            bytes     \n\
        Max address space         8388608              8388608              bytes     \n";
    let status = "Name:\thusk\nVmSize:\t    5120 kB\nVmData:\t    1024 kB\n";
    let (_root, host) = host(&[("proc/self/limits", limits), ("proc/self/status", status)]);
    let explain = |bytes, error| {
        let error = io::Error::from_raw_os_error(error);
        host.explain(Pages::Usual, bytes, FailedRequest::Mapping, error)
            .to_string()
    };
    assert_eq!(
        explain(4 << 20, libc::EFBIG),
        "4 MiB needed, RLIMIT_FSIZE (ulimit -f) allows 100 KiB"
    );
    assert_eq!(
        explain(4 << 20, libc::ENOMEM),
        "4 MiB needed beside 5 MiB in use, RLIMIT_AS (ulimit -v) allows 8 MiB"
    );
    for (bytes, error) in [(3 << 20, libc::ENOMEM), (4 << 20, libc::EINVAL)] {
        let says = explain(bytes, error);
        assert_eq!(says, io::Error::from_raw_os_error(error).to_string());
    }
}
