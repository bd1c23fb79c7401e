//! What is being made beside the control thread, a machine or a device of one that runs: a back-end
//! may let husk wait, storage may be slow, and memory that is to be there from the start takes its
//! time. Whoever began it looks for the result at each wakeup.

use std::io;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::operation::{GiveUp, Operation, Work, superseded};
use super::vm::{AfterBuild, Vm};
use super::{Controller, Progress, conflict, existing, is_in_use, of_build};
use crate::api::{ApiError, Command, Kind, Outcome, Reply};
use crate::background::{self, BackgroundTask};
use crate::machine::{BuildError, Machine, Passed};

/// How long building may take. Each back-end has its own, shorter limit; what is left is memory:
/// with `prefault` the host zeroes gigabytes in a second, or less than one when it has to make room
/// first.
pub(crate) const BUILD_DEADLINE: Duration = Duration::from_secs(600);

/// A machine, or a device, on its way. Dropping this leaves it to its thread, which takes apart
/// what nobody wants any more.
#[derive(Debug)]
pub(super) struct Building<T: Send + 'static, E: Send + 'static = BuildError> {
    result: BackgroundTask<Result<T, E>>,
    begun: Instant,
}

impl<T: Send + 'static, E: Send + 'static> Building<T, E> {
    /// Begins to `build`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn begin(waker: Waker, build: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<Self, BuildError> {
        let begun = Instant::now();
        let result = BackgroundTask::spawn(waker, build).map_err(|source| BuildError::Host {
            what: "start a thread",
            source,
        })?;
        Ok(Self { result, begun })
    }

    /// What has come of it, once. Never waits.
    pub fn take_result(&self) -> Option<Result<T, E>> {
        self.result.take_result()
    }

    /// Wants it no more. Whether nothing of it is left; to be called again until then. Never waits.
    pub fn abandon(&self) -> bool {
        self.result.abandon()
    }

    /// How long it has taken.
    pub fn took(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// Duplicates of the descriptors in `passed`. Of some only, which are no use, the duplicates are closed by a thread:
/// whose files they are was a client's choice, and closing a duplicate waits for a file system as closing the last
/// descriptor does.
pub(super) fn duplicate(passed: &Passed) -> io::Result<Passed> {
    let mut duplicates = Passed::new();
    for (id, fds) in passed {
        let of_device = duplicates.entry(id.clone()).or_default();
        for fd in fds {
            match fd.try_clone() {
                Ok(duplicate) => of_device.push(duplicate),
                Err(error) => {
                    background::drop_in_background(duplicates);
                    return Err(error);
                }
            }
        }
    }
    Ok(duplicates)
}

/// `vm.boot`, until there is a machine.
struct Boot;

/// The boot of the VM that this process is for, likewise. Nobody is answered: without a machine the process ends.
struct Start;

impl Controller {
    pub(super) fn boot(&mut self) -> Progress {
        match existing(&mut self.vm) {
            Ok(vm) if vm.machine().is_some() => return conflict("the VM runs already").into(),
            Ok(_) => {}
            Err(error) => return error.into(),
        }
        self.events.emit("vm", "booting");
        match self.build() {
            Ok(()) => self.begin(Box::new(Boot), BUILD_DEADLINE),
            Err(error) => error.context("cannot boot the VM").into(),
        }
    }

    /// Begins to build the machine of `vm`, which this process is for.
    pub(super) fn begin_start(&mut self, mut vm: Vm) -> Result<(), BuildError> {
        vm.build(self.count_boot(), &self.outputs, &self.threads, AfterBuild::Run)?;
        self.vm = Some(vm);
        let _unanswered = self.begin(Box::new(Start), BUILD_DEADLINE);
        Ok(())
    }

    /// Begins to build the machine of the VM that there is.
    pub(super) fn build(&mut self) -> Result<(), ApiError> {
        let options = self.count_boot();
        let vm = existing(&mut self.vm)?;
        vm.build(options, &self.outputs, &self.threads, AfterBuild::Wait)
            .map_err(of_build)
    }

    /// Lets the guest run, once its machine is built; `failed` is what has failed if it cannot be.
    pub(super) fn built(&mut self, failed: &str) -> Option<Outcome> {
        let built = self.start_built()?;
        Some(built.map_err(|error| self.refused(error).context(failed)))
    }

    /// Why something cannot be had, for a client. What is taken may be by a device of this process
    /// that was left behind, and is named then.
    pub(super) fn refused(&mut self, error: BuildError) -> ApiError {
        let left: Vec<String> = match is_in_use(&error) {
            true => self.abandoned.iter_mut().flat_map(Machine::unstopped).collect(),
            false => Vec::new(),
        };
        match left.is_empty() {
            true => of_build(error),
            false => of_build(error).context(format!(
                "{} has ended with its machine, but not stopped yet",
                left.join(", ")
            )),
        }
    }

    fn start_built(&mut self) -> Option<Result<Reply, BuildError>> {
        let vm = self.vm.as_mut()?;
        let (built, told) = vm.built()?;
        let started = built.map(|machine| {
            vm.start(machine);
            log::info!("{told}");
            self.events.emit("vm", "booted");
            Reply::Done
        });
        self.publish();
        Some(started)
    }
}

impl Work<Controller> for Start {
    fn operation(&self) -> Operation {
        Operation::Boot
    }

    fn command(&self) -> &'static str {
        "husk run"
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        let started = owner.start_built()?;
        owner.tell_terminals();
        owner.failure = started.err();
        Some(Ok(Reply::Done))
    }

    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        if let GiveUp::Late = why {
            let seconds = BUILD_DEADLINE.as_secs();
            let source = io::Error::other(format!("it is not built after {seconds} s"));
            let what = "build the machine";
            owner.failure = Some(BuildError::Host { what, source });
        }
        Ok(Reply::Done)
    }
}

impl Work<Controller> for Boot {
    fn operation(&self) -> Operation {
        Operation::Boot
    }

    fn command(&self) -> &'static str {
        Command::Boot.name()
    }

    fn advance(&mut self, owner: &mut Controller) -> Option<Outcome> {
        owner.built("cannot boot the VM")
    }

    fn give_up(&mut self, owner: &mut Controller, why: GiveUp<'_>) -> Outcome {
        match why {
            // Who takes its place waits for what is half built.
            GiveUp::Superseded(by) => Err(superseded(self.command(), by)),
            GiveUp::Late => Err(late(owner).context("cannot boot the VM")),
        }
    }
}

/// What is not built in time is left to its thread.
pub(super) fn late(owner: &mut Controller) -> ApiError {
    if let Some(vm) = &mut owner.vm {
        vm.leave_building();
    }
    let seconds = BUILD_DEADLINE.as_secs();
    ApiError::new(Kind::Internal, format!("its machine is not built after {seconds} s"))
}
