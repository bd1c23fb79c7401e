//! The side of a console that other threads touch: typed bytes waiting for the guest, and the window's size.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use husk_devices::lock;

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::ConsoleMetrics;
use crate::config::ConfigBytes;
use crate::ring::{Notify, Writer};

/// Bytes that wait for a guest which does not read.
const INPUT_BYTES_MAX: usize = 64 << 10;

/// What device, handler and handles share. Each lock is held for one short copy and never together with another.
pub(super) struct Shared {
    pub config: Arc<Mutex<ConfigBytes>>,
    /// Readable when input has come.
    pub event: EventFd,
    pub metrics: Arc<ConsoleMetrics>,
    input: Mutex<VecDeque<u8>>,
    config_changed: Mutex<Option<Notify>>,
}

impl Shared {
    pub fn new(cols: u16, rows: u16) -> io::Result<Self> {
        let [[a, b], [c, d]] = [cols.to_le_bytes(), rows.to_le_bytes()];
        Ok(Self {
            config: Arc::new(Mutex::new(ConfigBytes::new([a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0]))),
            event: EventFd::new(EFD_NONBLOCK)?,
            metrics: Arc::default(),
            input: Mutex::default(),
            config_changed: Mutex::default(),
        })
    }

    /// A driver runs: tell it of a new size by `config_changed`, if it wants to know.
    pub fn attach(&self, config_changed: Option<Notify>) {
        *lock(&self.config_changed) = config_changed;
    }

    /// No driver runs.
    pub fn detach(&self) {
        lock(&self.config_changed).take();
    }

    /// Moves waiting input to `writer` and says how much, `None` if nothing waits.
    pub fn take_input(&self, writer: &mut Writer<'_>) -> Option<usize> {
        let mut input = lock(&self.input);
        if input.is_empty() {
            return None;
        }
        let (first, second) = input.as_slices();
        let written = [first, second]
            .iter()
            .map(|bytes| writer.write(bytes).unwrap_or(0))
            .sum();
        input.drain(..written);
        self.metrics.rx_bytes.add(written as u64);
        Some(written)
    }
}

/// The keyboard and the window of a [`super::Console`]. Cheap to clone; usable from any thread,
/// before, while and after a driver runs.
#[derive(Clone)]
pub struct ConsoleHandle(Arc<Shared>);

impl ConsoleHandle {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// Types `bytes`, and returns how many were taken: the rest does not fit until the guest has
    /// read some. Never blocks.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let taken = {
            let mut input = lock(&self.0.input);
            let taken = bytes.len().min(INPUT_BYTES_MAX.saturating_sub(input.len()));
            input.extend(bytes.iter().take(taken));
            taken
        };
        // Fails only when the counter is full, and then the handler wakes anyway.
        let _ = self.0.event.write(1);
        taken
    }

    /// Gives the window a new size, and tells the driver if one runs that cares (virtio 1.2 §5.3.5).
    pub fn resize(&self, cols: u16, rows: u16) {
        let [[a, b], [c, d]] = [cols.to_le_bytes(), rows.to_le_bytes()];
        lock(&self.0.config).update(0, &[a, b, c, d]);
        let notify = lock(&self.0.config_changed).clone();
        if let Some(notify) = notify {
            notify.signal();
        }
    }
}
