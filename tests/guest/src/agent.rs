//! The agent: serves [`Call`]s over vsock, each connection on a thread of its own.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use husk_guest::{AGENT_PORT, Call, Reply, Step, pattern};

use crate::{setup, steps, sys};

/// How long a device may take to come or go.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(5);

/// Serves until a call ends the guest.
///
/// # Errors
///
/// There is no vsock device, or its driver refuses to listen.
pub fn serve() -> Result<()> {
    let listener = sys::vsock_listen(AGENT_PORT).context("cannot listen on vsock")?;
    loop {
        let stream = sys::accept(&listener).context("cannot accept a vsock connection")?;
        // A client that breaks off is no reason to end.
        thread::spawn(move || converse(&stream));
    }
}

/// Handles the calls of one connection.
fn converse(stream: &File) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let reply = match serde_json::from_str(&line) {
            Ok(call) => match handle(&call, &mut reader, stream) {
                Ok(None) => return Ok(()),
                Ok(Some(reply)) => reply,
                Err(error) => failed(&error),
            },
            Err(error) => failed(&error.into()),
        };
        say(stream, &reply)?;
        line.clear();
    }
    Ok(())
}

fn say(mut stream: &File, reply: &Reply) -> Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

fn failed(error: &anyhow::Error) -> Reply {
    let errno = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error());
    Reply::Failed {
        error: format!("{error:#}"),
        errno,
    }
}

/// Does what is asked. `None` when the connection has served its purpose.
fn handle(call: &Call, reader: &mut BufReader<&File>, mut stream: &File) -> Result<Option<Reply>> {
    Ok(Some(match call {
        Call::Step { step } => step_of(&step.parse()?, stream)?,
        Call::Run { command, input } => run(command, input)?,
        Call::Mount { source, target, kind } => {
            setup::mount(source, target, kind)?;
            Reply::Done
        }
        Call::Store { path, seed, bytes } => store(path, *seed, *bytes)?,
        Call::Sum { path } => {
            let mut file = File::open(path).with_context(|| format!("cannot open {path}"))?;
            data(pattern::read(&mut file).with_context(|| format!("cannot read {path}"))?)
        }
        Call::DiskAt { bdf } => disk_at(bdf)?,
        Call::Gone { bdf } => {
            let path = format!("/sys/bus/pci/devices/{bdf}");
            within_patience(&format!("{bdf} is still there"), || {
                (!Path::new(&path).exists()).then_some(Reply::Done)
            })?
        }
        Call::Echo => {
            io::copy(reader, &mut stream)?;
            return Ok(None);
        }
        Call::Sink => data(pattern::read(reader)?),
        Call::Source { seed, bytes } => {
            pattern::write(&mut stream, *seed, *bytes)?;
            return Ok(None);
        }
    }))
}

fn data((bytes, checksum): (u64, u64)) -> Reply {
    Reply::Data { bytes, checksum }
}

fn step_of(step: &Step, stream: &File) -> Result<Reply> {
    match step {
        Step::PowerOff | Step::Reset | Step::Panic => {
            say(stream, &Reply::Done)?;
            Err(steps::end(step))
        }
        step => Ok(Reply::Answer {
            answer: steps::perform(step)?,
        }),
    }
}

fn run(command: &[String], input: &str) -> Result<Reply> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let input = input.to_string();
    // A program that does not read must not keep the other pipes from being read. That it ends early is its own affair.
    let feeder = thread::spawn(move || stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().with_context(|| format!("lost {program}"))?;
    let _ = feeder.join();
    let signal = std::os::unix::process::ExitStatusExt::signal(&output.status);
    Ok(Reply::Ran {
        code: output.status.code().unwrap_or(128 + signal.unwrap_or(0)),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

fn store(path: &str, seed: u64, bytes: u64) -> Result<Reply> {
    let mut file = File::create(path).with_context(|| format!("cannot create {path}"))?;
    let checksum = pattern::write(&mut file, seed, bytes).with_context(|| format!("cannot write {path}"))?;
    file.sync_all().with_context(|| format!("cannot sync {path}"))?;
    Ok(data((bytes, checksum)))
}

/// Waits for the block device of the virtio function at `bdf`, where Kata's agent looks for it.
fn disk_at(bdf: &str) -> Result<Reply> {
    let function = PathBuf::from(format!("/sys/devices/pci0000:00/{bdf}"));
    within_patience(&format!("no disk at {bdf}"), || {
        let virtio = only_child(&function, "virtio")?;
        let block = only_child(&virtio.join("block"), "vd")?;
        let name = block.file_name()?.to_str()?.to_string();
        Path::new("/dev").join(&name).exists().then(|| Reply::Device {
            name,
            path: block.display().to_string(),
        })
    })
}

fn only_child(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let mut entries = fs::read_dir(folder).ok()?.flatten();
    let found = entries.find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))?;
    Some(found.path())
}

fn within_patience<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if start.elapsed() > PATIENCE {
            bail!("{what} after {} s", PATIENCE.as_secs());
        }
        thread::sleep(POLL);
    }
}
