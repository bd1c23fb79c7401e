//! The profile `vsock`: streams between a program of the emulated host and one of its guest, in virtual time.
//!
//! Where the clock counts instructions, throughput says how much work a byte is for guest, VMM and
//! host together, and two runs agree whatever else this machine does. The measuring is done in
//! there, by this same program.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use husk_guest::raw::{PORT, StreamRequest};
use husk_guest::{Step, step};
use serde::{Deserialize, Serialize};

use super::Results;
use super::emulated::{Extent, Profile, Session};
use super::measure::during;
use super::rounds::FigureDef;
use super::subject::{Guest, Subject};
use crate::kernel::HOST_KERNEL;
use crate::paths::Lab;

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

/// What one life of a subject came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    to_guest: f64,
    from_guest: f64,
    from_guest_by_many: f64,
    round_trip: f64,
    dials: f64,
}

const FIGURES: [FigureDef<Rates>; 5] = [
    ("to_guest_mib_s", "MiB/s", |rates| rates.to_guest),
    ("from_guest_mib_s", "MiB/s", |rates| rates.from_guest),
    ("from_guest_by_16_mib_s", "MiB/s", |rates| rates.from_guest_by_many),
    ("round_trip_us", "virtual µs", |rates| rates.round_trip),
    ("dials_per_s", "1/s", |rates| rates.dials),
];

/// Throughput both ways, round trip and rate of dials.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent) -> Result<Results> {
    let session = Session {
        profile: Profile::Vsock,
        subjects,
        extent,
        guest_init: super::guest_init(lab)?,
        files: Vec::new(),
        parts: Vec::new(),
        figure_defs: &FIGURES,
    };
    session.run(lab)
}

/// One life of `subject`, in the emulated host.
pub fn sample(subject: &Subject, scratch: &Path) -> Result<Rates> {
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
        room: None,
        share: None,
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
    stream.set_write_timeout(Some(LIMIT))?;
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

fn request(socket: &Path, request: StreamRequest) -> Result<UnixStream> {
    let mut stream = dial(socket)?;
    request.write(&mut stream)?;
    Ok(stream)
}

#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn mib_per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

/// Host to guest.
fn give(socket: &Path, bytes: u64) -> Result<f64> {
    let mut stream = request(socket, StreamRequest::Take(bytes))?;
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
    let mut stream = request(socket, StreamRequest::Give(bytes))?;
    drain(&mut stream, bytes)?;
    Ok(mib_per_second(bytes, start.elapsed()))
}

/// Guest to host, by several streams at a time.
fn take_by_many(socket: &Path) -> Result<f64> {
    let bytes = BULK / STREAMS as u64;
    let start = Instant::now();
    let streams: Vec<_> = (0..STREAMS)
        .map(|_| request(socket, StreamRequest::Give(bytes)))
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
    let mut stream = request(socket, StreamRequest::Echo)?;
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
        let mut stream = request(socket, StreamRequest::Echo)?;
        stream.write_all(&[7])?;
        stream.read_exact(&mut [0])?;
    }
    Ok(f64::from(DIALS) / start.elapsed().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_serves_streams_to_its_end() {
        assert!(guest(Path::new("/s")).cmdline.ends_with(" husk.do=raw-streams"));
    }
}
