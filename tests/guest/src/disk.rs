//! Block devices: what the kernel says of them, and I/O that reaches the device (`O_DIRECT`).

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use husk_guest::answer::Disk;
use husk_guest::step::Range;
use husk_guest::{Answer, pattern};

use crate::{setup, sys};

/// Alignment that `O_DIRECT` needs on any disk here.
const BLOCK: usize = 4096;

/// Reads of one thread of [`parallel`].
const READS_PER_JOB: u64 = 32;

/// Memory that `O_DIRECT` accepts.
#[repr(align(4096))]
#[derive(Clone)]
struct Block([u8; BLOCK]);

fn attribute(name: &str, attribute: &str) -> Result<String> {
    let path = format!("/sys/block/{name}/{attribute}");
    Ok(fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}"))?
        .trim()
        .to_string())
}

fn open(name: &str, write: bool) -> Result<File> {
    let path = format!("/dev/{name}");
    setup::wait_for(&path)?;
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(libc::O_DIRECT)
        .open(&path);
    file.with_context(|| format!("cannot open {path}"))
}

/// Answers `disk`.
pub fn describe(name: &str) -> Result<Disk> {
    setup::wait_for(format!("/dev/{name}"))?;
    Ok(Disk {
        name: name.into(),
        bytes: attribute(name, "size")?
            .parse::<u64>()?
            .checked_mul(512)
            .context("the disk's size overflows")?,
        read_only: attribute(name, "ro")? == "1",
        sector: attribute(name, "queue/logical_block_size")?.parse()?,
        queues: fs::read_dir(format!("/sys/block/{name}/mq"))?.count(),
        discard: attribute(name, "queue/discard_max_bytes")?.parse()?,
        write_zeroes: attribute(name, "queue/write_zeroes_max_bytes")?.parse()?,
        cache: attribute(name, "queue/write_cache")?,
        serial: attribute(name, "serial").unwrap_or_default(),
    })
}

/// The blocks that `range` covers.
fn blocks(range: &Range) -> Result<u64> {
    let block = BLOCK as u64;
    ensure!(
        range.offset.is_multiple_of(block) && range.length.is_multiple_of(block),
        "{range} is not made of {BLOCK}-byte blocks"
    );
    Ok(range.length / block)
}

/// Writes a pattern, block by block, and syncs.
pub fn write(range: &Range, seed: u64) -> Result<Answer> {
    let count = blocks(range)?;
    let data = pattern::bytes(seed, usize::try_from(range.length)?);
    let disk = open(&range.disk, true)?;
    let mut block = Block([0; BLOCK]);
    for (index, chunk) in (0..count).zip(data.chunks_exact(BLOCK)) {
        block.0.copy_from_slice(chunk);
        disk.write_all_at(&block.0, range.offset + index * BLOCK as u64)
            .with_context(|| format!("cannot write {range}"))?;
    }
    disk.sync_all().with_context(|| format!("cannot sync {}", range.disk))?;
    Ok(Answer::Data {
        bytes: range.length,
        checksum: pattern::checksum(&data),
    })
}

/// Reads and checksums.
pub fn read(range: &Range) -> Result<Answer> {
    let disk = open(&range.disk, false)?;
    let mut data = Vec::new();
    let mut block = Block([0; BLOCK]);
    for index in 0..blocks(range)? {
        disk.read_exact_at(&mut block.0, range.offset + index * BLOCK as u64)
            .with_context(|| format!("cannot read {range}"))?;
        data.extend_from_slice(&block.0);
    }
    Ok(Answer::Data {
        bytes: range.length,
        checksum: pattern::checksum(&data),
    })
}

/// Discards.
pub fn discard(range: &Range) -> Result<Answer> {
    let disk = open(&range.disk, true)?;
    sys::discard(&disk, range.offset, range.length).with_context(|| format!("cannot discard {range}"))?;
    Ok(Answer::Data {
        bytes: range.length,
        checksum: 0,
    })
}

/// Writes zeroes without data.
pub fn zero(range: &Range) -> Result<Answer> {
    let disk = open(&range.disk, true)?;
    sys::zero_out(&disk, range.offset, range.length).with_context(|| format!("cannot zero {range}"))?;
    Ok(Answer::Data {
        bytes: range.length,
        checksum: 0,
    })
}

/// Reads the start of the disk from `jobs` threads, each on a processor of its own, so that every queue is used.
pub fn parallel(name: &str, jobs: usize) -> Result<Answer> {
    let bytes = thread::scope(|scope| {
        let threads: Vec<_> = (0..jobs)
            .map(|job| scope.spawn(move || read_pinned(name, job)))
            .collect();
        threads.into_iter().try_fold(0, |sum, thread| {
            let read = thread.join().map_err(|_| anyhow!("a reader died"))??;
            Ok::<u64, anyhow::Error>(sum + read)
        })
    })?;
    Ok(Answer::Data { bytes, checksum: 0 })
}

fn read_pinned(name: &str, processor: usize) -> Result<u64> {
    sys::pin_to(processor).with_context(|| format!("cannot move to processor {processor}"))?;
    let disk = open(name, false)?;
    let mut block = Block([0; BLOCK]);
    for index in 0..READS_PER_JOB {
        disk.read_exact_at(&mut block.0, index * BLOCK as u64)
            .with_context(|| format!("cannot read {name}"))?;
    }
    Ok(READS_PER_JOB * BLOCK as u64)
}
