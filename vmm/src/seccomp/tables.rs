//! The calls that threads make, and why. What is in none of these lists, no thread may do.
//!
//! husk is linked statically against glibc: where a line says `malloc` or `pthread`, it is glibc's.

use libc::{
    CLONE_FS, CLONE_SIGHAND, CLONE_THREAD, CLONE_VM, F_ADD_SEALS, F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_OFD_GETLK,
    F_OFD_SETLK, MADV_DONTDUMP, MADV_DONTFORK, MADV_DONTNEED, MADV_HUGEPAGE, MADV_MERGEABLE, MADV_POPULATE_WRITE,
    PR_GET_NAME, PR_SCHED_CORE, PR_SCHED_CORE_CREATE, PR_SCHED_CORE_SHARE_FROM, PR_SET_NAME, PR_SET_NO_NEW_PRIVS,
    PR_SET_VMA,
};

use super::policy::{Check, Policy, Rule, Values, any, one_of, only, without};
use super::requests as r;
use super::roles::Role;

/// The kernel takes commands, options and flags as 32-bit numbers.
#[expect(clippy::cast_sign_loss, reason = "none of these is negative")]
const fn n(number: libc::c_int) -> u32 {
    number as u32
}

/// No memory that can be executed.
const NOT_EXECUTABLE: Check = without(2, n(libc::PROT_EXEC));
/// Only sockets of this host's file system.
const UNIX: Check = one_of(0, &[n(libc::AF_UNIX)]);
/// Signals that tell of a process's own fault.
const FAULTS: Check = one_of(
    0,
    &[
        n(libc::SIGABRT),
        n(libc::SIGSEGV),
        n(libc::SIGBUS),
        n(libc::SIGILL),
        n(libc::SIGFPE),
    ],
);
/// Only threads of this process.
const OWN: Check = Check {
    arg: 0,
    mask: u32::MAX,
    values: Values::OwnPid,
};

/// Every role, in the order of their discriminants.
pub(super) const ROLES: [Role; 20] = [
    Role::Control,
    Role::EventLoop,
    Role::Spawner,
    Role::Vcpu,
    Role::Loader,
    Role::Api,
    Role::Block,
    Role::Net,
    Role::Pmem,
    Role::Vsock,
    Role::Vhost,
    Role::Fs,
    Role::Files,
    Role::FileServer,
    Role::Mem,
    Role::Balloon,
    Role::Stream,
    Role::Closer,
    Role::Writer,
    Role::FdCloser,
];

/// What `role` may do in a process with number `pid`.
pub(super) fn policy(role: Role, pid: u32) -> Policy {
    Policy::new(groups(role), REFUSED, pid)
}

/// Every list of rules below, with its name.
#[cfg(test)]
pub(super) const GROUPS: [(&str, &[Rule]); 23] = [
    ("EVERY", EVERY),
    ("THREADS", THREADS),
    ("EVENT_LOOP", EVENT_LOOP),
    ("CONTROL", CONTROL),
    ("VCPU", VCPU),
    ("VCPU_SETUP", VCPU_SETUP),
    ("LOADER", LOADER),
    ("API", API),
    ("WRITER", WRITER),
    ("SETUP", SETUP),
    ("IO", IO),
    ("BLOCK", BLOCK),
    ("NET", NET),
    ("PMEM", PMEM),
    ("VSOCK", VSOCK),
    ("VHOST", VHOST),
    ("FS", FS),
    ("FILES", FILES),
    ("FILES_SETUP", FILES_SETUP),
    ("FILES_WALLS", FILES_WALLS),
    ("FILE_SERVER", FILE_SERVER),
    ("MEM", MEM),
    ("BALLOON", BALLOON),
];

pub(super) fn groups(role: Role) -> &'static [&'static [Rule]] {
    match role {
        // With what the threads need that it starts: vCPUs, loader, API, those that write to files.
        Role::Control => &[
            EVERY, THREADS, EVENT_LOOP, CONTROL, VCPU, VCPU_SETUP, LOADER, IO, API, WRITER,
        ],
        Role::EventLoop => &[EVERY, EVENT_LOOP],
        // With what the threads of all devices need.
        Role::Spawner => &[
            EVERY,
            THREADS,
            SETUP,
            IO,
            BLOCK,
            NET,
            PMEM,
            VSOCK,
            VHOST,
            FS,
            FILES,
            FILES_SETUP,
            FILES_WALLS,
            MEM,
            BALLOON,
        ],
        Role::Vcpu => &[EVERY, VCPU],
        Role::Loader => &[EVERY, LOADER],
        Role::Api => &[EVERY, IO, API],
        Role::Block => &[EVERY, IO, BLOCK],
        Role::Net => &[EVERY, IO, NET],
        Role::Pmem => &[EVERY, IO, PMEM],
        Role::Vsock => &[EVERY, IO, VSOCK],
        Role::Vhost => &[EVERY, IO, VHOST],
        Role::Fs => &[EVERY, IO, FS],
        Role::Files => &[EVERY, IO, FILES],
        Role::FileServer => &[EVERY, THREADS, IO, FILES, FILES_SETUP, FILE_SERVER],
        Role::Mem => &[EVERY, IO, MEM],
        Role::Balloon => &[EVERY, IO, BALLOON],
        Role::Stream => &[EVERY, IO],
        Role::Closer => &[EVERY, THREADS, EVENT_LOOP],
        Role::Writer => &[EVERY, WRITER],
        Role::FdCloser => &[EVERY],
    }
}

/// Calls that are answered with an error, since a library that makes them knows another way.
const REFUSED: &[(libc::c_long, libc::c_int)] = &[
    // pthread_create: its flags are in memory, where no filter sees them. It goes on with clone.
    (libc::SYS_clone3, libc::ENOSYS),
];

/// What every thread does.
const EVERY: &[Rule] = &[
    // malloc.
    any(libc::SYS_brk),
    only(libc::SYS_mmap, &[NOT_EXECUTABLE]),
    any(libc::SYS_munmap),
    any(libc::SYS_mremap),
    // malloc trims, pthread empties the stack of a thread that ends.
    only(libc::SYS_madvise, &[one_of(2, &[n(MADV_DONTNEED)])]),
    // Locks, condition variables, channels, joining threads.
    any(libc::SYS_futex),
    any(libc::SYS_sched_yield),
    // The end of a thread, which gives its signal stack back, and of the process.
    any(libc::SYS_exit),
    any(libc::SYS_exit_group),
    any(libc::SYS_sigaltstack),
    // Return from the signal that takes a vCPU out of its guest; what a signal interrupted.
    any(libc::SYS_rt_sigreturn),
    any(libc::SYS_restart_syscall),
    // Instant::now where the kernel's vdso has no clock, thread::sleep.
    any(libc::SYS_clock_gettime),
    any(libc::SYS_clock_nanosleep),
    // Keys of hash maps, once a thread.
    any(libc::SYS_getrandom),
    // Event descriptors, files already open; dropping them.
    any(libc::SYS_read),
    any(libc::SYS_write),
    any(libc::SYS_close),
    // Builds with debug assertions: is a descriptor that is to be closed still open?
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_GETFD)])]),
    // Messages on standard error: room is asked for first.
    any(libc::SYS_poll),
    // What the C library says before it aborts.
    any(libc::SYS_writev),
    // What is shared with others, and must not be waited for: standard output and error, taps.
    any(libc::SYS_pwritev2),
    // abort: signals of its own, with their handlers; the terminal is restored first.
    any(libc::SYS_rt_sigprocmask),
    only(libc::SYS_rt_sigaction, &[FAULTS]),
    any(libc::SYS_getpid),
    any(libc::SYS_gettid),
    only(libc::SYS_tgkill, &[OWN]),
    any(libc::SYS_getpgrp),
    only(
        libc::SYS_ioctl,
        &[one_of(1, &[r::TCGETS, r::TCSETS, r::TCGETS2, r::TCSETS2, r::TIOCGPGRP])],
    ),
    // The name of the thread, in the message about a call that is not allowed.
    only(libc::SYS_prctl, &[one_of(0, &[n(PR_GET_NAME)])]),
];

/// What a vCPU does: the guest, and the registers of its devices.
const VCPU: &[Rule] = &[
    // A look at it for each second of its time.
    any(libc::SYS_timer_create),
    any(libc::SYS_timer_settime),
    any(libc::SYS_timer_delete),
    only(
        libc::SYS_ioctl,
        &[one_of(
            1,
            &[
                // The guest itself; its place, when KVM gives up on it.
                r::KVM_RUN,
                r::KVM_GET_REGS,
                // Whether it waits for a page that will never come (kvm/stuck.rs).
                r::KVM_GET_MP_STATE,
                r::KVM_GET_VCPU_EVENTS,
                r::KVM_SET_VCPU_EVENTS,
                // MSI-X tables and the I/O APIC: a message, and the event that sends it.
                r::KVM_SET_GSI_ROUTING,
                r::KVM_IRQFD,
                // Doorbells of a queue that becomes live, or of a BAR that moves.
                r::KVM_IOEVENTFD,
            ],
        )],
    ),
    // A device that starts: the event that stops its thread again, events and files shared with it.
    any(libc::SYS_eventfd2),
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_DUPFD_CLOEXEC)])]),
    // The console, when standard output is full: the main thread goes on when there is room.
    any(libc::SYS_epoll_ctl),
];

/// What a vCPU's thread sets up before it has its role: with whom it shares a core.
const VCPU_SETUP: &[Rule] = &[only(
    libc::SYS_prctl,
    &[
        one_of(0, &[n(PR_SCHED_CORE)]),
        one_of(1, &[n(PR_SCHED_CORE_CREATE), n(PR_SCHED_CORE_SHARE_FROM)]),
    ],
)];

/// What the thread of every device does, once its handler is set up.
const IO: &[Rule] = &[
    // The loop.
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    // Rate limits, retries.
    any(libc::SYS_timerfd_create),
    any(libc::SYS_timerfd_settime),
];

/// A disk. Its io_uring is made before, and restricted to what a disk does.
const BLOCK: &[Rule] = &[
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_OFD_SETLK)])]),
    any(libc::SYS_io_uring_enter),
    // What the host has in its page cache.
    any(libc::SYS_preadv2),
    // Without io_uring, and for what its ring refuses.
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    // Flushes; discards and writes of zeros.
    any(libc::SYS_fdatasync),
    any(libc::SYS_fallocate),
];

/// A network device: frames from and to its tap, and what the driver's commands ask of it.
const NET: &[Rule] = &[
    any(libc::SYS_preadv2),
    only(libc::SYS_ioctl, &[one_of(1, &[r::TUNSETOFFLOAD, r::TUNSETQUEUE])]),
];

/// vsock: clients come by its socket; the guest's connections go to sockets beside it.
const VSOCK: &[Rule] = &[
    any(libc::SYS_accept4),
    only(libc::SYS_socket, &[UNIX]),
    any(libc::SYS_connect),
    // Bytes, straight from and into the guest's buffers; the first line of a client.
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_recvfrom),
    any(libc::SYS_sendto),
    // A descriptor to be given up when there are no others.
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_DUPFD_CLOEXEC)])]),
    // Either half closed.
    any(libc::SYS_shutdown),
    // Whether a client has read the answer to its first line.
    only(libc::SYS_ioctl, &[one_of(1, &[r::SIOCOUTQ])]),
];

/// A device whose rings the kernel serves: lent at the start and after a pause, and taken back.
/// What was the driver's to choose and where memory is were told before (`SETUP`).
const VHOST: &[Rule] = &[only(
    libc::SYS_ioctl,
    &[one_of(
        1,
        &[
            r::VHOST_SET_VRING_NUM,
            r::VHOST_SET_VRING_ADDR,
            r::VHOST_SET_VRING_BASE,
            r::VHOST_GET_VRING_BASE,
            r::VHOST_SET_VRING_KICK,
            r::VHOST_SET_VRING_CALL,
            r::VHOST_SET_VRING_ERR,
            r::VHOST_NET_SET_BACKEND,
            r::VHOST_VSOCK_SET_RUNNING,
            // What the driver's commands ask of the tap.
            r::TUNSETOFFLOAD,
            r::TUNSETQUEUE,
        ],
    )],
)];

/// A share: messages, with descriptors, on a connection that exists.
const FS: &[Rule] = &[any(libc::SYS_sendmsg), any(libc::SYS_recvfrom), any(libc::SYS_shutdown)];

/// A share that husk serves itself: what a file server does. Where its names lead is held by how they are opened.
const FILES: &[Rule] = &[
    // Names, always from a descriptor on; nodes that are opened again, by their handle or by what
    // /proc knows of a descriptor. The label of what is made is written where /proc has it.
    any(libc::SYS_openat),
    any(libc::SYS_openat2),
    any(libc::SYS_name_to_handle_at),
    any(libc::SYS_open_by_handle_at),
    any(libc::SYS_readlinkat),
    any(libc::SYS_mkdirat),
    any(libc::SYS_mknodat),
    any(libc::SYS_symlinkat),
    any(libc::SYS_linkat),
    any(libc::SYS_unlinkat),
    any(libc::SYS_renameat2),
    any(libc::SYS_getdents64),
    // Attributes.
    any(libc::SYS_statx),
    any(libc::SYS_fchmodat),
    any(libc::SYS_fchmod),
    any(libc::SYS_fchownat),
    any(libc::SYS_utimensat),
    any(libc::SYS_ftruncate),
    any(libc::SYS_getxattr),
    any(libc::SYS_setxattr),
    any(libc::SYS_listxattr),
    any(libc::SYS_removexattr),
    any(libc::SYS_fstatfs),
    // Contents.
    any(libc::SYS_preadv),
    any(libc::SYS_pwritev),
    any(libc::SYS_lseek),
    any(libc::SYS_fallocate),
    any(libc::SYS_copy_file_range),
    any(libc::SYS_fsync),
    any(libc::SYS_fdatasync),
    any(libc::SYS_syncfs),
    // Locks; a descriptor that is closed to learn what became of writes.
    any(libc::SYS_flock),
    only(
        libc::SYS_fcntl,
        &[one_of(1, &[n(F_OFD_SETLK), n(F_OFD_GETLK), n(F_DUPFD_CLOEXEC)])],
    ),
    // Whose name things are made in. What a thread may become it was when husk was started.
    any(libc::SYS_umask),
    any(libc::SYS_capget),
    any(libc::SYS_capset),
    any(libc::SYS_setresuid),
    any(libc::SYS_setresgid),
    any(libc::SYS_setgroups),
];

/// What the threads of such a share set up: a working directory and a umask of their own.
const FILES_SETUP: &[Rule] = &[
    only(libc::SYS_unshare, &[one_of(0, &[n(CLONE_FS)])]),
    any(libc::SYS_fchdir),
];

/// What threads of a VM confine themselves to the share with, before they have their role.
const FILES_WALLS: &[Rule] = &[any(libc::SYS_landlock_restrict_self)];

/// A process that serves a share: the VMM that comes, what it sends, and the memory that it brings.
const FILE_SERVER: &[Rule] = &[
    // One VMM, and the end of one that speaks nonsense.
    any(libc::SYS_accept4),
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendmsg),
    any(libc::SYS_shutdown),
    // Kicks, which the front-end may have made blocking.
    any(libc::SYS_preadv2),
    // A second descriptor of a connection; what a thread of queues waits with, and is ended by.
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_GETFL)])]),
    any(libc::SYS_epoll_create1),
    any(libc::SYS_eventfd2),
    // The first thread that a process starts has pthread listen to its own signal (SIGRTMIN + 1 of the kernel).
    only(libc::SYS_rt_sigaction, &[one_of(0, &[33])]),
];

/// Persistent memory: flushes.
const PMEM: &[Rule] = &[any(libc::SYS_fdatasync)];

/// virtio-mem: RAM that comes, with its name and advice about it, and goes.
const MEM: &[Rule] = &[
    // What the host has left, from files that are open.
    any(libc::SYS_pread64),
    only(libc::SYS_madvise, &[one_of(2, RAM_ADVICE)]),
    only(libc::SYS_prctl, &[one_of(0, &[n(PR_SET_VMA)])]),
    any(libc::SYS_fallocate),
    only(libc::SYS_ioctl, &[one_of(1, &[r::KVM_SET_USER_MEMORY_REGION])]),
];

/// The balloon: pages that the guest gives back.
const BALLOON: &[Rule] = &[any(libc::SYS_fallocate)];

/// Kernel and initramfs on their way into RAM.
const LOADER: &[Rule] = &[
    any(libc::SYS_pread64),
    // A mapping of a kernel that is not compressed keeps a descriptor of its own.
    only(libc::SYS_fcntl, &[one_of(1, &[n(F_DUPFD_CLOEXEC)])]),
    // Sizes.
    any(libc::SYS_statx),
];

/// Threads: whichever are created, and confine themselves after that.
const THREADS: &[Rule] = &[
    // A thread in this process, and no new process or namespace.
    only(
        libc::SYS_clone,
        &[Check {
            arg: 0,
            mask: NAMESPACES | n(CLONE_THREAD | CLONE_VM | CLONE_FS | CLONE_SIGHAND),
            values: Values::Of(&[n(CLONE_THREAD | CLONE_VM | CLONE_FS | CLONE_SIGHAND)]),
        }],
    ),
    // Stacks and their guard pages, malloc.
    only(libc::SYS_mprotect, &[NOT_EXECUTABLE]),
    // The first steps of a thread (pthread, std).
    any(libc::SYS_set_robust_list),
    any(libc::SYS_rseq),
    any(libc::SYS_sched_getaffinity),
    only(libc::SYS_prctl, &[one_of(0, &[n(PR_SET_NAME), n(PR_SET_NO_NEW_PRIVS)])]),
    // A narrower filter.
    only(libc::SYS_seccomp, &[one_of(0, &[libc::SECCOMP_SET_MODE_FILTER])]),
];

const NAMESPACES: u32 = n(libc::CLONE_NEWNS
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET);

/// What handlers set up before their thread confines itself to its role, and before the first request is looked at.
const SETUP: &[Rule] = &[
    any(libc::SYS_epoll_create1),
    any(libc::SYS_eventfd2),
    // A disk's ring. A ring carries out its operations past every filter: this one is restricted
    // before it is enabled, and no thread that looks at what a guest, a client or a back-end sends
    // can make another.
    any(libc::SYS_io_uring_setup),
    any(libc::SYS_io_uring_register),
    only(libc::SYS_madvise, &[one_of(2, &[n(MADV_DONTFORK)])]),
    // A back-end that is connected to anew; the kernel as one.
    only(
        libc::SYS_ioctl,
        &[one_of(1, &[r::FIONBIO, r::VHOST_SET_FEATURES, r::VHOST_SET_MEM_TABLE])],
    ),
];

/// Serving a machine that runs, and taking it apart.
const EVENT_LOOP: &[Rule] = &[
    // The main loop: signals as events; the terminal, its size, stopping and going on with it.
    any(libc::SYS_epoll_create1),
    any(libc::SYS_epoll_wait),
    any(libc::SYS_epoll_ctl),
    any(libc::SYS_rt_sigaction),
    // What standard input is: the terminal, or something that is read to its end. An event stands
    // in for what epoll refuses.
    any(libc::SYS_eventfd2),
    any(libc::SYS_fstat),
    any(libc::SYS_newfstatat),
    any(libc::SYS_statx),
    any(libc::SYS_preadv2),
    // Whoever attaches to a port's socket.
    any(libc::SYS_accept4),
    only(
        libc::SYS_fcntl,
        // A disk that goes unlocks its image.
        &[one_of(1, &[n(F_DUPFD_CLOEXEC), n(F_OFD_SETLK)])],
    ),
    // The file of a socket goes with its device.
    any(libc::SYS_unlink),
    // A back-end gives back the rings it was lent, and is told of memory.
    any(libc::SYS_sendmsg),
    any(libc::SYS_recvfrom),
    any(libc::SYS_shutdown),
    only(libc::SYS_ioctl, &[one_of(1, EVENT_LOOP_REQUESTS)]),
];

/// ioctls of the first thread while a machine runs.
const EVENT_LOOP_REQUESTS: &[u32] = &[
    // Interrupts and doorbells of devices that stop, memory that goes.
    r::KVM_SET_USER_MEMORY_REGION,
    r::KVM_SET_GSI_ROUTING,
    r::KVM_IRQFD,
    r::KVM_IOEVENTFD,
    // The terminal: raw and back, its size.
    r::TIOCGWINSZ,
    r::FIONBIO,
    // The kernel as a back-end is told of memory, and leaves a ring alone that was in what is gone.
    r::VHOST_SET_MEM_TABLE,
    r::VHOST_NET_SET_BACKEND,
    r::VHOST_VSOCK_SET_RUNNING,
];

/// Writing to a file that is open.
const WRITER: &[Rule] = &[
    // A port's file with a limit, when it is its turn; the boot trace's, of what an earlier run has left there.
    any(libc::SYS_ftruncate),
];

/// Building a machine, and changing it.
const CONTROL: &[Rule] = &[
    // Kernels, images, logs, /dev/kvm, /dev/net/tun: opened, looked at.
    any(libc::SYS_openat),
    any(libc::SYS_lseek),
    any(libc::SYS_ftruncate),
    any(libc::SYS_fchmod),
    // A folder that is to be shared: whether the host can hold names in it, what kind of file system it is on, and as
    // whom.
    any(libc::SYS_openat2),
    any(libc::SYS_fstatfs),
    any(libc::SYS_capget),
    any(libc::SYS_geteuid),
    any(libc::SYS_getegid),
    // Whether it has file handles; rules of Landlock for its threads.
    any(libc::SYS_name_to_handle_at),
    any(libc::SYS_landlock_create_ruleset),
    any(libc::SYS_landlock_add_rule),
    // And how many descriptors it may take: to be read, not set.
    only(
        libc::SYS_prlimit64,
        &[one_of(0, &[0]), one_of(1, &[libc::RLIMIT_NOFILE]), one_of(2, &[0])],
    ),
    // Descriptors: locks on images and on folders of sockets; seals on RAM.
    only(
        libc::SYS_fcntl,
        &[one_of(1, &[n(F_OFD_SETLK), n(F_OFD_GETLK), n(F_ADD_SEALS)])],
    ),
    any(libc::SYS_flock),
    // The way to a thread that writes to a file.
    any(libc::SYS_pipe2),
    // What KVM counts of a vCPU.
    any(libc::SYS_pread64),
    // Guest RAM: its file, its name, advice about it, and pages that the guest gives back.
    any(libc::SYS_memfd_create),
    any(libc::SYS_fallocate),
    only(libc::SYS_prctl, &[one_of(0, &[n(PR_SET_VMA)])]),
    only(libc::SYS_madvise, &[one_of(2, RAM_ADVICE)]),
    // Sockets in the file system: vsock's own, those of back-ends.
    only(libc::SYS_socket, &[UNIX]),
    any(libc::SYS_bind),
    any(libc::SYS_listen),
    any(libc::SYS_connect),
    only(libc::SYS_ioctl, &[one_of(1, CONTROL_REQUESTS)]),
];

/// Advice about RAM: its pages, and no part of it in core dumps.
const RAM_ADVICE: &[u32] = &[
    n(MADV_HUGEPAGE),
    n(MADV_MERGEABLE),
    n(MADV_POPULATE_WRITE),
    n(MADV_DONTDUMP),
];

/// ioctls that build a machine.
const CONTROL_REQUESTS: &[u32] = &[
    // KVM and a virtual machine.
    r::KVM_GET_API_VERSION,
    r::KVM_CHECK_EXTENSION,
    r::KVM_GET_SUPPORTED_CPUID,
    r::KVM_GET_VCPU_MMAP_SIZE,
    r::KVM_CREATE_VM,
    r::KVM_SET_TSS_ADDR,
    r::KVM_ENABLE_CAP,
    r::KVM_CREATE_VCPU,
    // A vCPU before its first instruction, and when it comes again; what KVM counts of it.
    r::KVM_GET_REGS,
    r::KVM_GET_LAPIC,
    r::KVM_SET_LAPIC,
    r::KVM_GET_VCPU_EVENTS,
    r::KVM_SET_VCPU_EVENTS,
    r::KVM_SET_MP_STATE,
    r::KVM_GET_DEVICE_ATTR,
    r::KVM_SET_DEVICE_ATTR,
    r::KVM_GET_STATS_FD,
    // Its clock, after a pause.
    r::KVM_KVMCLOCK_CTRL,
    // Its registers at the start.
    r::KVM_GET_TSC_KHZ,
    r::KVM_SET_CPUID2,
    r::KVM_SET_MSRS,
    r::KVM_GET_SREGS,
    r::KVM_SET_SREGS,
    r::KVM_SET_REGS,
    // Disks that are block devices: size and units, whether they can be written.
    r::BLKGETSIZE64,
    r::BLKROGET,
    r::BLKSSZGET,
    r::BLKPBSZGET,
    r::BLKIOMIN,
    r::BLKIOOPT,
    // Taps: attached to, asked about, told of offloads.
    r::TUNSETIFF,
    r::TUNGETIFF,
    r::TUNSETOFFLOAD,
    r::TUNSETVNETHDRSZ,
    // A pseudo-terminal that a port leads to.
    r::TIOCSPTLCK,
    r::TIOCGPTN,
    r::TIOCGPTPEER,
    // Devices that the kernel serves.
    r::VHOST_GET_FEATURES,
    r::VHOST_SET_OWNER,
    r::VHOST_VSOCK_SET_GUEST_CID,
];

/// The clients of the API: everything that comes and goes does so through sockets that exist.
const API: &[Rule] = &[
    any(libc::SYS_accept4),
    // Requests, with descriptors; answers, and their end.
    any(libc::SYS_recvmsg),
    any(libc::SYS_sendto),
    any(libc::SYS_shutdown),
    // A new client's socket becomes non-blocking.
    only(libc::SYS_ioctl, &[one_of(1, &[r::FIONBIO])]),
    // The end: the last answers are waited for.
    any(libc::SYS_epoll_create1),
    // Figures: what /proc says of the process, in files that the first thread has opened.
    any(libc::SYS_pread64),
    any(libc::SYS_lseek),
    any(libc::SYS_getdents64),
];
