//! Where Linux guests run: on this machine, or in an emulated one.

use std::fs::{self, OpenOptions};

use clap::ValueEnum;

/// A host for guests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Host {
    /// This machine.
    #[default]
    Native,
    /// A machine with SVM that QEMU emulates in software.
    Emulated,
}

/// A host, and why it was chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The host.
    pub host: Host,
    /// One sentence for the user.
    pub why: String,
}

impl Host {
    /// Chooses: `wanted`, or this machine if its KVM can really run guests, or else the emulated host.
    pub fn choose(wanted: Option<Self>) -> Choice {
        match wanted {
            Some(host) => Choice {
                host,
                why: format!("{} host: asked for", host.name()),
            },
            None => decide(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default(), &open_kvm()),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Emulated => "emulated",
        }
    }
}

/// Whether `/dev/kvm` opens; if not, why.
pub fn open_kvm() -> Result<(), String> {
    let result = OpenOptions::new().read(true).write(true).open("/dev/kvm");
    result
        .map(drop)
        .map_err(|error| format!("/dev/kvm does not open ({error})"))
}

fn decide(cpuinfo: &str, kvm: &Result<(), String>) -> Choice {
    let extension = cpuinfo
        .split_ascii_whitespace()
        .find(|flag| matches!(*flag, "vmx" | "svm"));
    let emulated = |why: String| Choice {
        host: Host::Emulated,
        why: format!("emulated host: {why}"),
    };
    match (extension, kvm) {
        (Some(flag), Ok(())) => {
            let why = format!("native host: the processor has {} and /dev/kvm opens", flag.to_uppercase());
            Choice { host: Host::Native, why }
        }
        (Some(flag), Err(why)) => emulated(format!("the processor has {}, but {why}", flag.to_uppercase())),
        (None, Ok(())) => emulated(
            "the processor has neither VMX nor SVM; there is a /dev/kvm, but a KVM without them cannot run stock kernels".into(),
        ),
        (None, Err(_)) => emulated("the processor has neither VMX nor SVM".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_kvm_backed_by_hardware_is_native() {
        let closed = Err("/dev/kvm does not open (Permission denied)".to_string());
        assert_eq!(decide("flags : fpu svm sse4_2", &Ok(())).host, Host::Native);
        assert_eq!(decide("flags : fpu vmx", &Ok(())).host, Host::Native);
        assert_eq!(decide("flags : fpu hypervisor", &Ok(())).host, Host::Emulated);
        assert_eq!(decide("flags : fpu", &closed).host, Host::Emulated);
        let choice = decide("flags : fpu svm", &closed);
        assert_eq!(choice.host, Host::Emulated);
        assert!(
            choice
                .why
                .contains("SVM, but /dev/kvm does not open (Permission denied)"),
            "{}",
            choice.why
        );
    }
}
