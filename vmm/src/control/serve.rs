//! The API beside a VM: for a process that has none yet, and for one that has.

use std::io;

use anyhow::{Context, Result};

use super::run::confine;
use super::{Controller, Exit, conclude};
use crate::api::{CommandReceiver, FdCloser, Info, Running, Server};
use crate::config::RunOptions;
use crate::events::{Events, VERSION};
use crate::seccomp::{Mode, Role};
use crate::terminal::ProcessOutputs;

/// The API's thread, and what its clients ask for. Dropped in this order: commands that wait are
/// refused, then all that has been answered goes out.
pub(super) struct Served {
    commands: CommandReceiver,
    _running: Running,
}

impl Served {
    /// Starts to answer at `server`; `info` is what `vm.info` says, and `events` what `vm.events` does.
    ///
    /// # Errors
    /// The host has no thread or no descriptor left.
    pub(super) fn start(server: Server, info: Info, events: &Events, seccomp: Mode) -> Result<Self> {
        let about = [("version", VERSION.into()), ("pid", std::process::id().into())];
        events.emit_with("vmm", "starting", about);
        let confine_closer = move || seccomp.enter(Role::FdCloser).map_err(io::Error::other);
        let closer = FdCloser::start(confine_closer).context("cannot start the thread that closes descriptors")?;
        let confine_api = move || seccomp.enter(Role::Api).map_err(io::Error::other);
        let server = server.with_events(events.for_other_thread());
        let (running, commands) = server
            .spawn(info, closer, confine_api)
            .context("cannot start the API")?;
        Ok(Self {
            commands,
            _running: running,
        })
    }

    /// What clients ask for.
    pub(super) fn commands(&self) -> &CommandReceiver {
        &self.commands
    }
}

/// Serves the API on `server` until its client, a guest or a signal ends it. `events` are told what happens.
///
/// # Errors
/// What the operator can mend. What fails for a client is told the client.
pub fn serve(server: Server, options: &RunOptions, events: Events) -> Result<Exit> {
    let (signals, wakeup, threads) = confine(options.seccomp)?;
    events
        .start_writer(options.seccomp)
        .context("cannot start the thread that writes events")?;
    let mut protected = crate::log::protected_files();
    protected.add_exclusive("the monitor of husk's events", events.file());
    let outputs = ProcessOutputs::new(protected, options.seccomp).context("cannot take standard output")?;
    let info = Info::new();
    // First of all: what a client asks is told after it.
    log::info!(
        "husk {} serves the API, process {}",
        env!("CARGO_PKG_VERSION"),
        std::process::id()
    );
    let served = Served::start(server, info.clone(), &events, options.seccomp)?;
    let controller = Controller::new(info, events, options.clone(), outputs.clone(), wakeup, threads);
    conclude(controller, signals, &outputs, Some(served.commands()), options)
}
