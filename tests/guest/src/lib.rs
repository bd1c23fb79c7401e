//! What a test guest can be asked and what it answers: the language that its init and the harness share.
//!
//! The harness writes [`Step`]s on the guest's kernel command line, `husk.do=report,poweroff`; the
//! init does them in order and prints one [`Answer`] per step as a line of JSON behind [`PREFIX`].
//! With the step `agent` it then listens on vsock port [`AGENT_PORT`] and does what each [`Call`]
//! asks.

pub mod answer;
pub mod blocks;
pub mod call;
pub mod file_stress;
pub mod folder;
pub mod frame;
pub mod job;
pub mod kernel;
mod parts;
pub mod pattern;
pub mod raw;
pub mod resources;
mod rng;
pub mod rules;
pub mod step;
pub mod stream;
pub mod traffic;
pub mod tree;
pub mod tree_stress;

pub use answer::Answer;
pub use call::{AGENT_PORT, Call, Reply};
pub use job::Job;
pub use step::Step;

/// What a line of results begins with, so that it is told from kernel messages on the same console.
pub const PREFIX: &str = "@husk ";

/// The byte that the init writes to port 0x80 as the first thing it does.
pub const MARK_INIT: u8 = 0x41;

/// The byte that the init writes to port 0x80 right before it powers off, resets or panics.
pub const MARK_END: u8 = 0x42;
