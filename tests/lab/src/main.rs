//! `cargo lab`: husk on a bare-metal host, on any machine.
//!
//! Guests need VMX or SVM. Where this machine has neither, QEMU emulates one that has SVM, a stock kernel boots there as the host,
//! and husk runs in it unchanged. Everything the lab fetches and builds stays in `target/lab`.

mod api_fuzz;
mod archive;
mod bench;
mod board;
mod build;
mod calls;
mod command;
mod demo;
mod emulator;
mod file_server;
mod fuzz;
mod growth;
mod host;
mod images;
mod interactive;
mod kernel;
mod life;
mod modules;
mod needs;
mod package;
mod packages;
mod paths;
mod pool;
mod progress;
#[cfg(test)]
mod readme_test;
mod ready;
mod report;
mod soak;
mod stall;
mod suite;
mod sys;
mod tally;
mod test;
mod tools;
mod user_space;
mod watched;

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};

use crate::host::Host;
use crate::paths::Lab;

/// A bare-metal host for husk on any machine.
#[derive(Parser)]
#[command(name = "cargo lab", bin_name = "cargo lab", version)]
struct Arguments {
    /// Where guests run, for demo, test and soak; by default on this machine if it can, else in an emulated one.
    #[arg(long, global = true, value_enum)]
    host: Option<Host>,
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Boot a guest and show its life as it happens.
    Demo,
    /// Run every test: unit, integration, guest-driven.
    Test {
        /// Leave out the tests that need no guest.
        #[arg(long)]
        guests_only: bool,
        /// Run only tests whose name contains this.
        filter: Option<String>,
    },
    /// Let many pods live one after another as Kata's shims would, and look for what they leave behind.
    Soak(soak::SoakArgs),
    /// Measure husk, and on request its peers; a table and a chart go to target/lab/bench.
    Bench(bench::BenchArgs),
    /// Give every target of tests/fuzz inputs that nobody thought of.
    Fuzz(fuzz::FuzzArgs),
    /// Send husk's API requests made of its description (docs/openapi.yaml).
    ApiFuzz(api_fuzz::ApiFuzzArgs),
    /// Make the packages that husk is given to others in: a tarball, a .deb, checksums, a bill of materials.
    Package(package::PackageArgs),
    /// Open a shell in the emulated host, with husk and guest kernels at hand.
    Shell,
    /// Run husk with these arguments in the emulated host and pass its exit code on.
    Run {
        /// What husk is given. Kernels are /lab/6.12/vmlinuz and /lab/6.1/vmlinuz.
        #[arg(last = true)]
        arguments: Vec<String>,
    },
    /// The part of `demo` that runs where guests run.
    #[command(hide = true)]
    Life(life::LifeArgs),
    /// The part of `soak` that runs where guests run.
    #[command(hide = true)]
    Lives(soak::LivesArgs),
    /// The part of `test` that runs where guests run.
    #[command(hide = true)]
    Suite(test::SuiteArgs),
    /// The part of `bench` that runs in the emulated host.
    #[command(hide = true)]
    Measure(bench::MeasureArgs),
}

impl Task {
    /// Whether its guests may run here or in the emulated host.
    fn has_a_choice(&self) -> bool {
        matches!(self, Self::Demo | Self::Test { .. } | Self::Soak(_))
    }
}

/// What a shell reports of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    match perform(&Arguments::parse()) {
        Ok(code) => code,
        Err(error) => {
            // A terminal shows ^C on the line of a step.
            progress::say(&format!("{error:#}"));
            if sys::interrupted() {
                ExitCode::from(INTERRUPTED)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

fn perform(arguments: &Arguments) -> Result<ExitCode> {
    ensure!(
        arguments.host.is_none() || arguments.task.has_a_choice(),
        "--host is for demo, test and soak: this command has no choice of where guests run"
    );
    let choice = || Host::choose(arguments.host);
    match &arguments.task {
        Task::Demo => demo::run(&Lab::open()?, &choice()).map(verdict),
        Task::Test { guests_only, filter } => {
            test::run(&Lab::open()?, &choice(), *guests_only, filter.as_deref()).map(verdict)
        }
        Task::Fuzz(arguments) => fuzz::run(&Lab::open()?, arguments).map(verdict),
        Task::ApiFuzz(arguments) => api_fuzz::run(&Lab::open()?, arguments).map(verdict),
        Task::Package(arguments) => package::run(&Lab::open()?, arguments).map(verdict),
        Task::Shell => interactive::shell(&Lab::open()?).map(exit_code),
        Task::Run { arguments } => interactive::husk(&Lab::open()?, arguments).map(exit_code),
        Task::Life(arguments) => life::run(arguments).map(|()| ExitCode::SUCCESS),
        Task::Soak(arguments) => soak::run(&Lab::open()?, &choice(), arguments).map(verdict),
        Task::Lives(arguments) => soak::live(arguments).map(|()| ExitCode::SUCCESS),
        Task::Suite(arguments) => test::suite(arguments).map(verdict),
        Task::Bench(arguments) => bench::run(&Lab::open()?, arguments).map(verdict),
        Task::Measure(arguments) => bench::measure(arguments).map(|()| ExitCode::SUCCESS),
    }
}

fn verdict(held: bool) -> ExitCode {
    if held { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(1))
}
