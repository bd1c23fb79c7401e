//! Files and streams: written, read and summed in pieces, so that their size does not matter.

use std::fs::File;
use std::io::Read;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result};
use husk_guest::{Reply, pattern};

/// Writes a pattern to `path` and syncs it.
pub fn store(path: &str, seed: u64, bytes: u64) -> Result<Reply> {
    let mut file = File::create(path).with_context(|| format!("cannot create {path}"))?;
    let checksum = pattern::write(&mut file, seed, bytes).with_context(|| format!("cannot write {path}"))?;
    file.sync_all().with_context(|| format!("cannot sync {path}"))?;
    Ok(Reply::Data { bytes, checksum })
}

/// Sums the file `path`.
pub fn sum(path: &str) -> Result<Reply> {
    let mut file = File::open(path).with_context(|| format!("cannot open {path}"))?;
    sink(&mut file).with_context(|| format!("cannot read {path}"))
}

/// Reads to the end.
pub fn sink(from: &mut impl Read) -> Result<Reply> {
    let (bytes, checksum) = pattern::read(from)?;
    Ok(Reply::Data { bytes, checksum })
}

/// Sends a pattern, then the end.
pub fn source(mut stream: &UnixStream, seed: u64, bytes: u64) -> Result<()> {
    pattern::write(&mut stream, seed, bytes)?;
    Ok(stream.shutdown(Shutdown::Write)?)
}

/// Sends back what comes until its end, then the end.
pub fn echo(reader: &mut impl Read, mut stream: &UnixStream) -> Result<()> {
    std::io::copy(reader, &mut stream)?;
    Ok(stream.shutdown(Shutdown::Write)?)
}
