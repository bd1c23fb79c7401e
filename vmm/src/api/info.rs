//! What `vm.info` answers: a snapshot that the machine's owner replaces and the API reads, so that
//! neither waits for the other.

use std::sync::{Arc, Mutex};

use husk_devices::lock;

use serde::Serialize;

use crate::config::VmConfig;

/// Where a VM stands. The names are the wire format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum VmState {
    /// Configured, not booted yet.
    Created,
    /// The guest runs.
    Running,
    /// The guest has ended; it can be booted again.
    Shutdown,
    /// The guest is held.
    Paused,
}

impl VmState {
    /// All states, in the order of a VM's life.
    pub const ALL: [Self; 4] = [Self::Created, Self::Running, Self::Paused, Self::Shutdown];

    /// The wire format's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "Created",
            Self::Running => "Running",
            Self::Shutdown => "Shutdown",
            Self::Paused => "Paused",
        }
    }
}

/// A VM as `vm.info` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VmInfo {
    /// Its configuration, kept up to date: devices that came and went, sizes that changed.
    pub config: VmConfig,
    /// Where it stands.
    pub state: VmState,
    /// Bytes of RAM that the guest has.
    pub memory_actual_size: u64,
}

/// The VM as it is, if there is one. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Info(Arc<Mutex<Option<Arc<VmInfo>>>>);

impl Info {
    /// No VM: [`Info::get`] answers `None` until [`Info::set`] was called.
    pub fn new() -> Self {
        Self::default()
    }

    /// The VM as it is now; `None` when there is none.
    pub fn get(&self) -> Option<Arc<VmInfo>> {
        lock(&self.0).clone()
    }

    /// From now on the VM is `info`; `None` means that there is none.
    pub fn set(&self, info: Option<VmInfo>) {
        *lock(&self.0) = info.map(Arc::new);
    }

    /// Changes a part, if there is a VM.
    pub fn update(&self, change: impl FnOnce(&mut VmInfo)) {
        if let Some(info) = lock(&self.0).as_mut() {
            change(Arc::make_mut(info));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_keeps_what_it_read_and_the_next_one_sees_the_change() {
        let info = Info::new();
        info.update(|_| panic!("there is no VM"));
        assert_eq!(info.get(), None);
        info.set(Some(VmInfo {
            config: VmConfig::default(),
            state: VmState::Created,
            memory_actual_size: 1,
        }));
        let before = info.get().unwrap();
        info.clone().update(|vm| vm.state = VmState::Running);
        assert_eq!(before.state, VmState::Created);
        assert_eq!(info.get().unwrap().state, VmState::Running);
    }
}
