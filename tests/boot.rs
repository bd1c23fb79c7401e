//! Stock kernels in every form they come in, each brought to user space and off again.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use husk_guest::Step::{PowerOff, Report};
use husk_tests::{Boot, Image, Trace};

/// Boots to the init and off again.
fn boots(boot: Boot, release: &str) {
    let cmdline = boot.full_cmdline();
    let ended = boot.run();
    ended.assert_code(0).assert_nothing_refused();
    let report = ended.report();
    assert!(report.kernel.starts_with(release), "{}", report.kernel);
    assert_eq!(report.cmdline, cmdline);
    assert!(report.hypervisor, "the guest must know that it is one");
}

#[test]
fn debian_6_12_bzimage_boots() {
    boots(Boot::new([Report, PowerOff]).kernel("6.12", Image::BzImage), "6.12.");
}

#[test]
fn debian_6_12_vmlinux_boots_by_pvh() {
    boots(
        Boot::new([Report, PowerOff])
            .kernel("6.12", Image::Elf)
            .arguments(["--protocol", "pvh"]),
        "6.12.",
    );
}

#[test]
fn debian_6_12_vmlinux_boots_by_the_64_bit_protocol() {
    boots(
        Boot::new([Report, PowerOff])
            .kernel("6.12", Image::Elf)
            .arguments(["--protocol", "linux64"]),
        "6.12.",
    );
}

#[test]
fn debian_6_12_bzimage_boots_by_the_64_bit_protocol() {
    boots(
        Boot::new([Report, PowerOff])
            .kernel("6.12", Image::BzImage)
            .arguments(["--protocol", "linux64"]),
        "6.12.",
    );
}

#[test]
fn debian_6_1_bzimage_boots_on_four_processors() {
    boots(
        Boot::new([Report, PowerOff]).kernel("6.1", Image::BzImage).cpus(4),
        "6.1.",
    );
}

#[test]
fn debian_6_1_vmlinux_boots_by_the_64_bit_protocol() {
    boots(
        Boot::new([Report, PowerOff])
            .kernel("6.1", Image::Elf)
            .arguments(["--protocol", "linux64"]),
        "6.1.",
    );
}

#[test]
fn the_command_line_arrives_verbatim_up_to_2047_bytes() {
    let odd = r#"husk.odd="two  words" husk.more='x' husk.back=\ husk.percent=%d husk.fill="#;
    let boot = Boot::new([Report, PowerOff]).cmdline(odd);
    let fill = "y".repeat(2047 - boot.full_cmdline().len());
    let boot = boot.cmdline(&format!("{odd}{fill}"));
    assert_eq!(boot.full_cmdline().len(), 2047);
    boots(boot, "6.12.");
}

#[test]
fn the_boot_trace_tells_the_whole_life_in_order() {
    let boot = Boot::new([Report, PowerOff]).arguments(["--boot-trace", "trace.json", "-v"]);
    let ended = boot.run();
    ended.assert_code(0);
    let trace = Trace::read(&ended.folder.path().join("trace.json"));
    let (first_run, _) = trace.event("first KVM_RUN");
    let (guest, guest_took) = trace.event("guest");
    let (init, _) = trace.event("0x41");
    let (end, _) = trace.event("0x42");
    let (teardown, _) = trace.event("teardown");
    assert!(trace.event("exec").0 <= first_run);
    let order = [first_run, guest, init, end, teardown];
    assert!(order.is_sorted(), "{order:?}");
    assert!(
        init < end && end <= guest + guest_took,
        "the marks lie within the guest's life: {order:?} {guest_took}"
    );
    assert!(
        ended.errors.contains("first KVM_RUN"),
        "-v prints the table: {}",
        ended.errors
    );
}

#[test]
fn a_kernel_without_user_space_panics_and_resets() {
    let ended = Boot::new([]).no_initramfs().cmdline("reboot=k").run();
    ended.assert_code(3);
    assert!(
        ended.transcript.contains("Unable to mount root fs"),
        "{}",
        ended.transcript
    );
}
