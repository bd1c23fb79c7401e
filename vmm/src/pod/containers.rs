//! What clients keep in husk about a pod while it runs: what it has without its containers, and
//! what each of those asks for.
//!
//! It is in `vm.containers`, which husk does not read. `husk run --pod` begins it for a sandbox whose
//! workload is announced.

use std::collections::BTreeMap;

use husk_hotplug::sizing::resources::{CpuTime, Resources};
use serde::{Deserialize, Serialize};

use super::LinuxResources;

/// What clients keep in husk about the containers of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodContainers {
    /// What the pod has without its containers.
    #[serde(default)]
    pub pod: Option<PodBaseSize>,
    /// What each container asks for, by its id.
    #[serde(default)]
    pub containers: BTreeMap<String, LinuxResources>,
}

/// What a pod has without its containers: its size when the first one came, or what that one's annotations say. Of a
/// pod whose workload was announced, it is the overhead: the size of its boot has its containers in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodBaseSize {
    /// vCPUs of the pod without its containers, as a decimal number that may have a fraction (`"0.5"`).
    pub default_vcpus: String,
    /// The most vCPUs; 0: as many as the VM may have.
    pub max_vcpus: u32,
    /// RAM of the pod without its containers, in bytes.
    pub default_memory_bytes: u64,
    /// vCPUs that stay, whatever the containers need: those of the boot, of a pod whose workload was announced.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub least_vcpus: u32,
    /// The container that it is of has not come, but others came meanwhile, and have it, too.
    #[serde(default, skip_serializing_if = "is_false")]
    pub is_orphaned: bool,
}

impl PodContainers {
    /// What all containers ask for.
    pub fn resources(&self) -> Vec<Resources> {
        // They had a meaning when they were noted.
        let sized = self
            .containers
            .values()
            .map(|resources| resources.sized().unwrap_or_default());
        sized.collect()
    }

    /// Takes out a container that has not come to its size; with `made_base`, the base is of this one, and goes with it
    /// unless others have it by now. The last of those takes it along if none of them comes either.
    pub fn undo_add(&mut self, id: &str, made_base: bool) {
        self.containers.remove(id);
        if let Some(base) = &mut self.pod {
            base.is_orphaned |= made_base;
            if base.is_orphaned && self.containers.is_empty() {
                self.pod = None;
            }
        }
    }
}

impl PodBaseSize {
    /// [`PodBaseSize::default_vcpus`] as processor time; 1 vCPU if it cannot be parsed.
    pub fn vcpus(&self) -> CpuTime {
        CpuTime::parse(&self.default_vcpus).unwrap_or(CpuTime::from_vcpus(1))
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a field by reference")]
fn is_false(flag: &bool) -> bool {
    !flag
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ids: &[&str], is_orphaned: bool) -> PodContainers {
        let base = PodBaseSize {
            default_vcpus: "1".into(),
            max_vcpus: 0,
            default_memory_bytes: 1 << 30,
            least_vcpus: 0,
            is_orphaned,
        };
        PodContainers {
            pod: Some(base),
            containers: ids.iter().map(|id| ((*id).into(), LinuxResources::default())).collect(),
        }
    }

    #[test]
    fn a_base_goes_with_the_container_that_it_is_of_when_that_has_not_come() {
        let undone = |mut list: PodContainers, id, made| {
            list.undo_add(id, made);
            list
        };
        assert_eq!(undone(list(&["a"], false), "a", true), PodContainers::default());
        assert_eq!(
            undone(list(&["a"], false), "a", false),
            list(&[], false),
            "one had come"
        );
        assert_eq!(undone(list(&["a", "b"], false), "a", true), list(&["b"], true));
        assert_eq!(undone(list(&["b"], true), "b", false), PodContainers::default());
        assert_eq!(undone(list(&["b", "c"], true), "b", false), list(&["c"], true));
        // The base of a list that another client has made new meanwhile.
        assert_eq!(undone(PodContainers::default(), "a", true), PodContainers::default());
    }

    #[test]
    fn a_list_is_read_as_it_was_written() {
        for (list, json) in [
            (
                list(&["a"], false),
                r#"{"pod":{"default_vcpus":"1","max_vcpus":0,"default_memory_bytes":1073741824},"containers":{"a":{}}}"#,
            ),
            (PodContainers::default(), r#"{"pod":null,"containers":{}}"#),
        ] {
            assert_eq!(serde_json::to_string(&list).unwrap(), json);
            assert_eq!(serde_json::from_str::<PodContainers>(json).unwrap(), list);
        }
    }
}
