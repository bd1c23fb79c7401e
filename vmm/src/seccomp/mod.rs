//! What a thread of husk may ask of the kernel: one filter for each role a thread can have (seccomp(2)).
//!
//! The process confines itself to what any of its threads needs ([`Role::Process`]) before it looks at anything that is not its
//! own; each thread then confines itself to its role ([`Mode::enter`]). Filters are inherited and add up, so nothing that a thread
//! starts, and nothing that it is made to do, gets out of them. Threads of devices come from a thread with the process's filter
//! only ([`Spawner`](crate::spawner::Spawner)).
//!
//! A call that is not allowed ends the process, with a message that names thread and call (`violation.rs`). Why so, and how it is
//! done at little cost, is told in `docs/adr/0013-seccomp.md`; `docs/seccomp.md` is for operators.

mod policy;
mod program;
mod requests;
mod tables;
#[cfg(test)]
mod testing;
mod violation;

use std::str::FromStr;

use seccompiler::sock_filter;

use policy::{Policy, Rule};

pub use violation::EXIT_CODE;

/// Whether calls are filtered: `--seccomp`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// A call that a thread's role does not need ends the process.
    #[default]
    #[value(name = "true", help = "a system call that no part of husk makes ends the process")]
    On,
    /// Nothing is filtered.
    #[value(name = "false", help = "no filter")]
    Off,
    /// As `On`, except that the kernel writes such a call to its log, and lets it pass.
    #[value(name = "log", help = "such a call is noted in the kernel's log and let pass")]
    Log,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        clap::ValueEnum::from_str(text, false).map_err(|_: String| format!("'{text}': allowed: true, false, log"))
    }
}

/// What a thread is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Any of those below, and what builds, changes and attends to machines.
    Process,
    /// Runs a vCPU.
    Vcpu,
    /// Brings the kernel into RAM.
    Loader,
    /// Serves the API's socket.
    Api,
    /// Serves a device of this virtio ID (virtio 1.2 §5).
    Device(u32),
}

/// virtio IDs (virtio 1.2 §5).
const BLOCK_DEVICE: u32 = 2;
/// The same of persistent memory.
const PMEM_DEVICE: u32 = 27;

impl Role {
    fn groups(self) -> &'static [&'static [Rule]] {
        use tables::{BLOCK, CONTROL, EVERY, IO, LOADER, PMEM, SOCKETS, STREAM, THREADS, VCPU};
        match self {
            Self::Process => &[EVERY, THREADS, CONTROL, VCPU, LOADER, IO, BLOCK, STREAM, SOCKETS],
            Self::Vcpu => &[EVERY, VCPU],
            Self::Loader => &[EVERY, LOADER],
            Self::Api => &[EVERY, IO, SOCKETS],
            Self::Device(BLOCK_DEVICE) => &[EVERY, IO, BLOCK],
            Self::Device(PMEM_DEVICE) => &[EVERY, IO, PMEM],
            Self::Device(_) => &[EVERY, IO, STREAM],
        }
    }

    fn policy(self) -> Policy {
        Policy::new(self.groups(), tables::REFUSED, std::process::id())
    }
}

/// Why a thread could not be confined.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot install the seccomp filter of {role:?} (the host's kernel needs CONFIG_SECCOMP_FILTER; --seccomp false does without)"
)]
pub struct SeccompError {
    /// Whose filter.
    role: Role,
    /// The kernel's answer.
    source: seccompiler::Error,
}

impl Mode {
    /// Confines the calling thread, and the threads that it creates from now on, to what `role` needs. For ever.
    ///
    /// # Errors
    /// What the kernel says. The thread is as it was then.
    pub fn enter(self, role: Role) -> Result<(), SeccompError> {
        let Some(program) = self.program(role) else {
            return Ok(());
        };
        if self == Self::On {
            violation::report();
        }
        seccompiler::apply_filter(&program).map_err(|source| SeccompError { role, source })
    }

    fn program(self, role: Role) -> Option<Vec<sock_filter>> {
        let denied = match self {
            Self::Off => return None,
            Self::On => libc::SECCOMP_RET_TRAP,
            Self::Log => libc::SECCOMP_RET_LOG,
        };
        Some(program::compile(&role.policy(), denied))
    }
}

#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
