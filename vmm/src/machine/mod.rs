//! One virtual machine from its description to its end.

mod attend;
pub mod board;
mod build;
mod device;
pub mod net;
pub mod pmem;
mod populate;
mod slots;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use vmm_sys_util::eventfd::EventFd;

use crate::config::{RunOptions, VmConfig};
use crate::cpus::Cpus;
use crate::kvm::{Vcpu, Vm};
use crate::memory::Ram;
use crate::seccomp::Role;
use crate::spawner::Spawner;
use crate::terminal::{RawMode, Signals, StdoutSink, window_size};
use crate::trace::Phase;

use board::Board;
use device::Devices;
use populate::Keyboard;

pub use attend::Attended;
pub use board::Ending;
pub use build::BuildError;

/// How long the end of the VM waits for a reader of what the guest has written last.
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

/// A virtual machine.
///
/// vCPUs leave the guest, then devices let go of RAM, then RAM goes: fields are dropped in this order.
pub struct Machine {
    cpus: Option<Cpus>,
    /// Ready for their first instruction; their threads wait for them.
    parked: Vec<Vcpu>,
    devices: Devices,
    board: Arc<Board>,
    ended: EventFd,
    keyboard: Option<Keyboard>,
    spawner: Arc<Spawner>,
    _vm: Arc<Vm>,
    _ram: Ram,
}

impl Machine {
    /// Lets the guest run.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn start(&mut self) -> Result<()> {
        let parked = std::mem::take(&mut self.parked);
        if let Some(cpus) = &mut self.cpus {
            cpus.run(parked);
        }
        self.spawner
            .run()
            .context("cannot start the thread that starts device threads")?;
        Ok(())
    }

    /// Takes the vCPUs out of the guest, then holds the devices as they are.
    pub fn pause(&self) {
        if let Some(cpus) = &self.cpus {
            cpus.pause();
        }
        self.devices.hold();
    }

    /// Lets devices and guest go on after [`Machine::pause`].
    pub fn resume(&self) {
        self.devices.release();
        if let Some(cpus) = &self.cpus {
            cpus.resume();
        }
    }

    /// Takes the vCPUs out of the guest, then stops the devices: what they have acknowledged is on its disk.
    pub fn stop(&mut self) {
        self.cpus = None;
        self.devices.stop();
    }

    /// Why the guest ended, once it has.
    pub fn ending(&self) -> Option<&Ending> {
        self.board.ending()
    }

    /// Readable when the guest has ended.
    pub fn ended(&self) -> &EventFd {
        &self.ended
    }

    /// What standard input types on, if anything.
    fn keyboard(&self) -> Option<&Keyboard> {
        self.keyboard.as_ref()
    }

    /// Tells the guest's console the size of the terminal.
    fn fit_window(&self) {
        if let (Some(Keyboard::Console(console)), Some(window)) = (&self.keyboard, window_size()) {
            console.resize(window.columns, window.rows);
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Builds the VM, runs it until it ends, and takes it apart again.
///
/// # Errors
/// What the user can mend, in one line each. Nothing is left running.
pub fn run(config: &VmConfig, options: &RunOptions) -> Result<Exit> {
    let trace = &options.trace;
    options.seccomp.enter(Role::Process)?;
    let trace_file = options.boot_trace.as_deref().map(create_trace).transpose()?;
    let signals = Signals::new().context("cannot divert signals")?;
    let stdout = StdoutSink::new().context("cannot take standard output")?;
    let mut machine = Machine::build(config, options, &stdout)?;
    let raw = if machine.keyboard().is_some() {
        RawMode::enter().context("cannot make the terminal raw")?
    } else {
        None
    };
    machine.start()?;
    let attended = attend::attend(&machine, signals, raw.as_ref(), &stdout);
    trace.leave_guest();
    machine.stop();
    stdout.finish(LAST_WORDS);
    drop(raw);
    let exit = match attended.context("the main loop failed")? {
        Attended::Interrupted => Exit::Interrupted,
        Attended::Ended => verdict(machine.ending())?,
    };
    drop(machine);
    trace.mark(Phase::Teardown);
    report(options, trace_file)?;
    Ok(exit)
}

fn verdict(ending: Option<&Ending>) -> Result<Exit> {
    match ending {
        Some(Ending::PowerOff) => Ok(Exit::PowerOff),
        Some(Ending::Reset) => Ok(Exit::Reset),
        Some(Ending::TripleFault) => {
            log::warn!("the guest ended in a triple fault");
            Ok(Exit::Reset)
        }
        Some(Ending::Panic) => Ok(Exit::Panic),
        Some(Ending::Failed(why)) => bail!("{why}"),
        None => bail!("the guest ended without a reason"),
    }
}

/// The file that the boot trace goes to. Created before there is a guest: a name that cannot be written costs no run.
fn create_trace(path: &Path) -> Result<(&Path, File)> {
    let file = File::create(path).with_context(|| format!("cannot create {}", path.display()))?;
    Ok((path, file))
}

/// Gives the boot trace to whoever asked for it.
fn report(options: &RunOptions, trace_file: Option<(&Path, File)>) -> Result<()> {
    if let Some((path, file)) = trace_file {
        let mut file = BufWriter::new(file);
        let written = options.trace.write_json(&mut file).and_then(|()| file.flush());
        written.with_context(|| format!("cannot write {}", path.display()))?;
    }
    if options.verbosity > 0 {
        eprint!("{}", options.trace.table());
    }
    Ok(())
}
