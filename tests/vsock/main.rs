//! vsock: streams between programs of the host and of the guest, opened from both sides.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod vm;
mod vsock_by_kernel;
mod vsock_dials;
mod vsock_pause;
mod vsock_streams;
