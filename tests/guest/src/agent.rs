//! The agent of a test pod (the step `agent`): serves [`Call`]s on vsock, any number of connections at once.
//!
//! It stands for Kata's agent: it listens on port 1024, and on the port of its log only if the
//! kernel's command line names one (`agent.log_vport=`). Nothing of it needs a console.

mod device;
mod exec;
mod files;
mod load;
mod log;
mod share;

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use husk_guest::call::MAX_LINE_BYTES;
use husk_guest::{AGENT_PORT, Call, Reply, Step, stream, tree};

use self::log::Log;
use crate::{option, setup, steps, sys};

/// The stack of a connection's thread: a thousand connections fit a small guest.
const STACK_BYTES: usize = 128 << 10;

/// How long a guest that ends waits for its caller to take the last reply.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves until a call ends the guest.
///
/// # Errors
///
/// There is no vsock device, or its driver refuses to listen.
pub fn serve() -> Result<()> {
    for folder in ["/tmp", "/run"] {
        setup::mount("tmpfs", folder, "tmpfs")?;
    }
    let log = Arc::new(Log::default());
    if let Some(port) = option(&fs::read_to_string("/proc/cmdline")?, "agent.log_vport") {
        let listener = listen(port.parse().context("strange agent.log_vport")?)?;
        let log = Arc::clone(&log);
        thread::spawn(move || {
            while let Ok(follower) = stream::accept(&listener) {
                log.follow(follower);
            }
        });
    }
    accept(&listen(AGENT_PORT)?, &log)
}

fn listen(port: u32) -> Result<OwnedFd> {
    stream::listen(port).with_context(|| format!("cannot listen on vsock port {port}"))
}

/// Serves whoever connects, each on a thread of its own.
fn accept(listener: &OwnedFd, log: &Arc<Log>) -> Result<()> {
    loop {
        let stream = stream::accept(listener).context("cannot accept a vsock connection")?;
        let log = Arc::clone(log);
        let service = move || {
            // A client that breaks off is no reason to end.
            if let Err(error) = converse(&stream, &log) {
                log.say(&format!("a connection ended: {error:#}"));
            }
        };
        thread::Builder::new().stack_size(STACK_BYTES).spawn(service)?;
    }
}

/// Serves one connection to its end.
///
/// # Errors
///
/// The other side broke off, or sent what is no call.
fn converse(stream: &UnixStream, log: &Arc<Log>) -> Result<()> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    loop {
        line.clear();
        if reader.by_ref().take(MAX_LINE_BYTES).read_line(&mut line)? == 0 {
            return Ok(());
        }
        log.say(line.trim_end());
        match serde_json::from_str(&line) {
            Ok(Call::Echo) => return files::echo(&mut reader, stream),
            Ok(Call::Source { seed, bytes }) => return files::source(stream, seed, bytes),
            Ok(Call::Sink) => {
                let taken = files::sink(&mut reader);
                return reply(stream, taken);
            }
            Ok(Call::Load { load }) => {
                let worked = load::work(&mut reader, &load);
                return reply(stream, Ok(worked));
            }
            Ok(Call::Exec { command }) => return exec::exec(&mut reader, stream, &command),
            Ok(call) => match last_step(&call) {
                Some(step) => return leave(stream, &mut reader, &step),
                None => reply(stream, perform(call, log))?,
            },
            Err(error) => {
                reply(stream, Err(anyhow!(error).context("not a call")))?;
                ensure!(line.ends_with('\n'), "a line longer than {MAX_LINE_BYTES} bytes");
            }
        }
    }
}

fn reply(mut stream: &UnixStream, result: Result<Reply>) -> Result<()> {
    let reply = result.unwrap_or_else(|error| Reply::Failed {
        errno: error
            .chain()
            .find_map(|cause| cause.downcast_ref::<std::io::Error>()?.raw_os_error()),
        error: format!("{error:#}"),
    });
    let mut line = serde_json::to_vec(&reply)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// The step of a call that ends the guest.
fn last_step(call: &Call) -> Option<Step> {
    let Call::Step { step } = call else { return None };
    step.parse().ok().filter(Step::is_last)
}

/// Says good-bye, waits until that was heard, and ends the guest.
fn leave(stream: &UnixStream, reader: &mut impl Read, step: &Step) -> Result<()> {
    reply(stream, Ok(Reply::Done))?;
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(FAREWELL))?;
    let _ = reader.read(&mut [0]);
    Err(steps::end(step))
}

fn perform(call: Call, log: &Arc<Log>) -> Result<Reply> {
    match call {
        Call::Step { step } => perform_step(&step.parse()?),
        Call::Run { command, input } => exec::run(&command, input),
        Call::Mount { source, target, kind } => {
            fs::create_dir_all(&target).with_context(|| format!("cannot create {target}"))?;
            sys::mount(&source, &target, &kind, false)
                .with_context(|| format!("cannot mount {kind} {source} on {target}"))?;
            Ok(Reply::Done)
        }
        Call::Text { path } => {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            Ok(Reply::Text { text })
        }
        Call::Store { path, seed, bytes } => files::store(&path, seed, bytes),
        Call::Sum { path } => files::sum(&path),
        Call::Plant { path, plan } => {
            tree::plant(path.as_ref(), &plan).with_context(|| format!("cannot plant {path}"))?;
            Ok(Reply::Done)
        }
        Call::Survey { path, depth } => {
            let survey = tree::survey(path.as_ref(), depth).with_context(|| format!("cannot survey {path}"))?;
            Ok(Reply::Surveyed { survey })
        }
        Call::Map {
            path,
            seed,
            bytes,
            shared,
        } => share::map(&path, seed, bytes, shared),
        Call::Storm { path, threads, rounds } => share::storm(&path, threads, rounds),
        Call::DiskAt { bdf } => device::disk_at(&bdf),
        Call::Gone { bdf } => device::gone(&bdf),
        Call::Dial { port, text } => dial(port, &text),
        Call::Listen { port } => {
            let (listener, log) = (listen(port)?, Arc::clone(log));
            thread::spawn(move || accept(&listener, &log));
            Ok(Reply::Done)
        }
        Call::Time { of } => time(*of, log),
        // These end their connection, and their caller has seen to them.
        Call::Exec { .. } | Call::Echo | Call::Sink | Call::Source { .. } | Call::Load { .. } => {
            Err(anyhow!("{call:?} is not answered by one reply"))
        }
    }
}

fn perform_step(step: &Step) -> Result<Reply> {
    ensure!(!step.is_last(), "nobody would hear when `{step}` is done");
    let answer = steps::perform(step)?;
    Ok(Reply::Answer { answer })
}

/// Does what is asked by the guest's monotonic clock.
fn time(call: Call, log: &Arc<Log>) -> Result<Reply> {
    let start = Instant::now();
    let result = Box::new(perform(call, log)?);
    let nanoseconds = u64::try_from(start.elapsed().as_nanos())?;
    Ok(Reply::Timed { nanoseconds, result })
}

fn dial(port: u32, text: &str) -> Result<Reply> {
    let mut stream =
        stream::connect(stream::HOST, port).with_context(|| format!("cannot connect to the host's port {port}"))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut text = String::new();
    match stream.read_to_string(&mut text) {
        // Some kernels tell of a close that crosses our own by a reset.
        Err(error) if error.kind() != ErrorKind::ConnectionReset => Err(error).context("the host broke off"),
        _ => Ok(Reply::Text { text }),
    }
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod tests;
