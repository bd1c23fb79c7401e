//! The API process: whatever VMs its client wants, one at a time.

use std::io;

use anyhow::{Context, Result};

use super::run::confine;
use super::{Controller, Exit, conclude};
use crate::api::{Info, Server};
use crate::config::RunOptions;
use crate::events::Events;
use crate::seccomp::Role;
use crate::terminal::StdoutSink;

/// Serves the API on `server` until its client, a guest or a signal ends it. `events` are told what happens.
///
/// # Errors
/// What the operator can mend. What fails for a client is told the client.
pub fn serve(server: Server, options: &RunOptions, events: Events) -> Result<Exit> {
    let seccomp = options.seccomp;
    let (signals, news, threads) = confine(seccomp)?;
    let stdout = StdoutSink::new().context("cannot take standard output")?;
    let info = Info::new();
    let confine_api = move || seccomp.enter(Role::Api).map_err(io::Error::other);
    let (running, inbox) = server
        .spawn(info.clone(), confine_api)
        .context("cannot start the API")?;
    events.emit("vmm", "starting");
    let controller = Controller::new(info, events, options.clone(), stdout.clone(), news, threads);
    let exit = conclude(controller, signals, &stdout, Some(&inbox), options);
    // In this order: commands that wait are refused, then all that has been answered goes out.
    drop(inbox);
    drop(running);
    exit
}
