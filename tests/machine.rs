//! The machine as the guest finds it: processors, memory, PCI, and the ways out.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs;
use std::path::Path;

use husk_guest::answer::{Interrupt, PciFunction};
use husk_guest::{Answer, Step};
use husk_tests::{Boot, Ended, Image};

fn boots_with_processors(count: u32) {
    let ended = Boot::new([Step::Report, Step::Topology, Step::PowerOff])
        .cpus(count)
        .run();
    ended.assert_code(0).assert_nothing_refused();
    let list = if count == 1 {
        "0".into()
    } else {
        format!("0-{}", count - 1)
    };
    let report = ended.report();
    assert_eq!((&report.online, &report.possible), (&list, &list));
    let Some(Answer::Topology { processors }) = ended.answers.get(1) else {
        panic!("{:?}", ended.answers)
    };
    assert_eq!(processors.len(), usize::try_from(count).unwrap());
    assert!(
        processors
            .iter()
            .all(|processor| processor.package == processors[0].package),
        "{processors:?}"
    );
    for (id, processor) in (0..).zip(processors) {
        assert_eq!(processor.id, id);
        assert_eq!(processor.siblings, id.to_string(), "one thread a core: {processors:?}");
    }
    let mut cores: Vec<_> = processors.iter().map(|processor| processor.core).collect();
    cores.sort_unstable();
    cores.dedup();
    assert_eq!(
        cores.len(),
        processors.len(),
        "every processor is a core: {processors:?}"
    );
}

#[test]
fn one_processor() {
    boots_with_processors(1);
}

#[test]
fn two_processors() {
    boots_with_processors(2);
}

#[test]
fn four_processors() {
    boots_with_processors(4);
}

#[test]
fn eight_processors() {
    boots_with_processors(8);
}

#[test]
fn a_guest_may_have_more_processors_than_eight_bits_name() {
    for kernel in ["6.12", "6.1"] {
        let ended = Boot::new([Step::Report, Step::PowerOff])
            .kernel(kernel, Image::Elf)
            .arguments(["--cpus", "boot=2,max=300"])
            .run();
        ended.assert_code(0).assert_nothing_refused();
        let report = ended.report();
        assert_eq!((&*report.online, &*report.possible), ("0-1", "0-299"), "{kernel}");
    }
}

fn boots_with_memory(size: &str, mib: u64, kernel: &str) {
    let ended = Boot::new([Step::Report, Step::PowerOff])
        .kernel(kernel, Image::BzImage)
        .memory(size)
        .run();
    ended.assert_code(0);
    let seen = ended.report().memory_kib / 1024;
    // The kernel keeps its image and its page structures for itself: at most an eighth of RAM and 48 MiB.
    assert!(
        seen <= mib && seen >= mib - mib / 8 - 48,
        "asked for {mib} MiB, the guest counts {seen}"
    );
}

#[test]
fn memory_of_128_mib() {
    boots_with_memory("128M", 128, "6.12");
}

#[test]
fn memory_that_ends_below_the_32_bit_hole() {
    boots_with_memory("2G", 2048, "6.1");
}

#[test]
fn memory_that_goes_on_above_the_32_bit_hole() {
    boots_with_memory("5G", 5120, "6.12");
}

/// What the host says of its huge pages of 2 MiB.
fn huge_pages(name: &str) -> u64 {
    let text = fs::read_to_string(Path::new(HUGE_PAGES).join(name)).unwrap();
    text.trim().parse().unwrap()
}

const HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB";

#[test]
fn huge_pages_back_ram_and_too_few_are_refused_before_the_guest_starts() {
    let pool = Path::new(HUGE_PAGES).join("nr_hugepages");
    fs::write(&pool, "160").unwrap();
    assert_eq!(huge_pages("free_hugepages"), 160, "the host has room for them");
    for more in ["", ",shared=on", ",prefault=on", ",shared=on,prefault=on"] {
        let memory = format!("size=256M,hugepages=on{more}");
        let boot = || Boot::new([Step::Report, Step::Echo, Step::PowerOff]).memory(&memory);
        let mut guest = boot().start();
        assert!(matches!(guest.answer(), Answer::Report(_)));
        // Those that the guest has not touched yet are set aside.
        assert_eq!(
            huge_pages("free_hugepages") - huge_pages("resv_hugepages"),
            32,
            "{memory}"
        );
        let second = boot().run();
        second.assert_code(1);
        assert!(
            second
                .errors
                .contains("huge pages of 2 MiB: 128 needed, 32 of 160 free"),
            "{}",
            second.errors
        );
        guest.type_text("end\n");
        guest.wait().assert_code(0);
        assert_eq!(huge_pages("free_hugepages"), 160, "{memory}: all are given back");
    }
    fs::write(&pool, "0").unwrap();
}

#[test]
fn what_the_host_may_not_promise_is_refused_with_figures() {
    let strictness = Path::new("/proc/sys/vm/overcommit_memory");
    let before = fs::read_to_string(strictness).unwrap();
    for memory in ["64G", "size=64G,shared=on", "size=256M,hotplug=64G,shared=on"] {
        fs::write(strictness, "2").unwrap();
        let ended = Boot::new([Step::Report, Step::PowerOff]).memory(memory).run();
        fs::write(strictness, &before).unwrap();
        // A reserve is no promise.
        if memory.contains("hotplug") {
            ended.assert_code(0);
            continue;
        }
        ended.assert_code(1);
        assert!(
            ended.errors.contains("64 GiB needed, the host may promise "),
            "{memory}: {}",
            ended.errors
        );
    }
}

#[test]
fn devices_are_on_pci_with_their_own_interrupts() {
    let boot = Boot::new([
        Step::Report,
        Step::Random(64),
        Step::Pci,
        Step::Interrupts,
        Step::PowerOff,
    ])
    .cpus(2);
    let disk = boot.folder().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let ended = boot.disk(&disk, "").run();
    ended.assert_code(0).assert_nothing_refused();
    let [
        Answer::Report(report),
        Answer::Random { source, distinct, .. },
        Answer::Pci { functions },
        Answer::Interrupts { rows },
        _,
    ] = ended.answers.as_slice()
    else {
        panic!("{:?}", ended.answers)
    };
    assert!(
        report.acpi.iter().any(|device| device.starts_with("PNP0A08")),
        "a PCIe root: {:?}",
        report.acpi
    );
    assert!(
        source.starts_with("virtio_rng") && *distinct > 32,
        "{source}: {distinct} different bytes of 64"
    );
    let bound = |id: &str| {
        functions
            .iter()
            .find(|function| function.id == id && function.driver == "virtio-pci")
    };
    assert!(bound("1af4:1042").is_some_and(has_msix), "block: {functions:?}");
    assert!(bound("1af4:1044").is_some_and(has_msix), "rng: {functions:?}");
    assert!(
        taken(rows, "virtio", "req.0") > 0,
        "the disk's queue interrupts: {rows:?}"
    );
    assert!(
        taken(rows, "virtio", "input") > 0,
        "the rng's queue interrupts: {rows:?}"
    );
}

fn has_msix(function: &PciFunction) -> bool {
    function.msi >= 2
}

/// Interrupts on all processors of rows whose name contains both words.
fn taken(rows: &[Interrupt], one: &str, other: &str) -> u64 {
    let named = rows
        .iter()
        .filter(|row| row.name.contains(one) && row.name.contains(other));
    named.flat_map(|row| &row.counts).sum()
}

#[test]
fn without_rng_there_is_none() {
    let ended = Boot::new([Step::Pci, Step::PowerOff]).arguments(["--no-rng"]).run();
    ended.assert_code(0);
    let Some(Answer::Pci { functions }) = ended.answers.first() else {
        panic!("{:?}", ended.answers)
    };
    assert!(
        functions.iter().all(|function| function.id != "1af4:1044"),
        "{functions:?}"
    );
}

fn said_good_bye(ended: &Ended) -> bool {
    matches!(ended.answers.last(), Some(Answer::Bye { .. }))
}

#[test]
fn a_reset_through_the_keyboard_controller_exits_with_3() {
    let ended = Boot::new([Step::Reset]).cmdline("reboot=k").run();
    assert!(said_good_bye(ended.assert_code(3)));
}

#[test]
fn a_reset_through_acpi_exits_with_3() {
    let ended = Boot::new([Step::Reset]).cmdline("reboot=a").run();
    assert!(said_good_bye(ended.assert_code(3)));
}

#[test]
fn a_reset_by_no_method_in_particular_exits_with_3() {
    for kernel in ["6.12", "6.1"] {
        let ended = Boot::new([Step::Reset]).kernel(kernel, Image::Elf).run();
        assert!(said_good_bye(ended.assert_code(3)), "{kernel}");
    }
}

/// Kata's Go shim boots so.
#[test]
fn the_reset_after_a_panic_by_no_method_in_particular_exits_with_3() {
    for kernel in ["6.12", "6.1"] {
        let ended = Boot::new([Step::Panic])
            .kernel(kernel, Image::Elf)
            .cmdline("panic=1")
            .run();
        assert!(said_good_bye(ended.assert_code(3)), "{kernel}");
    }
}

#[test]
fn a_panic_that_the_guest_reports_exits_with_4() {
    let ended = Boot::new([Step::Panic])
        .cmdline("reboot=k")
        .arguments(["--pvpanic"])
        .run();
    assert!(said_good_bye(ended.assert_code(4)));
}

#[test]
fn a_panic_that_nobody_hears_of_ends_as_the_reset_that_follows() {
    let ended = Boot::new([Step::Panic]).cmdline("reboot=k").run();
    assert!(said_good_bye(ended.assert_code(3)));
}
