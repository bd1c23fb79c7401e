//! A host without KVM: eventfds, and a record of what was asked.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use super::{Host, Irq, MsiMessage, MsiVector};
use crate::lock;

/// First GSI that [`FakeHost`] reserves for messages, after those that KVM reserves for an I/O APIC.
pub const FIRST_MSI: u32 = 24;

/// Records routes and doorbells, and can be told to refuse.
#[derive(Debug, Default)]
pub struct FakeHost {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    interrupts: BTreeMap<u32, Irq>,
    routes: BTreeMap<u32, MsiMessage>,
    route_calls: usize,
    doorbells: BTreeMap<u64, RawFd>,
    refuses: bool,
}

impl FakeHost {
    /// A host on which nothing has been asked.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// From now on every request that can fail does, or no longer does.
    pub fn refuse(&self, refuses: bool) {
        self.lock().refuses = refuses;
    }

    /// The message that each connected GSI is routed to.
    pub fn routes(&self) -> BTreeMap<u32, MsiMessage> {
        self.lock().routes.clone()
    }

    /// How often a route was set or cleared.
    pub fn route_calls(&self) -> usize {
        self.lock().route_calls
    }

    /// GSIs reserved and not released.
    pub fn gsis(&self) -> Vec<u32> {
        self.lock().interrupts.keys().copied().collect()
    }

    /// Guest-physical address and eventfd number of each doorbell.
    pub fn doorbells(&self) -> BTreeMap<u64, RawFd> {
        self.lock().doorbells.clone()
    }

    /// How often `gsi` was raised since this was last asked; 0 for one that is not in use.
    pub fn take_raised(&self, gsi: u32) -> u64 {
        let irq = self.lock().interrupts.get(&gsi).cloned();
        irq.and_then(|irq| irq.event().read().ok()).unwrap_or(0)
    }

    /// How often the GSIs that are routed to `message` were raised since this was last asked; 0 if there are none.
    pub fn take_sent(&self, message: MsiMessage) -> u64 {
        let routed = |(gsi, routed): (u32, MsiMessage)| (routed == message).then_some(gsi);
        let gsis = self.routes().into_iter().filter_map(routed);
        gsis.map(|gsi| self.take_raised(gsi)).fold(0, u64::saturating_add)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    fn willing(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.lock();
        if state.refuses {
            Err(io::Error::other("the fake host was told to refuse"))
        } else {
            Ok(state)
        }
    }
}

impl Host for FakeHost {
    fn msi(&self) -> io::Result<MsiVector> {
        let irq = Irq::new(EventFd::new(libc::EFD_NONBLOCK)?);
        let mut state = self.willing()?;
        let gsi = (FIRST_MSI..)
            .find(|gsi| !state.interrupts.contains_key(gsi))
            .unwrap_or(FIRST_MSI);
        state.interrupts.insert(gsi, irq.clone());
        Ok(MsiVector { gsi, irq })
    }

    fn route(&self, vector: &MsiVector, message: Option<MsiMessage>) -> io::Result<()> {
        let mut state = self.willing()?;
        state.route_calls = state.route_calls.saturating_add(1);
        match message {
            Some(message) => state.routes.insert(vector.gsi, message),
            None => state.routes.remove(&vector.gsi),
        };
        Ok(())
    }

    fn release(&self, vector: &MsiVector) {
        let mut state = self.lock();
        state.routes.remove(&vector.gsi);
        state.interrupts.remove(&vector.gsi);
    }

    fn doorbell(&self, addr: u64, kick: &EventFd, on: bool) -> io::Result<()> {
        let mut state = self.willing()?;
        let before = if on {
            state.doorbells.insert(addr, kick.as_raw_fd())
        } else {
            state.doorbells.remove(&addr)
        };
        match (on, before) {
            (true, Some(_)) => Err(io::Error::from_raw_os_error(libc::EEXIST)),
            (false, None) => Err(io::Error::from_raw_os_error(libc::ENOENT)),
            _ => Ok(()),
        }
    }
}
