use std::process::Command;

use super::testing::{Call, decide};
use super::*;
use crate::subprocess::{expect_passed, rerun};

fn program(role: Role) -> Vec<sock_filter> {
    Mode::On.program(role).unwrap()
}

fn call(number: libc::c_long, args: &[u64]) -> Call {
    let mut call = Call::new(u32::try_from(number).unwrap());
    call.args[..args.len()].copy_from_slice(args);
    call
}

#[track_caller]
fn assert_denied(role: Role, calls: &[Call]) {
    let program = program(role);
    for call in calls {
        assert_eq!(decide(&program, call), libc::SECCOMP_RET_TRAP, "{role:?} {call:x?}");
    }
}

#[track_caller]
fn assert_allowed(role: Role, calls: &[Call]) {
    let program = program(role);
    for call in calls {
        assert_eq!(decide(&program, call), libc::SECCOMP_RET_ALLOW, "{role:?} {call:x?}");
    }
}

/// What no thread of a VMM has any business with.
fn never() -> Vec<Call> {
    let own = u64::from(std::process::id());
    let mut calls: Vec<Call> = [
        libc::SYS_execve,
        libc::SYS_execveat,
        libc::SYS_fork,
        libc::SYS_vfork,
        libc::SYS_ptrace,
        libc::SYS_process_vm_readv,
        libc::SYS_process_vm_writev,
        libc::SYS_bpf,
        libc::SYS_mount,
        libc::SYS_umount2,
        libc::SYS_pivot_root,
        libc::SYS_chroot,
        libc::SYS_setns,
        libc::SYS_init_module,
        libc::SYS_finit_module,
        libc::SYS_kexec_load,
        libc::SYS_keyctl,
        libc::SYS_add_key,
        libc::SYS_perf_event_open,
        libc::SYS_userfaultfd,
        libc::SYS_setuid,
        libc::SYS_setgid,
        libc::SYS_mknod,
        libc::SYS_symlink,
        libc::SYS_reboot,
        libc::SYS_kill,
        libc::SYS_pidfd_getfd,
        libc::SYS_pkey_mprotect,
        libc::SYS_modify_ldt,
    ]
    .map(|number| call(number, &[]))
    .into();
    let executable = u64::try_from(libc::PROT_READ | libc::PROT_EXEC).unwrap();
    calls.extend([
        call(libc::SYS_mmap, &[0, 4096, executable]),
        call(libc::SYS_mprotect, &[0, 4096, executable]),
        call(libc::SYS_socket, &[libc::AF_INET as u64, libc::SOCK_STREAM as u64]),
        call(libc::SYS_socket, &[libc::AF_NETLINK as u64]),
        call(libc::SYS_socket, &[libc::AF_PACKET as u64]),
        // A terminal's input, faked (TIOCSTI).
        call(libc::SYS_ioctl, &[0, 0x5412]),
        // KVM_SET_GUEST_DEBUG.
        call(libc::SYS_ioctl, &[0, 0x4048_ae9b]),
        // Another process.
        call(libc::SYS_tgkill, &[own + 1, own + 1, 9]),
        // A process, a thread in another namespace.
        call(libc::SYS_clone, &[libc::SIGCHLD as u64]),
        call(libc::SYS_clone, &[0x3d_0f00 | libc::CLONE_NEWUSER as u64]),
        call(libc::SYS_prctl, &[libc::PR_SET_DUMPABLE as u64, 1]),
        call(libc::SYS_prlimit64, &[1, libc::RLIMIT_NOFILE.into()]),
        // Namespaces, and descriptors apart from everybody else's.
        call(libc::SYS_unshare, &[libc::CLONE_NEWNS as u64]),
        call(libc::SYS_unshare, &[(libc::CLONE_FS | libc::CLONE_NEWUSER) as u64]),
        call(libc::SYS_unshare, &[libc::CLONE_FILES as u64]),
    ]);
    calls
}

/// What of a VMM only a share's threads do, and the thread that starts them may.
fn of_files() -> Vec<Call> {
    [
        libc::SYS_open_by_handle_at,
        libc::SYS_capset,
        libc::SYS_setresuid,
        libc::SYS_linkat,
        libc::SYS_renameat2,
    ]
    .map(|number| call(number, &[]))
    .into()
}

#[test]
fn no_role_may_do_what_a_vmm_never_does() {
    for role in tables::ROLES {
        assert_denied(role, &never());
        match role {
            Role::Files | Role::FileServer | Role::Spawner => assert_allowed(role, &of_files()),
            _ => assert_denied(role, &of_files()),
        }
    }
}

fn starts_threads(role: Role) -> bool {
    matches!(role, Role::Control | Role::Closer | Role::Spawner | Role::FileServer)
}

/// Which of those that start threads is the parent of a thread of `role`.
fn parent(role: Role) -> Role {
    match role {
        Role::Control
        | Role::EventLoop
        | Role::Vcpu
        | Role::Loader
        | Role::Api
        | Role::Closer
        | Role::Writer
        | Role::FdCloser => Role::Control,
        Role::FileServer => Role::FileServer,
        _ => Role::Spawner,
    }
}

#[test]
fn only_what_starts_disks_makes_rings() {
    for role in tables::ROLES.into_iter().filter(|role| *role != Role::Spawner) {
        assert_denied(
            role,
            &[libc::SYS_io_uring_setup, libc::SYS_io_uring_register].map(|number| call(number, &[])),
        );
    }
    for role in tables::ROLES
        .into_iter()
        .filter(|role| !matches!(role, Role::Spawner | Role::Block))
    {
        assert_denied(role, &[call(libc::SYS_io_uring_enter, &[])]);
    }
}

#[test]
fn what_starts_device_threads_listens_to_nothing() {
    let numbers = [
        libc::SYS_unlink,
        libc::SYS_memfd_create,
        libc::SYS_bind,
        libc::SYS_listen,
    ];
    assert_denied(Role::Spawner, &numbers.map(|number| call(number, &[])));
    let requests = [requests::KVM_CREATE_VM, requests::KVM_RUN, requests::TUNSETIFF];
    assert_denied(
        Role::Spawner,
        &requests.map(|request| call(libc::SYS_ioctl, &[5, request.into()])),
    );
}

/// What an attacker in a guest's device would want next. Opening files is what a share's threads are for.
#[test]
fn threads_that_serve_the_guest_open_and_create_nothing() {
    for role in tables::ROLES.into_iter().filter(|role| !starts_threads(*role)) {
        if role != Role::Files {
            assert_denied(role, &[call(libc::SYS_openat, &[])]);
        }
        let numbers = [
            libc::SYS_open,
            libc::SYS_memfd_create,
            libc::SYS_io_uring_setup,
            libc::SYS_io_uring_register,
            libc::SYS_clone,
            libc::SYS_seccomp,
            libc::SYS_mprotect,
        ];
        assert_denied(role, &numbers.map(|number| call(number, &[0x3d_0f00])));
        // The first thread puts a terminal into its raw mode, and takes signals for itself while it
        // is; it removes its devices' sockets.
        if role == Role::EventLoop {
            continue;
        }
        assert_denied(role, &[call(libc::SYS_unlink, &[])]);
        let handlers = [libc::SIGSYS, libc::SIGUSR1].map(|signal| u64::try_from(signal).unwrap());
        assert_denied(role, &handlers.map(|signal| call(libc::SYS_rt_sigaction, &[signal])));
    }
}

#[test]
fn vcpus_have_their_ioctls_and_no_others() {
    let ioctl = |request: u32| call(libc::SYS_ioctl, &[5, request.into(), 0]);
    let (run, route, irqfd) = (requests::KVM_RUN, requests::KVM_SET_GSI_ROUTING, requests::KVM_IRQFD);
    assert_allowed(Role::Vcpu, &[run, route, irqfd, requests::KVM_IOEVENTFD].map(ioctl));
    let building = [
        requests::KVM_CREATE_VM,
        requests::KVM_SET_USER_MEMORY_REGION,
        requests::KVM_CREATE_VCPU,
        requests::TUNSETIFF,
        run + 1,
    ];
    assert_denied(Role::Vcpu, &building.map(ioctl));
    assert_denied(
        Role::Vcpu,
        &[call(libc::SYS_pwritev, &[]), call(libc::SYS_io_uring_enter, &[])],
    );
    for role in tables::ROLES
        .into_iter()
        .filter(|role| !matches!(role, Role::Vcpu | Role::Control | Role::EventLoop | Role::Closer))
    {
        assert_denied(role, &[ioctl(run), ioctl(irqfd)]);
    }
}

#[test]
fn disks_have_their_calls_and_others_do_not() {
    let calls = [
        libc::SYS_io_uring_enter,
        libc::SYS_preadv,
        libc::SYS_pwritev,
        libc::SYS_fdatasync,
        libc::SYS_fallocate,
    ]
    .map(|number| call(number, &[]));
    assert_allowed(Role::Block, &calls);
    assert_denied(Role::Stream, &calls);
}

#[test]
fn devices_with_sockets_have_those_of_the_file_system_only() {
    let local = call(libc::SYS_socket, &[u64::try_from(libc::AF_UNIX).unwrap()]);
    assert_allowed(Role::Vsock, &[local.clone(), call(libc::SYS_connect, &[])]);
    assert_denied(Role::Vsock, &[call(libc::SYS_bind, &[]), call(libc::SYS_listen, &[])]);
    assert_allowed(Role::Fs, &[call(libc::SYS_sendmsg, &[]), call(libc::SYS_recvfrom, &[])]);
    assert_denied(Role::Fs, &[local, call(libc::SYS_connect, &[])]);
}

#[test]
fn threads_that_serve_files_do_that_and_start_nothing() {
    let contents = [libc::SYS_openat2, libc::SYS_preadv, libc::SYS_pwritev];
    assert_allowed(Role::Files, &contents.map(|number| call(number, &[])));
    let unshare = |flags: i32| call(libc::SYS_unshare, &[u64::try_from(flags).unwrap()]);
    assert_allowed(Role::Spawner, &[unshare(libc::CLONE_FS)]);
    let others = [
        libc::SYS_unshare,
        libc::SYS_fchdir,
        libc::SYS_chdir,
        libc::SYS_chroot,
        libc::SYS_mount,
        libc::SYS_setuid,
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_execveat,
    ];
    assert_denied(Role::Files, &others.map(|number| call(number, &[])));
}

#[test]
fn a_process_that_serves_files_makes_no_sockets_and_changes_no_mounts() {
    let calls = [
        libc::SYS_socket,
        libc::SYS_connect,
        libc::SYS_bind,
        libc::SYS_listen,
        libc::SYS_mount,
        libc::SYS_move_mount,
        libc::SYS_chroot,
        libc::SYS_pivot_root,
        libc::SYS_setns,
        libc::SYS_memfd_create,
        libc::SYS_io_uring_setup,
    ];
    assert_denied(Role::FileServer, &calls.map(|number| call(number, &[])));
    let handlers = [libc::SIGSYS, libc::SIGBUS + 100].map(|signal| u64::try_from(signal).unwrap());
    assert_denied(
        Role::FileServer,
        &handlers.map(|signal| call(libc::SYS_rt_sigaction, &[signal])),
    );
    assert_allowed(
        Role::FileServer,
        &[call(libc::SYS_accept4, &[]), call(libc::SYS_recvmsg, &[])],
    );
}

#[test]
fn the_kernel_is_lent_rings_by_its_own_threads_and_told_of_devices_by_others() {
    let ask = |request: u32| call(libc::SYS_ioctl, &[5, request.into(), 0]);
    let lend = [
        requests::VHOST_SET_VRING_ADDR,
        requests::VHOST_NET_SET_BACKEND,
        requests::VHOST_VSOCK_SET_RUNNING,
        requests::TUNSETQUEUE,
    ];
    assert_allowed(Role::Vhost, &lend.map(ask));
    let tell = [
        requests::VHOST_SET_OWNER,
        requests::VHOST_SET_MEM_TABLE,
        requests::VHOST_VSOCK_SET_GUEST_CID,
        requests::TUNSETIFF,
    ];
    assert_denied(Role::Vhost, &tell.map(ask));
    for role in [Role::Net, Role::Vsock, Role::Vcpu] {
        assert_denied(role, &[ask(requests::VHOST_SET_VRING_ADDR)]);
    }
}

#[test]
fn persistent_memory_is_flushed_and_no_more() {
    let tap = |request: u32| call(libc::SYS_ioctl, &[5, request.into(), 0]);
    assert_allowed(
        Role::Net,
        &[
            call(libc::SYS_preadv2, &[]),
            call(libc::SYS_pwritev2, &[]),
            tap(requests::TUNSETOFFLOAD),
            tap(requests::TUNSETQUEUE),
        ],
    );
    assert_denied(Role::Net, &[tap(requests::TUNSETIFF), call(libc::SYS_pwritev, &[])]);
    assert_allowed(Role::Pmem, &[call(libc::SYS_fdatasync, &[])]);
    assert_denied(Role::Pmem, &[call(libc::SYS_fsync, &[]), call(libc::SYS_pwritev, &[])]);
}

#[test]
fn a_role_has_nothing_that_the_thread_that_starts_it_has_not() {
    for role in tables::ROLES {
        let whole = program(parent(role));
        for (number, ways) in tables::policy(role, std::process::id()).allowed() {
            let calls = ways.iter().map(|way| {
                let mut call = Call::new(*number);
                for test in way {
                    call.args[usize::from(test.arg)] = u64::from(test.values[0]);
                }
                call
            });
            for call in calls {
                assert_eq!(decide(&whole, &call), libc::SECCOMP_RET_ALLOW, "{role:?} {call:x?}");
            }
        }
    }
}

#[test]
fn a_log_filter_lets_pass_what_it_notes() {
    let program = Mode::Log.program(Role::Vcpu).unwrap();
    assert_eq!(decide(&program, &call(libc::SYS_execve, &[])), libc::SECCOMP_RET_LOG);
    assert!(Mode::Off.program(Role::Vcpu).is_none());
}

#[test]
fn modes_are_spelt_as_the_shims_spell_them() {
    let modes = ["true", "false", "log"].map(|text| text.parse::<Mode>().unwrap());
    assert_eq!(modes, [Mode::On, Mode::Off, Mode::Log]);
    assert_eq!("yes".parse::<Mode>().unwrap_err(), "'yes': allowed: true, false, log");
}

/// Set for the process that is to misbehave.
const VICTIM: &str = "HUSK_SECCOMP_VICTIM";

/// Not a test by itself: run by the one below, in a process of its own.
#[test]
fn victim() {
    let Ok(mode) = std::env::var(VICTIM) else { return };
    let mode: Mode = mode.parse().unwrap();
    let confined = std::thread::Builder::new().name("vcpu7".into()).spawn(move || {
        crate::process::prepare();
        mode.enter(Role::Control).unwrap();
        mode.enter(Role::Vcpu).unwrap();
        // What is allowed goes on working, allocation and output included.
        eprintln!("{}", vec!["still here"; 100_000].len());
        std::fs::File::open("/dev/null").map(drop)
    });
    confined.unwrap().join().unwrap().unwrap();
}

fn victim_of(mode: &str) -> Command {
    let mut command = rerun("seccomp::tests::victim");
    command.env(VICTIM, mode);
    command
}

fn victim_ends(mode: &str) -> std::process::Output {
    victim_of(mode).output().unwrap()
}

#[test]
fn a_forbidden_call_ends_the_process_and_says_which() {
    let ended = victim_ends("true");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(ended.status.code(), Some(EXIT_CODE), "{said}");
    assert!(said.contains("100000\n"), "{said}");
    let open = libc::SYS_openat;
    assert!(
        said.contains("ERRO: seccomp: thread vcpu7 of process ")
            && said.contains(&format!(" made system call {open} (openat),")),
        "{said}"
    );
}

#[test]
fn without_filter_and_with_one_that_logs_nothing_ends() {
    for mode in ["false", "log"] {
        assert_eq!(expect_passed(&mut victim_of(mode), "100000"), Ok(()), "{mode}");
    }
}

/// System calls that each role may make, some of them with certain arguments only, and instructions
/// of its filter. A start pays for each: installation costs about 25 µs, and a fifth of one for
/// each instruction.
const SIZES: [(Role, usize, usize); 20] = [
    (Role::Control, 79, 200),
    (Role::EventLoop, 43, 87),
    (Role::Spawner, 96, 185),
    (Role::Vcpu, 35, 86),
    (Role::Loader, 32, 73),
    (Role::Api, 42, 85),
    (Role::Block, 40, 82),
    (Role::Net, 35, 75),
    (Role::Pmem, 35, 73),
    (Role::Vsock, 42, 84),
    (Role::Vhost, 34, 82),
    (Role::Fs, 37, 77),
    (Role::Files, 72, 122),
    (Role::FileServer, 87, 155),
    (Role::Mem, 36, 82),
    (Role::Balloon, 35, 73),
    (Role::Stream, 34, 71),
    (Role::Closer, 49, 105),
    (Role::Writer, 31, 70),
    (Role::FdCloser, 30, 69),
];

#[test]
fn filters_are_as_small_as_they_are_meant_to_be() {
    let sizes = tables::ROLES.map(|role| {
        let calls = tables::policy(role, std::process::id()).allowed().len();
        (role, calls, program(role).len())
    });
    assert_eq!(sizes, SIZES, "{sizes:?}");
}

#[test]
fn the_documents_have_the_sizes_of_filters_that_a_start_pays_for() {
    let document = include_str!("../../../docs/benchmarks.md");
    for (role, name) in [
        (Role::Control, "control"),
        (Role::Spawner, "spawner"),
        (Role::Vcpu, "vCPU"),
        (Role::EventLoop, "event loop"),
    ] {
        let row = format!("| {name} | {} | ", program(role).len());
        assert!(document.contains(&row), "{row}");
    }
}
