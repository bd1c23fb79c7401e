//! The REST API: HTTP/1.1 on a Unix socket, in the dialect of Cloud Hypervisor that Kata's shims speak.
//!
//! The border between the two threads is [`Command`]: requests are parsed and answered on the thread `api`, commands are carried out
//! one after another by whoever holds the [`Inbox`] and implements [`Execute`]. What must never wait for a command, `vmm.ping` and
//! `vm.info`, needs none: the state of the VM is a snapshot in [`Info`].

mod command;
mod error;
#[cfg_attr(not(test), expect(dead_code, reason = "the ends of the server, which is on its way"))]
mod inbox;
mod info;

pub use command::{Command, Execute, NewDevice, Reply, Resize};
pub use error::{ApiError, Kind};
pub use inbox::{Inbox, Request, Responder};
pub use info::{Info, VmInfo, VmState};
