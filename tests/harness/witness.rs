//! What a VM does at this moment, for who looks for the reason why nothing comes of it: a kick or an interrupt that was
//! lost, a thread that waits, or a host that has no time for it.

use std::fmt::Write;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use crate::api::{Api, Shim};
use crate::processor_time::{processor_ticks, stat_of};

/// Between two looks.
const MEANWHILE: Duration = Duration::from_secs(2);

/// Who may be asked what a VM does, on a connection of its own.
#[derive(Clone, Debug)]
pub struct Witness {
    /// The socket of the API.
    pub socket: PathBuf,
    /// Whose client is to ask.
    pub shim: Shim,
    /// The process of the VMM.
    pub pid: u32,
}

/// One look.
struct Look {
    counters: Value,
    /// `vm.queues`, or that the VMM has no such thing.
    queues: String,
    ticks: u64,
}

impl Witness {
    /// How often vCPUs leave the guest, what the process takes of a processor meanwhile, where its threads are, how far
    /// the devices have come, and where their queues stand before and after.
    pub fn doing(&self) -> String {
        self.look_twice()
            .unwrap_or_else(|error| format!("nobody says what the VM does: {error:#}"))
    }

    fn look_twice(&self) -> Result<String> {
        let before = self.look()?;
        thread::sleep(MEANWHILE);
        let after = self.look()?;
        Ok(format!(
            "in {MEANWHILE:?} its vCPUs left the guest {} times, and its process ran for {} ticks; in all: {}\n\
             queues: {}\nand then: {}\nthreads:{}",
            exits(&after.counters).saturating_sub(exits(&before.counters)),
            after.ticks.saturating_sub(before.ticks),
            after.counters,
            before.queues,
            after.queues,
            self.threads(),
        ))
    }

    fn look(&self) -> Result<Look> {
        let mut api = Api::connect(&self.socket, self.shim)?;
        let counters = api.get("vm.counters")?.json()?;
        let queues = api.get("vm.queues").and_then(|answer| answer.json::<Value>());
        Ok(Look {
            counters,
            queues: queues.map_or_else(|error| format!("{error:#}"), |queues| queues.to_string()),
            ticks: processor_ticks(&stat_of(self.pid))?,
        })
    }

    /// What each thread waits for, where the kernel says so.
    fn threads(&self) -> String {
        let mut text = String::new();
        let tasks = fs::read_dir(format!("/proc/{}/task", self.pid));
        for task in tasks.into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let stat = read("stat");
            let state = stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next());
            let (name, place) = (read("comm"), read("wchan"));
            let _ = write!(
                text,
                " {} {} {},",
                name.trim_end(),
                state.unwrap_or('?'),
                place.trim_end()
            );
        }
        text
    }
}

/// How often vCPUs have left the guest.
fn exits(counters: &Value) -> u64 {
    let devices = counters.as_object().into_iter().flatten();
    let vcpus = devices.filter(|(name, _)| name.starts_with("__vcpu"));
    vcpus.filter_map(|(_, counted)| counted["exits"].as_u64()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exits_are_those_of_all_vcpus() {
        let counters = serde_json::json!({"__vcpu0": {"exits": 3}, "__vcpu1": {"exits": 4}, "_disk0": {"exits": 9}});
        assert_eq!(exits(&counters), 7);
        assert_eq!(exits(&Value::Null), 0);
    }
}
