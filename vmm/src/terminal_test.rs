use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Stdio;
use std::sync::{Mutex, MutexGuard};

use rustix::termios::{Winsize, tcsetwinsize};

use super::testing::cooked_pty;
use super::*;
use crate::subprocess::rerun;
use husk_devices::lock;

/// Tells a child process of a test what to die of.
const DIE_OF: &str = "HUSK_TEST_DIE_OF";

/// One terminal is raw at a time in a process.
static ONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    lock(&ONE)
}

/// A pseudo-terminal: the emulator's side and husk's.
fn pty(columns: u16, rows: u16) -> (File, OwnedFd) {
    let (emulator, terminal) = cooked_pty();
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&terminal, size).unwrap();
    (emulator, terminal.into())
}

fn is_cooked(fd: &OwnedFd) -> bool {
    get_attributes(fd.as_raw_fd()).unwrap().c_lflag & (libc::ICANON | libc::ECHO | libc::ISIG)
        == libc::ICANON | libc::ECHO | libc::ISIG
}

#[test]
fn raw_mode_ends_with_its_guard() {
    let _alone = alone();
    let (_emulator, terminal) = pty(80, 24);
    assert!(is_cooked(&terminal));
    let guard = RawMode::enter_on(terminal.as_fd(), raw).unwrap();
    assert!(!is_cooked(&terminal));
    assert_eq!(line_end(), "\r\n");
    drop(guard);
    assert!(is_cooked(&terminal));
    assert_eq!(line_end(), "\n");
}

#[test]
fn a_panic_restores_the_terminal_before_it_speaks() {
    let _alone = alone();
    let (_emulator, terminal) = pty(80, 24);
    let guard = RawMode::enter_on(terminal.as_fd(), raw).unwrap();
    std::thread::spawn(|| panic!("on purpose, in a test"))
        .join()
        .unwrap_err();
    assert!(is_cooked(&terminal));
    drop(guard);
}

#[test]
fn raw_mode_comes_back_after_a_stop() {
    let _alone = alone();
    let (_emulator, terminal) = pty(80, 24);
    let guard = RawMode::enter_on(terminal.as_fd(), raw).unwrap();
    restore();
    assert!(is_cooked(&terminal));
    guard.resume().unwrap();
    assert!(!is_cooked(&terminal));
    guard.resume().unwrap();
    drop(guard);
    assert!(is_cooked(&terminal));
}

#[test]
fn what_is_no_terminal_is_refused() {
    let _alone = alone();
    let file = tempfile::tempfile().unwrap();
    assert!(RawMode::enter_on(file.as_fd(), raw).is_err());
    assert_eq!(line_end(), "\n");
    assert_eq!(window_size_of(file.as_fd()), None);
}

#[test]
fn the_window_has_the_terminals_size() {
    let (_emulator, terminal) = pty(132, 43);
    assert_eq!(
        window_size_of(terminal.as_fd()),
        Some(WindowSize { columns: 132, rows: 43 })
    );
    let (_emulator, unknown) = pty(0, 0);
    assert_eq!(window_size_of(unknown.as_fd()), None);
}

#[test]
fn a_pipe_without_room_is_known_before_it_is_written_to() {
    let (_reader, mut writer) = io::pipe().unwrap();
    assert!(has_room(writer.as_fd()));
    while has_room(writer.as_fd()) {
        writer.write_all(&[0; 4096]).unwrap();
    }
}

/// Makes this process's standard input raw and dies of `signal`, or exits for 0.
fn die_raw(signal: libc::c_int) {
    let _guard = RawMode::enter_on(io::stdin().as_fd(), raw).unwrap();
    println!("raw");
    match signal {
        0 => std::process::exit(7),
        libc::SIGABRT => std::process::abort(),
        _ => {
            // SAFETY: numbers only.
            unsafe { libc::raise(signal) };
        }
    }
}

/// Runs `test` again in a process of its own, where it is to call [`die_raw`]. Returns whether the
/// terminal was cooked again afterwards, and how the process ended.
fn dies_of(signal: libc::c_int, test: &str) -> (bool, std::process::ExitStatus) {
    let (_emulator, terminal) = pty(80, 24);
    let mut child = rerun(&format!("terminal::tests::{test}"))
        .env(DIE_OF, signal.to_string())
        .stdin(Stdio::from(terminal.try_clone().unwrap()))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = String::new();
    child.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let status = child.wait().unwrap();
    assert!(
        said.contains("raw"),
        "the child did not get as far as a raw terminal: {said}"
    );
    (is_cooked(&terminal), status)
}

#[test]
fn a_fatal_signal_restores_the_terminal_and_still_kills() {
    if let Ok(signal) = std::env::var(DIE_OF) {
        return die_raw(signal.parse().unwrap());
    }
    for signal in [
        libc::SIGABRT,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGILL,
        libc::SIGFPE,
        libc::SIGSYS,
        libc::SIGXCPU,
        libc::SIGUSR1,
    ] {
        let (cooked, status) = dies_of(signal, "a_fatal_signal_restores_the_terminal_and_still_kills");
        assert!(cooked, "signal {signal}");
        assert_eq!(status.signal(), Some(signal));
    }
}

#[test]
fn exit_restores_the_terminal() {
    if std::env::var_os(DIE_OF).is_some() {
        return die_raw(0);
    }
    let (cooked, status) = dies_of(0, "exit_restores_the_terminal");
    assert!(cooked);
    assert_eq!(status.code(), Some(7));
}
