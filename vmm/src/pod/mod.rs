//! Pods and containers as the OCI describes them, and what they come to on this host.
//!
//! A `config.json` ([`Spec`]) says what it needs in `linux.resources` and in annotations; a node's
//! [`Policy`] says which annotations it honours, and the [`Node`] itself how much there is. [`Pod`]
//! is the VM that a sandbox boots with; containers that come later are `husk ctl`'s (`crate::ctl`),
//! which notes them in a [`PodContainers`]. The rules of sizes are those of
//! [`husk_hotplug::sizing`].

mod boot;
mod containers;
mod node;
mod policy;
mod spec;

use husk_hotplug::sizing::SizingError;
use husk_hotplug::sizing::annotation::AnnotationError;

pub use boot::Pod;
pub use containers::{PodBaseSize, PodContainers};
pub use node::Node;
pub use policy::{NotEnabled, Policy};
pub use spec::{LinuxResources, Spec, SpecError};

use crate::regular_file::RegularFileError;

/// Why a `config.json` makes no pod, or no container.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// The OCI `config.json` cannot be read as one.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An annotation that the node does not let pods use.
    #[error(transparent)]
    NotEnabled(#[from] NotEnabled),
    /// An annotation that is none, or means nothing.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// It does not fit.
    #[error(transparent)]
    Sizing(#[from] SizingError),
}

impl PodError {
    /// Whether the file was read: what it says is wrong then.
    pub fn is_read(&self) -> bool {
        !matches!(self, Self::Spec(SpecError::File(RegularFileError::Read(_))))
    }
}
