//! The front-end of vhost-user: a device whose rings are served by another process (*Vhost-user
//! Protocol*, QEMU documentation).
//!
//! A [`Link`] is a device's connection to its back-end, [`VhostUserHandler`] the running half: at
//! start it hands the rings over, at stop it takes their positions back, and in between it only
//! waits for the connection to end. Requests do not pass through this process at all:
//!
//! ```text
//! driver ── doorbell (ioeventfd) ──► eventfd ──► back-end ──► eventfd ── irqfd ──► MSI-X message
//!    └───────────── guest RAM: a memfd that both map ────────────┘
//! ```
//!
//! **Trust.** A back-end can read and write all of guest RAM: it is trusted with the guest. It is not trusted with the
//! VMM: whatever it sends or leaves out is an error of its own device. All that it is asked on one occasion ends after
//! [`REPLY_TIMEOUT`], an answer must be exactly the one asked for, and descriptors that come with one are dropped. The
//! channel for a back-end's own requests is not offered. Nobody holds a lock while it is spoken to, and
//! [`Retire::retire`](crate::device::Retire::retire) ends any exchange at once.
//!
//! **Eventfds.** Both eventfds of a ring are one open file description in two processes: the
//! back-end can make them blocking, and fill or empty them. They are its own, and the kernel's,
//! which never blocks on them: the kernel signals the one (ioeventfd) and listens to the other
//! (irqfd), so that a request costs this process nothing. This process has others for what it does
//! itself: the queue's kick, which is private, takes kicks that the kernel did not catch, and the
//! I/O thread passes them on if there is room; the MSI-X vector has another eventfd to signal. To
//! pass all kicks on would be simpler and cost two wake-ups for each; to write to the back-end's
//! eventfd on a vCPU, which is what a shared one comes to, lets a back-end stop that vCPU, and
//! whoever waits for its locks.
//!
//! **A pause** takes the rings back as a stop does, and hands them over again at the same positions, without a word
//! about features or memory in between: only to the same back-end, since another one would not know the driver's
//! session. Requests that the back-end ends after that are waited for, a second at most. A pause goes on without them
//! then; a stop hangs up, since the driver may have other uses for the memory.
//!
//! **The end.** A driver does not give up on a request: what a lost back-end owed would hold the
//! guest's processes for ever. So the handler survives its back-end: it hangs up, which makes one
//! that still lives let go of the rings, finds out what is owed
//! ([`Ring::recover`](crate::ring::Ring::recover)), answers it and all that comes with the error of
//! the device's [`Protocol`](crate::ring::Protocol), and needs a reset. Nothing is given to a new
//! back-end before that: it would not know the driver's session. A back-end that goes on writing
//! although it was left can spoil the guest's rings, as it always could. One that keeps its
//! connection and does not serve is not left: what it owes may still come, and nothing tells a slow
//! request from a forgotten one.
//!
//! **Masked interrupts.** The kernel turns a write to the call eventfd into an interrupt without
//! asking this process, so a mask in the MSI-X table has to be the kernel's as well: a vector given
//! away ([`Notify::share`](crate::ring::Notify::share)) has an eventfd of its own for that, which
//! is disconnected as long as the vector is masked. What the back-end signals meanwhile stays in
//! the eventfd, reads as the pending bit, and is sent when it is connected again. A vector that is
//! masked when the rings are handed over has no message yet; its back-end gets an eventfd that this
//! process watches.

mod channel;
mod deadline;
mod doorbell;
mod error;
mod error_responder;
mod frontend;
mod handler;
mod late_requests;
mod link;
mod memory;
mod message;
mod socket;
#[cfg(test)]
pub(crate) mod testing;

pub use channel::REPLY_TIMEOUT;
pub use error::BackendError;
pub use handler::VhostUserHandler;
pub use link::{Link, VhostUserMetrics};
