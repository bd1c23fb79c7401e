//! What husk says to a back-end: negotiation, memory, rings.

use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use husk_devices::memory::GuestMemoryMmap;
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

use super::channel::Channel;
use super::deadline::Deadline;
use super::error::BackendError;
use super::memory::{Region, regions, translate};
use super::message::{
    F_PROTOCOL_FEATURES, PROTOCOL_F_CONFIGURE_MEM_SLOTS, PROTOCOL_F_MQ, PROTOCOL_F_REPLY_ACK, Request,
    parse_vring_state, vring_address, vring_state,
};

/// Virtio features that the transport offers to every driver, so that the back-end has to know them.
const NEEDED_FEATURES: u64 = (1 << VIRTIO_F_VERSION_1)
    | (1 << VIRTIO_RING_F_EVENT_IDX)
    | (1 << VIRTIO_RING_F_INDIRECT_DESC)
    | F_PROTOCOL_FEATURES;
const NEEDED_PROTOCOL: u64 = PROTOCOL_F_MQ | PROTOCOL_F_REPLY_ACK;
/// Regions that fit into a memory table (`VHOST_MEMORY_BASELINE_NREGIONS`).
const TABLE_REGIONS: u64 = 8;

/// A back-end that has agreed to serve a device.
#[derive(Debug)]
pub(super) struct Frontend {
    channel: Channel,
    /// Whether memory is told region by region.
    slots: bool,
    regions_max: u64,
    /// What the back-end has been told.
    regions: Vec<Region>,
}

/// A ring on its way to the back-end.
pub(super) struct Vring<'a> {
    pub index: u16,
    pub state: &'a QueueState,
    pub kick: RawFd,
    pub call: RawFd,
}

impl Frontend {
    /// Comes to terms with the back-end at the other end of `socket`, which has to serve `queues`
    /// virtqueues, by `deadline`.
    pub fn negotiate(socket: Arc<UnixStream>, deadline: Deadline, queues: u16) -> Result<Self, BackendError> {
        let mut channel = Channel::new(socket, deadline)?;
        channel.command(Request::SetOwner, &[], &[])?;
        let features = ask_number(&mut channel, Request::GetFeatures)?;
        let missing = NEEDED_FEATURES & !features;
        if missing != 0 {
            return Err(BackendError::Features(missing));
        }
        let protocol = ask_number(&mut channel, Request::GetProtocolFeatures)?;
        let missing = NEEDED_PROTOCOL & !protocol;
        if missing != 0 {
            return Err(BackendError::ProtocolFeatures(missing));
        }
        let agreed = protocol & (NEEDED_PROTOCOL | PROTOCOL_F_CONFIGURE_MEM_SLOTS);
        // Acknowledgements begin after this request, not with it.
        channel.command(Request::SetProtocolFeatures, &agreed.to_ne_bytes(), &[])?;
        channel.expect_acknowledgements();
        let found = ask_number(&mut channel, Request::GetQueueNum)?;
        if found < u64::from(queues) {
            return Err(BackendError::Queues { found, needed: queues });
        }
        let slots = agreed & PROTOCOL_F_CONFIGURE_MEM_SLOTS != 0;
        let regions_max = match slots {
            true => ask_number(&mut channel, Request::GetMaxMemSlots)?,
            false => TABLE_REGIONS,
        };
        Ok(Self {
            channel,
            slots,
            regions_max,
            regions: Vec::new(),
        })
    }

    /// Sets the end of everything that follows, however many exchanges that takes.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.channel.set_deadline(deadline);
    }

    /// Whether it can be spoken to no more.
    pub fn is_lost(&self) -> bool {
        self.channel.is_lost()
    }

    /// Tells which virtio features the driver took. Rings stay disabled until they are enabled one by one.
    pub fn set_features(&mut self, features: u64) -> Result<(), BackendError> {
        let features = features | F_PROTOCOL_FEATURES;
        self.channel.command(Request::SetFeatures, &features.to_ne_bytes(), &[])
    }

    /// Tells the difference between guest RAM as it is now and as the back-end knows it. Returns whether there was one.
    ///
    /// All of what is new, or nothing: where the back-end refuses a part, it is asked to give back
    /// what it took before, and the connection lives on. What it refuses to give back counts as
    /// known, and is asked for again with the next change.
    ///
    /// # Errors
    /// It has nothing of what is new; or nothing is new, and it keeps what is gone.
    pub fn set_memory(&mut self, memory: &GuestMemoryMmap) -> Result<bool, BackendError> {
        let now = regions(memory)?;
        if now == self.regions {
            return Ok(false);
        }
        let found = now.len();
        if u64::try_from(found).is_ok_and(|found| found > self.regions_max) {
            return Err(BackendError::Regions {
                found,
                allowed: self.regions_max,
            });
        }
        if self.slots {
            self.change_regions(now)
        } else {
            self.change_table(now)
        }?;
        Ok(true)
    }

    /// Tells which regions of guest RAM are gone, and waits for no answer. Returns whether there are any.
    ///
    /// # Errors
    /// It cannot be told: the connection has ended, or the back-end has left messages unread for so
    /// long that there is no room for more.
    pub fn give_up_memory(&mut self, memory: &GuestMemoryMmap) -> Result<bool, BackendError> {
        let now = regions(memory)?;
        let (kept, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut self.regions)
            .into_iter()
            .partition(|region| now.contains(region));
        self.regions = kept;
        if gone.is_empty() {
            return Ok(false);
        }
        if self.slots {
            for region in &gone {
                self.channel.tell(Request::RemMemReg, &single(region), &[])?;
            }
        } else {
            let (payload, fds) = table(&self.regions);
            self.channel.tell(Request::SetMemTable, &payload, &fds)?;
        }
        Ok(true)
    }

    fn change_regions(&mut self, now: Vec<Region>) -> Result<(), BackendError> {
        let given_back = self.remove_regions(|region| !now.contains(region));
        if self.is_lost() {
            return given_back;
        }
        let new: Vec<Region> = now
            .into_iter()
            .filter(|region| !self.regions.contains(region))
            .collect();
        if new.is_empty() {
            return given_back;
        }
        let known = self.regions.len();
        for region in new {
            let fd = region.fd();
            if let Err(error) = self.channel.command(Request::AddMemReg, &single(&region), &[fd]) {
                let taken = self.regions.get(known..).unwrap_or_default().to_vec();
                // What it does not give back either it has too much; it is tried again.
                let _ = self.remove_regions(|region| taken.contains(region));
                return Err(error);
            }
            self.regions.push(region);
        }
        // As they come, so that what is the same looks the same.
        self.regions.sort_by_key(Region::gpa);
        Ok(())
    }

    /// Asks for all regions of which `is_gone` says so. The first error, after all have been tried.
    fn remove_regions(&mut self, is_gone: impl Fn(&Region) -> bool) -> Result<(), BackendError> {
        let mut result = Ok(());
        for region in std::mem::take(&mut self.regions) {
            if is_gone(&region)
                && let Err(error) = self.channel.command(Request::RemMemReg, &single(&region), &[])
            {
                result = result.and(Err(error));
            } else if is_gone(&region) {
                continue;
            }
            self.regions.push(region);
        }
        result
    }

    fn change_table(&mut self, now: Vec<Region>) -> Result<(), BackendError> {
        let Err(error) = self.send_table(&now) else {
            self.regions = now;
            return Ok(());
        };
        // The protocol does not say whether a table that was refused has cost the back-end the one before.
        if !self.is_lost() && !self.regions.is_empty() {
            let before = std::mem::take(&mut self.regions);
            if self.send_table(&before).is_err() {
                self.hang_up();
            }
            self.regions = before;
        }
        Err(error)
    }

    fn send_table(&mut self, regions: &[Region]) -> Result<(), BackendError> {
        let (payload, fds) = table(regions);
        self.channel.command(Request::SetMemTable, &payload, &fds)
    }

    /// Hands a ring over: the back-end serves it from the position that its state has.
    pub fn start_ring(&mut self, ring: &Vring<'_>) -> Result<(), BackendError> {
        let Vring { index, state, .. } = *ring;
        let place = |gpa| translate(&self.regions, gpa).ok_or(BackendError::RingMemory { queue: index, gpa });
        let (descriptors, used, available) = (
            place(state.desc_table)?,
            place(state.used_ring)?,
            place(state.avail_ring)?,
        );
        let state_of = |number: u16| vring_state(index, number.into());
        // "Bits (0-7) of the payload contain the vring index", and bit 8 says that there is no descriptor.
        let queue = u64::from(index).to_ne_bytes();
        let address = vring_address(index, descriptors, used, available);
        let channel = &mut self.channel;
        channel.command(Request::SetVringNum, &state_of(state.size), &[])?;
        channel.command(Request::SetVringAddr, &address, &[])?;
        channel.command(Request::SetVringBase, &state_of(state.next_avail), &[])?;
        channel.command(Request::SetVringCall, &queue, &[ring.call])?;
        channel.command(Request::SetVringKick, &queue, &[ring.kick])?;
        channel.command(Request::SetVringEnable, &state_of(1), &[])
    }

    /// Asks for a ring back: a back-end answers when it has ended the requests that it has begun, whatever they wait
    /// for.
    pub fn stop_ring(&mut self, index: u16) -> Result<(), BackendError> {
        self.channel.tell(Request::GetVringBase, &vring_state(index, 0), &[])
    }

    /// Whether there is an answer to what was asked, or will be none.
    pub fn has_answered(&self) -> bool {
        self.channel.has_answered()
    }

    /// Waits for a ring that was asked for. Returns the position of the next request that the back-end has not begun.
    pub fn stopped_ring(&mut self, index: u16) -> Result<u16, BackendError> {
        let answer = self.channel.answer(Request::GetVringBase)?;
        let (_, found) = parse_vring_state(answer);
        u16::try_from(found).map_err(|_| BackendError::Position { queue: index, found })
    }

    /// Whether the back-end is still there, and silent as it should be while it is asked nothing.
    pub fn check(&mut self) -> Result<(), BackendError> {
        self.channel.check()
    }

    /// Ends the connection: whoever watches it wakes up.
    pub fn hang_up(&mut self) {
        self.channel.hang_up();
    }
}

impl AsRawFd for Frontend {
    fn as_raw_fd(&self) -> RawFd {
        self.channel.as_raw_fd()
    }
}

fn ask_number(channel: &mut Channel, request: Request) -> Result<u64, BackendError> {
    channel.ask(request, &[]).map(u64::from_ne_bytes)
}

/// "Multiple memory regions description", and the file of each.
fn table(regions: &[Region]) -> (Vec<u8>, Vec<RawFd>) {
    // Number of regions, and padding.
    let count = u32::try_from(regions.len()).expect("checked: at most 8");
    let mut payload = [count.to_ne_bytes(), [0; 4]].concat();
    regions
        .iter()
        .for_each(|region| payload.extend_from_slice(&region.describe()));
    (payload, regions.iter().map(Region::fd).collect())
}

/// "Single memory region description": padding, then the region.
fn single(region: &Region) -> Vec<u8> {
    [&[0; 8][..], &region.describe()].concat()
}

#[cfg(test)]
#[path = "frontend_test.rs"]
mod tests;
