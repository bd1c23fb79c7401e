//! `cargo lab fuzz`: every target of `tests/fuzz` under libFuzzer for a while, on this machine.
//!
//! Everything is below `target/lab/fuzz`:
//!
//! | path              | content                                                        |
//! |-------------------|----------------------------------------------------------------|
//! | `build/`          | cargo's target folder for the fuzzing program                   |
//! | `corpus/TARGET/`  | inputs that reached something new; the next run starts from them |
//! | `crashes/TARGET/` | inputs that something is wrong with                             |
//! | `logs/TARGET.log` | what libFuzzer said last                                        |

mod program;
mod report;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command::{command, typed};
use crate::paths::Lab;
use crate::{progress, sys};
use report::Outcome;

/// When one input is taken to hang.
const INPUT_SECONDS: u32 = 25;
/// Most memory of a target, in MiB.
const MEMORY_MIB: u32 = 3072;

/// What to fuzz, and for how long.
#[derive(clap::Args)]
pub struct FuzzArgs {
    /// Seconds for each target.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Give the target this input and nothing else: how a crash is seen again.
    #[arg(long, value_name = "FILE", requires = "targets")]
    input: Option<PathBuf>,
    /// Targets, by default all: the folders of tests/fuzz/seeds.
    #[arg(value_name = "TARGET")]
    targets: Vec<String>,
}

/// Runs the targets one after another; whether nothing is wrong with any of them.
///
/// # Errors
///
/// There is no such target, or the fuzzing program cannot be built or started.
pub fn run(lab: &Lab, arguments: &FuzzArgs) -> Result<bool> {
    let known = targets(lab)?;
    if let Some(unknown) = arguments.targets.iter().find(|target| !known.contains(target)) {
        bail!("no target is called {unknown}; there are {}", known.join(", "));
    }
    let program = program::build(lab)?;
    if let (Some(input), Some(target)) = (&arguments.input, arguments.targets.first()) {
        return replay(&program, target, input);
    }
    let chosen = if arguments.targets.is_empty() {
        &known
    } else {
        &arguments.targets
    };
    println!("{}", report::HEADING);
    let mut held = true;
    for target in chosen {
        let outcome = fuzz(lab, &program, target, arguments.seconds)?;
        println!("{}", outcome.row(target));
        if let Some(complaint) = outcome.complaint(target) {
            println!("{complaint}");
            held = false;
        }
    }
    Ok(held)
}

/// Names of all targets.
fn targets(lab: &Lab) -> Result<Vec<String>> {
    let folder = seeds(lab);
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut names = Vec::new();
    for entry in entries {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

fn seeds(lab: &Lab) -> PathBuf {
    lab.workspace.join("tests/fuzz/seeds")
}

/// The fuzzing program, to run `target`.
fn aimed(program: &Path, target: &str) -> Command {
    let mut fuzzer = command(program);
    fuzzer.env("HUSK_FUZZ_TARGET", target);
    sys::die_with_parent(&mut fuzzer);
    fuzzer
}

fn replay(program: &Path, target: &str, input: &Path) -> Result<bool> {
    let mut fuzzer = aimed(program, target);
    fuzzer.arg(input).env("RUST_BACKTRACE", "1");
    let status = fuzzer
        .status()
        .with_context(|| format!("cannot start `{}`", typed(&fuzzer)))?;
    Ok(status.success())
}

fn fuzz(lab: &Lab, program: &Path, target: &str, seconds: u32) -> Result<Outcome> {
    let folder = |name: &str| {
        let path = lab.path("fuzz").join(name);
        fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok::<_, anyhow::Error>(path)
    };
    let corpus = folder(&format!("corpus/{target}"))?;
    let crashes = folder(&format!("crashes/{target}"))?;
    let log = folder("logs")?.join(format!("{target}.log"));
    let mut fuzzer = aimed(program, target);
    fuzzer
        .arg(corpus)
        .arg(seeds(lab).join(target))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-rss_limit_mb={MEMORY_MIB}"))
        .arg(format!("-artifact_prefix={}/", crashes.display()))
        .arg("-print_final_stats=1")
        .stdout(Stdio::null())
        .stderr(File::create(&log).with_context(|| format!("cannot create {}", log.display()))?);
    let ticker = progress::Ticker::start(&format!("fuzzing {target} for {seconds} s"));
    let status = fuzzer
        .status()
        .with_context(|| format!("cannot start `{}`", typed(&fuzzer)))?;
    ticker.end("");
    let said = fs::read(&log).with_context(|| format!("cannot read {}", log.display()))?;
    Ok(Outcome::read(&String::from_utf8_lossy(&said), status.success(), log))
}
