//! Which request is which command.

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::command::{Command, NewDevice};
use super::error::{ApiError, Kind};
use super::http::{BODY_BYTES, Message, Method};
use super::info::Info;
use super::passed::PassedFd;
use super::response::Response;
use crate::config::fields::{self, Shape, Unknown};
use crate::config::json as body;
use crate::events::Events;
use crate::log;
use crate::metrics;

const ROOT: &str = "/api/v1/";
/// Where Prometheus looks, unless it is told otherwise.
const METRICS: &str = "/metrics";
/// The same beside the rest of the API.
const VMM_METRICS: &str = "vmm.metrics";

/// What becomes of a request.
pub(super) enum Routed {
    /// It is answered at once.
    Answer(Response),
    /// It is for the owner of the machine.
    Command(Command),
}

impl Routed {
    /// Whether the request's body could be used.
    pub(super) fn is_understood(&self) -> bool {
        match self {
            Self::Answer(response) => response.is_success(),
            Self::Command(_) => true,
        }
    }
}

/// What stands behind a path.
#[derive(Clone, Copy)]
enum Endpoint {
    Info,
    /// The events that are kept.
    PastEvents,
    /// What is answered at once, from the body alone.
    AtOnce(Method, fn(&[u8]) -> Result<Response, ApiError>),
    /// A command without a body.
    Plain(Method, fn() -> Command),
    /// A command made of the body and the descriptors.
    Full(fn(&[u8], Vec<PassedFd>) -> Result<Command, ApiError>),
    /// `vm.add-…` of this kind of device.
    Add(&'static str),
    /// An endpoint of Cloud Hypervisor's API that husk does not implement: answered with 501.
    Missing,
}

use Endpoint::{AtOnce, Full, Missing, Plain};

const ENDPOINTS: &[(&str, Endpoint)] = &[
    ("vmm.ping", AtOnce(Method::Get, |_| Ok(pong()))),
    ("vmm.log-level", AtOnce(Method::Get, |_| Ok(log_level()))),
    ("vmm.set-log-level", AtOnce(Method::Put, set_log_level)),
    (VMM_METRICS, Plain(Method::Get, || Command::Metrics)),
    ("vmm.shutdown", Plain(Method::Put, || Command::ShutdownVmm)),
    ("vm.info", Endpoint::Info),
    ("vm.events", Plain(Method::Get, || Command::Events)),
    ("vm.past-events", Endpoint::PastEvents),
    ("vm.counters", Plain(Method::Get, || Command::Counters)),
    ("vm.queues", Plain(Method::Get, || Command::Queues)),
    ("vm.containers", Plain(Method::Get, || Command::Containers)),
    (
        "vm.set-containers",
        Full(|body, _| Ok(Command::SetContainers(parse(body)?))),
    ),
    ("vm.create", Full(|body, _| Ok(Command::Create(parse(body)?)))),
    ("vm.boot", Plain(Method::Put, || Command::Boot)),
    ("vm.shutdown", Plain(Method::Put, || Command::Shutdown)),
    ("vm.delete", Plain(Method::Put, || Command::Delete)),
    ("vm.reboot", Plain(Method::Put, || Command::Reboot)),
    ("vm.power-button", Plain(Method::Put, || Command::PowerButton)),
    ("vm.pause", Plain(Method::Put, || Command::Pause)),
    ("vm.resume", Plain(Method::Put, || Command::Resume)),
    ("vm.resize-status", Plain(Method::Get, || Command::ResizeStatus)),
    ("vm.resize", Full(|body, _| Ok(Command::Resize(parse(body)?)))),
    ("vm.remove-device", Full(|body, _| remove(body))),
    ("vm.add-device", Missing),
    ("vm.add-generic-vhost-user", Missing),
    ("vm.add-user-device", Missing),
    ("vm.add-vdpa", Missing),
    ("vm.coredump", Missing),
    ("vm.nmi", Missing),
    ("vm.receive-migration", Missing),
    ("vm.resize-disk", Missing),
    ("vm.resize-zone", Missing),
    ("vm.restore", Missing),
    ("vm.send-migration", Missing),
    ("vm.snapshot", Missing),
    ("vmm.nmi", Missing),
];

/// The names of all endpoints that `GET` has.
#[cfg(test)]
pub(super) fn readable() -> impl Iterator<Item = &'static str> {
    let reads = |endpoint: &Endpoint| {
        matches!(
            endpoint,
            Endpoint::Info | AtOnce(Method::Get, _) | Plain(Method::Get, _)
        )
    };
    ENDPOINTS
        .iter()
        .filter(move |(_, endpoint)| reads(endpoint))
        .map(|(name, _)| *name)
}

/// The command or the answer to `message`, which came with `fds`. What is not used of them is closed.
pub(super) fn route(message: &Message, fds: Vec<PassedFd>, info: &Info, events: &Events) -> Routed {
    match find(message, fds, info, events) {
        Ok(routed) => routed,
        Err(error) => Routed::Answer(refusal(&message.path, &error)),
    }
}

/// The answer that tells of `error`, which is logged as well.
pub(super) fn refusal(what: &str, error: &ApiError) -> Response {
    if error.kind == Kind::Internal {
        ::log::error!("{what}: {error}");
    } else {
        ::log::info!("{what}: {error}");
    }
    Response::json(error.kind.status(), &error.chain)
}

/// The fields of a request's body that its endpoint does not have: probably misspelt.
pub(super) fn unknown_fields(message: &Message) -> Vec<Unknown> {
    let name = name(&message.path).unwrap_or_default();
    let shape = match name {
        "vm.create" => &fields::VM,
        "vm.resize" => &fields::RESIZE,
        "vm.remove-device" => &fields::REMOVE,
        "vm.set-containers" => &fields::CONTAINERS,
        "vmm.set-log-level" => &fields::LOG_LEVEL,
        _ => match kind_of(name) {
            Some((_, shape)) => shape,
            None => return Vec::new(),
        },
    };
    shape.unknown(&message.body)
}

/// The most bytes of the body of a request: what a client sends is in memory as a whole, and husk's is the pod's. Shims
/// send few KiB.
pub fn body_bytes(method: Method, path: &str) -> usize {
    let name = name(path).unwrap_or_default();
    match method {
        Method::Get | Method::Head => 0,
        // Up to 31 devices, and the numbers of a share's users are some 40 KiB where all are mapped.
        _ if name == "vm.create" => BODY_BYTES,
        _ if name == "vm.set-containers" || kind_of(name).is_some() => 64 << 10,
        _ => 4 << 10,
    }
}

/// What is asked for, as the figures have it.
pub(super) fn asked(message: &Message) -> metrics::Endpoint {
    let Some(name) = name(&message.path) else {
        return metrics::Endpoint::Unknown;
    };
    let named = ENDPOINTS.iter().find(|(known, _)| *known == name);
    let named = named.map(|(known, _)| metrics::Endpoint::Named(known));
    let added = || kind_of(name).map(|(kind, _)| metrics::Endpoint::Add(kind));
    named.or_else(added).unwrap_or(metrics::Endpoint::Unknown)
}

/// Whether somebody who may only look may ask for it.
pub(super) fn is_metrics(message: &Message) -> bool {
    name(&message.path) == Some(VMM_METRICS) && matches!(message.method, Method::Get | Method::Head)
}

/// The endpoint that a path stands for, if there can be one.
fn name(path: &str) -> Option<&str> {
    if path == METRICS {
        Some(VMM_METRICS)
    } else {
        path.strip_prefix(ROOT)
    }
}

fn find(message: &Message, fds: Vec<PassedFd>, info: &Info, events: &Events) -> Result<Routed, ApiError> {
    let name = name(&message.path);
    let Some((name, endpoint)) = name.and_then(|name| Some((name, endpoint(name)?))) else {
        return Err(ApiError::new(Kind::NotFound, format!("no such path: {}", message.path)));
    };
    let expected = match endpoint {
        Endpoint::Info | Endpoint::PastEvents => Method::Get,
        Plain(method, _) | AtOnce(method, _) => method,
        Full(_) | Endpoint::Add(_) => Method::Put,
        Missing => return Err(missing(name)),
    };
    // HEAD is GET without the body of its answer (RFC 9110 §9.3.2).
    let (fits, method, allowed) = match expected {
        Method::Get => (matches!(message.method, Method::Get | Method::Head), "GET", "GET, HEAD"),
        _ => (message.method == expected, "PUT", "PUT"),
    };
    if !fits {
        let error = ApiError::new(Kind::Method, format!("{name}: the method is {method}"));
        return Ok(Routed::Answer(refusal(&message.path, &error).allowing(allowed)));
    }
    match endpoint {
        AtOnce(_, answer) => answer(&message.body)
            .map(Routed::Answer)
            .map_err(|error| error.context(format!("{name}: the body cannot be used"))),
        Endpoint::Info => match info.get() {
            Some(info) => Ok(Routed::Answer(Response::json(200, info.as_ref()))),
            None => Err(ApiError::new(Kind::NotFound, "there is no VM: vm.create one first")),
        },
        Endpoint::PastEvents => Ok(Routed::Answer(Response::json(200, &events.past()))),
        Plain(_, command) => Ok(Routed::Command(command())),
        Full(command) => command(&message.body, fds)
            .map(Routed::Command)
            .map_err(|error| error.context(format!("{name}: the body cannot be used"))),
        Endpoint::Add(kind) => add(kind, &message.body, fds)
            .map(Routed::Command)
            .map_err(|error| error.context(format!("{name}: the body cannot be used"))),
        Missing => Err(missing(name)),
    }
}

fn endpoint(name: &str) -> Option<Endpoint> {
    let known = ENDPOINTS.iter().find(|(known, _)| *known == name);
    let known = known.map(|(_, endpoint)| *endpoint);
    known.or_else(|| kind_of(name).map(|(kind, _)| Endpoint::Add(kind)))
}

/// The kind of device that the endpoint `name` adds, and the fields of its body.
fn kind_of(name: &str) -> Option<(&'static str, &'static Shape)> {
    let kind = name.strip_prefix("vm.add-")?;
    NewDevice::KINDS.iter().copied().find(|(known, _)| *known == kind)
}

fn missing(name: &str) -> ApiError {
    ApiError::new(Kind::NotImplemented, format!("husk does not have {name}"))
}

fn pong() -> Response {
    let version = env!("CARGO_PKG_VERSION");
    Response::json(
        200,
        &json!({
            "build_version": format!("husk v{version}"),
            "version": version,
            "pid": std::process::id(),
            "features": [],
        }),
    )
}

fn log_level() -> Response {
    Response::json(200, &json!({"level": log::current_level()}))
}

fn set_log_level(body: &[u8]) -> Result<Response, ApiError> {
    #[derive(Deserialize)]
    struct Body {
        level: String,
    }
    let level = parse::<Body>(body)?.level;
    log::set_level(&level).map_err(|error| ApiError::from_error(Kind::BadRequest, &error))?;
    Ok(Response::done())
}

fn add(kind: &str, body: &[u8], fds: Vec<PassedFd>) -> Result<Command, ApiError> {
    let device = NewDevice::parse(kind, body).ok_or_else(|| missing(kind))?;
    let device = device.map_err(|error| ApiError::from_error(Kind::BadRequest, &error))?;
    let fds = if device.takes_descriptors() { fds } else { Vec::new() };
    Ok(Command::Add(Box::new(device), fds))
}

fn remove(body: &[u8]) -> Result<Command, ApiError> {
    #[derive(Deserialize)]
    struct Body {
        id: String,
    }
    Ok(Command::Remove(parse::<Body>(body)?.id))
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    body::parse(bytes).map_err(|error| ApiError::from_error(Kind::BadRequest, &error))
}

#[cfg(test)]
#[path = "routes_test.rs"]
mod tests;
