//! How large a VM is, and how far a resize has come: `vm.resize-status`, or what `vm.info` says where there is none.

use serde::Deserialize;
use serde_json::{Value, json};

use super::client::{Client, ClientError};

/// A VM's size. What a husk does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// vCPUs.
    pub vcpus: Vcpus,
    /// Memory.
    pub memory: Memory,
    /// The last resize.
    pub last: Option<Last>,
    /// All of it, as it came.
    #[serde(skip)]
    pub raw: Value,
}

/// vCPUs: how many are asked for, are the guest's, have been started there, and may ever be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Vcpus {
    /// vCPUs that the guest is to have; `None` if husk does not say.
    pub desired: Option<u32>,
    /// vCPUs that the guest has taken; `None` if husk does not say.
    pub present: Option<u32>,
    /// Started by the guest since they came.
    pub online: Option<u32>,
    /// The most there may be.
    pub max: Option<u32>,
}

/// Memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// RAM that the guest is to have, boot RAM included.
    pub desired_bytes: Option<u64>,
    /// What the last resize that spoke of memory asked for, before it was rounded and before anything was refused.
    pub asked_bytes: Option<u64>,
    /// RAM that the guest has, boot RAM included.
    pub present_bytes: Option<u64>,
    /// What the guest started with.
    pub boot_bytes: Option<u64>,
    /// What may come on top of that.
    pub hotplug_bytes: Option<u64>,
    /// The balloon.
    pub balloon: Option<Balloon>,
}

/// The balloon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Balloon {
    /// What the last resize that spoke of it asked for.
    pub asked_bytes: Option<u64>,
    /// What it should have: less than that where there is not so much memory, and more where an
    /// idle guest gives some back.
    pub target_bytes: Option<u64>,
    /// What the guest has given.
    pub actual_bytes: Option<u64>,
}

/// How a resize ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Last {
    /// `accepted`, `refused`, `timed-out`, `in-progress` or `abandoned`.
    pub outcome: Option<String>,
    /// More about it.
    pub what: Option<String>,
}

impl Status {
    /// Asks for it.
    ///
    /// # Errors
    /// There is no VM, or no answer.
    pub fn ask(client: &mut Client) -> Result<Self, ClientError> {
        let raw = match client.get("vm.resize-status") {
            // A husk without it, or one without a VM, which the next answer tells apart.
            Err(error) if matches!(error.status(), Some(404 | 409 | 501)) => from_info(&client.get("vm.info")?),
            // A VM that does not run has the sizes of its configuration.
            Ok(status) if status.get("vcpus").or(status.get("memory")).is_none() => from_info(&client.get("vm.info")?),
            answer => answer?,
        };
        let status: Self = serde_json::from_value(raw.clone()).map_err(|e| ClientError::Nonsense {
            request: "vm.resize-status".into(),
            what: format!("not understood: {e}"),
        })?;
        Ok(Self { raw, ..status })
    }

    /// vCPUs that are asked for, or there.
    pub fn vcpus_now(&self) -> u32 {
        self.vcpus.desired.or(self.vcpus.present).unwrap_or(1)
    }

    /// Memory that is asked for, or there.
    pub fn memory_now(&self) -> u64 {
        self.memory.desired_bytes.or(self.memory.present_bytes).unwrap_or(0)
    }

    /// What the guest started with.
    pub fn boot_bytes(&self) -> u64 {
        self.memory.boot_bytes.unwrap_or_else(|| self.memory_now())
    }

    /// The most memory there may be.
    pub fn most_bytes(&self) -> u64 {
        let room = self.memory.hotplug_bytes.unwrap_or(0);
        self.boot_bytes().saturating_add(room).max(self.memory_now())
    }

    /// What has been refused of `vcpus` or `memory` since they were asked for last; `None` where that is not told.
    pub fn refusals(&self, kind: &str) -> Option<Vec<&str>> {
        let refusals = self.raw[kind]["refusals"].as_array()?;
        Some(refusals.iter().filter_map(Value::as_str).collect())
    }

    /// Whether the guest has done all that it will with `wanted` bytes of memory, by what is said of memory, and where
    /// nothing is, by how the last resize ended, whatever that asked for.
    pub fn has_heard_of_memory(&self, wanted: u64) -> bool {
        match self.raw["memory"].get("pending") {
            Some(pending) => {
                let is_refused = self.refusals("memory").is_some_and(|refusals| !refusals.is_empty());
                let is_asked = self.memory.asked_bytes.is_none_or(|asked| asked == wanted);
                pending.is_null() && !is_refused && is_asked
            }
            None => self.outcome() == Some("accepted"),
        }
    }

    /// How the last resize ended, if that is known.
    pub fn outcome(&self) -> Option<&str> {
        self.last.as_ref()?.outcome.as_deref()
    }
}

/// The same in the shape of `vm.resize-status`, as far as `vm.info` has it.
fn from_info(info: &Value) -> Value {
    let (cpus, memory) = (&info["config"]["cpus"], &info["config"]["memory"]);
    json!({
        "vcpus": {"present": cpus["boot_vcpus"], "max": cpus["max_vcpus"]},
        "memory": {
            "present_bytes": info["memory_actual_size"],
            "hotplug_bytes": memory["hotplug_size"],
        },
    })
}
