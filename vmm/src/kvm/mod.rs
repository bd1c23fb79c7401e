//! KVM: the only users of kvm-ioctls.
//!
//! [`Kvm`] is `/dev/kvm`, [`Vm`] one virtual machine and its interrupts, [`Vcpu`] one virtual
//! processor. The order in which they are called is a performance feature; `machine::build` keeps
//! it.

mod cpuid;
mod irq;
mod kick;
pub mod probe;
mod stats;
mod stuck;
mod tsc;
mod vcpu;
mod vm;

use std::io;

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use crate::config::Limits;

pub use cpuid::Topology;
pub use kick::Kicker;
pub use stats::{Stats, page_table_bytes};
pub use stuck::{BETWEEN_LOOKS, Reminder};
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
pub struct Kvm {
    kvm: kvm_ioctls::Kvm,
    /// What a vCPU on this host can have.
    supported: CpuId,
}

impl Kvm {
    /// Opens `/dev/kvm` and checks its version and capabilities.
    ///
    /// # Errors
    /// See [`KvmError`].
    pub fn open() -> Result<Self, KvmError> {
        let kvm =
            kvm_ioctls::Kvm::new().map_err(|errno| KvmError::Open(io::Error::from_raw_os_error(errno.errno())))?;
        let found = kvm.get_api_version();
        if found != KVM_API_VERSION {
            return Err(KvmError::ApiVersion { found });
        }
        if let Some((_, name)) = REQUIRED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(KvmError::Missing(name));
        }
        let supported = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let supported = supported.or_refused(|| "list the supported CPUID".into())?;
        Ok(Self { kvm, supported })
    }

    /// For a test that needs `/dev/kvm`; where there is none, says so in a line.
    #[cfg(test)]
    pub fn for_test() -> Option<Self> {
        match Self::open() {
            Ok(kvm) => Some(kvm),
            Err(KvmError::Open(error)) => {
                println!("skipped: needs /dev/kvm: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Whether guests run on the processor itself. Without VMX and SVM, a KVM that answers all the
    /// same emulates a guest's kernel one instruction at a time.
    pub fn is_hardware(&self) -> bool {
        cpuid::host_virtualizes()
    }

    /// The most vCPUs a VM may have on this host.
    pub fn max_vcpus(&self) -> u32 {
        max_vcpus(&self.kvm)
    }

    /// Width of a guest-physical address in bits.
    pub fn phys_bits(&self) -> u8 {
        /// What a CPU without the leaf has (Intel SDM vol. 3A §4.1.4).
        const WITHOUT_LEAF: u8 = 36;
        let leaf = self
            .supported
            .as_slice()
            .iter()
            .find(|entry| entry.function == cpuid::ADDRESS_SIZES);
        leaf.map_or(WITHOUT_LEAF, |leaf| leaf.eax.to_le_bytes()[0])
    }

    /// What a VM may have on this host.
    pub fn limits(&self) -> Limits {
        Limits {
            max_vcpus: self.max_vcpus(),
            phys_bits: self.phys_bits(),
        }
    }

    /// CPUID for the `vcpus` vCPUs of one VM.
    pub fn topology(&self, vcpus: u32) -> Topology {
        let topology = Topology::new(&self.supported, vcpus, self.kvm.check_extension(Cap::TscDeadlineTimer));
        match cpuid::host_brand() {
            Some(brand) => topology.with_brand(brand),
            None => topology,
        }
    }

    /// Creates a VM without memory, interrupt controller or vCPUs.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn create_vm(&self) -> Result<Vm, KvmError> {
        Vm::new(create_vm(|| self.kvm.create_vm()).or_refused(|| "create a VM".into())?)
    }
}

/// The most vCPUs of a VM that this host has and husk describes to a guest, whoever asks: what is
/// checked before a VM is built, and what `husk check` says.
fn max_vcpus(kvm: &kvm_ioctls::Kvm) -> u32 {
    let of_kvm = u32::try_from(kvm.get_max_vcpus()).unwrap_or(u32::MAX);
    of_kvm.min(Limits::ARCHITECTURE.max_vcpus)
}

/// What `create` creates, which is tried again whenever a signal has interrupted it: the kernel
/// starts threads for a VM, and a signal that waits for this one, of a tracer or of a control group
/// that freezes, ends that with `EINTR` (KVM api.rst 4.2).
fn create_vm<T>(mut create: impl FnMut() -> Result<T, kvm_ioctls::Error>) -> Result<T, kvm_ioctls::Error> {
    /// Times that it is tried. A storm of signals does not keep husk here for ever.
    const ATTEMPTS: u32 = 1000;
    for _ in 1..ATTEMPTS {
        match create() {
            Err(errno) if errno.errno() == libc::EINTR => {}
            done => return done,
        }
    }
    create()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vm_that_a_signal_keeps_from_being_created_is_created_after_it() {
        let errno = |number: i32| kvm_ioctls::Error::new(number);
        let mut answers = vec![Ok("a VM"), Err(errno(libc::EINTR)), Err(errno(libc::EINTR))];
        assert_eq!(create_vm(|| answers.pop().unwrap()), Ok("a VM"));
        let mut asked = 0;
        let refused = create_vm::<()>(|| {
            asked += 1;
            Err(errno(libc::ENOMEM))
        });
        assert_eq!((refused, asked), (Err(errno(libc::ENOMEM)), 1), "another reason is one");
        let never = create_vm::<()>(|| Err(errno(libc::EINTR)));
        assert_eq!(never, Err(errno(libc::EINTR)), "a storm ends");
    }
}
