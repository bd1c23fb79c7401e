//! The system calls that the standard library does not offer. The only unsafe code of the lab.
#![expect(
    unsafe_code,
    reason = "signals, terminal settings and size, a look at another process's filters and at what the kernel has"
)]

use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Makes the kernel end `command`'s process when the thread that starts it ends, however that happens.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let hook = move || {
        // SAFETY: a signal number and no pointers.
        if unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM) } != 0 {
            return Err(io::Error::last_os_error());
        }
        if std::os::unix::process::parent_id() != parent {
            return Err(io::Error::other("the lab has ended"));
        }
        Ok(())
    };
    // SAFETY: the hook makes two system calls and allocates only when it fails, after which the process ends.
    unsafe { command.pre_exec(hook) };
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

extern "C" fn note_interrupt(_signal: libc::c_int) {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

/// From now on `SIGINT`, `SIGTERM` and `SIGHUP` do not end the lab but are seen by [`interrupted`],
/// so that it can clean up. Programs that it starts are not affected: exec resets handlers.
pub fn watch_interrupts() {
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler only touches an atomic, which is async-signal-safe.
        unsafe { libc::signal(signal, note_interrupt as *const () as libc::sighandler_t) };
    }
}

/// Whether the user asked the lab to end since [`watch_interrupts`].
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}

/// Kills `process` and everything that it has started, as far as that is not orphaned. Nobody must
/// have waited for it yet: until then the number is its own.
pub fn kill_tree(process: u32) {
    let tasks = fs::read_dir(format!("/proc/{process}/task"))
        .into_iter()
        .flatten()
        .flatten();
    let children = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
    let children: Vec<u32> = children
        .flat_map(|list| {
            list.split_whitespace()
                .filter_map(|child| child.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    if let Ok(process) = libc::pid_t::try_from(process) {
        // SAFETY: numbers only.
        unsafe { libc::kill(process, libc::SIGKILL) };
    }
    children.into_iter().for_each(kill_tree);
}

/// An instruction of a filter (linux/filter.h, `struct sock_filter`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Instruction {
    /// What is done.
    pub code: u16,
    /// Instructions to pass over if a comparison holds.
    pub jt: u8,
    /// And if it does not.
    pub jf: u8,
    /// The operand.
    pub k: u32,
}

/// linux/ptrace.h; libc has no name for it.
const PTRACE_SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// How long a thread may take to stop: one in a system call is called out of it.
const STOP: Duration = Duration::from_secs(1);

/// The seccomp filters of `thread`, a thread of a child of this process. It is stopped for the time of the look.
///
/// # Errors
///
/// This user may not: it takes `CAP_SYS_ADMIN`, and a kernel with `CONFIG_CHECKPOINT_RESTORE`. Or
/// the thread does not stop.
pub fn seccomp_filters(thread: libc::pid_t) -> io::Result<Vec<Vec<Instruction>>> {
    trace(libc::PTRACE_SEIZE, thread, 0, ptr::null_mut())?;
    let read = stop(thread).and_then(|()| programs(thread));
    // Fails only when there is no thread any more.
    let _ = trace(libc::PTRACE_DETACH, thread, 0, ptr::null_mut());
    read
}

fn stop(thread: libc::pid_t) -> io::Result<()> {
    trace(libc::PTRACE_INTERRUPT, thread, 0, ptr::null_mut())?;
    let end = Instant::now() + STOP;
    loop {
        let mut status = 0;
        // SAFETY: the call fills an integer.
        match unsafe { libc::waitpid(thread, &raw mut status, libc::__WALL | libc::WNOHANG) } {
            0 if Instant::now() < end => thread::sleep(Duration::from_micros(100)),
            0 => return Err(io::ErrorKind::TimedOut.into()),
            id if id == thread && libc::WIFSTOPPED(status) => return Ok(()),
            _ => return Err(io::Error::last_os_error()),
        }
    }
}

/// The filters of a thread that is stopped.
fn programs(thread: libc::pid_t) -> io::Result<Vec<Vec<Instruction>>> {
    let mut programs = Vec::new();
    loop {
        let number = programs.len();
        let length = match trace(PTRACE_SECCOMP_GET_FILTER, thread, number, ptr::null_mut()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(programs),
            length => length?,
        };
        let mut program = vec![Instruction::default(); length];
        // The kernel writes as many as it said: filters do not change.
        trace(PTRACE_SECCOMP_GET_FILTER, thread, number, program.as_mut_ptr().cast())?;
        programs.push(program);
    }
}

fn trace(request: libc::c_uint, thread: libc::pid_t, number: usize, data: *mut libc::c_void) -> io::Result<usize> {
    // SAFETY: none of the requests used here looks at an address of this process, but for the one
    // that reads a filter: `data` is null or has room for all of it.
    let result = unsafe {
        libc::ptrace(
            request,
            thread,
            ptr::without_provenance_mut::<libc::c_void>(number),
            data,
        )
    };
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether the kernel has io_uring, and lets this user have it.
pub fn has_io_uring() -> bool {
    // SAFETY: an address that is not mapped: the call fails as soon as it looks at it, and makes nothing.
    unsafe { libc::syscall(libc::SYS_io_uring_setup, 1, ptr::null_mut::<u8>()) };
    io::Error::last_os_error().raw_os_error() == Some(libc::EFAULT)
}

/// Which version of Landlock's rules the kernel has; 0 if none.
pub fn landlock_version() -> u32 {
    const VERSION: libc::c_int = 1; // LANDLOCK_CREATE_RULESET_VERSION
    // SAFETY: with this flag nothing is read, and no descriptor is made.
    let answer = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, ptr::null::<u8>(), 0, VERSION) };
    u32::try_from(answer).unwrap_or(0)
}

/// `struct file_handle` (open_by_handle_at(2)), with room for the largest one.
#[repr(C)]
struct FileHandle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    handle: [u8; libc::MAX_HANDLE_SZ as usize],
}

/// Opens the node of `file` once more, by its handle.
///
/// # Errors
///
/// The file system has no handles, or this user may not: it takes `CAP_DAC_READ_SEARCH`.
pub fn open_by_handle(file: &fs::File) -> io::Result<OwnedFd> {
    let mut handle = FileHandle {
        bytes: libc::MAX_HANDLE_SZ as libc::c_uint,
        kind: 0,
        handle: [0; libc::MAX_HANDLE_SZ as usize],
    };
    let mut mount: libc::c_int = 0;
    let (fd, place) = (file.as_raw_fd(), (&raw mut handle).cast::<libc::file_handle>());
    // SAFETY: the name is a C string, the handle has room for as many bytes as it says, and `mount`
    // is an int; they outlive the call.
    if unsafe { libc::name_to_handle_at(fd, c"".as_ptr(), place, &raw mut mount, libc::AT_EMPTY_PATH) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled the handle, and only reads it.
    let opened: RawFd = unsafe { libc::open_by_handle_at(fd, place, libc::O_PATH | libc::O_CLOEXEC) };
    if opened < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made the descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(opened) })
}

/// Rows and columns of the terminal on standard output.
pub fn window() -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the request fills a winsize.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, size.as_mut_ptr()) };
    // SAFETY: integers, zeroed before the call.
    let size = unsafe { size.assume_init() };
    (result == 0 && size.ws_row > 0).then_some((size.ws_row, size.ws_col))
}

/// The settings of the terminal on standard input, put back when this is dropped.
pub struct SavedTerminal(Option<libc::termios>);

impl SavedTerminal {
    /// Remembers the settings; nothing if standard input is not a terminal.
    pub fn save() -> Self {
        let mut settings = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the pointer is to a termios that the call fills.
        let result = unsafe { libc::tcgetattr(libc::STDIN_FILENO, settings.as_mut_ptr()) };
        // SAFETY: filled, as the call succeeded.
        Self((result == 0).then(|| unsafe { settings.assume_init() }))
    }
}

impl Drop for SavedTerminal {
    fn drop(&mut self) {
        if let Some(settings) = &self.0 {
            // SAFETY: a valid termios that the same terminal had before.
            unsafe { libc::tcsetattr(libc::STDIN_FILENO, libc::TCSANOW, settings) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_at_the_filters_of_a_child_leaves_it_running() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let thread = libc::pid_t::try_from(child.id()).unwrap();
        let filters = seccomp_filters(thread);
        let runs = child.try_wait().unwrap().is_none();
        kill_tree(child.id());
        child.wait().unwrap();
        assert!(runs, "{filters:?}");
        // Inherited from this process, which has none, unless it was started in something like a container.
        let own = fs::read_to_string("/proc/self/status").unwrap();
        if let (Ok(filters), true) = (filters, own.contains("\nSeccomp:\t0\n")) {
            assert_eq!(filters, Vec::<Vec<Instruction>>::new());
        }
    }
}
