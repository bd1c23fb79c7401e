//! Devices whose rings the host's kernel serves: vhost-net and vhost-vsock (Linux `drivers/vhost`,
//! `include/uapi/linux/vhost.h`).
//!
//! A `Link` is what a device has of the kernel, one open handle for each group of rings that belong
//! together; `VhostHandler` is the running half: at start it describes the rings and has them
//! served, at stop and for a pause it has the kernel leave them alone and takes their positions
//! back, and in between it waits for what should not happen. Packets do not pass through this
//! process:
//!
//! ```text
//! driver ── doorbell (ioeventfd) ──► the queue's kick ──► the kernel's thread ──► eventfd ── irqfd ──► MSI-X message
//!    └─────────────────────── guest RAM, by its addresses in this process ───────────┘
//! ```
//!
//! **Trust.** The kernel is trusted, as it is with everything else: its answers are not checked,
//! its calls have no deadline, and the queue's own kick is the eventfd that it waits for. It shares
//! that and the eventfd of an interrupt with nobody else. What it reads of the guest it checks
//! itself: it copies from and to the addresses of this process that the memory table names, and
//! finds a fault where there is nothing, as in a reserve that is not used yet. A chain or a ring
//! that it cannot follow it reports by an eventfd for errors; the device needs a reset then, and
//! its rings come back. It does not notice that memory is gone which it was told of: what it may
//! use stays mapped, and a ring is taken from it before the memory under it can be somebody else's.
//!
//! **Interrupts** are masked as those of a vhost-user back-end are ([`vhost_user`](crate::vhost_user)).
//!
//! **Queues that the kernel does not have**, such as the one for commands to a network device, are
//! served here (`OwnQueue`).
//!
//! | part | what it holds |
//! |---|---|
//! | `rings` | what is asked of a handle, and the handles of both drivers |
//! | `handles` | the handles of one device, and memory that changes |
//! | `handler` | the running half |

mod error;
mod handler;
mod handles;
mod rings;
#[cfg(test)]
pub(crate) mod testing;

pub use error::VhostError;
pub(crate) use handler::{Group, OwnQueue, VhostHandler};
pub(crate) use handles::VhostHandles;
pub use handles::VhostMetrics;
pub(crate) use rings::{KernelRings, NetRings, VsockRings};
