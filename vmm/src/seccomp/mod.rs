//! What a thread of husk may ask of the kernel: one filter for each role a thread can have (seccomp(2)).
//!
//! Two threads confine themselves before anything is looked at that is not husk's own: the first one ([`Role::Control`]), and the one
//! that starts the threads of devices ([`Role::Spawner`], [`Spawner`](crate::spawner::Spawner)). Every other thread is started by one of
//! the two, inherits its filter, and adds that of its own role ([`Mode::enter`]). Filters add up, so nothing that a thread starts, and
//! nothing that it is made to do, gets out of them; and what neither of the two may do, no thread may.
//!
//! A call that is not allowed ends the process, with a message that names thread and call (`violation.rs`). Why so, and how it is
//! done at little cost, is told in `docs/adr/0013-seccomp.md`; `docs/seccomp.md` is for operators.

mod baked;
mod names;
// What filters are made from is compiled into build.rs, and here only to be tested.
#[cfg(test)]
mod policy;
#[cfg(test)]
mod program;
#[cfg(test)]
mod requests;
mod roles;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod testing;
mod violation;

use std::str::FromStr;

use seccompiler::sock_filter;

pub use names::name;
pub use roles::Role;
pub use violation::{EXIT_CODE, end_on_violation, is_violation};

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
    /// Confines the calling thread, and the threads that it creates from now on, to what `role` needs. For ever. Memory comes from one heap
    /// by then (`process::prepare`).
    ///
    /// # Errors
    /// What the kernel says. The thread is as it was then.
    pub fn enter(self, role: Role) -> Result<(), SeccompError> {
        let Some(program) = self.program(role) else {
            return Ok(());
        };
        if self == Self::On {
            crate::fatal::install();
        }
        seccompiler::apply_filter(&program).map_err(|source| SeccompError { role, source })
    }

    fn program(self, role: Role) -> Option<Vec<sock_filter>> {
        match self {
            Self::Off => None,
            Self::On => Some(baked::program(role, libc::SECCOMP_RET_TRAP)),
            Self::Log => Some(baked::program(role, libc::SECCOMP_RET_LOG)),
        }
    }
}

#[cfg(test)]
#[path = "bypass_test.rs"]
mod bypass;
#[cfg(test)]
#[path = "mod_test.rs"]
mod tests;
#[cfg(test)]
#[path = "used_test.rs"]
mod used;
