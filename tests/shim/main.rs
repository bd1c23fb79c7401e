//! A stand-in for Kata's shims: their requests in their order against the built VMM, with a pod
//! behind it whose agent answers.
//!
//! Each test is a pod or two; what a shim would trip over is asserted where the shim would look.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod shim_failures;
mod shim_late;
mod shim_life;
mod shim_limits;
mod shim_resize;
mod shim_restart;

use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::kernel_file;

/// An initrd pod of `shim` on the kernel 6.12.
fn initrd(shim: Shim) -> Shape {
    of_kernel(shim, "6.12")
}

/// An initrd pod of `shim` on another kernel.
fn of_kernel(shim: Shim, kernel: &str) -> Shape {
    Shape::new(shim, kernel_file(kernel, "vmlinux"), kernel_file(kernel, "pod.cpio"))
}

/// A folder for a pod.
fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}
