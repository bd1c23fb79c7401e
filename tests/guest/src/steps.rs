//! The steps that need no console.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use husk_guest::{Answer, MARK_END, Step};

use crate::{disk, facts, online, setup, sys, vsock};

/// Does one step and answers it.
///
/// # Errors
///
/// The kernel refused, or the step needs a console.
pub fn perform(step: &Step) -> Result<Answer> {
    Ok(match step {
        Step::Report => Answer::Report(facts::report()?),
        Step::Topology => Answer::Topology {
            processors: facts::processors()?,
        },
        Step::Pci => Answer::Pci {
            functions: facts::pci()?,
        },
        Step::Interrupts => Answer::Interrupts {
            rows: facts::interrupts()?,
        },
        Step::Resources => Answer::Resources(online::resources()?),
        Step::Online(cpus) => Answer::Resources(online::bring_online(*cpus)?),
        Step::Module(name) => module(name)?,
        Step::Disk(name) => Answer::Disk(disk::describe(name)?),
        Step::Write(range, seed) => disk::write(range, *seed)?,
        Step::Read(range) => disk::read(range)?,
        Step::Discard(range) => disk::discard(range)?,
        Step::Zero(range) => disk::zero(range)?,
        Step::Parallel(name, jobs) => disk::parallel(name, *jobs)?,
        Step::Script => shell(". /script")?,
        Step::Random(length) => random(*length)?,
        Step::RebindVsock => vsock::rebind()?,
        Step::RawStreams => vsock::serve_raw()?,
        _ => bail!("`{step}` needs a console"),
    })
}

/// Loads a driver of `/later`, with what it needs.
fn module(name: &str) -> Result<Answer> {
    let folder = Path::new("/later").join(name);
    ensure!(folder.is_dir(), "the image has no module {name}");
    setup::load_modules(folder)?;
    Ok(Answer::Loaded { module: name.into() })
}

/// Runs a line of shell script.
///
/// # Errors
///
/// There is no shell.
pub fn shell(line: &str) -> Result<Answer> {
    let ran = Command::new("/bin/sh")
        .args(["-c", &format!("exec 2>&1; {line}")])
        .env("PATH", "/bin")
        .output()
        .context("cannot start the shell")?;
    Ok(Answer::Ran {
        code: ran.status.code().unwrap_or(-1),
        output: String::from_utf8_lossy(&ran.stdout).trim_end().to_string(),
    })
}

/// Ends the guest; an error if it is still there afterwards.
pub fn end(step: &Step) -> anyhow::Error {
    if *step == Step::Idle {
        loop {
            thread::sleep(Duration::from_secs(3600));
        }
    }
    if let Err(error) = sys::mark(MARK_END) {
        return error.into();
    }
    match step {
        Step::Reset => sys::leave(sys::Leave::Restart).into(),
        Step::Panic => match fs::write("/proc/sysrq-trigger", "c") {
            Ok(()) => anyhow!("the kernel survived its own crash"),
            Err(error) => error.into(),
        },
        _ => sys::leave(sys::Leave::PowerOff).into(),
    }
}

fn random(length: usize) -> Result<Answer> {
    let source = fs::read_to_string("/sys/class/misc/hw_random/rng_current")?
        .trim()
        .to_string();
    let mut bytes = vec![0; length];
    File::open("/dev/hwrng")?
        .read_exact(&mut bytes)
        .context("cannot read /dev/hwrng")?;
    let mut values = bytes;
    values.sort_unstable();
    values.dedup();
    Ok(Answer::Random {
        source,
        bytes: length,
        distinct: values.len(),
    })
}
