//! What the API can ask of the machine: one enum, one match.

use serde::Deserialize;
use serde_json::Value;

use super::json_text::JsonText;
use super::passed::PassedFd;
use super::queue::Outcome;
use crate::config::VmConfig;
use crate::events::Reader;
use crate::machine::Queues;
use crate::metrics::Figures;

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
    /// `vm.queues`: where driver and device stand in each virtqueue.
    Queues,
    /// `vmm.metrics`: what is known of the process and its VM, for Prometheus.
    Metrics,
    /// `vm.events`: what has happened, and what happens from now on.
    Events,
    /// `vm.containers`: what clients have noted of the containers in the VM.
    Containers,
    /// `vm.set-containers`: note something else.
    SetContainers(Containers),
    /// `vm.resize`: change the number of vCPUs or the size of RAM.
    Resize(Resize),
    /// `vm.resize-status`: how far the guest has come with it.
    ResizeStatus,
    /// `vm.add-*`: one more device, with the descriptors that came with the request, in their order.
    Add(Box<NewDevice>, Vec<PassedFd>),
    /// `vm.remove-device`: the device of this id.
    Remove(String),
    /// `vmm.shutdown`: end the VM, then the process. Its answer is the last one.
    ShutdownVmm,
}

impl Command {
    /// Whether it asks what is, and changes nothing.
    pub const fn only_looks(&self) -> bool {
        match self {
            Self::Counters | Self::Queues | Self::Metrics | Self::Events | Self::Containers | Self::ResizeStatus => {
                true
            }
            Self::Create(_)
            | Self::Boot
            | Self::Shutdown
            | Self::Delete
            | Self::Reboot
            | Self::PowerButton
            | Self::Pause
            | Self::Resume
            | Self::SetContainers(_)
            | Self::Resize(_)
            | Self::Add(..)
            | Self::Remove(_)
            | Self::ShutdownVmm => false,
        }
    }

    /// The command as clients write it; `vm.add-*` is one.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Create(_) => "vm.create",
            Self::Boot => "vm.boot",
            Self::Shutdown => "vm.shutdown",
            Self::Delete => "vm.delete",
            Self::Reboot => "vm.reboot",
            Self::PowerButton => "vm.power-button",
            Self::Pause => "vm.pause",
            Self::Resume => "vm.resume",
            Self::Counters => "vm.counters",
            Self::Queues => "vm.queues",
            Self::Metrics => "vmm.metrics",
            Self::Events => "vm.events",
            Self::Containers => "vm.containers",
            Self::SetContainers(_) => "vm.set-containers",
            Self::Resize(_) => "vm.resize",
            Self::ResizeStatus => "vm.resize-status",
            Self::Add(..) => "vm.add-*",
            Self::Remove(_) => "vm.remove-device",
            Self::ShutdownVmm => "vmm.shutdown",
        }
    }
}

/// The body of `vm.resize`. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Resize {
    /// vCPUs that are to be on-line; absent: as before.
    pub desired_vcpus: Option<u32>,
    /// RAM in all in bytes, boot RAM included; absent: as before.
    pub desired_ram: Option<u64>,
    /// Bytes that the balloon is to take from the guest; absent: as before.
    pub desired_balloon: Option<u64>,
    /// The revision of `vm.containers` that the size was made of: with another one present, nothing is asked for.
    pub containers_revision: Option<u64>,
}

/// The body of `vm.set-containers`, and the answer to `vm.containers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Containers {
    /// How often it has been changed; in a request, what its sender has read.
    pub revision: u64,
    /// What clients note: theirs alone.
    #[serde(default)]
    pub containers: JsonText,
}

impl Containers {
    /// The JSON that `vm.containers` answers, in ASCII.
    pub(super) fn text(&self) -> String {
        let Self { revision, containers } = self;
        format!(r#"{{"containers":{},"revision":{revision}}}"#, containers.as_str())
    }
}

/// The answer to a command that succeeded.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing more to say: 204.
    Done,
    /// 200 with this body.
    Json(Value),
    /// 200 with what is noted of the containers.
    Containers(Containers),
    /// 200 with these figures, in the text that the client reads.
    Figures(Box<Figures>),
    /// 200 with what these are when they are looked at, which may wait for the guest's memory.
    Queues(Box<Queues>),
    /// 200, and what happens, as it happens.
    Events(Reader),
}

/// How far a command has come.
#[derive(Debug)]
pub enum Progress<Id> {
    /// It is done, or will not be: this is the answer.
    Done(Outcome),
    /// It is being carried out: whoever keeps its [`Responder`](super::Responder) for this
    /// operation answers at its end.
    Later(Id),
}

/// Carries commands out, in the order of their arrival. One that takes its time is carried out
/// beside those that follow.
pub trait Execute {
    /// Tells one command in progress from the others.
    type Id;

    /// Carries `command` out, or begins to. Never waits for the guest, nor for a device.
    ///
    /// An error is what the client is told; nothing half-done is left behind.
    fn execute(&mut self, command: Command) -> Progress<Self::Id>;
}
