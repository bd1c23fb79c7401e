//! A VM that is ended from outside: by a signal, by closed input, by a closed terminal.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use husk_guest::{Answer, Step};
use husk_tests::pty::{self, Pty};
use husk_tests::{Boot, Guest, until};

fn idle() -> Boot {
    Boot::new([Step::Idle])
}

fn started(boot: Boot) -> Guest {
    let mut guest = boot.start();
    assert!(matches!(guest.answer(), Answer::Bye { .. }));
    guest
}

/// A signal ends the VM in an orderly way: by an exit, not by the signal's default action.
fn ends_by(signal: i32) {
    let terminal = Pty::open(24, 80);
    let watch = terminal.watch();
    let before = pty::settings(&watch);
    let guest = started(idle().terminal(terminal));
    guest.signal(signal);
    let ended = guest.wait();
    assert_ne!(ended.code, None);
    assert_eq!(pty::settings(&watch), before, "the terminal is as it was");
}

#[test]
fn sigterm_ends_the_vm_and_restores_the_terminal() {
    ends_by(libc::SIGTERM);
}

#[test]
fn sigint_ends_the_vm_and_restores_the_terminal() {
    ends_by(libc::SIGINT);
}

#[test]
fn a_closed_terminal_ends_the_vm() {
    let mut guest = started(idle().terminal(Pty::open(24, 80)));
    guest.close_terminal();
    assert_ne!(guest.wait().code, None);
}

#[test]
fn ctrl_c_ends_a_vm_whose_console_is_elsewhere() {
    let terminal = Pty::open(24, 80);
    let mut guest = idle().serial("file=serial.log").terminal(terminal).start();
    let log = guest.folder().join("serial.log");
    until(|| std::fs::read_to_string(&log).is_ok_and(|said| said.contains("bye")));
    guest.type_text("\x03");
    assert_ne!(guest.wait().code, None);
}

#[test]
fn a_guest_runs_without_input() {
    Boot::new([Step::Report, Step::PowerOff])
        .no_input()
        .run()
        .assert_code(0);
}

#[test]
fn the_end_of_input_does_not_end_the_guest() {
    let mut guest = Boot::new([Step::Report, Step::PowerOff]).start();
    guest.close_input();
    guest.wait().assert_code(0);
}
