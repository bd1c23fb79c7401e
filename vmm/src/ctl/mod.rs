//! `husk ctl`: a client of the API socket, for people and for scripts.
//!
//! One process asks over one connection ([`client`]), says what came of it as a table or as JSON
//! ([`show`]), and ends. A size is waited for ([`resize`]), events are followed ([`events`]), and a
//! container's comes from its `config.json` ([`containers`]).

pub mod client;
mod client_error;
mod container_list;
pub mod containers;
pub mod dial;
pub mod events;
pub mod lines;
mod request_in_flight;
pub mod resize;
pub mod show;
pub mod status;

#[cfg(test)]
pub(crate) mod testing;

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use self::client::{Client, ClientError};
use self::containers::{Container, ContainerError};
use self::resize::{ResizeError, TargetSize};
use self::status::Status;
use crate::control::{ADD_DEADLINE, BUILD_DEADLINE};
use crate::pod::{Node, PodError, Policy, Spec};
use crate::regular_file::{self, RegularFileError};

/// What a husk is asked.
#[derive(Clone, Debug)]
pub enum Request {
    /// The VM's state, size and devices.
    Info,
    /// Who is there.
    Ping,
    /// Hold the guest.
    Pause,
    /// Let it go on.
    Resume,
    /// End the VM, and husk with it unless told otherwise.
    Shutdown {
        /// Whether husk stays.
        keep: bool,
    },
    /// What the devices have counted.
    Counters,
    /// Where driver and device stand in each virtqueue.
    Queues,
    /// Figures for Prometheus.
    Metrics,
    /// What has happened, as far as husk has kept it.
    Events,
    /// Which lines husk logs.
    LogLevel,
    /// Configure a VM as this file says.
    Create(PathBuf),
    /// Have something done: `PUT` of this name, with this body.
    Do(&'static str, Option<Value>),
    /// Another size.
    Resize {
        /// The size; what is absent stays as it is.
        wanted: TargetSize,
        /// How long to wait for it.
        wait: Duration,
    },
    /// About one container.
    Container {
        /// Its id.
        id: String,
        /// What of it.
        action: Action,
        /// How long to wait for the size.
        wait: Duration,
    },
    /// All containers.
    List,
}

/// What becomes of a container.
#[derive(Clone, Debug)]
pub enum Action {
    /// It comes.
    Add(PathBuf, Policy),
    /// Its limits change.
    Update(PathBuf, Policy),
    /// It has ended.
    Remove,
}

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CtlError {
    /// A file that says what cannot be.
    #[error("container {}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PodError,
    },
    /// A description that cannot be read.
    #[error("{}", .path.display())]
    Description {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DescriptionError,
    },
    /// No answer, or a refusal.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The size.
    #[error(transparent)]
    Resize(#[from] ResizeError),
    /// The container.
    #[error(transparent)]
    Container(#[from] ContainerError),
}

/// Why the description of a VM cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// The file.
    #[error(transparent)]
    File(#[from] RegularFileError),
    /// What is in it.
    #[error("is no JSON")]
    Json(#[from] serde_json::Error),
}

/// The most bytes of a description of a VM that are read. husk says what is too long for it.
const DESCRIPTION_BYTES: u64 = 4 << 20;

/// How long an answer takes at most that husk has at hand.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How long an answer to `request` may take: as long as husk itself gives what it is asked for, and
/// [`PATIENCE`] on top.
pub fn patience(request: &Request) -> Duration {
    let own = match request {
        Request::Do("vm.boot" | "vm.reboot", _) => BUILD_DEADLINE,
        Request::Do(name, _) if name.starts_with("vm.add-") => ADD_DEADLINE,
        _ => Duration::ZERO,
    };
    own + PATIENCE
}

/// Asks the husk that serves `socket`, and returns what to print. `patience` is what each answer is given.
///
/// # Errors
/// A wrong file, before anything is asked; a refusal; no answer.
pub fn ask(socket: &Path, request: &Request, patience: Duration, as_json: bool) -> Result<String, CtlError> {
    let container = match request {
        Request::Container {
            action: Action::Add(path, policy) | Action::Update(path, policy),
            ..
        } => Some(read(path, policy)?),
        _ => None,
    };
    let description = match request {
        Request::Create(path) => Some(described(path)?),
        _ => None,
    };
    let client = &mut Client::connect(socket, patience)?;
    let (value, table): (Value, String) = match request {
        Request::Info => {
            let answer = client.get("vm.info")?;
            let table = if as_json {
                String::new()
            } else {
                show::info(&answer, &Status::ask(client)?)
            };
            (answer, table)
        }
        Request::Ping => both(client.get("vmm.ping")?, show::ping),
        Request::Counters => both(client.get("vm.counters")?, show::counters),
        Request::Queues => both(client.get("vm.queues")?, show::queues),
        Request::LogLevel => both(client.get("vmm.log-level")?, show::log_level),
        Request::Metrics => return Ok(client.get_text("vmm.metrics")?),
        Request::Events => return past(socket, patience, as_json),
        Request::Create(_) => return done(client.put("vm.create", description.as_ref())?),
        Request::Do(name, body) => match client.put(name, body.as_ref())? {
            Value::Null => return Ok(String::new()),
            answer => both(answer, show::added),
        },
        Request::Pause => return done(client.put("vm.pause", None)?),
        Request::Resume => return done(client.put("vm.resume", None)?),
        Request::Shutdown { keep: true } => return done(client.put("vm.shutdown", None)?),
        Request::Shutdown { keep: false } => return done(client.put("vmm.shutdown", None)?),
        Request::Resize { wanted, wait } => sized(resize::resize(client, *wanted, *wait)?),
        Request::List => containers::list(client)?,
        Request::Container { id, action, wait } => sized(match (action, &container) {
            (Action::Add(..), Some(container)) => containers::add(client, id, container, *wait)?,
            (Action::Update(..), Some(container)) => containers::update(client, id, container, *wait)?,
            _ => containers::remove(client, id, *wait)?,
        }),
    };
    Ok(if as_json { show::json(&value) } else { table })
}

impl CtlError {
    /// Whether what was asked could not have been answered by any husk: a file that was read says
    /// what cannot be, or is none that says anything.
    pub fn is_usage(&self) -> bool {
        match self {
            Self::File { source, .. } => source.is_read(),
            Self::Description { source, .. } => !matches!(source, DescriptionError::File(RegularFileError::Read(_))),
            _ => false,
        }
    }
}

fn read(path: &Path, policy: &Policy) -> Result<Container, CtlError> {
    let spec = Spec::read(path).map_err(PodError::from);
    let container = spec.and_then(|spec| Container::new(spec, policy, Node::of(Path::new("/"))));
    container.map_err(|source| CtlError::File {
        path: path.into(),
        source,
    })
}

fn described(path: &Path) -> Result<Value, CtlError> {
    let text = regular_file::read(path, DESCRIPTION_BYTES).map_err(DescriptionError::from);
    let described = text.and_then(|text| Ok(serde_json::from_slice(&text)?));
    described.map_err(|source| CtlError::Description {
        path: path.into(),
        source,
    })
}

fn past(socket: &Path, patience: Duration, as_json: bool) -> Result<String, CtlError> {
    let past = events::past(socket, patience)?.into_iter().map(|event| event.value);
    Ok(if as_json {
        show::json(&Value::Array(past.collect()))
    } else {
        past.map(|event| events::row(&event)).collect()
    })
}

/// Nothing more to say.
fn done(_: Value) -> Result<String, CtlError> {
    Ok(String::new())
}

fn both(answer: Value, table: fn(&Value) -> String) -> (Value, String) {
    let table = table(&answer);
    (answer, table)
}

fn sized(status: Status) -> (Value, String) {
    let table = show::size(&status);
    (status.raw, table)
}
