//! What is known of one husk at one moment: what it says, and what the kernel says of it.

use std::fs;
use std::time::Duration;

use super::process::HuskProcess;
use crate::ctl::client::{Client, ClientError};
use crate::ctl::status::Status;
use crate::procfs;

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
    /// Looks at `husk`, which is given `patience` for each of three answers.
    pub fn take(husk: HuskProcess, patience: Duration) -> Self {
        let reported = ReportedState::query(&husk, patience);
        let sum = |names: &[&str]| names.iter().map(|name| husk.status_bytes(name)).sum::<Option<u64>>();
        let resident = sum(&["RssAnon:", "RssShmem:", "RssFile:"]);
        let own = if reported.shared {
            husk.status_bytes("RssAnon:")
        } else {
            let maps = fs::read_to_string(husk.folder.join("smaps"));
            maps.ok().and_then(|maps| own_anonymous(&maps))
        };
        let overhead = own.and_then(|own| Some(own.saturating_add(husk.status_bytes("VmPTE:")?)));
        Self {
            husk,
            reported,
            resident,
            overhead,
        }
    }
}

impl ReportedState {
    fn query(husk: &HuskProcess, patience: Duration) -> Self {
        let mut reported = Self::default();
        let Some(socket) = &husk.reachable_socket() else {
            return Self {
                state: "no API".into(),
                ..reported
            };
        };
        let answered = Client::connect(socket, patience).and_then(|mut client| reported.fill(husk, &mut client));
        if let Err(error) = answered {
            let silent = matches!(error, ClientError::Silent { .. } | ClientError::Busy { .. });
            let why = match (husk.state, silent) {
                ('T' | 't', true) => "stopped",
                (_, true) => "no answer",
                (_, false) => "unreachable",
            };
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

/// Anonymous memory that is not the guest's, in bytes, of a text like `/proc/PID/smaps`; `None` where the kernel does not say which is
/// the guest's.
fn own_anonymous(maps: &str) -> Option<u64> {
    let own = procfs::beside_guest(maps, &["Anonymous:"]);
    own.has_guest.then_some(own.bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::super::process;
    use super::*;
    use crate::ctl::testing::{PATIENCE, Reply, Server};

    /// This process, as if it were a husk that serves `socket`.
    fn husk(socket: Option<PathBuf>) -> HuskProcess {
        HuskProcess {
            socket,
            ..HuskProcess::sample()
        }
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
        let snapshot = Snapshot::take(husk(Some(server.socket())), PATIENCE);
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
        let state = |husk: HuskProcess| Snapshot::take(husk, brief).reported.state;
        assert_eq!(state(husk(Some(socket.clone()))), "no answer");
        let stopped = HuskProcess {
            state: 'T',
            ..husk(Some(socket))
        };
        assert_eq!(state(stopped), "stopped");
        assert_eq!(state(husk(Some("/nowhere/s".into()))), "unreachable");
        assert_eq!(state(husk(None)), "no API");
        let other = Server::new(|_, _| Reply::Answer(200, json!({"pid": 1})));
        assert_eq!(
            Snapshot::take(husk(Some(other.socket())), PATIENCE).reported.state,
            "unreachable"
        );
        let empty = Server::new(|request, _| match request {
            "GET vm.info" => Reply::Answer(404, Value::Null),
            request => answer(request),
        });
        assert_eq!(
            Snapshot::take(husk(Some(empty.socket())), PATIENCE).reported.state,
            "no VM"
        );
    }

    #[test]
    fn guest_memory_is_no_overhead() {
        let maps = "7f0-7f1 rw-p 00000000 00:00 0   [anon:guest-ram]\nAnonymous:   4096 kB\nVmFlags: rd\n\
                    7f1-7f2 rw-s 00000000 00:01 9   /memfd:guest-dimm (deleted)\nAnonymous:    8 kB\n\
                    55a-55b rw-p 00000000 00:00 0   [heap]\nRss:  99 kB\nAnonymous:     20 kB\n\
                    ff0-ff1 rw-p 00000000 00:00 0 \nAnonymous:      4 kB\n";
        assert_eq!(own_anonymous(maps), Some(24 << 10));
        assert_eq!(own_anonymous("55a-55b rw-p 0 00:00 0 [heap]\nAnonymous: 20 kB\n"), None);
        assert!(process::all(Path::new("/nowhere")).is_empty());
    }
}
