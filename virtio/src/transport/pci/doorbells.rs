//! Doorbells in the kernel: a guest's write to a queue's address signals its eventfd without leaving the kernel.
//!
//! A doorbell is connected when its queue first becomes live, not before: most of a device's queues
//! may never be. It stays connected over resets, since taking one away costs the host half a
//! millisecond and ringing for nobody costs nothing. It follows the BAR. Where the host refuses,
//! the write arrives as an exit and works all the same.

use std::io;
use std::sync::Arc;

use husk_devices::Host;
use vmm_sys_util::eventfd::EventFd;

/// Bytes between the doorbells of two queues: `notify_off_multiplier` (virtio 1.2 §4.1.4.4).
pub(super) const STRIDE: u32 = 4;

/// The doorbells of one device.
pub(super) struct Doorbells {
    host: Arc<dyn Host>,
    /// Guest-physical address of queue 0's doorbell, while the BAR is mapped.
    base: Option<u64>,
    /// By queue: the eventfd once live, and where it is connected.
    slots: Vec<Slot>,
}

#[derive(Clone, Default)]
struct Slot {
    kick: Option<Arc<EventFd>>,
    connected: Option<u64>,
}

impl Doorbells {
    /// No queue is live and the BAR is nowhere.
    pub fn new(host: Arc<dyn Host>, queues: u16) -> Self {
        Self {
            host,
            base: None,
            slots: vec![Slot::default(); usize::from(queues)],
        }
    }

    /// `queue` is live with `kick`, which never changes from then on.
    ///
    /// # Errors
    /// What the host says.
    pub fn live(&mut self, queue: u16, kick: &Arc<EventFd>) -> io::Result<()> {
        let target = self.address(queue);
        let Some(slot) = self.slots.get_mut(usize::from(queue)) else {
            return Ok(());
        };
        slot.kick.get_or_insert_with(|| kick.clone());
        slot.connect(self.host.as_ref(), target)
    }

    /// Queue 0's doorbell is now at `base`, or nowhere.
    ///
    /// # Errors
    /// What the host said first; all doorbells are tried.
    pub fn moved(&mut self, base: Option<u64>) -> io::Result<()> {
        self.base = base;
        let mut result = Ok(());
        for queue in 0u16.. {
            let target = self.address(queue);
            let Some(slot) = self.slots.get_mut(usize::from(queue)) else {
                break;
            };
            result = result.and(slot.connect(self.host.as_ref(), target));
        }
        result
    }

    fn address(&self, queue: u16) -> Option<u64> {
        self.base?
            .checked_add(u64::from(queue).saturating_mul(u64::from(STRIDE)))
    }
}

impl Slot {
    /// Connects the eventfd, if there is one, to `target` and to nothing else.
    fn connect(&mut self, host: &dyn Host, target: Option<u64>) -> io::Result<()> {
        let Some(kick) = &self.kick else { return Ok(()) };
        if self.connected == target {
            return Ok(());
        }
        if let Some(old) = self.connected {
            // What the host keeps stays known, so that it can be tried again.
            host.doorbell(old, kick, false)?;
            self.connected = None;
        }
        if let Some(new) = target {
            host.doorbell(new, kick, true)?;
            self.connected = Some(new);
        }
        Ok(())
    }
}
