use std::arch::asm;
use std::os::fd::AsRawFd;
use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use super::*;
use crate::seccomp::{Mode, Role};
use crate::subprocess::rerun;

/// Tells a child process of a test what to die of.
const DIE_OF: &str = "HUSK_TEST_DIE_OF";
/// Tells it where its log goes.
const LOG: &str = "HUSK_TEST_LOG";

fn name_of(signal: libc::c_int) -> String {
    let mut line = LineBuffer::default();
    push_name(&mut line, signal);
    line.text()
}

/// Needs more stack than there is.
fn deeper(depth: u64) -> u64 {
    let room = std::hint::black_box([depth; 64]);
    if depth == 0 { 0 } else { deeper(depth + 1) + room[7] }
}

/// A fault of the kind that `what` says, or a signal of that number.
fn die(what: &str) {
    match what {
        "read" => {
            // SAFETY: not at all, which is what it is for.
            std::hint::black_box(unsafe { ptr::read_volatile(ptr::without_provenance::<u64>(0x1238)) });
        }
        "beyond" => {
            let file = tempfile::tempfile().unwrap();
            let kind = libc::MAP_SHARED;
            // SAFETY: a mapping of a file that has nothing to map.
            let page = unsafe { libc::mmap(ptr::null_mut(), 4096, libc::PROT_READ, kind, file.as_raw_fd(), 0) };
            // SAFETY: mapped, and yet there is nothing.
            std::hint::black_box(unsafe { ptr::read_volatile(page.cast::<u64>()) });
        }
        // SAFETY: an instruction that there is not.
        "illegal" => unsafe { asm!("ud2") },
        // SAFETY: a division by zero.
        "divide" => unsafe {
            asm!("xor ecx, ecx", "xor edx, edx", "mov eax, 1", "div ecx", out("ecx") _, out("eax") _, out("edx") _)
        },
        "overflow" => {
            std::hint::black_box(deeper(1));
        }
        "nothing" => print!("{}", std::fs::read_to_string("/proc/self/status").unwrap()),
        "abort" => std::process::abort(),
        "panic" => {
            // As in a program that panics end.
            report_panics();
            let why = "on purpose,\nin a test";
            let _ = std::panic::catch_unwind(|| panic!("{why}"));
            std::process::abort();
        }
        number => {
            let signal: libc::c_int = number.parse().unwrap();
            // SAFETY: numbers only. Not by the C library, which does not send its own.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), libc::gettid(), signal) };
        }
    }
    std::process::exit(77);
}

/// Not a test by itself: run by those below, in a process of its own. As in husk, a thread with a
/// role's filter has the fault.
#[test]
fn victim() {
    let Ok(what) = std::env::var(DIE_OF) else { return };
    install();
    if let Ok(log) = std::env::var(LOG) {
        let destination = log.parse().unwrap();
        let options = crate::log::Options {
            destination,
            ..Default::default()
        };
        crate::log::init_with(0, &options).unwrap();
    }
    let thread = std::thread::Builder::new().name("vcpu7".into()).spawn(move || {
        // No vCPU could make a file.
        if what != "beyond" && what != "nothing" {
            Mode::On.enter(Role::Control).unwrap();
            Mode::On.enter(Role::Vcpu).unwrap();
        }
        die(&what);
    });
    thread.unwrap().join().unwrap();
}

fn victim_of(what: &str) -> Output {
    rerun("fatal::tests::victim").env(DIE_OF, what).output().unwrap()
}

/// The line of a process that died of `signal`, without the number of that process.
#[track_caller]
fn last_words(what: &str, signal: libc::c_int) -> String {
    let ended = victim_of(what);
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(
        ended.status.signal(),
        Some(signal),
        "{what}: {:?}: {said}",
        ended.status
    );
    let mut lines = said.lines().filter(|line| line.starts_with("ERRO: "));
    let line = lines.next().unwrap_or_else(|| panic!("{what}: {said}")).to_owned();
    assert_eq!(lines.next(), None, "{what}: {said}");
    let (begin, rest) = line.split_once(" of process ").unwrap_or_else(|| panic!("{line}"));
    format!(
        "{begin}{}",
        rest.trim_start_matches(|found: char| found.is_ascii_digit())
    )
}

#[test]
fn a_fault_kills_at_once_and_says_where() {
    let at = "ERRO: SIGSEGV at address 0x1238 in thread vcpu7; husk ends here";
    assert_eq!(last_words("read", libc::SIGSEGV), at);
    for (what, signal) in [
        ("overflow", libc::SIGSEGV),
        ("beyond", libc::SIGBUS),
        ("illegal", libc::SIGILL),
        ("divide", libc::SIGFPE),
    ] {
        let line = last_words(what, signal);
        let begin = format!("ERRO: {} at address 0x", name_of(signal));
        assert!(
            line.starts_with(&begin) && line.ends_with(" in thread vcpu7; husk ends here"),
            "{line}"
        );
    }
    let line = last_words("abort", libc::SIGABRT);
    assert_eq!(line, "ERRO: SIGABRT in thread vcpu7; husk ends here");
}

#[test]
fn a_signal_that_was_sent_kills_the_first_time() {
    // Each real-time signal is as the others.
    let ends = [libc::SIGRTMIN(), libc::SIGRTMIN() + 3, libc::SIGRTMAX()];
    for signal in FAULTS.into_iter().chain(OTHERS).chain(ends) {
        let line = last_words(&signal.to_string(), signal);
        assert_eq!(
            line,
            format!("ERRO: {} in thread vcpu7; husk ends here", name_of(signal))
        );
    }
}

/// Every signal is one that husk dies of with a line, that it takes as an event, or that does not end a process.
#[test]
fn no_signal_ends_husk_silently() {
    let ended = victim_of("nothing");
    assert_eq!(ended.status.code(), Some(77));
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    let mask = |said: &str, name: &str| {
        let line = said.lines().find_map(|line| line.strip_prefix(name));
        u64::from_str_radix(line.unwrap_or_else(|| panic!("{name}: {said}")).trim(), 16).unwrap()
    };
    let seen = mask(&said, "SigIgn:") | mask(&said, "SigCgt:");
    // What these tests were started to ignore, as `nohup` does of SIGHUP, is ignored there too.
    let inherited = mask(&std::fs::read_to_string("/proc/self/status").unwrap(), "SigIgn:");
    let unseen: Vec<libc::c_int> = (1..=64).filter(|signal| seen & 1 << (signal - 1) == 0).collect();
    let expected = [
        // Events where there is a main loop; what asks a command to end has no need of a line.
        [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM],
        // Nobody can.
        [libc::SIGKILL, libc::SIGSTOP, libc::SIGTTIN, libc::SIGTTOU],
        // These end nobody (signal(7)).
        [libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGURG],
    ];
    let mut expected = [expected.as_flattened(), &[libc::SIGWINCH]].concat();
    expected.retain(|signal| inherited & 1 << (signal - 1) == 0);
    expected.sort_unstable();
    assert_eq!(unseen, expected);
}

#[test]
fn writes_that_cannot_be_kill_nobody() {
    for signal in IGNORED.into_iter().chain([OF_THE_LIBRARY[0]]) {
        let ended = victim_of(&signal.to_string());
        assert_eq!(ended.status.code(), Some(77), "signal {signal}");
    }
}

#[test]
fn a_panic_is_one_line_that_says_what_and_where() {
    let line = last_words("panic", libc::SIGABRT);
    let begin = "ERRO: panic in thread vcpu7 at vmm/src/fatal_test.rs:";
    assert!(line.starts_with(begin), "{line}");
    assert!(line.ends_with("; husk ends here: on purpose, in a test"), "{line}");
}

#[test]
fn the_log_has_the_last_line_as_well() {
    for (log, expected) in [
        ("journald", "MESSAGE=SIGSEGV at address 0x1238 in thread vcpu7"),
        ("syslog", "<11>husk["),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let daemon = std::os::unix::net::UnixDatagram::bind(&socket).unwrap();
        let ended = rerun("fatal::tests::victim")
            .env(DIE_OF, "read")
            .env(LOG, format!("{log}={}", socket.display()))
            .output()
            .unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGSEGV));
        let mut bytes = [0; 4_096];
        let count = daemon.recv(&mut bytes).unwrap();
        let said = String::from_utf8_lossy(&bytes[..count]).into_owned();
        assert!(
            said.starts_with(expected) && said.contains("; husk ends here"),
            "{said}"
        );
        let told = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(told.contains("ERRO: SIGSEGV at address 0x1238"), "{told}");
    }
}

#[test]
fn a_sender_is_named() {
    let mut line = LineBuffer::default();
    compose(&mut line, libc::SIGBUS, Cause::Sender(4711));
    let text = line.text();
    assert!(text.starts_with("SIGBUS sent by process 4711, in thread "), "{text}");
}
