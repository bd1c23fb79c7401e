//! The process from its start to its end: it listens, confines itself, and serves one front-end until that goes.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use husk_devices::error_chain;
use husk_virtio::fs::serve::Serve;
use husk_virtio::fs::server::Server;
use log::LevelFilter;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::set_no_new_privs;
use vhost::vhost_user::{Error as Fault, Listener};
use vhost_user_backend::{Error, VhostUserDaemon};
use vm_memory::GuestMemoryAtomic;

use super::backend::{Backend, QUEUES};
use super::capabilities::Capabilities;
use super::ending::Ending;
use super::socket::{Socket, SocketFiles};
use super::vring::Vring;
use super::worker_pool::WorkerPool;
use super::{Listen, Options, Sandbox};
use crate::log::Destination;
use crate::process;
use crate::seccomp::{self, Role};
use crate::terminal::Signals;

/// What a shim waits for on standard error before it starts the VMM.
const WAITING: &str = "Waiting for vhost-user socket connection...";
/// Threads that serve beside those of the queues, unless more are asked for.
const USUAL_WORKERS: usize = 64;
const MAX_WORKERS: usize = 1024;

/// Serves until the front-end has gone, or somebody asks the process to end: then with `code`.
///
/// # Errors
/// In one line, why it could not.
pub fn serve(options: Options, code: i32) -> anyhow::Result<()> {
    begin_log(&options);
    process::prepare_files(options.descriptors).context("--rlimit-nofile: cannot set the limit on descriptors")?;
    let dir = open_dir(&options.share.dir)?;
    // From here on there is something to be removed, where the socket is made here.
    let signals = match options.listen {
        Listen::Path { .. } => Some(Signals::to_end().context("cannot wait for signals")?),
        Listen::Descriptor(_) => None,
    };
    let mut socket = Socket::open(&options.listen)?;
    let server = confine(&options, dir, socket.files.as_mut())?;
    let files = socket.files.take().zip(signals);
    let ending = files.map(|(files, signals)| Ending::new(files, signals, code));
    let _ending = ending
        .transpose()
        .context("cannot start the thread that waits for signals")?;
    let pool = WorkerPool::start(server, QUEUES, options.threads.clamp(USUAL_WORKERS, MAX_WORKERS));
    let pool = pool.context("cannot start a thread")?;
    let backend = Backend::new(pool, options.tag.as_deref()).context("cannot make an eventfd")?;
    let backend = Arc::new(backend);
    let mut listener = Listener::from(socket.listener.try_clone().context("cannot listen")?);
    while !serve_one(&backend, &mut listener)? {
        // Everything of it goes with it.
        backend.reset();
    }
    Ok(())
}

/// Serves one front-end. Whether that was all: one that speaks nonsense is hung up on, and another may come.
fn serve_one(backend: &Arc<Backend>, listener: &mut Listener) -> anyhow::Result<bool> {
    let memory = GuestMemoryAtomic::new(vm_memory::GuestMemoryMmap::new());
    let daemon = VhostUserDaemon::new("fs-front-end".into(), backend.clone(), memory.clone());
    backend.begin(Vring::take_made(), &memory);
    let mut daemon = daemon.map_err(fault).context("cannot start a thread for each queue")?;
    match log::max_level() {
        // Whoever waits for it waits for ever.
        LevelFilter::Off | LevelFilter::Error | LevelFilter::Warn => crate::log::tell(&format!("{WAITING}\n")),
        _ => log::info!("{WAITING}"),
    }
    crate::trim::trim();
    daemon.start(listener).map_err(fault).context("cannot accept a VMM")?;
    log::info!("a VMM is connected");
    match daemon.wait() {
        Ok(()) | Err(Error::HandleRequest(Fault::Disconnected | Fault::PartialMessage | Fault::SocketBroken(_))) => {
            log::info!("the VMM has gone");
            Ok(true)
        }
        Err(error) => {
            log::error!("the VMM is hung up on: {error}");
            Ok(false)
        }
    }
}

fn fault(error: Error) -> io::Error {
    io::Error::other(error.to_string())
}

fn begin_log(options: &Options) {
    let destination = match options.syslog {
        true => Destination::syslog(),
        false => Destination::Stderr,
    };
    let log = crate::log::Options {
        destination,
        ..Default::default()
    };
    // Neither of the two can be refused.
    let _ = crate::log::init_with(0, &log);
    log::set_max_level(options.log_level);
    for (option, why) in &options.ignored {
        log::info!("option {option} is accepted and has no effect: {why}");
    }
}

/// The directory that is to be shared: its path is looked up this once, and a link at the end of it is followed as one
/// elsewhere is.
fn open_dir(path: &Path) -> anyhow::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOTDIR) if path.exists() => bail!("--shared-dir {} is no directory", path.display()),
        opened => opened.with_context(|| format!("--shared-dir {}", path.display())),
    }
}

/// Opens the directory, and takes everything else from this process. From here on nothing but the
/// directory can be opened.
fn confine(options: &Options, dir: OwnedFd, files: Option<&mut SocketFiles>) -> anyhow::Result<Arc<dyn Serve>> {
    let prepared = options.sandbox.prepare(dir, &options.users, &options.groups)?;
    let folder = files.and_then(|files| files.own.stay_at_hand(options.sandbox));
    let of_others = prepared.of_others;
    let wish = options.capabilities;
    let capabilities = "cannot change capabilities";
    // What the server finds now must be what it has in the end.
    wish.lower(of_others).context(capabilities)?;
    let server = Server::open_at(&options.share, prepared.dir())?;
    // Before /proc is out of reach.
    server.label_process().context("cannot take the label of --label")?;
    // While there is no other thread, it costs no wait.
    server.reserve_fds();
    Capabilities::raise().context(capabilities)?;
    let sandbox = prepared.close().context("sandbox")?;
    let kept = wish.reduce(of_others).context(capabilities)?;
    set_no_new_privs(true).context("cannot give up new privileges")?;
    let restricted = server.restrict_process(folder);
    let landlock = match restricted.context("cannot have Landlock hold this process to the directory")? {
        Some(version) => format!("version {version}"),
        None => "none".into(),
    };
    // It has what this process may by now, and nothing else waits for a file that standard error leads to.
    crate::log::start_writers(options.seccomp).context("cannot start the thread that writes the log")?;
    // Once here, for a share that is not served in part.
    server.enter().context("cannot serve the directory")?;
    options
        .seccomp
        .enter(Role::FileServer)
        .map_err(|error| anyhow::anyhow!("{}", error_chain(&error)))?;
    let filter = match options.seccomp {
        seccomp::Mode::On => "on",
        seccomp::Mode::Log => "log",
        seccomp::Mode::Off => "off",
    };
    let way_back = server
        .confinement()
        .map_or("name", |confinement| confinement.way_back());
    log::info!(
        "{} is shared{}; sandbox: {sandbox}; umask: own; capabilities: {kept}; no new privileges; seccomp: {filter}; Landlock: {landlock}; \
         nodes are opened again by {way_back}",
        options.share.dir.display(),
        if options.share.readonly { " read-only" } else { "" },
    );
    if options.sandbox == Sandbox::None && options.seccomp == seccomp::Mode::Off {
        log::warn!("neither --sandbox nor --seccomp confine this process: a fault in it is a fault of the host");
    }
    Ok(Arc::new(server))
}
