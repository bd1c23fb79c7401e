//! What the kernel says of the control group that husk is in and its memory (cgroup v2,
//! `memory.events`), and of those around it (`memory.events.local`).

use std::fs::{self, File};
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::events::Events;
use crate::memory::read_from_start;
use crate::procfs;

/// How long nothing is said of pressure that goes on.
const QUIET: Duration = Duration::from_secs(60);

/// How often each has happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    /// The group was slowed down for being above `memory.high`.
    high: u64,
    /// It was about to exceed `memory.max`.
    max: u64,
    /// That ended in a lack of memory.
    oom: u64,
    /// A process of it was killed, for its own group's limit or another one.
    oom_kill: u64,
}

/// The file, and what of it has been told.
#[derive(Debug)]
pub(super) struct MemoryEvents {
    file: File,
    known: Counts,
    /// From the nearest to the farthest.
    around: Vec<Around>,
    quiet_until: Option<Instant>,
}

/// A group around that of this process.
#[derive(Debug)]
struct Around {
    name: String,
    /// What happened for its own limit, and not for one of a group in it.
    file: File,
    oom: u64,
}

impl Around {
    /// `group` is its path from the root, in the hierarchy at `root`; the root of all has no limit.
    fn open(root: &Path, group: &Path) -> Option<Self> {
        let inside = group.strip_prefix("/").ok()?;
        let file = File::open(root.join(inside).join("memory.events.local")).ok()?;
        let mut around = Self {
            name: group.display().to_string(),
            file,
            oom: 0,
        };
        around.is_new();
        Some(around)
    }

    /// Whether its limit has led to a lack of memory since the last look.
    fn is_new(&mut self) -> bool {
        let Ok(text) = read_from_start(&self.file) else {
            return false;
        };
        let oom = Counts::parse(&text).oom;
        oom > std::mem::replace(&mut self.oom, oom)
    }
}

impl MemoryEvents {
    /// That of the group of this process, if there is one; what was before is not told.
    pub(super) fn open() -> Option<Self> {
        let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mut groups = groups.lines().filter_map(procfs::control_group);
        let (_, group) = groups.find(|(controllers, _)| controllers.is_empty())?;
        Self::of(Path::new("/sys/fs/cgroup"), Path::new(group))
    }

    /// That of `group` in the hierarchy at `root`.
    fn of(root: &Path, group: &Path) -> Option<Self> {
        let file = File::open(root.join(group.strip_prefix("/").ok()?).join("memory.events")).ok()?;
        let around = group.ancestors().skip(1);
        Some(Self {
            known: Counts::parse(&read_from_start(&file).ok()?),
            file,
            around: around.filter_map(|group| Around::open(root, group)).collect(),
            quiet_until: None,
        })
    }

    /// Tells `events` what has happened since the last look.
    pub(super) fn look(&mut self, events: &Events, now: Instant) {
        let Ok(text) = read_from_start(&self.file) else {
            return;
        };
        let (new, old) = (Counts::parse(&text), self.known);
        let (oom, oom_kill) = (
            new.oom.saturating_sub(old.oom),
            new.oom_kill.saturating_sub(old.oom_kill),
        );
        // All of them: what is old by the next look explains nothing then.
        let mut met: Vec<&str> = Vec::new();
        for around in &mut self.around {
            if around.is_new() {
                met.push(&around.name);
            }
        }
        if oom > 0 || oom_kill > 0 {
            // A kill that the group's own limit did not ask for was asked for by one around it, or
            // by the host's lack of memory.
            let (limit, group) = match met.first() {
                _ if oom > 0 => ("own", None),
                group => ("outside", group.copied()),
            };
            let whose = group.map_or_else(|| limit.into(), |group| format!("{limit}, that of {group}"));
            log::error!("out of memory: {oom_kill} processes of the control group were killed (limit: {whose})");
            let properties = [
                ("limit", Value::from(limit)),
                ("group", group.into()),
                ("oom", oom.into()),
                ("oom_kill", oom_kill.into()),
            ];
            events.emit_with("host", "out-of-memory", properties);
            (self.known.oom, self.known.oom_kill) = (new.oom, new.oom_kill);
        }
        let (high, max) = (new.high.saturating_sub(old.high), new.max.saturating_sub(old.max));
        if (high > 0 || max > 0) && self.quiet_until.is_none_or(|until| until <= now) {
            events.emit_with("host", "memory-pressure", [("high", high.into()), ("max", max.into())]);
            (self.known.high, self.known.max) = (new.high, new.max);
            self.quiet_until = Some(now + QUIET);
        }
    }
}

impl Counts {
    fn parse(text: &str) -> Self {
        let mut counts = Self::default();
        for line in text.lines() {
            let Some((name, Ok(value))) = line.split_once(' ').map(|(name, value)| (name, value.trim().parse())) else {
                continue;
            };
            match name {
                "high" => counts.high = value,
                "max" => counts.max = value,
                "oom" => counts.oom = value,
                "oom_kill" => counts.oom_kill = value,
                _ => {}
            }
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_new_is_told_with_whose_limit_it_was() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("pods/one/vmm")).unwrap();
        let write = |path: &str, text: &str| fs::write(folder.path().join(path), text).unwrap();
        let say = |text: &str| write("pods/one/vmm/memory.events", text);
        let say_of_pod = |oom: u64| {
            write(
                "pods/one/memory.events.local",
                &format!("max 9\noom {oom}\noom_kill 0\n"),
            )
        };
        say("low 0\nhigh 5\nmax 7\noom 1\noom_kill 1\noom_group_kill 0\n");
        say_of_pod(3);
        let mut watched = MemoryEvents::of(folder.path(), Path::new("/pods/one/vmm")).unwrap();
        let (events, now) = (Events::new(), Instant::now());
        let reader = events.subscribe().unwrap();
        let told = || -> Vec<(Value, Value)> {
            let text = String::from_utf8(reader.take()).unwrap();
            let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            lines
                .filter(|event| event["source"] == "host")
                .map(|event| (event["event"].clone(), event["properties"].clone()))
                .collect()
        };
        watched.look(&events, now);
        assert_eq!(told(), []);
        say("high 6\nmax 9\noom 2\noom_kill 3\n");
        watched.look(&events, now);
        assert_eq!(
            told(),
            [
                (
                    json!("out-of-memory"),
                    json!({"limit": "own", "group": null, "oom": 1, "oom_kill": 2})
                ),
                (json!("memory-pressure"), json!({"high": 1, "max": 2})),
            ]
        );
        // For another one in the pod: nothing to tell.
        say_of_pod(4);
        watched.look(&events, now);
        assert_eq!(told(), []);
        say("high 8\nmax 9\noom 2\noom_kill 4\n");
        watched.look(&events, now + QUIET / 2);
        assert_eq!(
            told(),
            [(
                json!("out-of-memory"),
                json!({"limit": "outside", "group": null, "oom": 0, "oom_kill": 1})
            )]
        );
        say_of_pod(5);
        say("high 8\nmax 9\noom 2\noom_kill 6\n");
        watched.look(&events, now + QUIET / 2);
        assert_eq!(
            told(),
            [(
                json!("out-of-memory"),
                json!({"limit": "outside", "group": "/pods/one", "oom": 0, "oom_kill": 2})
            )]
        );
        watched.look(&events, now + QUIET);
        assert_eq!(told(), [(json!("memory-pressure"), json!({"high": 2, "max": 0}))]);
        say("nonsense\nhigh x\n");
        watched.look(&events, now + 3 * QUIET);
        assert_eq!(told(), []);
    }
}
