//! Waiting for what a guest or the VMM does by itself, with an end.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use crate::pod::PATIENCE;

/// Between two looks: as Kata's agent does. The emulated host has one processor for all that is going on.
const PACE: Duration = Duration::from_millis(50);

/// Looks again and again until `done` returns true.
///
/// # Panics
/// At the caller's line, when [`PATIENCE`] is over first.
#[track_caller]
pub fn until(mut done: impl FnMut() -> bool) {
    found(|| done().then_some(()).ok_or("it has not happened"));
}

/// Looks again and again until `look` finds something, and returns it.
///
/// # Panics
/// At the caller's line, when [`PATIENCE`] is over first, with what `look` found instead at last.
#[track_caller]
pub fn found<T, E: Display>(mut look: impl FnMut() -> Result<T, E>) -> T {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(instead) => assert!(start.elapsed() < PATIENCE, "in {} s: {instead:#}", PATIENCE.as_secs()),
        }
        thread::sleep(PACE);
    }
}
