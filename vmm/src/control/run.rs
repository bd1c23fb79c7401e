//! A VM from its description to its end, as `husk run` has it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use husk_virtio::threads::Threads;

use super::boot_trace::TraceFile;
use super::event_loop::{Ended, run_event_loop};
use super::serve::Served;
use super::{Controller, messages};
use crate::api::{CommandReceiver, Info, Server};
use crate::config::{RunOptions, VmConfig};
use crate::events::Events;
use crate::machine::Ending;
use crate::process;
use crate::seccomp::{Mode, Role};
use crate::spawner::Spawner;
use crate::terminal::{ProcessOutputs, Signals};
use crate::trace::Phase;
use crate::wakeup::Wakeup;

/// How long the end of the VM waits for readers of what the guest has written last, and of the last events.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// How a VM that ran has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The guest powered itself off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest's kernel panicked.
    Panic,
    /// The user ended it: a signal, the escape sequence, or the terminal was closed.
    Interrupted,
}

/// Builds the VM, runs it until it ends, and takes it apart again. Clients of `server`, if there is
/// one, may ask what they ask of [`serve`](super::serve()).
///
/// # Errors
/// What the user can mend, in one line each. Nothing is left running.
pub fn run(config: VmConfig, server: Option<Server>, options: &RunOptions) -> Result<Exit> {
    let trace = &options.trace;
    let mut protected = crate::log::protected_files();
    let trace_file = options.boot_trace.as_deref();
    let trace_file = trace_file
        .map(|path| TraceFile::open(path, &config, &protected))
        .transpose()?;
    protected.add_unwritten("husk's boot trace", trace_file.as_ref().and_then(TraceFile::file_id));
    let (signals, wakeup, threads) = confine(options.seccomp)?;
    if let Some(file) = &trace_file {
        file.start_writer(options.seccomp)?;
    }
    let outputs = ProcessOutputs::new(protected, options.seccomp).context("cannot take standard output")?;
    let info = Info::new();
    let events = server.as_ref().map(|_| Events::new()).unwrap_or_default();
    let served = server
        .map(|server| Served::start(server, info.clone(), &events, options.seccomp))
        .transpose()?;
    let mut controller = Controller::new(info, events, options.clone(), outputs.clone(), wakeup, threads);
    controller.start(config)?;
    let exit = conclude(
        controller,
        signals,
        &outputs,
        served.as_ref().map(Served::commands),
        options,
    );
    drop(served);
    let exit = exit?;
    trace.mark(Phase::Teardown);
    if let Some(file) = trace_file {
        file.write(trace, LAST_WORDS)?;
    }
    if options.verbosity > 0 {
        crate::log::tell(&trace.table());
    }
    Ok(exit)
}

/// Serves the VM, and carries out `commands` if there are any, until it is over, and takes everything apart.
///
/// # Errors
/// The host cannot go on with the guest, or with the loop.
pub fn conclude(
    mut controller: Controller,
    signals: Signals,
    outputs: &ProcessOutputs,
    commands: Option<&CommandReceiver>,
    options: &RunOptions,
) -> Result<Exit> {
    let ended = run_event_loop(&mut controller, signals, outputs, commands, options.seccomp);
    options.trace.leave_guest();
    match &ended {
        Ok(Ended::Asked | Ended::Unbuilt(_)) => {}
        Ok(Ended::Guest(ending)) => controller.tell_end(messages::ending_event(ending)),
        Ok(Ended::Interrupted) => controller.tell_end("interrupted"),
        Err(_) => controller.tell_end("failed"),
    }
    controller.stop();
    let deadline = Instant::now() + LAST_WORDS;
    outputs.finish(deadline);
    controller.events.finish(deadline);
    match ended.context("the main loop failed")? {
        Ended::Asked => Ok(Exit::PowerOff),
        Ended::Interrupted => Ok(Exit::Interrupted),
        Ended::Guest(ending) => verdict(&ending),
        Ended::Unbuilt(error) => Err(error.into()),
    }
}

/// Starts the thread that starts device threads, then confines this one: neither can do what only
/// the other needs. Signals are diverted first, so that no thread is ever without that. The threads
/// wake the waker of the wakeup.
///
/// # Errors
/// What the host refuses; the process ends then.
pub(super) fn confine(seccomp: Mode) -> Result<(Signals, Wakeup, Arc<dyn Threads>)> {
    process::prepare();
    let signals = Signals::new().context("cannot divert signals")?;
    let wakeup = Wakeup::new().context("cannot make an eventfd")?;
    let threads = Spawner::start(seccomp, wakeup.waker());
    let threads = threads.context("cannot start the thread that starts device threads")?;
    seccomp.enter(Role::Control)?;
    crate::log::start_writers(seccomp).context("cannot start the thread that writes the log")?;
    Ok((signals, wakeup, Arc::new(threads)))
}

fn verdict(ending: &Ending) -> Result<Exit> {
    match ending {
        Ending::PowerOff => Ok(Exit::PowerOff),
        Ending::Reset => Ok(Exit::Reset),
        Ending::TripleFault => {
            log::warn!("the guest ended in a triple fault");
            Ok(Exit::Reset)
        }
        Ending::Panic => Ok(Exit::Panic),
        Ending::Failed(why) => bail!("{why}"),
    }
}
