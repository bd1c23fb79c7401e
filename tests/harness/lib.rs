//! Driving the built VMM from outside and its guest from inside.
//!
//! A test describes a VM with [`Boot`], starts it, and talks with the [`Guest`]: its init answers
//! the steps on its command line. When the VM has ended, [`Ended`] has everything: exit code,
//! answers, what was said on standard error. Whatever goes wrong panics with the guest's whole
//! transcript.
//!
//! A [`Pod`](pod::Pod) is a VM as Kata's shims have one: started with an API socket, described by
//! their requests, used through its agent. It returns errors instead of panicking.
//!
//! Kernels and the VMM are found through `HUSK_LAB_DIR` and `HUSK_BIN`, which `cargo lab test`
//! sets; these tests do not run without it.

pub mod agent;
pub mod api;
pub mod body;
mod boot;
pub mod dynamic;
mod end;
mod guest;
pub mod info;
mod lab;
pub mod load;
pub mod pod;
mod process;
pub mod processor_time;
pub mod pty;
pub mod resize;
pub mod share;
pub mod smaps;
pub mod tap;
pub mod threads;
mod trace;
mod transcript;
mod until;
pub mod witness;

pub use boot::{Boot, Image, Input, VMM};
pub use end::{end_of, kill};
pub use guest::{Ended, Guest, PATIENCE};
pub use lab::{SHORT_BOOT, husk, kernel_file};
pub use process::tap;
pub use trace::Trace;
pub use until::{found, until};
