//! The REST API: HTTP/1.1 on a Unix socket, in the dialect of Cloud Hypervisor that Kata's shims speak.
//!
//! The border between the two threads is [`Command`]: requests are parsed and answered on the
//! thread `api`, commands are carried out one after another by whoever holds the
//! [`CommandReceiver`] and implements [`Execute`]. What must never wait for a command, `vmm.ping`
//! and `vm.info`, needs none: the state of the VM is a snapshot in [`Info`].

mod command;
mod connection;
mod error;
mod event_loop;
pub mod http;
mod info;
mod json_text;
mod listener;
mod passed;
mod queue;
mod response;
mod routes;
mod scm;
mod server;
#[cfg(test)]
mod testing;

pub use command::{Command, Containers, Execute, NewDevice, Progress, Reply, Resize};
pub use error::{ApiError, Kind};
pub use event_loop::CONNECTIONS;
pub use info::{Info, VmInfo, VmState};
pub use json_text::JsonText;
pub use listener::ListenError;
pub use passed::{FdCloser, PassedFd};
pub use queue::{CommandReceiver, Outcome, Request, Responder};
pub use routes::body_bytes;
pub use server::{Running, Server};
