//! A tap interface of the host, one descriptor for each queue pair (Linux `Documentation/networking/tuntap.rst`).
//!
//! The interface is its owner's. What is set here is how the descriptors talk: header size
//! (`TUNSETVNETHDRSZ`), offloads that the guest took (`TUNSETOFFLOAD`), which descriptors take part
//! (`TUNSETQUEUE`). Address, MAC, MTU, state and name stay as they are, also for an interface that
//! came to be because its name was asked for.
//!
//! A descriptor that was handed in is shared with whoever opened it, its flags included:
//! `O_NONBLOCK` can go at any time. So it is neither set nor relied on. Each call says for itself
//! that it does not wait (`RWF_NOWAIT`); where the kernel's tun driver does not know that, each
//! call asks first whether it would.
#![expect(
    unsafe_code,
    reason = "the ioctls of a tap, preadv2 and pwritev2 have no safe wrapper"
)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::features::{TUN_WITH_USO, TUN_WITHOUT_USO};
use super::header::HEADER_BYTES;
use crate::iovecs::Buffers;
use crate::syscall::{check, is_ready, retry};

/// Where taps come from.
const CLONE_DEVICE: &str = "/dev/net/tun";
/// Stands in tests for what is no tap: no interface can be called so.
const FAKE: &str = "/";
/// Where a call on what has no offsets reads or writes (readv(2)).
const NO_OFFSET: libc::off_t = -1;
/// Longest name of an interface (`IFNAMSIZ` less the NUL).
const NAME_BYTES: usize = 15;

/// Why there is no tap. Each is one line: the thing, what was found, what is allowed.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No interface can be called so.
    #[error("tap '{0}' is no name of an interface: 1 to {NAME_BYTES} bytes without '/', '%', ':' and spaces")]
    Name(String),
    /// The host has no tun driver, or keeps it away.
    #[error("cannot open {CLONE_DEVICE}")]
    NoDriver(#[source] io::Error),
    /// Neither the interface's owner nor somebody who may make one.
    #[error(
        "tap '{0}': not allowed: make it for this user (`ip tuntap add {0} mode tap user NAME`), or run with CAP_NET_ADMIN"
    )]
    NotAllowed(String),
    /// Somebody else has its descriptors.
    #[error("tap '{0}' is in use")]
    InUse(String),
    /// It exists and is another kind of interface.
    #[error("tap '{name}' exists and is not a tap{}", if *.pairs > 1 { " with several queues (`multi_queue`)" } else { "" })]
    OtherKind {
        /// Its name.
        name: String,
        /// Queue pairs asked for.
        pairs: u16,
    },
    /// The host refused otherwise.
    #[error("tap '{name}': cannot {what}")]
    Host {
        /// Its name.
        name: String,
        /// What was being done, in the infinitive.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
    /// A descriptor of something else.
    #[error("descriptor {number} of {count} is not a tap")]
    NotATap {
        /// Its place among those given, from 1.
        number: usize,
        /// How many were given.
        count: usize,
        /// The host's answer.
        source: io::Error,
    },
    /// A descriptor of a tap that was opened in a way that does not fit.
    #[error(
        "descriptor {number} of {count} is of interface '{name}' with flags {flags:#x}, needed: IFF_TAP, IFF_NO_PI, IFF_VNET_HDR"
    )]
    Flags {
        /// Its place among those given, from 1.
        number: usize,
        /// How many were given.
        count: usize,
        /// The interface.
        name: String,
        /// How it was opened.
        flags: u16,
    },
    /// Descriptors of different interfaces.
    #[error("descriptors of different interfaces, '{0}' and '{1}'")]
    Different(String, String),
}

/// One queue of a tap interface.
#[derive(Debug)]
pub(super) struct Tap {
    file: File,
    name: String,
    multi_queue: bool,
    /// Others have the same open file description: whether calls wait is not husk's alone to say.
    shared: bool,
    /// The kernel does not know how a single call is told not to wait.
    knows_no_nowait: AtomicBool,
}

impl Tap {
    fn new(file: File, name: String, multi_queue: bool, shared: bool) -> Self {
        Self {
            file,
            name,
            multi_queue,
            shared,
            knows_no_nowait: AtomicBool::new(false),
        }
    }

    /// Attaches to the interface `name`, once for each queue pair; where there is none, the kernel
    /// makes one that ends with husk.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(name: &str, pairs: u16) -> Result<Vec<Self>, TapError> {
        check_name(name)?;
        (0..pairs).map(|_| Self::attach_to(name, pairs)).collect()
    }

    fn attach_to(name: &str, pairs: u16) -> Result<Self, TapError> {
        let single = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        let several = single | libc::IFF_MULTI_QUEUE;
        // An interface made for several queues takes nothing else, so a single queue tries both.
        let tries: &[libc::c_int] = if pairs > 1 { &[several] } else { &[single, several] };
        let mut failed = None;
        for flags in tries {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(CLONE_DEVICE)
                .map_err(TapError::NoDriver)?;
            match set_interface(&file, name, *flags) {
                Ok(()) => {
                    let several = flags & libc::IFF_MULTI_QUEUE != 0;
                    return Self::new(file, name.into(), several, false).prepared();
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => failed = Some(error),
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let source = failed.expect("at least one way was tried");
        Err(match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => TapError::NotAllowed(name.into()),
            Some(libc::EBUSY) => TapError::InUse(name.into()),
            Some(libc::EINVAL) => TapError::OtherKind {
                name: name.into(),
                pairs,
            },
            _ => TapError::Host {
                name: name.into(),
                what: "attach to it",
                source,
            },
        })
    }

    /// Takes descriptors of one tap interface that somebody else has opened, one for each queue pair.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn adopt(fds: Vec<OwnedFd>) -> Result<Vec<Self>, TapError> {
        let count = fds.len();
        let mut taps: Vec<Self> = Vec::with_capacity(count);
        for (index, fd) in fds.into_iter().enumerate() {
            let tap = Self::adopt_one(fd, index.saturating_add(1), count)?.prepared()?;
            if let Some(first) = taps.first().filter(|first| first.name != tap.name) {
                return Err(TapError::Different(first.name.clone(), tap.name));
            }
            taps.push(tap);
        }
        Ok(taps)
    }

    fn adopt_one(fd: OwnedFd, number: usize, count: usize) -> Result<Self, TapError> {
        let file = File::from(fd);
        let strange = |source| TapError::NotATap { number, count, source };
        let mut request = Request::new("", 0);
        // SAFETY: the ioctl fills the structure, which is as large as the kernel's.
        let answer = unsafe { ioctl_with_mut_ref(&file, libc::TUNGETIFF, &mut request) };
        check(answer).map_err(strange)?;
        let flags = libc::c_int::from(request.flags);
        let needed = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::Flags {
                number,
                count,
                name: request.name(),
                flags: request.flags.cast_unsigned(),
            });
        }
        let several = flags & libc::IFF_MULTI_QUEUE != 0;
        Ok(Self::new(file, request.name(), several, true))
    }

    /// Headers of virtio's size, and none of the offloads that another user may have left.
    fn prepared(self) -> Result<Self, TapError> {
        let size = libc::c_int::try_from(HEADER_BYTES).expect("12");
        // SAFETY: the ioctl reads an int.
        check(unsafe { ioctl_with_ref(&self.file, libc::TUNSETVNETHDRSZ, &size) })
            .map_err(|source| self.refused("set the size of its headers", source))?;
        self.set_offloads(0)
            .map_err(|source| self.refused("set its offloads", source))?;
        Ok(self)
    }

    fn refused(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Host {
            name: self.name.clone(),
            what,
            source,
        }
    }

    /// The offloads that the kernel knows (`TUN_F_…`). Leaves none set.
    pub fn known_offloads(&self) -> u32 {
        let knows = |offloads: &u32| self.set_offloads(*offloads).is_ok();
        let known = [TUN_WITH_USO, TUN_WITHOUT_USO].into_iter().find(knows).unwrap_or(0);
        // None was allowed when the tap was opened.
        let _ = self.set_offloads(0);
        known
    }

    /// Says what the guest may be handed (`TUN_F_…`). Holds for all queues of the interface.
    ///
    /// # Errors
    /// What the host says.
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        if cfg!(any(test, feature = "test-utils")) && self.name == FAKE {
            return Ok(());
        }
        // SAFETY: the argument is a number.
        check(unsafe { ioctl_with_val(&self.file, libc::TUNSETOFFLOAD, offloads.into()) })
    }

    /// Lets this queue take part, or not: the host spreads what the guest receives over all that do.
    ///
    /// # Errors
    /// What the host says.
    pub fn take_part(&self, on: bool) -> io::Result<()> {
        if !self.multi_queue {
            return Ok(());
        }
        let flag = if on {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        let request = Request::new("", flag);
        // SAFETY: the ioctl reads a structure as large as the kernel's.
        match check(unsafe { ioctl_with_ref(&self.file, libc::TUNSETQUEUE, &request) }) {
            // It is so already.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
            answer => answer,
        }
    }

    /// Receives one frame with its header; what does not fit is lost.
    ///
    /// # Errors
    /// What the host says; `WouldBlock` when there is none.
    pub fn receive(&self, buffers: Buffers<'_>) -> io::Result<usize> {
        let buffers = buffers.as_slice();
        let count = libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX);
        self.without_waiting(libc::POLLIN, |flags| {
            // SAFETY: the array is borrowed, and `Buffers` are mapped and may be written.
            unsafe { libc::preadv2(self.file.as_raw_fd(), buffers.as_ptr(), count, NO_OFFSET, flags) }
        })
    }

    /// Sends one frame with its header.
    ///
    /// # Errors
    /// What the host says; `WouldBlock` when it has no room.
    pub fn send(&self, buffers: Buffers<'_>) -> io::Result<usize> {
        let buffers = buffers.as_slice();
        let count = libc::c_int::try_from(buffers.len()).unwrap_or(libc::c_int::MAX);
        self.without_waiting(libc::POLLOUT, |flags| {
            // SAFETY: the array is borrowed, and `Buffers` are mapped; the kernel only reads them.
            unsafe { libc::pwritev2(self.file.as_raw_fd(), buffers.as_ptr(), count, NO_OFFSET, flags) }
        })
    }

    /// Calls `io` with the flags (`RWF_…`) by which it does not wait for what poll(2) calls `event`.
    fn without_waiting(&self, event: i16, mut io: impl FnMut(libc::c_int) -> isize) -> io::Result<usize> {
        if !self.knows_no_nowait.load(Ordering::Relaxed) {
            match retry(|| io(libc::RWF_NOWAIT)) {
                // Not this file (EOPNOTSUPP), or no file at all (ENOSYS).
                Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS)) => {
                    self.knows_no_nowait.store(true, Ordering::Relaxed);
                }
                done => return done,
            }
        }
        if self.shared && !is_ready(self.file.as_raw_fd(), event, Duration::ZERO)? {
            return Err(io::Error::from_raw_os_error(libc::EAGAIN));
        }
        retry(|| io(0))
    }
}

#[cfg(any(test, feature = "test-utils"))]
impl Tap {
    /// Something that keeps frames apart, in the place of a tap that can do everything.
    pub fn fake(fd: OwnedFd) -> Self {
        Self::new(File::from(fd), FAKE.into(), false, true)
    }

    /// As under a kernel whose driver does not know how a single call is told not to wait.
    #[cfg(test)]
    pub fn on_an_old_kernel(self) -> Self {
        self.knows_no_nowait.store(true, Ordering::Relaxed);
        self
    }
}

impl AsRef<File> for Tap {
    fn as_ref(&self) -> &File {
        &self.file
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// `struct ifreq` with flags in its union.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

impl Request {
    /// A request for interface `name`, whose length has been checked.
    fn new(name: &str, flags: libc::c_int) -> Self {
        let mut bytes = [0; libc::IFNAMSIZ];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        Self {
            name: bytes,
            flags: libc::c_short::try_from(flags).expect("the flags used here are below 0x8000"),
            rest: [0; 22],
        }
    }

    fn name(&self) -> String {
        let name = self.name.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

/// Whether an interface can have this name (`dev_valid_name` of Linux; a `%` would have the kernel number it).
///
/// # Errors
/// [`TapError::Name`].
pub fn check_name(name: &str) -> Result<(), TapError> {
    if name.is_empty()
        || name.len() > NAME_BYTES
        || name.chars().any(|c| c.is_whitespace() || "/%:\0".contains(c))
        || [".", ".."].contains(&name)
    {
        return Err(TapError::Name(name.into()));
    }
    Ok(())
}

fn set_interface(file: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = Request::new(name, flags);
    // SAFETY: the ioctl reads and fills a structure as large as the kernel's.
    check(unsafe { ioctl_with_mut_ref(file, libc::TUNSETIFF, &mut request) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_no_interface_has_are_refused_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a/b", "tap%d", "a b", "a:b", "sixteen-letters-"] {
            let error = Tap::open(name, 1).unwrap_err();
            assert!(matches!(&error, TapError::Name(found) if found == name), "{error}");
        }
    }

    #[test]
    fn a_descriptor_of_something_else_is_named_by_its_place() {
        let file = OwnedFd::from(tempfile::tempfile().unwrap());
        let error = Tap::adopt(vec![file]).unwrap_err();
        assert_eq!(error.to_string(), "descriptor 1 of 1 is not a tap");
    }
}
