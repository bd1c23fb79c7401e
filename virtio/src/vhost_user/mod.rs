//! The front-end of vhost-user: a device whose rings are served by another process (*Vhost-user Protocol*, QEMU documentation).
//!
//! A [`Link`] is a device's connection to its back-end, [`VhostUserHandler`] the running half: at start it hands the rings over,
//! at stop it takes their positions back, and in between it only waits for the connection to end. Requests do not pass through
//! this process at all:
//!
//! ```text
//! driver ── doorbell (ioeventfd) ──► kick eventfd ──► back-end ──► call eventfd ── irqfd ──► MSI-X message
//!    └──────────────── guest RAM: a memfd that both map ───────────────┘
//! ```
//!
//! **Trust.** A back-end can read and write all of guest RAM: it is trusted with the guest. It is not trusted with the VMM:
//! whatever it sends or leaves out is an error of its own device. Each exchange ends after [`REPLY_TIMEOUT`], an answer must be
//! exactly the one asked for, and descriptors that come with one are dropped. The channel for a back-end's own requests is not
//! offered.
//!
//! **The end.** A driver does not give up on a request: what a lost back-end owed would hold the guest's processes for ever. So the
//! handler survives its back-end: it hangs up, which makes one that still lives let go of the rings, finds out what is owed
//! ([`Ring::adopt`](crate::ring::Ring::adopt)), answers it and all that comes with the error of the device's
//! [`Protocol`](crate::ring::Protocol), and needs a reset. Nothing is given to a new back-end before that: it would not know the
//! driver's session. A back-end that goes on writing although it was left can spoil the guest's rings, as it always could.
//!
//! **Masked interrupts.** The kernel turns a write to the call eventfd into an interrupt without asking this process, so a mask in
//! the MSI-X table has to be the kernel's as well: a vector given away ([`Notify::share`](crate::ring::Notify::share)) is
//! disconnected from its eventfd as long as it is masked. What the back-end signals meanwhile stays in the eventfd, reads as the
//! pending bit, and is sent when the vector is connected again. A vector that is masked when the rings are handed over has no
//! message yet; its back-end gets an eventfd that this process reads.

mod channel;
mod error;
mod frontend;
mod handler;
mod link;
mod memory;
mod message;
mod refuser;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub use channel::REPLY_TIMEOUT;
pub use error::BackendError;
pub use handler::VhostUserHandler;
pub use link::{Link, VhostUserMetrics};
