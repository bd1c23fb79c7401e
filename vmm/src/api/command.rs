//! What the API can ask of the machine: one enum, one match.

use std::os::fd::OwnedFd;

use serde::Deserialize;
use serde_json::Value;

use super::error::ApiError;
use crate::config::VmConfig;

pub use crate::config::NewDevice;

/// A request that changes the machine, or has to look into it. `vmm.ping` and `vm.info` are answered without one.
#[derive(Debug)]
pub enum Command {
    /// `vm.create`: remember this configuration. Not validated yet.
    Create(Box<VmConfig>),
    /// `vm.boot`: build the VM and let it run.
    Boot,
    /// `vm.shutdown`: end the VM, keep its configuration.
    Shutdown,
    /// `vm.delete`: end the VM, forget its configuration.
    Delete,
    /// `vm.reboot`: end the VM and boot it again.
    Reboot,
    /// `vm.power-button`: press the guest's power button.
    PowerButton,
    /// `vm.pause`: hold vCPUs and devices.
    Pause,
    /// `vm.resume`: let them go on.
    Resume,
    /// `vm.counters`: what the devices have counted.
    Counters,
    /// `vm.resize`: change the number of vCPUs or the size of RAM.
    Resize(Resize),
    /// `vm.add-*`: one more device, with the descriptors that came with the request, in their order.
    Add(Box<NewDevice>, Vec<OwnedFd>),
    /// `vm.remove-device`: the device of this id.
    Remove(String),
    /// `vmm.shutdown`: end the VM, then the process. Its answer is the last one.
    ShutdownVmm,
}

/// The body of `vm.resize`. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Resize {
    /// vCPUs.
    pub desired_vcpus: Option<u32>,
    /// RAM in all, in bytes.
    pub desired_ram: Option<u64>,
    /// Size of the balloon in bytes.
    pub desired_balloon: Option<u64>,
}

/// The answer to a command that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing more to say: 204.
    Done,
    /// 200 with this body.
    Json(Value),
}

/// Carries commands out, one at a time, in the order of their arrival.
pub trait Execute {
    /// Carries `command` out.
    ///
    /// # Errors
    /// What the client is told; nothing half-done is left behind.
    fn execute(&mut self, command: Command) -> Result<Reply, ApiError>;
}
