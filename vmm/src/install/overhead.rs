//! What a pod costs beside its guest, as a runtime class says it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::InstallError;
use crate::regular_file::{self, TEXT_BYTES};

/// The overhead of one pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Overhead {
    /// Memory, in MiB, rounded up.
    pub memory_mib: u64,
    /// Processor time, in thousandths of a CPU.
    pub cpu_millis: u64,
    /// How much of the memory is Kata's shim, in MiB; 0 if it is left out, or if that is not known.
    #[serde(default)]
    pub shim_mib: u64,
    /// How it was found, in one line.
    pub method: String,
}

impl Overhead {
    /// Kata's figures for Cloud Hypervisor, which nobody measured on this host.
    pub(super) fn of_kata() -> Self {
        Self {
            memory_mib: 130,
            cpu_millis: 250,
            // Not told apart, and in it.
            shim_mib: 0,
            method: "not measured on this host: Kata's figures for Cloud Hypervisor (husk overhead measures)".into(),
        }
    }

    /// Reads what `husk overhead --json` printed.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or has something else in it.
    pub fn read(path: &Path) -> Result<Self, InstallError> {
        let bytes =
            regular_file::read(path, TEXT_BYTES).map_err(|error| InstallError::io("read", path, error.into()))?;
        let refuse = |problem| InstallError::Foreign {
            path: path.to_owned(),
            problem,
        };
        let found: Self = serde_json::from_slice(&bytes)
            .map_err(|error| refuse(format!("is not what husk overhead --json prints: {error}")))?;
        if found.memory_mib == 0 || found.shim_mib > found.memory_mib || found.method.chars().any(char::is_control) {
            return Err(refuse(
                "needs memory_mib from 1 on, shim_mib not above that, and a method of one line".into(),
            ));
        }
        Ok(found)
    }
}
