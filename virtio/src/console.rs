//! Console device with one port, `hvc0` in Linux (virtio 1.2 §5.3).
//!
//! | queue | carries                                          |
//! |-------|--------------------------------------------------|
//! | 0     | receiveq: buffers for what is typed              |
//! | 1     | transmitq: what the guest prints                 |
//!
//! | offset | width | R/W | configuration field (§5.3.4)            |
//! |--------|-------|-----|-----------------------------------------|
//! | 0      | 2     | R   | `cols`, with `VIRTIO_CONSOLE_F_SIZE`    |
//! | 2      | 2     | R   | `rows`, with `VIRTIO_CONSOLE_F_SIZE`    |
//! | 4      | 4     | R   | `max_nr_ports`: 0, no multiport         |
//! | 8      | 4     | -   | `emerg_wr`: ignored, not offered        |
//!
//! Output goes to a sink that the machine provides; what it does not take is dropped and counted, and the guest goes
//! on. Input and the window's size come through a [`ConsoleHandle`] from any thread. The size that there was from the
//! start is told as well (`size_notifier.rs`).

mod handle;
mod size_notifier;

pub use handle::ConsoleHandle;

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use husk_devices::lock;
use husk_devices::metrics::{Counter, MetricsSource};

use crate::device::{Activation, ConfigAccess, Handler, HandlerError, Profile, StartError, VirtioDevice, Watch};
use crate::ring::{Notify, Reader, Ring, RingState, Step};
use handle::Shared;
use size_notifier::SizeNotifier;

/// virtio device ID (virtio 1.2 §5).
const VIRTIO_ID_CONSOLE: u32 = 3;
/// "Other communication device".
const PCI_CLASS: u32 = 0x07_80_00;
/// `cols` and `rows` are valid (virtio 1.2 §5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u64 = 1 << 0;
/// Linux fills the receive queue with a page for each entry and waits for every single output.
const QUEUE_SIZES: [u16; 2] = [16, 16];
/// Output is moved in pieces of this size.
const COPY_BYTES: usize = 4096;
/// Most output that is moved before the thread looks at its other work: a chain may hold 4 GiB.
const TURN_BYTES: usize = 256 << 10;

const RECEIVE: u32 = 0;
const TRANSMIT: u32 = 1;
const INPUT: u32 = 2;
const SIZE_TIMER: u32 = 3;

type Output = Arc<Mutex<Box<dyn Write + Send>>>;

/// What a console has done since it was made.
#[derive(Debug, Default)]
pub struct ConsoleMetrics {
    /// Output requests handled.
    pub tx_requests: Counter,
    /// Bytes of output that the sink took.
    pub tx_bytes: Counter,
    /// Bytes of output that the sink did not take.
    pub tx_dropped_bytes: Arc<Counter>,
    /// Bytes typed that the guest was given.
    pub rx_bytes: Counter,
}

impl MetricsSource for ConsoleMetrics {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        vec![
            ("tx_requests", self.tx_requests.get()),
            ("tx_bytes", self.tx_bytes.get()),
            ("tx_dropped_bytes", self.tx_dropped_bytes.get()),
            ("rx_bytes", self.rx_bytes.get()),
        ]
    }
}

/// A virtio console with one port (virtio 1.2 §5.3), whose output goes to a sink.
pub struct Console {
    shared: Arc<Shared>,
    sink: Output,
}

impl Console {
    /// A console of `cols` by `rows` characters that prints to `sink`.
    ///
    /// The sink is called on the I/O thread, and must not wait: it is to fail with `WouldBlock`, or
    /// take less, when there is no room.
    ///
    /// # Errors
    /// When the host refuses an eventfd.
    pub fn new(cols: u16, rows: u16, sink: Box<dyn Write + Send>) -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared::new(cols, rows)?),
            sink: Arc::new(Mutex::new(sink)),
        })
    }

    /// The keyboard and the window of this console, for other threads.
    pub fn handle(&self) -> ConsoleHandle {
        ConsoleHandle::new(self.shared.clone())
    }

    /// The device's metrics.
    pub fn metrics(&self) -> Arc<ConsoleMetrics> {
        self.shared.metrics.clone()
    }
}

impl VirtioDevice for Console {
    fn profile(&self) -> Profile {
        Profile {
            id: VIRTIO_ID_CONSOLE,
            class: PCI_CLASS,
            features: VIRTIO_CONSOLE_F_SIZE,
            queue_sizes: QUEUE_SIZES.to_vec(),
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        self.metrics()
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.shared.config.clone()
    }

    fn start(&mut self, mut activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let receive = activation.take_ring(0)?;
        let transmit = activation.take_ring(1)?;
        let resizable = activation.features & VIRTIO_CONSOLE_F_SIZE != 0;
        let config_changed = resizable.then_some(activation.config_changed);
        self.shared.attach(config_changed.clone());
        Ok(vec![Box::new(ConsoleHandler {
            receive,
            transmit,
            printed: 0,
            config_changed,
            size_notifier: None,
            shared: self.shared.clone(),
            sink: self.sink.clone(),
        })])
    }
}

struct ConsoleHandler {
    receive: Ring,
    transmit: Ring,
    /// Bytes of the first request in `transmit` that have been printed: it was too long for one turn.
    printed: usize,
    /// What a driver that knows sizes is told by.
    config_changed: Option<Notify>,
    /// Made of it when the thread starts.
    size_notifier: Option<SizeNotifier>,
    shared: Arc<Shared>,
    sink: Output,
}

impl ConsoleHandler {
    fn print(&mut self) -> Result<(), HandlerError> {
        let (metrics, printed) = (&self.shared.metrics, &mut self.printed);
        let mut sink = lock(&self.sink);
        let (mut left, mut unfinished) = (TURN_BYTES, false);
        self.transmit.drain(|reader, _| {
            // A driver that has shortened its request meanwhile has nothing more to say.
            let mut rest = reader.split_at(*printed).unwrap_or_default();
            let moved = copy(&mut rest, left, &mut *sink, metrics);
            left = left.saturating_sub(moved);
            if rest.available_bytes() > 0 {
                *printed = printed.saturating_add(moved);
                unfinished = true;
                return Ok(Step::Later);
            }
            *printed = 0;
            metrics.tx_requests.inc();
            Ok(Step::Used(0))
        })?;
        if unfinished {
            self.transmit.kick_self();
        }
        // A sink that cannot flush drops at its next write, where it is counted.
        let _ = sink.flush();
        Ok(())
    }

    fn type_in(&mut self) -> Result<(), HandlerError> {
        let Self { receive, shared, .. } = self;
        receive.drain(|_, writer| match shared.take_input(writer) {
            // No input: wait for some, with the buffer still in the ring.
            None => Ok(Step::Later),
            Some(taken) => Ok(Step::Used(u32::try_from(taken).expect("bounded by the input queue"))),
        })
    }
}

impl Handler for ConsoleHandler {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        let fds = [
            (self.receive.kick().as_raw_fd(), RECEIVE),
            (self.transmit.kick().as_raw_fd(), TRANSMIT),
            (self.shared.event.as_raw_fd(), INPUT),
        ];
        fds.into_iter()
            .try_for_each(|(fd, token)| watch.readable(fd, token))
            .map_err(HandlerError::watch)?;
        if let Some(config_changed) = self.config_changed.take() {
            let size_notifier = SizeNotifier::new(config_changed).map_err(HandlerError::watch)?;
            let size_notifier = self.size_notifier.insert(size_notifier);
            watch
                .readable(size_notifier.as_raw_fd(), SIZE_TIMER)
                .map_err(HandlerError::watch)?;
        }
        Ok(())
    }

    fn wake(&mut self, token: u32, _watch: &mut dyn Watch) -> Result<(), HandlerError> {
        match token {
            TRANSMIT => {
                self.print()?;
                let noted = self.size_notifier.as_mut().map_or(Ok(()), SizeNotifier::on_output);
                noted.map_err(|source| HandlerError::Host {
                    what: "cannot set the timer of the window's size",
                    source,
                })
            }
            RECEIVE => self.type_in(),
            SIZE_TIMER => {
                self.size_notifier.iter_mut().for_each(SizeNotifier::on_timer);
                Ok(())
            }
            _ => {
                // Fails only when there was no event.
                let _ = self.shared.event.read();
                self.type_in()
            }
        }
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        self.shared.detach();
        vec![self.receive.into_state(), self.transmit.into_state()]
    }
}

/// Moves at most `limit` bytes of `reader` to `sink`, and counts what the sink took and what it did
/// not. Returns how many are dealt with.
fn copy(reader: &mut Reader<'_>, limit: usize, sink: &mut dyn Write, metrics: &ConsoleMetrics) -> usize {
    let mut piece = [0; COPY_BYTES];
    let before = reader.bytes_read();
    let mut reader = reader.take(limit as u64);
    while let Ok(len @ 1..) = reader.read(&mut piece) {
        let piece = piece.get(..len).unwrap_or_default();
        let taken = write(sink, piece);
        metrics.tx_bytes.add(taken as u64);
        metrics.tx_dropped_bytes.add(len.saturating_sub(taken) as u64);
    }
    reader.into_inner().bytes_read().saturating_sub(before)
}

/// Writes the head of `bytes`, as much as `sink` takes, and says how many bytes that was.
fn write(sink: &mut dyn Write, bytes: &[u8]) -> usize {
    let mut taken = 0_usize;
    while let Some(rest) = bytes.get(taken..).filter(|rest| !rest.is_empty()) {
        match sink.write(rest) {
            Ok(count @ 1..) => taken = taken.saturating_add(count).min(bytes.len()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    taken
}

#[cfg(test)]
#[path = "console_test.rs"]
mod tests;
