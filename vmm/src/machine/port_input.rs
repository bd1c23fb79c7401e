//! Input of the guest's ports: from standard input, and from whoever attaches to one.

use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::serial::Serial;
use husk_virtio::console::ConsoleHandle;

use super::Machine;
use crate::terminal::{Chardev, window_size};

/// Where bytes go that are typed into a port.
pub enum PortInput {
    /// The serial port.
    Serial(Arc<Mutex<Serial>>),
    /// The virtio console.
    Console(ConsoleHandle),
}

/// A port with the chardev that others attach to.
pub struct AttachablePort {
    /// The port, as the configuration calls it.
    name: &'static str,
    chardev: Chardev,
    input: PortInput,
}

impl PortInput {
    /// Types `bytes`; returns how many the guest has room for.
    pub fn send(&self, bytes: &[u8]) -> usize {
        match self {
            Self::Serial(serial) => lock(serial).enqueue(bytes),
            Self::Console(console) => console.input(bytes),
        }
    }
}

impl AttachablePort {
    pub(super) fn new(name: &'static str, chardev: Chardev, input: PortInput) -> Self {
        Self { name, chardev, input }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

impl Machine {
    /// The port that standard input types into, if any.
    pub fn stdin_port(&self) -> Option<&PortInput> {
        self.stdin_port.as_ref()
    }

    /// Tells the guest's console the size of the terminal.
    pub fn fit_window(&self) {
        if let (Some(PortInput::Console(console)), Some(window)) = (&self.stdin_port, window_size()) {
            console.resize(window.columns, window.rows);
        }
    }

    /// Descriptors to watch for reading, level-triggered: see [`Machine::serve_chardevs`]. A thread
    /// closes them when the machine is asked to stop.
    pub fn chardevs(&self) -> impl Iterator<Item = RawFd> {
        self.chardevs.iter().map(|attached| attached.chardev.as_raw_fd())
    }

    /// Serves a piece of what comes by each chardev. Whether that is to be done again soon, whatever is readable.
    pub fn serve_chardevs(&mut self) -> bool {
        let mut again = false;
        for AttachablePort { chardev, input, .. } in &mut self.chardevs {
            again |= chardev.serve(|bytes| input.send(bytes));
        }
        again
    }

    /// The pseudo-terminals that lead to the guest, by the names of their ports.
    pub fn terminals(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        self.chardevs
            .iter()
            .filter_map(|attached| Some((attached.name, attached.chardev.path()?)))
    }
}
