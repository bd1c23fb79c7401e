//! What the emulated host is asked to run, and how it says that this ended.
//!
//! The lab gives the emulated host three disks:
//!
//! | device | content                                        | in the host                     |
//! |--------|------------------------------------------------|---------------------------------|
//! | `vda`  | ext4: kernels, guest images                    | `/lab`, read-only               |
//! | `vdb`  | ext4: this run's binaries, [`JOB_FILE`]        | `/work`, writable               |
//! | `vdc`  | raw, initially zero                            | the [`Outcome`]                 |
//!
//! The [`HEADER_BYTES`] of `vdc` hold the [`Outcome`] as JSON padded with zeroes. The command's
//! terminal is the second serial port; the first is the kernel's.

use serde::{Deserialize, Serialize};

/// Where the emulated host finds its [`Job`], below `/work`.
pub const JOB_FILE: &str = "job.json";

/// Space for the [`Outcome`] on its disk.
pub const HEADER_BYTES: usize = 4096;

/// A command for the emulated host.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Job {
    /// Program and arguments; the program is looked up in `PATH`.
    pub command: Vec<String>,
    /// Environment beside the host's own.
    pub env: Vec<(String, String)>,
    /// Rows and columns of the user's terminal; without one the serial line passes bytes as they are.
    pub window: Option<(u16, u16)>,
}

/// How a [`Job`] ended.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Outcome {
    /// Exit code, or 128 plus the signal that killed the command.
    pub exit: i32,
    /// Why the command did not start.
    pub error: Option<String>,
}
