//! `husk --api-socket …`: the API process, started as Kata's shims start Cloud Hypervisor.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{ArgAction, Args};

use super::log::LogArgs;
use super::memory::parse_method;
use super::reclaim::parse_reclaim;
use crate::api::Server;
use crate::config::{CoreScheduling, Hotplug, OwnFiles, OwnSockets, Reclaim, ResizeTimeout, RunOptions};
use crate::control::{self, Exit};
use crate::events::Events;
use crate::process::inherited;
use crate::seccomp::Mode;
use crate::terminal::Signals;

/// The options of the API process.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// Serve the REST API on a Unix socket: PATH, path=PATH or fd=N, until told to end
    ///
    /// A socket at PATH is made with mode 0600, and removed in the end. One that a killed process left there is replaced; one that
    /// somebody listens on is an error. With fd=N husk takes a listening socket that it was started with.
    #[arg(long, value_name = "SOCKET", required = true, help_heading = "Serve the API")]
    pub api_socket: Option<OsString>,

    /// Serve figures for Prometheus, and nothing else, on a Unix socket: PATH, path=PATH or fd=N
    ///
    /// GET /metrics there is answered as on the socket of the API, and everything else refused: a scraper needs no control. Made and
    /// removed as that socket is.
    #[arg(long, value_name = "SOCKET", help_heading = "Serve the API")]
    pub metrics: Option<OsString>,

    /// Confine husk to the system calls that it needs
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::On, help_heading = "Serve the API")]
    pub seccomp: Mode,

    /// Write what happens to the VM, a JSON object a line: path=FILE or fd=N
    #[arg(long, value_name = "WHERE", help_heading = "Serve the API")]
    pub event_monitor: Option<OsString>,

    /// How long vm.resize waits for the guest before it is answered, in milliseconds
    ///
    /// What the guest does later is told by events. Kata's Go shim gives up after a second.
    #[arg(long, value_name = "MS", default_value_t = 800, value_parser = clap::value_parser!(u64).range(..=3_600_000), help_heading = "Serve the API")]
    pub resize_timeout: u64,

    /// What VMs give back though nobody asks for less: off, report, or idle=SECONDS[,keep=SIZE]
    ///
    /// For those whose balloon does not say it, and those without a balloon, which get one. Shims never ask for less.
    ///
    ///   report          the guest reports what is free (free_page_reporting)
    ///   idle=SECONDS    what the guest has had free for so long goes into the balloon, and comes back when it runs short
    ///   keep=SIZE       but for so much (default 64M)
    #[arg(long, value_name = "POLICY", default_value = "off", value_parser = parse_reclaim, verbatim_doc_comment, help_heading = "Serve the API")]
    pub reclaim: Reclaim,

    /// How memory comes to VMs: acpi, virtio-mem, or auto, virtio-mem where the guest has a driver
    ///
    /// For those whose client asks for Acpi, as all shims do, and does not set acpi_only.
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = parse_method, help_heading = "Serve the API")]
    pub hotplug_method: Hotplug,

    /// Who may run on a core of the host while a vCPU does, where a core has several hardware threads
    ///
    /// For VMs whose client asks for nothing else than the default, as all shims do.
    #[arg(long, value_enum, value_name = "WHO", default_value_t = CoreScheduling::Vm, help_heading = "Serve the API")]
    pub core_scheduling: CoreScheduling,

    /// Log more: -v for information, -vv to debug, -vvv for everything
    #[arg(short, long = "verbose", action = ArgAction::Count, help_heading = "Serve the API")]
    pub verbosity: u8,

    /// Where the log goes.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What the sockets are called when they cannot be had.
const API: &str = "api socket";
const METRICS: &str = "metrics socket";
/// The options that name places.
const API_OPTION: &str = "--api-socket";
const METRICS_OPTION: &str = "--metrics";
const MONITOR_OPTION: &str = "--event-monitor";

/// Where a socket or a stream of events is.
#[derive(Clone, Debug, PartialEq, Eq)]
enum SocketLocation {
    Path(PathBuf),
    Fd(RawFd),
}

impl fmt::Display for SocketLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Fd(fd) => write!(f, "fd {fd}"),
        }
    }
}

/// Which option cannot be understood, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{option}: '{found}' is {allowed}")]
struct BadSocketLocation {
    option: &'static str,
    found: String,
    allowed: &'static str,
}

/// How serving went wrong.
#[derive(Debug)]
pub(super) enum Failure {
    /// The options.
    Usage(String),
    /// Everything else.
    Other(anyhow::Error),
}

/// Where husk listens itself: `--api-socket` and `--metrics`.
pub(super) struct ServerSockets {
    socket: Option<SocketLocation>,
    metrics: Option<SocketLocation>,
}

impl ServerSockets {
    /// Reads both options, of which there may be neither. Opens nothing.
    pub(super) fn parse(socket: Option<&OsStr>, metrics: Option<&OsStr>) -> Result<Self, Failure> {
        let sockets = Self {
            socket: socket.map(parse_socket).transpose()?,
            metrics: metrics.map(parse_metrics).transpose()?,
        };
        apart(&sockets.locations())?;
        Ok(sockets)
    }

    /// Those that have a path.
    pub(super) fn own_sockets(&self) -> OwnSockets {
        let places = self.locations().into_iter();
        let paths = places.filter_map(|(option, place)| match place {
            SocketLocation::Path(path) => Some((option, path.clone())),
            SocketLocation::Fd(_) => None,
        });
        OwnSockets::new(working_directory(), paths)
    }

    /// Listens there, if there is anything.
    pub(super) fn listen(&self) -> Result<Option<Server>, Failure> {
        if self.locations().is_empty() {
            return Ok(None);
        }
        let server = bind(self.socket.as_ref(), self.metrics.as_ref());
        server.map(Some).map_err(Failure::Other)
    }

    fn locations(&self) -> Vec<(&'static str, &SocketLocation)> {
        let socket = self.socket.iter().map(|place| (API_OPTION, place));
        socket
            .chain(self.metrics.iter().map(|place| (METRICS_OPTION, place)))
            .collect()
    }
}

/// Refuses one place for two purposes, of which one would get what is for the other.
fn apart(places: &[(&'static str, &SocketLocation)]) -> Result<(), Failure> {
    let folder = working_directory();
    let is_same = |one: &SocketLocation, other: &SocketLocation| match (one, other) {
        (SocketLocation::Path(one), SocketLocation::Path(other)) => folder.join(one) == folder.join(other),
        _ => one == other,
    };
    for (number, (one, place)) in places.iter().enumerate() {
        let mut others = places.iter().skip(number + 1);
        if let Some((other, _)) = others.find(|(_, other)| is_same(place, other)) {
            return Err(Failure::Usage(format!(
                "{one} and {other} both are {place}, allowed: one for each"
            )));
        }
    }
    Ok(())
}

/// Where relative paths begin; nowhere if that has gone.
pub(super) fn working_directory() -> PathBuf {
    std::env::current_dir().unwrap_or_default()
}

/// Serves until the end.
pub(super) fn serve(args: &ServeArgs) -> Result<Exit, Failure> {
    let sockets = ServerSockets::parse(
        Some(args.api_socket.as_deref().unwrap_or_default()),
        args.metrics.as_deref(),
    )?;
    let monitor = args.event_monitor.as_deref();
    let monitor = monitor
        .map(|place| SocketLocation::parse(MONITOR_OPTION, place, false))
        .transpose();
    let monitor = monitor.map_err(|e| Failure::Usage(e.to_string()))?;
    let monitored = monitor.iter().map(|place| (MONITOR_OPTION, place));
    apart(&sockets.locations().into_iter().chain(monitored).collect::<Vec<_>>())?;
    let mut own_files = OwnFiles::new(working_directory());
    if let Some(SocketLocation::Path(path)) = &monitor {
        own_files.add_events(MONITOR_OPTION, path);
    }
    if let Some((option, path)) = args.log.file() {
        own_files.add(option, path);
    }
    let options = RunOptions {
        own_files,
        verbosity: args.verbosity,
        seccomp: args.seccomp,
        resize_timeout: ResizeTimeout(Duration::from_millis(args.resize_timeout)),
        reclaim: args.reclaim,
        hotplug: args.hotplug_method,
        core_scheduling: args.core_scheduling,
        own_sockets: sockets.own_sockets(),
        ..RunOptions::default()
    };
    let started = start(
        &sockets,
        monitor.as_ref(),
        &args.log.options(args.api_socket.as_deref()),
        &options,
    );
    started.map_err(Failure::Other)
}

fn parse_socket(socket: &OsStr) -> Result<SocketLocation, Failure> {
    parse_location(
        API_OPTION,
        socket,
        "whoever is to control husk connects to it on this host",
    )
}

fn parse_metrics(socket: &OsStr) -> Result<SocketLocation, Failure> {
    parse_location(METRICS_OPTION, socket, "a proxy on the node decides who may scrape it")
}

/// The socket that `option` names. What looks like an address of a network is refused, and not taken for a path: whoever reaches the host
/// could control its pods, or read of them, and who meant to be reached would find nobody there. `instead` says what to do.
fn parse_location(option: &'static str, socket: &OsStr, instead: &str) -> Result<SocketLocation, Failure> {
    let text = socket.to_string_lossy();
    if !text.contains('=') && is_address(&text) {
        return Err(Failure::Usage(format!(
            "{option}: '{text}' is an address, and husk listens on no network: give the path of a Unix socket, and {instead}; path={text} is \
             a file of that name"
        )));
    }
    SocketLocation::parse(option, socket, true).map_err(|e| Failure::Usage(e.to_string()))
}

/// Whether `text` is what other programs take for an address: `SCHEME:…` of a kind of socket, or `HOST:PORT`.
fn is_address(text: &str) -> bool {
    const SCHEMES: [&str; 6] = ["tcp", "udp", "http", "https", "vsock", "unix"];
    let scheme = text.split_once(':').map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| SCHEMES.contains(&scheme)) {
        return true;
    }
    let port = text.rsplit_once(':').map(|(_, port)| port);
    port.is_some_and(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())) && !text.contains('/')
}

fn bind(socket: Option<&SocketLocation>, metrics: Option<&SocketLocation>) -> anyhow::Result<Server> {
    // Whoever has connected may also send a signal: that must find the socket's file removed in the end.
    Signals::hold().context("cannot hold signals back")?;
    // First: once the API is there, all of husk is.
    let server = match metrics {
        None => Server::silent(),
        Some(SocketLocation::Path(path)) => Server::silent().with_metrics_at(path).context(METRICS)?,
        Some(SocketLocation::Fd(fd)) => Server::silent()
            .with_metrics_on(passed(METRICS, *fd)?)
            .context(METRICS)?,
    };
    match socket {
        None => Ok(server),
        Some(SocketLocation::Path(path)) => server.with_api_at(path).context(API),
        Some(SocketLocation::Fd(fd)) => server.with_api_on(passed(API, *fd)?).context(API),
    }
}

/// Descriptor `fd`, which is to be the socket called `name`.
fn passed(name: &'static str, fd: RawFd) -> anyhow::Result<OwnedFd> {
    inherited(fd).with_context(|| format!("{name} fd {fd}"))
}

/// Listens first: a shim waits for it, and there is nothing before it that takes time.
fn start(
    sockets: &ServerSockets,
    monitor: Option<&SocketLocation>,
    log: &crate::log::Options,
    options: &RunOptions,
) -> anyhow::Result<Exit> {
    let server = bind(sockets.socket.as_ref(), sockets.metrics.as_ref())?;
    begin_log(options.verbosity, log)?;
    let events = match monitor {
        Some(SocketLocation::Path(path)) => Events::to_path(path, &crate::log::protected_files())
            .with_context(|| format!("event monitor {}", path.display()))?,
        Some(SocketLocation::Fd(fd)) => inherited(*fd)
            .and_then(Events::to_fd)
            .with_context(|| format!("event monitor fd {fd}"))?,
        None => Events::new(),
    };
    control::serve(server, options, events)
}

/// Has the log go where `log` says.
pub(super) fn begin_log(verbosity: u8, log: &crate::log::Options) -> anyhow::Result<()> {
    let begun = crate::log::init_with(verbosity, log);
    begun.with_context(|| log.destination.to_string())
}

impl SocketLocation {
    /// `path=…`, `fd=…`, or where `bare` a path as it is.
    fn parse(option: &'static str, text: &OsStr, bare: bool) -> Result<Self, BadSocketLocation> {
        let bad = |allowed| BadSocketLocation {
            option,
            found: text.to_string_lossy().into_owned(),
            allowed,
        };
        let bytes = text.as_bytes();
        if let Some(path) = bytes.strip_prefix(b"path=") {
            return match path {
                [] => Err(bad("without a path")),
                path => Ok(Self::Path(OsStr::from_bytes(path).into())),
            };
        }
        if let Some(number) = bytes.strip_prefix(b"fd=") {
            let number = str::from_utf8(number).ok().and_then(|text| text.parse().ok());
            let number = number.filter(|fd: &RawFd| *fd >= 0);
            return number
                .map(Self::Fd)
                .ok_or_else(|| bad("not a descriptor, allowed: fd=0, fd=1 and so on"));
        }
        match bytes {
            [] => Err(bad("empty")),
            path if bare => Ok(Self::Path(OsStr::from_bytes(path).into())),
            _ => Err(bad("not understood, allowed: path=FILE, fd=N")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str, bare: bool) -> Result<SocketLocation, String> {
        SocketLocation::parse("--option", OsStr::new(text), bare).map_err(|error| error.to_string())
    }

    #[test]
    fn an_address_is_told_from_a_path() {
        for address in [
            "localhost:9100",
            "127.0.0.1:80",
            "[::1]:80",
            ":80",
            "tcp:a",
            "http://a/b",
            "unix:/run/a",
            "vsock:3:5",
        ] {
            assert!(is_address(address), "{address}");
            let refused = parse_socket(OsStr::new(address));
            assert!(matches!(refused, Err(Failure::Usage(_))), "{address}");
        }
        for path in [
            "/run/a.sock",
            "a.sock",
            "/run/pod:80",
            "./pod:80",
            "pod:a",
            "path=pod:80",
            "C:x",
            "pod:",
        ] {
            assert!(parse_socket(OsStr::new(path)).is_ok(), "{path}");
        }
    }

    #[test]
    fn a_place_is_a_path_or_a_descriptor() {
        assert_eq!(
            parse("/run/a.sock", true),
            Ok(SocketLocation::Path("/run/a.sock".into()))
        );
        assert_eq!(
            parse("path=/run/a=b.sock", true),
            Ok(SocketLocation::Path("/run/a=b.sock".into()))
        );
        assert_eq!(parse("fd=3", false), Ok(SocketLocation::Fd(3)));
        for (text, bare, says) in [
            ("", true, "empty"),
            ("path=", true, "without a path"),
            ("fd=-1", true, "not a descriptor"),
            ("fd=x", false, "not a descriptor"),
            ("/tmp/events", false, "path=FILE"),
        ] {
            let error = parse(text, bare).unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn figures_are_not_served_on_the_network_and_the_reason_is_told() {
        for found in [
            "tcp:127.0.0.1:9000",
            "tcp://[::1]:1",
            "http://localhost",
            "0.0.0.0:80",
            "[::]:80",
            ":9090",
        ] {
            let Err(Failure::Usage(told)) = parse_metrics(OsStr::new(found)) else {
                panic!("{found}")
            };
            assert!(told.contains(found) && told.contains("Unix socket"), "{told}");
        }
        for place in ["/run/pod/metrics.sock", "path=/a:1", "fd=3", "metrics.sock"] {
            assert!(parse_metrics(OsStr::new(place)).is_ok(), "{place}");
        }
    }

    #[test]
    fn no_two_options_have_one_place() {
        let refused = |socket: &str, metrics: &str| match ServerSockets::parse(
            Some(OsStr::new(socket)),
            Some(OsStr::new(metrics)),
        )
        .map(drop)
        {
            Err(Failure::Usage(told)) => Some(told),
            other => other.map(|()| None).unwrap(),
        };
        let here = std::env::current_dir().unwrap().join("s");
        for (socket, metrics, is) in [
            ("fd=3", "fd=3", "fd 3"),
            ("/s", "path=/s", "/s"),
            ("s", "./s", "s"),
            ("s", here.to_str().unwrap(), "s"),
        ] {
            let told = format!("--api-socket and --metrics both are {is}, allowed: one for each");
            assert_eq!(refused(socket, metrics), Some(told));
        }
        for (socket, metrics) in [("fd=3", "fd=4"), ("/s", "/t"), ("3", "fd=3")] {
            assert_eq!(refused(socket, metrics), None);
        }
    }

    #[test]
    fn a_descriptor_that_is_not_open_is_an_error() {
        assert_eq!(inherited(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
