//! The control queue (virtio 1.2 §5.1.6.5).
//!
//! | class | command | data | answer |
//! |---|---|---|---|
//! | 1 `MAC` | 1 `ADDR_SET` | 6 bytes | the configuration space has it; frames are not filtered by it |
//! | 4 `MQ` | 0 `VQ_PAIRS_SET` | 2 bytes: 1 to the pairs there are | the host uses so many queues |
//! | 5 `GUEST_OFFLOADS` | 0 `SET` | 8 bytes: some of the features agreed on | the tap is told |
//!
//! Everything else is answered with `VIRTIO_NET_ERR`. There is no `VIRTIO_NET_F_CTRL_RX`: the guest
//! receives whatever the tap has, so promiscuous mode and any multicast group need no command.
//!
//! | bytes | direction | |
//! |---|---|---|
//! | 1 | device-readable | class |
//! | 1 | device-readable | command |
//! | n | device-readable | data |
//! | 1 | device-writable | `ack`: 0, or 1 for an error |

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex};

use husk_devices::lock;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET, VIRTIO_NET_CTRL_MAC,
    VIRTIO_NET_CTRL_MAC_ADDR_SET, VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR,
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_MQ, VIRTIO_NET_OK,
};

use super::features::{self, has};
use super::metrics::NetMetrics;
use super::{MAC, MAC_BYTES};
use crate::config::ConfigBytes;
use crate::device::HandlerError;
use crate::ring::{Reader, Ring, RingState, Step};
use crate::vhost::OwnQueue;

/// What the commands act on.
pub(super) trait TapControl: Send + Sync {
    /// Tells the host what the guest may be handed (`TUN_F_…`).
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;
    /// Has the host use the first `pairs` queues and no other.
    fn set_pairs(&self, pairs: u16) -> io::Result<()>;
}

/// The control queue of a device.
pub(super) struct Control {
    ring: Ring,
    commands: CommandContext,
}

/// What commands are checked against, and act on.
pub(super) struct CommandContext {
    /// Features agreed on.
    pub features: u64,
    /// Queue pairs there are.
    pub pairs: u16,
    pub space: Arc<Mutex<ConfigBytes>>,
    pub tap_control: Arc<dyn TapControl>,
    pub metrics: Arc<NetMetrics>,
}

impl Control {
    /// Takes the ring.
    pub fn new(ring: Ring, commands: CommandContext) -> Self {
        Self { ring, commands }
    }

    /// The ring.
    pub fn ring(&self) -> &Ring {
        &self.ring
    }

    /// Answers what is there.
    ///
    /// # Errors
    /// When the driver broke the ring's rules.
    pub fn run(&mut self) -> Result<(), HandlerError> {
        let commands = &self.commands;
        self.ring.drain(|reader, writer| {
            let done = commands.run(reader);
            let (counter, ack) = match done {
                Some(()) => (&commands.metrics.control_commands, VIRTIO_NET_OK),
                None => (&commands.metrics.control_refused, VIRTIO_NET_ERR),
            };
            counter.inc();
            // Without room for an answer there is none.
            let answered = writer.write_obj(u8::try_from(ack).unwrap_or(u8::MAX));
            Ok(Step::Used(u32::from(answered.is_ok())))
        })
    }

    /// Ends the queue.
    pub fn stop(self) -> RingState {
        self.ring.into_state()
    }
}

impl OwnQueue for Control {
    fn kick(&self) -> RawFd {
        self.ring.kick().as_raw_fd()
    }

    fn serve(&mut self) -> Result<(), HandlerError> {
        self.run()
    }

    fn stop(self: Box<Self>) -> RingState {
        Self::stop(*self)
    }
}

impl CommandContext {
    /// Carries out one command; `None` if it makes no sense or the host refuses.
    fn run(&self, reader: &mut Reader<'_>) -> Option<()> {
        let [class, command] = reader.read_obj::<[u8; 2]>().ok()?;
        match (u32::from(class), u32::from(command)) {
            (VIRTIO_NET_CTRL_MAC, VIRTIO_NET_CTRL_MAC_ADDR_SET) => {
                let address: [u8; MAC_BYTES] = self.data(reader, VIRTIO_NET_F_CTRL_MAC_ADDR)?;
                let mut space = lock(&self.space);
                space.update(MAC, &address);
                Some(())
            }
            (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET) => {
                let pairs = u16::from_le_bytes(self.data(reader, VIRTIO_NET_F_MQ)?);
                if !(1..=self.pairs).contains(&pairs) {
                    return None;
                }
                self.tap_control.set_pairs(pairs).ok()
            }
            (VIRTIO_NET_CTRL_GUEST_OFFLOADS, VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET) => {
                let offloads = u64::from_le_bytes(self.data(reader, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)?);
                if offloads & !(self.features & features::guest_offloads()) != 0 {
                    return None;
                }
                self.tap_control.set_offloads(features::tap_offloads(offloads)).ok()
            }
            _ => None,
        }
    }

    /// The data of a command that comes with `feature`, exactly so long.
    fn data<const N: usize>(&self, reader: &mut Reader<'_>, feature: u32) -> Option<[u8; N]> {
        if !has(self.features, feature) || reader.available_bytes() != N {
            return None;
        }
        let mut data = [0; N];
        io::Read::read_exact(reader, &mut data).ok()?;
        Some(data)
    }
}

#[cfg(test)]
#[path = "control_test.rs"]
mod tests;
