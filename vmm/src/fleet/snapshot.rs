//! What is known of one husk at one moment: what it says, and what the kernel says of it.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::time::Duration;

use super::process::{HuskProcess, KnownArguments};
use crate::ctl::client::{Client, ClientError};
use crate::ctl::status::Status;
use crate::procfs;

/// The state of a husk of which the kernel does not say what it was started with.
const UNREADABLE: &str = "unreadable";

/// One husk at one moment: what its API says, and what `/proc` says.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The process that was looked at.
    pub husk: HuskProcess,
    /// What it says of itself.
    pub reported: ReportedState,
    /// Memory that it has resident, guest RAM included, in bytes.
    pub resident: Option<u64>,
    /// What of it is no guest RAM: anonymous memory of husk's own, and page tables.
    pub overhead: Option<u64>,
}

/// What a husk says of itself.
#[derive(Clone, Debug, Default)]
pub struct ReportedState {
    /// `Running` and so on as `vm.info` has it, or why there is no such word: `no VM`, `no answer`, …
    pub state: String,
    /// The version.
    pub version: Option<String>,
    /// vCPUs and memory.
    pub size: Option<Status>,
    /// RAM that was asked for, in bytes.
    pub configured: Option<u64>,
    /// RAM that the guest has, in bytes.
    pub plugged: Option<u64>,
    /// Whether guest RAM is shared.
    pub shared: bool,
}

impl Snapshot {
    /// One of `husk`, which has `reported` that of itself.
    pub(super) fn new(husk: HuskProcess, reported: ReportedState, overhead: Option<u64>) -> Self {
        let names = ["RssAnon:", "RssShmem:", "RssFile:"];
        let resident = names.iter().map(|name| husk.status_bytes(name)).sum();
        Self {
            husk,
            reported,
            resident,
            overhead,
        }
    }
}

impl ReportedState {
    /// Of one that has not said anything in time.
    pub(super) fn silent(husk: &HuskProcess) -> Self {
        Self {
            state: husk.silence().into(),
            ..Self::default()
        }
    }

    /// Asks `husk`, which is given `patience` for each of three answers.
    pub(super) fn query(husk: &HuskProcess, patience: Duration) -> Self {
        let mut reported = Self::default();
        let Some(socket) = &husk.reachable_socket() else {
            let why = match husk.known {
                KnownArguments::None => UNREADABLE,
                KnownArguments::All | KnownArguments::Beginning => "no API",
            };
            return Self {
                state: why.into(),
                ..reported
            };
        };
        let answered = Client::connect(socket, patience).and_then(|mut client| reported.fill(husk, &mut client));
        if let Err(error) = answered {
            let silent = matches!(error, ClientError::Silent { .. } | ClientError::Busy { .. });
            let why = if silent { husk.silence() } else { "unreachable" };
            // What the API's thread has said is still so when the VM's owner does not answer.
            let state = std::mem::take(&mut reported.state);
            reported.state = if state.is_empty() {
                why.into()
            } else {
                format!("{state}, {why}")
            };
        }
        reported
    }

    /// Asks for one thing after the other; what has been answered is kept, whatever comes of the rest.
    fn fill(&mut self, husk: &HuskProcess, client: &mut Client) -> Result<(), ClientError> {
        let pong = client.get("vmm.ping")?;
        if pong["pid"].as_u64() != Some(husk.own_pid.into()) {
            // A socket of this name in another namespace, or of another VMM.
            return Err(ClientError::Nonsense {
                request: "vmm.ping".into(),
                what: "that of another process".into(),
            });
        }
        self.version = pong["version"].as_str().map(str::to_owned);
        let info = match client.get("vm.info") {
            Err(error) if error.status() == Some(404) => {
                self.state = "no VM".into();
                return Ok(());
            }
            info => info?,
        };
        self.state = info["state"].as_str().unwrap_or("?").to_owned();
        let memory = &info["config"]["memory"];
        self.configured = memory["size"].as_u64();
        self.plugged = info["memory_actual_size"].as_u64();
        self.shared = memory["shared"].as_bool().unwrap_or(false);
        self.size = Some(Status::ask(client)?);
        Ok(())
    }
}

/// Anonymous memory that is not the guest's, in bytes, of a text like `/proc/PID/smaps`; `None`
/// where the kernel does not say which is the guest's.
fn own_anonymous(maps: impl BufRead) -> Option<u64> {
    let own = procfs::beside_guest(maps, &["Anonymous:"]).ok()?;
    own.has_guest.then_some(own.bytes)
}

/// What of the memory of `husk` is no guest RAM, in bytes: anonymous memory of its own, and page
/// tables. Where guest RAM is not `shared`, the kernel walks all its mappings for that, and waits
/// until they can be.
pub(super) fn overhead(husk: &HuskProcess, shared: bool) -> Option<u64> {
    let own = if shared {
        husk.status_bytes("RssAnon:")?
    } else {
        own_anonymous(BufReader::new(File::open(husk.folder.join("smaps")).ok()?))?
    };
    Some(own.saturating_add(husk.status_bytes("VmPTE:")?))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use rustix::fs::{CWD, FileType, Mode};
    use serde_json::{Value, json};

    use super::super::{process, take_snapshots};
    use super::*;
    use crate::ctl::testing::{PATIENCE, Reply, Server};

    /// This process, as if it were a husk that serves `socket`.
    fn husk(socket: Option<PathBuf>) -> HuskProcess {
        HuskProcess {
            socket,
            ..HuskProcess::sample()
        }
    }

    fn state(husk: HuskProcess, patience: Duration) -> String {
        ReportedState::query(&husk, patience).state
    }

    /// Nobody writes into a FIFO: whoever reads from it waits, as for a process whose memory is locked.
    #[test]
    fn memory_that_the_kernel_does_not_tell_of_keeps_nobody_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(
            path("status"),
            "RssAnon: 1 kB\nRssShmem: 2 kB\nRssFile: 3 kB\nVmPTE: 4 kB\n",
        )
        .unwrap();
        let smaps = path("smaps");
        rustix::fs::mknodat(CWD, &smaps, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let hanging = HuskProcess {
            pid: u32::MAX,
            folder: folder.path().to_owned(),
            ..husk(None)
        };
        let looked_at = |patience| take_snapshots(std::slice::from_ref(&hanging), patience).remove(0);
        let seen = |snapshot: &Snapshot| (snapshot.resident, snapshot.overhead);
        assert_eq!(seen(&looked_at(Duration::from_millis(10))), (Some(6 << 10), None));
        // The thread from before is still there. Another would be waited for.
        let again = looked_at(Duration::from_secs(3600));
        assert_eq!(
            (again.reported.state.as_str(), seen(&again)),
            ("no API", (Some(6 << 10), None))
        );
        drop(File::options().write(true).open(smaps).unwrap());
    }

    fn answer(request: &str) -> Reply {
        match request {
            "GET vmm.ping" => Reply::Answer(200, json!({"pid": std::process::id(), "version": "1"})),
            "GET vm.info" => Reply::Answer(
                200,
                json!({
                    "state": "Running", "memory_actual_size": 5,
                    "config": {"memory": {"size": 7, "shared": true}},
                }),
            ),
            _ => Reply::Answer(200, json!({"vcpus": {"present": 2, "online": 1}})),
        }
    }

    #[test]
    fn what_a_husk_says_is_shown_beside_what_the_kernel_says() {
        let server = Server::new(|request, _| answer(request));
        let snapshot = take_snapshots(&[husk(Some(server.socket()))], PATIENCE).remove(0);
        assert_eq!(snapshot.reported.state, "Running");
        assert_eq!(
            (snapshot.reported.configured, snapshot.reported.plugged),
            (Some(7), Some(5))
        );
        let vcpus = snapshot.reported.size.unwrap().vcpus;
        assert_eq!((vcpus.present, vcpus.online), (Some(2), Some(1)));
        assert!(snapshot.resident.unwrap() > snapshot.overhead.unwrap() && snapshot.overhead.unwrap() > 0);
    }

    #[test]
    fn whoever_says_nothing_or_is_another_is_shown_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let _listener = UnixListener::bind(&socket).unwrap();
        let brief = Duration::from_millis(50);
        assert_eq!(state(husk(Some(socket.clone())), brief), "no answer");
        let stopped = HuskProcess {
            state: 'T',
            ..husk(Some(socket))
        };
        assert_eq!(state(stopped, brief), "stopped");
        assert_eq!(state(husk(Some("/nowhere/s".into())), brief), "unreachable");
        assert_eq!(state(husk(None), brief), "no API");
        let other = Server::new(|_, _| Reply::Answer(200, json!({"pid": 1})));
        assert_eq!(state(husk(Some(other.socket())), PATIENCE), "unreachable");
        let empty = Server::new(|request, _| match request {
            "GET vm.info" => Reply::Answer(404, Value::Null),
            request => answer(request),
        });
        assert_eq!(state(husk(Some(empty.socket())), PATIENCE), "no VM");
    }

    #[test]
    fn guest_memory_is_no_overhead() {
        let maps = "7f0-7f1 rw-p 00000000 00:00 0   [anon:guest-ram]\nAnonymous:   4096 kB\nVmFlags: rd\n\
                    7f1-7f2 rw-s 00000000 00:01 9   /memfd:guest-dimm (deleted)\nAnonymous:    8 kB\n\
                    55a-55b rw-p 00000000 00:00 0   [heap]\nRss:  99 kB\nAnonymous:     20 kB\n\
                    ff0-ff1 rw-p 00000000 00:00 0 \nAnonymous:      4 kB\n";
        assert_eq!(own_anonymous(maps.as_bytes()), Some(24 << 10));
        let others: &[u8] = b"55a-55b rw-p 0 00:00 0 [heap]\nAnonymous: 20 kB\n";
        assert_eq!(own_anonymous(others), None);
        assert!(process::all(Path::new("/nowhere"), PATIENCE).is_empty());
    }
}
