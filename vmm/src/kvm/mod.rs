//! KVM: the only users of kvm-ioctls.
//!
//! [`Kvm`] is `/dev/kvm`, [`Vm`] one virtual machine and its interrupts, [`Vcpu`] one virtual processor. The order in which they
//! are called is a performance feature; `machine::build` keeps it.

mod cpuid;
mod irq;
mod kick;
pub mod probe;
mod vcpu;
mod vm;

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

pub use cpuid::Topology;
pub use kick::Kicker;
pub use vcpu::{Exit as VcpuExit, Port, Vcpu};
pub use vm::{Access, Vm};

/// The stable KVM API's version; nothing else has been released since Linux 2.6.22 (KVM api.rst 4.1).
pub const KVM_API_VERSION: i32 = 12;

/// Capabilities without which husk cannot work, with the name a user finds in KVM's documentation.
pub const REQUIRED: [(Cap, &str); 6] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SplitIrqchip, "KVM_CAP_SPLIT_IRQCHIP"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

/// Why KVM could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// `/dev/kvm` could not be opened.
    #[error("cannot open /dev/kvm (try `husk check`)")]
    Open(#[source] io::Error),
    /// An unknown API.
    #[error("/dev/kvm speaks API version {found}, not {KVM_API_VERSION}")]
    ApiVersion {
        /// What the host answered.
        found: i32,
    },
    /// A capability is missing.
    #[error("this host's KVM lacks {0}")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("KVM refused to {what}")]
    Refused {
        /// What was asked, in the infinitive.
        what: String,
        /// The host's answer.
        source: io::Error,
    },
}

/// Names what was asked of KVM when it fails.
trait Context<T> {
    fn or_refused(self, what: impl FnOnce() -> String) -> Result<T, KvmError>;
}

impl<T> Context<T> for Result<T, kvm_ioctls::Error> {
    fn or_refused(self, what: impl FnOnce() -> String) -> Result<T, KvmError> {
        self.map_err(|errno| KvmError::Refused {
            what: what(),
            source: io::Error::from_raw_os_error(errno.errno()),
        })
    }
}

/// An open `/dev/kvm` that has all of [`REQUIRED`].
#[derive(Debug)]
pub struct Kvm(kvm_ioctls::Kvm);

impl Kvm {
    /// Opens `/dev/kvm` and checks its version and capabilities.
    ///
    /// # Errors
    /// [`KvmError::Open`], [`KvmError::ApiVersion`] or [`KvmError::Missing`].
    pub fn open() -> Result<Self, KvmError> {
        let kvm =
            kvm_ioctls::Kvm::new().map_err(|errno| KvmError::Open(io::Error::from_raw_os_error(errno.errno())))?;
        let found = kvm.get_api_version();
        if found != KVM_API_VERSION {
            return Err(KvmError::ApiVersion { found });
        }
        match REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            Some((_, name)) => Err(KvmError::Missing(name)),
            None => Ok(Self(kvm)),
        }
    }

    /// The most vCPUs a VM may have on this host.
    pub fn max_vcpus(&self) -> u32 {
        u32::try_from(self.0.get_max_vcpus()).unwrap_or(u32::MAX)
    }

    /// What this host's KVM can offer a guest, and the host's timer capability folded in.
    fn supported_cpuid(&self) -> Result<CpuId, KvmError> {
        self.0
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .or_refused(|| "list the supported CPUID".into())
    }

    /// CPUID for the vCPUs of one VM; see [`Topology`].
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn topology(&self, vcpus: u32) -> Result<Topology, KvmError> {
        Ok(Topology::new(
            self.supported_cpuid()?,
            vcpus,
            self.0.check_extension(Cap::TscDeadlineTimer),
        ))
    }

    /// Creates a VM without memory, interrupt controller or vCPUs.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        Vm::new(self.0.create_vm().or_refused(|| "create a VM".into())?)
    }
}
