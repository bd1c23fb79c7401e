//! The profile `vsock`: streams between a program of the emulated host and one of its guest, in virtual time.
//!
//! Where the clock counts instructions, throughput says how much work a byte is for guest, VMM and host together, and two runs agree
//! whatever else this machine does. The measuring is done in there, by this same program.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use husk_guest::raw::{PORT, Wish};
use husk_guest::{Step, step};
use serde::{Deserialize, Serialize};

use super::measure::during;
use super::rounds::{self, Extract, Samples};
use super::subject::{Guest, Kind, Subject};
use super::{Results, portable};
use crate::build::{self, Programs};
use crate::emulator::{Emulator, Finished, Request, Timing};
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};
use crate::progress;

/// When the emulated host is taken to hang, for each run in it.
const TIMEOUT_A_RUN: Duration = Duration::from_secs(600);
/// When a subject is taken to hang, in virtual time.
const LIMIT: Duration = Duration::from_secs(120);
const PACE: Duration = Duration::from_millis(10);
/// Bytes of one transfer.
const BULK: u64 = 64 << 20;
/// Bytes of one write or read.
const CHUNK: usize = 64 << 10;
/// Bytes there and back, one after the other.
const ROUND_TRIPS: u32 = 500;
/// Dials, one after the other.
const DIALS: u32 = 200;
/// Streams at the same time.
const STREAMS: usize = 16;

const MEMORY_MIB: u32 = 512;
const PLAN: &str = "vsock-plan.json";
const LIVES: &str = "vsock-lives.json";

/// What to measure in the emulated host.
#[derive(clap::Args)]
pub struct MeasureArgs {
    /// The plan.
    plan: PathBuf,
    /// Where the results go.
    lives: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    subjects: Vec<Subject>,
    runs: u32,
}

/// A subject's rates, or why there are none.
#[derive(Serialize, Deserialize)]
struct Lives {
    kind: Kind,
    outcome: Result<Vec<Rates>, String>,
}

/// What one life of a subject came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Rates {
    to_guest: f64,
    from_guest: f64,
    from_guest_by_many: f64,
    round_trip: f64,
    dials: f64,
}

const FIGURES: [Extract<Rates>; 5] = [
    ("to_guest", "MiB/s", |rates| rates.to_guest),
    ("from_guest", "MiB/s", |rates| rates.from_guest),
    ("from_guest_16_streams", "MiB/s", |rates| rates.from_guest_by_many),
    ("round_trip", "us", |rates| rates.round_trip),
    ("dials", "1/s", |rates| rates.dials),
];

/// Whether a subject has vsock without help of the host's kernel.
fn has_vsock(kind: Kind) -> bool {
    matches!(kind, Kind::Husk | Kind::CloudHypervisor | Kind::Firecracker)
}

/// Throughput both ways, round trip and rate of dials.
///
/// # Errors
///
/// The emulated host cannot be made, or died.
pub fn run(lab: &Lab, subjects: &[Subject], runs: u32) -> Result<Results> {
    let subjects: Vec<_> = subjects.iter().filter(|subject| has_vsock(subject.kind)).collect();
    let husk = subjects.iter().find(|subject| subject.kind == Kind::Husk);
    progress::say("building the guest's init");
    let init = build::build(lab, &["build", "--profile", "lab", "--package", "husk-guest", "--bins"])?;
    let programs = Programs {
        husk: husk.context("no husk to measure")?.program.clone(),
        guest_init: init.into_iter().next().context("cargo built no init")?.path,
    };
    let emulator = Emulator::prepare(lab, &programs)?;
    let request = request(lab, &subjects, runs)?;
    let mut said = Vec::new();
    let what = format!("vsock: {runs} runs of each subject in the emulated host");
    let finished = progress::step(&what, || {
        emulator.run(&request, &mut |bytes| said.extend_from_slice(bytes))
    })?;
    let said = String::from_utf8_lossy(&said);
    ensure!(
        finished.exit == 0,
        "cannot measure in the emulated host: {}",
        said.trim()
    );
    summarise(&finished)
}

fn request(lab: &Lab, subjects: &[&Subject], runs: u32) -> Result<Request> {
    let folder = lab.path("bench");
    let mut files = vec![(std::env::current_exe()?, "bin/husk-lab".to_string())];
    let mut there = Vec::new();
    for subject in subjects {
        there.push(portable::pack(subject, &mut files)?);
    }
    let boots = (runs + 1) * u32::try_from(there.len())?;
    let plan = serde_json::to_vec(&Plan { subjects: there, runs })?;
    paths::write(&folder.join(PLAN), &plan)?;
    files.push((folder.join(PLAN), PLAN.into()));
    let words = ["husk-lab", "measure-vsock", PLAN, &format!("out/{LIVES}")];
    Ok(Request {
        command: words.map(str::to_string).to_vec(),
        files,
        timing: Timing::Deterministic,
        timeout: Some(TIMEOUT_A_RUN * (boots + 1)),
        ..Request::default()
    })
}

fn summarise(finished: &Finished) -> Result<Results> {
    let file = finished.files.iter().find(|file| file.name == LIVES);
    let lives: Vec<Lives> = serde_json::from_slice(&file.context("nothing was measured")?.content)?;
    let samples: Vec<_> = lives
        .into_iter()
        .map(|Lives { kind, outcome }| Samples { kind, outcome })
        .collect();
    Ok(rounds::summarise("vsock", &samples, &FIGURES))
}

/// Measures in the emulated host.
///
/// # Errors
///
/// The plan cannot be read or the results not be written. A subject that fails is a result.
pub fn measure(arguments: &MeasureArgs) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(&arguments.plan)?).context("a strange plan")?;
    let scratch = tempfile::tempdir()?;
    let samples = rounds::interleaved(&plan.subjects, plan.runs, |subject| rates(subject, scratch.path()));
    let lives: Vec<_> = samples
        .into_iter()
        .map(|Samples { kind, outcome }| Lives { kind, outcome })
        .collect();
    fs::write(&arguments.lives, serde_json::to_vec(&lives)?)?;
    Ok(())
}

/// One life of `subject`, in the emulated host.
fn rates(subject: &Subject, scratch: &Path) -> Result<Rates> {
    let socket = scratch.join("v.sock");
    let _ = fs::remove_file(&socket);
    during(subject.start(&guest(&socket), scratch)?, LIMIT, || {
        await_guest(&socket)?;
        let (to_guest, from_guest) = (give(&socket, BULK)?, take(&socket, BULK)?);
        Ok(Rates {
            to_guest,
            from_guest,
            from_guest_by_many: take_by_many(&socket)?,
            round_trip: round_trip(&socket)?,
            dials: dials(&socket)?,
        })
    })
}

fn guest(socket: &Path) -> Guest {
    let steps = step::join(&[Step::RawStreams]);
    Guest {
        kernel: Path::new("/lab").join(HOST_KERNEL.name).join("vmlinux"),
        initramfs: Some(PathBuf::from("/lab").join(HOST_KERNEL.name).join("initramfs.cpio")),
        cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 husk.do={steps}"),
        memory_mib: MEMORY_MIB,
        disk: None,
        tap: None,
        vsock: Some(socket.to_owned()),
    }
}

fn await_guest(socket: &Path) -> Result<()> {
    let start = Instant::now();
    loop {
        match dial(socket) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > LIMIT => return Err(error).context("nobody answers in the guest"),
            Err(_) => std::thread::sleep(PACE),
        }
    }
}

fn dial(socket: &Path) -> Result<UnixStream> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
    let (mut byte, mut line) = ([0], Vec::new());
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.extend(byte);
    }
    ensure!(
        line.starts_with(b"OK "),
        "answered {:?}",
        String::from_utf8_lossy(&line)
    );
    Ok(stream)
}

fn wish(socket: &Path, wish: Wish) -> Result<UnixStream> {
    let mut stream = dial(socket)?;
    wish.write(&mut stream)?;
    Ok(stream)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Host to guest.
fn give(socket: &Path, bytes: u64) -> Result<f64> {
    let mut stream = wish(socket, Wish::Take(bytes))?;
    let chunk = vec![0; CHUNK];
    let start = Instant::now();
    for _ in 0..bytes / CHUNK as u64 {
        stream.write_all(&chunk)?;
    }
    stream.read_exact(&mut [0])?;
    Ok(mib_per_second(bytes, start.elapsed()))
}

/// Guest to host.
fn take(socket: &Path, bytes: u64) -> Result<f64> {
    let start = Instant::now();
    let mut stream = wish(socket, Wish::Give(bytes))?;
    drain(&mut stream, bytes)?;
    Ok(mib_per_second(bytes, start.elapsed()))
}

/// Guest to host, by several streams at a time.
fn take_by_many(socket: &Path) -> Result<f64> {
    let bytes = BULK / STREAMS as u64;
    let start = Instant::now();
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| wish(socket, Wish::Give(bytes)))
        .collect::<Result<_>>()?;
    let readers = streams
        .into_iter()
        .map(|mut stream| std::thread::spawn(move || drain(&mut stream, bytes)));
    for reader in readers.collect::<Vec<_>>() {
        reader.join().ok().context("a reader panicked")??;
    }
    Ok(mib_per_second(BULK, start.elapsed()))
}

fn drain(stream: &mut UnixStream, bytes: u64) -> Result<()> {
    let (mut chunk, mut left) = (vec![0; CHUNK], bytes);
    while left > 0 {
        let count = stream.read(&mut chunk)?;
        ensure!(count > 0, "the stream ended {left} bytes early");
        left = left.saturating_sub(count as u64);
    }
    Ok(())
}

/// A byte there and back, in microseconds.
fn round_trip(socket: &Path) -> Result<f64> {
    let mut stream = wish(socket, Wish::Echo)?;
    let mut byte = [7];
    let start = Instant::now();
    for _ in 0..ROUND_TRIPS {
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
    }
    Ok(start.elapsed().as_secs_f64() * 1e6 / f64::from(ROUND_TRIPS))
}

/// Streams opened, used for one byte each way and closed, one after the other.
fn dials(socket: &Path) -> Result<f64> {
    let start = Instant::now();
    for _ in 0..DIALS {
        let mut stream = wish(socket, Wish::Echo)?;
        stream.write_all(&[7])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(f64::from(DIALS) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::FileBack;

    #[test]
    fn rates_survive_the_way_out_of_the_emulated_host() {
        let rates = Rates {
            to_guest: 1.0,
            from_guest: 2.0,
            from_guest_by_many: 3.0,
            round_trip: 4.0,
            dials: 5.0,
        };
        let lives = [
            Lives {
                kind: Kind::Husk,
                outcome: Ok(vec![rates]),
            },
            Lives {
                kind: Kind::Firecracker,
                outcome: Err("no KVM".into()),
            },
        ];
        let files = vec![FileBack {
            name: LIVES.into(),
            content: serde_json::to_vec(&lives).unwrap(),
        }];
        let results = summarise(&Finished { exit: 0, files }).unwrap();
        assert_eq!(results.failures, [(Kind::Firecracker, "no KVM".to_string())]);
        let medians: Vec<_> = results.figures.iter().map(|figure| figure.median).collect();
        assert_eq!(medians, [1.0, 2.0, 3.0, 4.0, 5.0]);
    }

    #[test]
    fn only_those_with_a_vsock_of_their_own_are_asked() {
        assert!(has_vsock(Kind::CloudHypervisor) && !has_vsock(Kind::QemuQ35) && !has_vsock(Kind::Floor));
        assert!(guest(Path::new("/s")).cmdline.ends_with(" husk.do=raw-streams"));
    }
}
