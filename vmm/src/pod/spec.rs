//! An OCI `config.json`, as far as it says how large a container or a pod should be (OCI runtime
//! specification, `linux.resources`).

use std::collections::BTreeMap;
use std::path::Path;

use husk_hotplug::sizing::resources::{CpuSet, Resources};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::json::{self, JsonError};
use crate::regular_file::{self, RegularFileError};

/// Where there are objects.
const OBJECTS: [&str; 6] = [
    "",
    "/annotations",
    "/linux",
    "/linux/resources",
    "/linux/resources/cpu",
    "/linux/resources/memory",
];
/// A longer file is none.
const FILE_BYTES: u64 = 4 << 20;

/// Why a file says nothing.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// It is not read.
    #[error(transparent)]
    File(#[from] RegularFileError),
    /// No JSON, or none of this shape.
    #[error("is no OCI configuration")]
    Json(#[from] JsonError),
    /// A list in place of an object.
    #[error("is no OCI configuration: a list where an object belongs")]
    List,
    /// A field that means nothing.
    #[error("{field} is {found}, allowed: {allowed}")]
    Field {
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
        /// What it may say.
        allowed: String,
    },
}

/// What a `config.json` says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Spec {
    /// `annotations`.
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    linux: Option<Linux>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
struct Linux {
    #[serde(default)]
    resources: Option<LinuxResources>,
}

/// `linux.resources`, as far as it is about size. Also what is noted of a container, so that a
/// later husk reads it as it was meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinuxResources {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(default, rename = "hugepageLimits", skip_serializing_if = "Option::is_none")]
    hugepage_limits: Option<Vec<HugepageLimit>>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Cpu {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    quota: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    period: Option<i128>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    cpus: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Memory {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct HugepageLimit {
    #[serde(default, rename = "pageSize")]
    page_size: String,
    #[serde(default)]
    limit: i128,
}

impl Spec {
    /// Reads `path`, a regular file: nothing else is waited for.
    ///
    /// # Errors
    /// It cannot be read, is no OCI configuration, or its resources mean nothing.
    pub fn read(path: &Path) -> Result<Self, SpecError> {
        Self::parse(&regular_file::read(path, FILE_BYTES)?)
    }

    /// Reads the text of a `config.json`.
    ///
    /// # Errors
    /// It is no OCI configuration, or its resources mean nothing.
    pub fn parse(text: &[u8]) -> Result<Self, SpecError> {
        let value: Value = json::parse(text)?;
        // An empty list would pass for an object without fields.
        if OBJECTS
            .iter()
            .any(|place| value.pointer(place).is_some_and(Value::is_array))
        {
            return Err(SpecError::List);
        }
        let spec: Self = json::parse(text)?;
        spec.resources().sized()?;
        Ok(spec)
    }

    /// Every annotation, by key.
    pub fn annotations(&self) -> impl Iterator<Item = (&str, &str)> {
        let all = self.annotations.iter().flatten();
        all.map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// `linux.resources`; nothing is limited by what is absent.
    pub fn resources(&self) -> LinuxResources {
        let linux = self.linux.as_ref();
        linux.and_then(|linux| linux.resources.clone()).unwrap_or_default()
    }
}

impl LinuxResources {
    /// What it comes to.
    ///
    /// # Errors
    /// A field means nothing. Negative quotas and limits mean that there is none.
    pub fn sized(&self) -> Result<Resources, SpecError> {
        let cpu = self.cpu.clone().unwrap_or_default();
        let list = cpu.cpus.unwrap_or_default();
        let pages = self.hugepage_limits.iter().flatten();
        let pages = pages.map(|pages| unsigned("linux.resources.hugepageLimits.limit", pages.limit));
        Ok(Resources {
            cpu_quota_us: cpu.quota.unwrap_or_default(),
            cpu_period_us: unsigned("linux.resources.cpu.period", cpu.period.unwrap_or_default())?,
            cpus: CpuSet::parse(&list).ok_or_else(|| SpecError::Field {
                field: "linux.resources.cpu.cpus",
                found: format!("{list:?}"),
                allowed: "a list such as 0-3,8".into(),
            })?,
            cpu_shares: 0,
            memory_limit_bytes: self
                .memory
                .as_ref()
                .and_then(|memory| Resources::memory_limit(memory.limit?)),
            hugepage_bytes: pages
                .into_iter()
                .try_fold(0_u64, |sum, bytes| bytes.map(|bytes| sum.saturating_add(bytes)))?,
        })
    }
}

fn unsigned(field: &'static str, found: i128) -> Result<u64, SpecError> {
    u64::try_from(found).map_err(|_| SpecError::Field {
        field,
        found: found.to_string(),
        allowed: "a whole number from 0 to 18446744073709551615".into(),
    })
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
