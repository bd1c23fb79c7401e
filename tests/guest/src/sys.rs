//! The system calls that the standard library does not offer. The only unsafe code of the guest.
#![expect(unsafe_code, reason = "mount, module, terminal and reboot system calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn text(value: &str) -> io::Result<CString> {
    CString::new(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Mounts `source` of type `kind` on `target`, which must exist.
pub fn mount(source: &str, target: &str, kind: &str, read_only: bool) -> io::Result<()> {
    let (source, target, kind) = (text(source)?, text(target)?, text(kind)?);
    let flags = if read_only { libc::MS_RDONLY } else { 0 };
    // SAFETY: three C strings that outlive the call, and no data.
    check(unsafe { libc::mount(source.as_ptr(), target.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) })?;
    Ok(())
}

/// Reads a byte of each page of the first `length` bytes of `file` through a mapping of it.
pub fn touch_mapped(file: &File, length: usize) -> io::Result<()> {
    const PAGE: usize = 4096;
    let (access, kind) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a new mapping of an open file, wherever the kernel puts it.
    let mapping = unsafe { libc::mmap(std::ptr::null_mut(), length, access, kind, file.as_raw_fd(), 0) };
    if mapping == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    for at in (0..length).step_by(PAGE) {
        // SAFETY: `at` lies in the mapping. Others may change the file meanwhile, so it is a volatile read of a byte.
        std::hint::black_box(unsafe { mapping.cast::<u8>().add(at).read_volatile() });
    }
    // SAFETY: made above with this length, and nobody has its address any more.
    check(unsafe { libc::munmap(mapping, length) })?;
    Ok(())
}

/// The monotonic clock.
pub fn monotonic_ns() -> io::Result<u64> {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the call fills a timespec.
    check(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, now.as_mut_ptr()) })?;
    // SAFETY: integers, filled as the call succeeded.
    let now = unsafe { now.assume_init() };
    let part = |value: i64| u64::try_from(value).map_err(io::Error::other);
    Ok(part(now.tv_sec)? * 1_000_000_000 + part(now.tv_nsec)?)
}

/// Loads the kernel module in `file`.
pub fn load_module(file: &File) -> io::Result<()> {
    // SAFETY: an open descriptor, an empty C string of parameters and no flags.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Writes `byte` to port 0x80, where the machine's boot trace listens. Needs root.
pub fn mark(byte: u8) -> io::Result<()> {
    // SAFETY: no memory is involved; it opens one I/O port to this process.
    check(unsafe { libc::ioperm(0x80, 1, 1) })?;
    // SAFETY: port 0x80 was opened above; it is the diagnostic port, and no hardware acts on it.
    unsafe { std::arch::asm!("out 0x80, al", in("al") byte, options(nomem, nostack, preserves_flags)) };
    Ok(())
}

/// How a machine can be left.
#[derive(Clone, Copy, Debug)]
pub enum Leave {
    /// ACPI S5.
    PowerOff,
    /// By the method that the kernel's `reboot=` option selects.
    Restart,
}

/// Leaves the machine; returns only on failure.
pub fn leave(how: Leave) -> io::Error {
    let command = match how {
        Leave::PowerOff => libc::RB_POWER_OFF,
        Leave::Restart => libc::RB_AUTOBOOT,
    };
    // SAFETY: flushes file systems; no arguments.
    unsafe { libc::sync() };
    // SAFETY: a command without a pointer argument.
    unsafe { libc::reboot(command) };
    io::Error::last_os_error()
}

/// `BLKDISCARD`, include/uapi/linux/fs.h.
const BLKDISCARD: libc::Ioctl = 0x1277;
/// `BLKZEROOUT`, include/uapi/linux/fs.h.
const BLKZEROOUT: libc::Ioctl = 0x127f;

/// Discards `length` bytes at `offset` of a block device.
pub fn discard(disk: &File, offset: u64, length: u64) -> io::Result<()> {
    range_ioctl(disk, BLKDISCARD, offset, length)
}

/// Zeroes `length` bytes at `offset` of a block device.
pub fn zero_out(disk: &File, offset: u64, length: u64) -> io::Result<()> {
    range_ioctl(disk, BLKZEROOUT, offset, length)
}

fn range_ioctl(disk: &File, request: libc::Ioctl, offset: u64, length: u64) -> io::Result<()> {
    let range = [offset, length];
    // SAFETY: both requests read two u64 from the pointer.
    check(unsafe { libc::ioctl(disk.as_raw_fd(), request, range.as_ptr()) })?;
    Ok(())
}

/// Keeps the calling thread on one processor.
pub fn pin_to(processor: usize) -> io::Result<()> {
    // SAFETY: cpu_set_t is a bit array; all zeroes is the empty set.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: CPU_SET checks `processor` against the size of the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: the pointer and size describe `set`; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// `KVM_CREATE_VM` (KVM api.rst 4.2).
const KVM_CREATE_VM: libc::Ioctl = 0xae01;
/// `KVM_CREATE_VCPU` (KVM api.rst 4.7).
const KVM_CREATE_VCPU: libc::Ioctl = 0xae41;
/// `KVM_CREATE_IRQCHIP` (KVM api.rst 4.24).
const KVM_CREATE_IRQCHIP: libc::Ioctl = 0xae60;

/// Makes a VM with one vCPU that never runs. It exists as long as the returned descriptors.
pub fn idle_vm(kvm: &File) -> io::Result<[OwnedFd; 2]> {
    let create = |owner: &dyn AsRawFd, request| {
        // SAFETY: the requests take an integer, here 0: the default machine type, or the first vCPU's number.
        let fd = check(unsafe { libc::ioctl(owner.as_raw_fd(), request, 0) })?;
        // SAFETY: the request made the descriptor, and nobody else has it.
        Ok::<_, io::Error>(unsafe { OwnedFd::from_raw_fd(fd) })
    };
    let vm = create(kvm, KVM_CREATE_VM)?;
    // SAFETY: the request takes no argument.
    check(unsafe { libc::ioctl(vm.as_raw_fd(), KVM_CREATE_IRQCHIP, 0) })?;
    let vcpu = create(&vm, KVM_CREATE_VCPU)?;
    Ok([vm, vcpu])
}

/// How a terminal treats what passes through it.
#[derive(Clone, Copy, Debug)]
pub enum Line {
    /// Nothing is changed or echoed.
    Raw,
    /// Input is collected into lines, nothing is echoed, output is unchanged.
    Quiet,
}

/// Sets the line discipline of `terminal`.
pub fn set_line(terminal: &File, line: Line) -> io::Result<()> {
    let mut settings = MaybeUninit::<libc::termios>::uninit();
    // SAFETY: the pointer is to a termios that the call fills.
    check(unsafe { libc::tcgetattr(terminal.as_raw_fd(), settings.as_mut_ptr()) })?;
    // SAFETY: filled above, as the call succeeded.
    let mut settings = unsafe { settings.assume_init() };
    match line {
        // SAFETY: only changes the structure.
        Line::Raw => unsafe { libc::cfmakeraw(&raw mut settings) },
        Line::Quiet => {
            settings.c_lflag &= !(libc::ECHO | libc::ECHONL);
            settings.c_oflag &= !libc::OPOST;
        }
    }
    // SAFETY: reads a valid termios.
    check(unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSANOW, &raw const settings) })?;
    Ok(())
}

/// Waits until everything written to `terminal` has been sent.
pub fn drain(terminal: &File) -> io::Result<()> {
    // SAFETY: an open descriptor and nothing else.
    check(unsafe { libc::tcdrain(terminal.as_raw_fd()) })?;
    Ok(())
}

/// Rows and columns of `terminal`.
pub fn window(terminal: &File) -> io::Result<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the request fills a winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, size.as_mut_ptr()) })?;
    // SAFETY: integers, zeroed before the call.
    let size = unsafe { size.assume_init() };
    Ok((size.ws_row, size.ws_col))
}

/// Tells `terminal` its size.
pub fn set_window(terminal: &File, (rows, columns): (u16, u16)) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the request reads a winsize.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

static RESIZES: AtomicUsize = AtomicUsize::new(0);

extern "C" fn count_resize(_signal: libc::c_int) {
    RESIZES.fetch_add(1, Ordering::Relaxed);
}

/// Makes `terminal` the controlling one of this process's session: Ctrl-C, job control and `SIGWINCH` work from now on.
pub fn control(terminal: &File) -> io::Result<()> {
    // SAFETY: no arguments. It fails if the process leads a session already, which does as well.
    unsafe { libc::setsid() };
    // SAFETY: 0 means: do not steal the terminal from another session.
    check(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Counts `SIGWINCH` from now on.
pub fn count_resizes() {
    // SAFETY: the handler only touches an atomic, which is async-signal-safe.
    unsafe { libc::signal(libc::SIGWINCH, count_resize as *const () as libc::sighandler_t) };
}

/// How many times the controlling terminal changed its size since [`count_resizes`].
pub fn resizes() -> usize {
    RESIZES.load(Ordering::Relaxed)
}

/// Waits for any child; its process id and its exit code, or 128 plus the signal that killed it.
pub fn wait_any() -> io::Result<(u32, i32)> {
    let mut status = 0;
    // SAFETY: the pointer is to an int that the call fills.
    let pid = check(unsafe { libc::waitpid(-1, &raw mut status, 0) })?;
    let code = if libc::WIFEXITED(status) {
        libc::WEXITSTATUS(status)
    } else {
        128 + libc::WTERMSIG(status)
    };
    Ok((pid.unsigned_abs(), code))
}

/// Gives the kernel an ethtool command about `device`, and takes its answer.
pub fn ethtool(device: &str, command: &mut [u32]) -> io::Result<()> {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    let mut request = interface(device)?;
    request.ifr_ifru.ifru_data = command.as_mut_ptr().cast();
    // SAFETY: the request points to a command, which is borrowed and as long as its first word demands.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) })?;
    Ok(())
}

/// Sends `frame` on `device` as it is.
pub fn send_frame(device: &str, frame: &[u8]) -> io::Result<()> {
    let name = text(device)?;
    // SAFETY: a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: no memory is involved.
    let socket = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just opened, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a small constant");
    address.sll_ifindex = i32::try_from(index).map_err(io::Error::other)?;
    let length = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("20 bytes");
    // SAFETY: frame and address are borrowed and as long as said.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            0,
            (&raw const address).cast(),
            length,
        )
    };
    if sent < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn interface(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    let fits = name.len() < request.ifr_name.len();
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    fits.then_some(request)
        .ok_or_else(|| io::ErrorKind::InvalidInput.into())
}
