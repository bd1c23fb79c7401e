//! A machine that is being built beside the control thread: a back-end may let husk wait, and memory that is to be there from the start
//! takes its time. Whoever began it looks for the result at each news.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::thread;
use std::time::{Duration, Instant};

use husk_virtio::threads::Threads;

use super::operation::{GiveUp, Operation, Work, superseded};
use super::{Controller, Progress, conflict, existing, life, of_build};
use crate::api::{ApiError, Command, Kind, Outcome, Reply};
use crate::config::{RunOptions, VmConfig};
use crate::machine::{BuildError, Machine, Passed};
use crate::terminal::StdoutSink;
use crate::trace::Trace;

/// How long building may take. Each back-end has its own, shorter limit; what is left is memory: with `prefault` the host zeroes
/// gigabytes in a second, or less than one when it has to make room first.
pub(super) const BUILD_DEADLINE: Duration = Duration::from_secs(600);

/// A machine on its way. Dropping this leaves it to its thread, which takes apart what nobody wants any more.
#[derive(Debug)]
pub(super) struct Building {
    result: Receiver<Result<Machine, BuildError>>,
    begun: Instant,
    trace: Trace,
}

impl Building {
    /// Begins to build what `config` describes, with duplicates of the descriptors in `passed`. The waker of `threads` tells of the end.
    ///
    /// # Errors
    /// The host has no thread or no descriptor left.
    pub fn begin(
        config: &VmConfig,
        passed: &Passed,
        options: RunOptions,
        stdout: &StdoutSink,
        threads: &Arc<dyn Threads>,
    ) -> Result<Self, BuildError> {
        let host = |what| move |source| BuildError::Host { what, source };
        let passed = duplicate(passed).map_err(host("duplicate a descriptor"))?;
        let (config, stdout, threads) = (config.clone(), stdout.clone(), threads.clone());
        let (begun, trace) = (Instant::now(), options.trace.clone());
        let (done, result) = channel();
        let build = move || {
            let built = Machine::build(&config, &passed, &options, &stdout, &threads);
            drop(passed);
            // When nobody waits for it any more, it goes here.
            drop(done.send(built));
            threads.waker().wake();
        };
        let thread = thread::Builder::new().name("builder".into()).spawn(build);
        thread.map_err(host("start a thread"))?;
        Ok(Self { result, begun, trace })
    }

    /// What has come of it, once. Never waits.
    pub fn take(&self) -> Option<Result<Machine, BuildError>> {
        match self.result.try_recv() {
            Ok(built) => Some(built),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("a panic anywhere ends the process"),
        }
    }

    /// How long it took, for the log.
    pub fn told(&self) -> String {
        life::started(self.begun.elapsed(), &self.trace)
    }
}

fn duplicate(passed: &Passed) -> io::Result<Passed> {
    let all = |fds: &Vec<OwnedFd>| fds.iter().map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>();
    let pairs = passed.iter().map(|(id, fds)| Ok((id.clone(), all(fds)?)));
    pairs.collect::<io::Result<BTreeMap<_, _>>>()
}

/// `vm.boot`, until there is a machine.
struct Boot;

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

    /// Begins to build the machine of the VM that there is.
    pub(super) fn build(&mut self) -> Result<(), ApiError> {
        let options = self.count_boot();
        let vm = existing(&mut self.vm)?;
        vm.build(options, &self.stdout, &self.threads).map_err(of_build)
    }

    /// Lets the guest run, once its machine is built; `failed` is what has failed if it cannot be.
    pub(super) fn built(&mut self, failed: &str) -> Option<Outcome> {
        let (built, told) = self.vm.as_mut()?.built()?;
        let outcome = match (built, &mut self.vm) {
            (Ok(machine), Some(vm)) => {
                vm.start(machine);
                log::info!("{told}");
                self.events.emit("vm", "booted");
                Ok(Reply::Done)
            }
            (Ok(_), None) => Ok(Reply::Done),
            (Err(error), _) => Err(of_build(error).context(failed)),
        };
        self.publish();
        Some(outcome)
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
