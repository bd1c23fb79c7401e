//! `husk ctl resize`: asks for a size, and returns when the guest has it.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::client::{Client, ClientError};
use super::container_list::revision;
use super::status::Status;
use crate::config::Size;

/// How often the guest is looked at.
const POLL: Duration = Duration::from_millis(10);

/// A size that is asked for. What is absent stays as it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetSize {
    /// vCPUs that are to be on-line, 1 or more; `None`: as before.
    pub vcpus: Option<u32>,
    /// RAM in all in bytes, boot RAM included; `None`: as before.
    pub memory_bytes: Option<u64>,
    /// Bytes that the balloon is to take from the guest; `None`: as before.
    pub balloon_bytes: Option<u64>,
}

/// Why the size is not there.
#[derive(Debug, thiserror::Error)]
pub enum ResizeError {
    /// It was not asked for, or there was no answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest did not take it.
    #[error("the guest refused: {0}")]
    Refused(String),
    /// Another size has been asked for meanwhile.
    #[error("another size has been asked for meanwhile")]
    Superseded,
    /// It did not come in time.
    #[error("not there within {seconds} s: {missing}{hint}")]
    Late {
        /// How long it was given.
        seconds: f64,
        /// What is, and what should be.
        missing: String,
        /// What the last answer says of it.
        hint: String,
    },
}

/// Asks for `wanted`, and waits until vCPUs and memory are there, for `wait` at most; for husk's
/// answer alone if that is nothing, or if there is no guest to wait for.
///
/// # Errors
/// The size is refused, not there in time, or no longer wanted by whoever asked last.
pub fn resize(client: &mut Client, wanted: TargetSize, wait: Duration) -> Result<Status, ResizeError> {
    resize_of(client, wanted, wait, None)
}

/// As [`resize`]; if `wanted` was made of a list of containers, asked for and waited for only as long as
/// `list` is the revision of that.
pub(super) fn resize_of(
    client: &mut Client,
    wanted: TargetSize,
    wait: Duration,
    list: Option<u64>,
) -> Result<Status, ResizeError> {
    let runs = matches!(state(client)?.as_str(), "Running" | "Paused");
    let before = Status::ask(client)?;
    let (begin, body) = (Instant::now(), wanted.body(list));
    if wait.is_zero() {
        client.put("vm.resize", Some(&body))?;
    } else {
        // What husk waits for the guest is a part of it.
        client.put_within("vm.resize", Some(&body), wait)?;
    }
    loop {
        let now = Status::ask(client)?;
        if wait.is_zero() || !runs || wanted.missing(&before, &now).is_none() {
            return Ok(now);
        }
        if let Some(list) = list
            && revision(client)? != list
        {
            return Err(ResizeError::Superseded);
        }
        let said = now.last.clone().unwrap_or_default().what.unwrap_or_default();
        // What is refused is not asked for any more either.
        if let Some(refused) = wanted.refused(&before, &now) {
            return Err(ResizeError::Refused(refused));
        }
        if wanted.is_superseded(&now) {
            return Err(ResizeError::Superseded);
        }
        if begin.elapsed() >= wait {
            return Err(ResizeError::Late {
                seconds: wait.as_secs_f64(),
                missing: wanted.missing(&before, &now).unwrap_or_default(),
                hint: if said.is_empty() { said } else { format!(" ({said})") },
            });
        }
        thread::sleep(POLL);
    }
}

/// `Created`, `Running`, `Paused` or `Shutdown`.
///
/// # Errors
/// There is no VM, or no answer.
pub fn state(client: &mut Client) -> Result<String, ClientError> {
    let info = client.get("vm.info")?;
    Ok(info["state"].as_str().unwrap_or_default().to_owned())
}

impl TargetSize {
    fn body(self, list: Option<u64>) -> Value {
        let fields = [
            ("desired_vcpus", self.vcpus.map(u64::from)),
            ("desired_ram", self.memory_bytes),
            ("desired_balloon", self.balloon_bytes),
            ("containers_revision", list),
        ];
        let wanted = fields.into_iter().filter_map(|(name, value)| Some((name, value?)));
        let wanted: Map<String, Value> = wanted.map(|(name, value)| (name.to_owned(), json!(value))).collect();
        wanted.into()
    }

    /// Whether somebody has asked for another number of vCPUs, or another size of memory or balloon.
    fn is_superseded(self, now: &Status) -> bool {
        let vcpus = self.vcpus.zip(now.vcpus.desired);
        let memory = self.memory_bytes.zip(now.memory.asked_bytes);
        let balloon = now.memory.balloon.and_then(|balloon| balloon.asked_bytes);
        let differs = |asked: Option<(u64, u64)>| asked.is_some_and(|(wanted, asked)| wanted != asked);
        vcpus.is_some_and(|(wanted, desired)| wanted != desired)
            || differs(memory)
            || differs(self.balloon_bytes.zip(balloon))
    }

    /// What has been refused of this, and not of what another client has asked for.
    fn refused(self, before: &Status, now: &Status) -> Option<String> {
        let kinds = [("vcpus", self.vcpus.is_some()), ("memory", self.memory_bytes.is_some())];
        let refused: Vec<&str> = kinds
            .into_iter()
            .filter(|(_, is_asked)| *is_asked)
            .flat_map(|(kind, _)| now.refusals(kind).unwrap_or_default())
            .collect();
        if !refused.is_empty() {
            return Some(refused.join(", "));
        }
        // A husk that does not say what it was.
        let is_untold = kinds.iter().all(|(kind, _)| now.refusals(kind).is_none());
        let is_new = now.outcome() == Some("refused") && now.raw["last"] != before.raw["last"];
        (is_untold && is_new).then(|| now.last.clone().unwrap_or_default().what.unwrap_or_default())
    }

    /// Whether the vCPUs are there and the memory at least.
    fn has_its_memory(self, now: &Status) -> bool {
        let vcpus = self.vcpus.and_then(|wanted| missing_vcpus(wanted, now));
        vcpus.is_none() && self.has_room(now)
    }

    /// Whether as many vCPUs and as much memory are there, or more.
    fn has_room(self, now: &Status) -> bool {
        let online = now.vcpus.online.or(now.vcpus.present);
        let vcpus = self.vcpus.zip(online);
        let memory = self.memory_bytes.zip(now.memory.present_bytes);
        vcpus.is_none_or(|(wanted, online)| online >= wanted)
            && memory.is_none_or(|(wanted, present)| present >= wanted)
    }

    /// Whether `error` is about what the guest has kept, and `now` has all that is wanted. vCPUs may be taken back
    /// late, and are waited for; once the guest has refused, they stay.
    pub(super) fn is_there_despite(self, error: &ResizeError, now: &Status) -> bool {
        match error {
            ResizeError::Late { .. } => self.has_its_memory(now),
            ResizeError::Refused(_) => self.has_room(now),
            ResizeError::Client(error) => error.status() == Some(500) && self.has_room(now),
            ResizeError::Superseded => false,
        }
    }

    /// What is not there yet. What a husk does not tell is taken to be there: it has granted it.
    fn missing(self, before: &Status, now: &Status) -> Option<String> {
        let vcpus = self.vcpus.and_then(|wanted| missing_vcpus(wanted, now));
        let memory = self.memory_bytes.and_then(|wanted| missing_memory(wanted, before, now));
        let balloon = self.balloon_bytes.and_then(|wanted| {
            let actual = now.memory.balloon?.actual_bytes?;
            (actual != wanted).then(|| format!("{} of {} in the balloon", Size(actual), Size(wanted)))
        });
        let missing: Vec<String> = [vcpus, memory, balloon].into_iter().flatten().collect();
        (!missing.is_empty()).then(|| missing.join(", "))
    }
}

/// They have to be the guest's, and started there: a processor that never was is none for a container.
fn missing_vcpus(wanted: u32, now: &Status) -> Option<String> {
    let present = now.vcpus.present.unwrap_or(wanted);
    let online = now.vcpus.online.unwrap_or(present);
    (present != wanted || online != wanted)
        .then(|| format!("{wanted} vCPUs asked for, {present} present, {online} started"))
}

/// More memory has to be all there. Less may be more than was asked for, if the guest has been
/// heard: not all memory can be given back.
fn missing_memory(wanted: u64, before: &Status, now: &Status) -> Option<String> {
    let present = now.memory.present_bytes?;
    let grows = before.memory.present_bytes.is_none_or(|before| wanted > before);
    let done = if grows {
        present >= wanted
    } else {
        present <= wanted || now.has_heard_of_memory(wanted)
    };
    (!done).then(|| format!("{} of memory asked for, {} present", Size(wanted), Size(present)))
}

#[cfg(test)]
#[path = "resize_test.rs"]
mod tests;
