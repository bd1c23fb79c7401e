//! What somebody who has taken over a thread would try next, tried in a process for each role: the
//! call is not carried out, and the process ends.

#![expect(
    unsafe_code,
    reason = "system calls that the standard library does not make, or not in this form"
)]

use std::ffi::CStr;
use std::ptr;

use super::{EXIT_CODE, Mode, Role, tables};
use crate::subprocess::rerun;

/// Role and attempt of the process that is to misbehave.
const VICTIM: &str = "HUSK_SECCOMP_BYPASS";
/// What a victim exits with whose call came back.
const CAME_BACK: i32 = 42;

const PROGRAM: &CStr = c"/bin/true";

/// An attempt, and the system call that it is.
type Attempt = (&'static str, fn() -> libc::c_long);

const ATTEMPTS: [Attempt; 13] = [
    // A connection to somewhere.
    ("socket of the network", || {
        syscall(libc::SYS_socket, [libc::AF_INET.into(), libc::SOCK_STREAM.into(), 0])
    }),
    ("socket of IPv6", || {
        syscall(libc::SYS_socket, [libc::AF_INET6.into(), libc::SOCK_DGRAM.into(), 0])
    }),
    ("socket of netlink", || {
        syscall(libc::SYS_socket, [libc::AF_NETLINK.into(), libc::SOCK_RAW.into(), 0])
    }),
    // A ring, whose operations no filter sees: IORING_OP_SOCKET, IORING_OP_OPENAT.
    (RING, || {
        let mut parameters = [0_u8; 120];
        syscall(libc::SYS_io_uring_setup, [4, address(parameters.as_mut_ptr()), 0])
    }),
    ("more of a ring", || syscall(libc::SYS_io_uring_register, [0, 0, 0])),
    // A file.
    (FILE, || {
        syscall(
            libc::SYS_openat,
            [libc::AT_FDCWD.into(), address(PROGRAM.as_ptr()), libc::O_RDONLY.into()],
        )
    }),
    ("a file by open", || {
        syscall(libc::SYS_open, [address(PROGRAM.as_ptr()), libc::O_RDONLY.into(), 0])
    }),
    // Another program, another process.
    ("another program", || {
        let arguments = [PROGRAM.as_ptr(), ptr::null()];
        syscall(
            libc::SYS_execve,
            [address(PROGRAM.as_ptr()), address(arguments.as_ptr()), 0],
        )
    }),
    ("a process", || syscall(libc::SYS_fork, [0; 3])),
    ("a process by clone", || {
        syscall(libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0])
    }),
    ("a tracer", || {
        syscall(libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0])
    }),
    ("a signal for another process", || syscall(libc::SYS_kill, [1, 0, 0])),
    // Code of its own.
    ("memory that can be executed", || {
        syscall(
            libc::SYS_mprotect,
            [0, 4096, (libc::PROT_READ | libc::PROT_EXEC).into()],
        )
    }),
];

const RING: &str = "a ring";
const FILE: &str = "a file";

fn address<T>(pointer: *const T) -> libc::c_long {
    pointer.addr().cast_signed().try_into().unwrap()
}

fn syscall(number: libc::c_long, arguments: [libc::c_long; 3]) -> libc::c_long {
    let [first, second, third] = arguments;
    // SAFETY: pointers among the arguments are of things that live longer than the call, and as
    // large as the call takes them to be.
    unsafe { libc::syscall(number, first, second, third) }
}

/// What a role is for.
fn is_its_work(role: Role, attempt: &str) -> bool {
    match role {
        Role::Control | Role::Files | Role::FileServer => attempt == FILE,
        Role::Spawner => matches!(attempt, FILE | RING | "more of a ring"),
        _ => false,
    }
}

/// Not a test by itself: run by the one below, in a process of its own.
#[test]
fn victim() {
    let Ok(wanted) = std::env::var(VICTIM) else { return };
    let (role, attempt) = wanted.split_once('/').unwrap();
    let role = tables::ROLES
        .into_iter()
        .find(|known| format!("{known:?}") == role)
        .unwrap();
    let (_, attempt) = ATTEMPTS.into_iter().find(|(name, _)| *name == attempt).unwrap();
    crate::process::prepare();
    let confined = std::thread::spawn(move || {
        Mode::On.enter(role).unwrap();
        attempt();
        // SAFETY: ends the process at once.
        unsafe { libc::_exit(CAME_BACK) }
    });
    let _ = confined.join();
}

#[test]
fn nothing_gets_out_of_any_role() {
    for role in tables::ROLES {
        for (attempt, _) in ATTEMPTS {
            let mut victim = rerun("seccomp::bypass::victim");
            let ended = victim.env(VICTIM, format!("{role:?}/{attempt}")).output().unwrap();
            let said = String::from_utf8_lossy(&ended.stderr);
            let expected = if is_its_work(role, attempt) {
                CAME_BACK
            } else {
                EXIT_CODE
            };
            assert_eq!(ended.status.code(), Some(expected), "{role:?} tries {attempt}: {said}");
        }
    }
}
