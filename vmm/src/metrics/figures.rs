//! What the machine's owner knows at one moment, as plain data.

use std::sync::Arc;
use std::time::Duration;

use super::ProcessFiles;
use crate::machine::{Counted, Latency};

/// One vCPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vcpu {
    /// Its number.
    pub id: u32,
    /// The guest has started it.
    pub online: bool,
    /// Processor time of its thread, in the guest and for it.
    pub ran: Option<Duration>,
    /// Time for which KVM had it wait for an interrupt.
    pub halted: Option<Duration>,
}

/// What RAM a guest has, beside the blocks of virtio-mem and less the balloon: these are devices,
/// and count by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ram {
    /// RAM of the start.
    pub boot_bytes: u64,
    /// DIMMs that it has.
    pub dimm_bytes: u64,
}

/// What KVM has mapped for the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Guest memory.
    pub bytes: u64,
    /// Page tables that this needs at least: computed, for KVM does not count its own.
    pub page_table_bytes: u64,
}

/// What the machine's owner knows. Without a machine there are no counters.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How many machines have been built.
    pub boots: u64,
    /// Parts of the last start, by name.
    pub phases: Vec<(&'static str, Duration)>,
    /// What devices and vCPUs have counted.
    pub counted: Vec<Counted>,
    /// vCPUs that there are.
    pub vcpus: Vec<Vcpu>,
    /// How long the guest has taken for what it was asked, by what that was.
    pub resizes: Vec<(&'static str, Latency)>,
    /// How often it, or the host, has not done what a resize asked for, by what became of it.
    pub resize_failures: Vec<(&'static str, u64)>,
    /// What RAM the guest has.
    pub ram: Option<Ram>,
    /// What KVM has mapped for the guest.
    pub mapped: Option<Mapped>,
    /// What the kernel knows of this process.
    pub process: Arc<ProcessFiles>,
}

/// Two figures of one process have the same files.
impl PartialEq for Figures {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            boots,
            phases,
            counted,
            vcpus,
            resizes,
            resize_failures,
            ram,
            mapped,
            process: _,
        } = self;
        *boots == other.boots
            && *phases == other.phases
            && *counted == other.counted
            && *vcpus == other.vcpus
            && *resizes == other.resizes
            && *resize_failures == other.resize_failures
            && *ram == other.ram
            && *mapped == other.mapped
    }
}
