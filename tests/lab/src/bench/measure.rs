//! One run of one subject: spawn, mark, exit; and what its memory holds in between.
//!
//! The clock is `CLOCK_MONOTONIC` of the process that spawns. The same code runs on the development machine and inside the emulated
//! host, where, in deterministic mode, that clock counts guest instructions.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Written to COM1 by the payload's first instructions, or by the guest's init.
pub const MARK: u8 = 0x02;

/// A run of one subject from spawn to exit.
#[derive(Clone, Copy, Debug)]
pub struct Life {
    /// Spawn to mark.
    pub mark: Duration,
    /// Spawn to exit.
    pub exit: Duration,
}

/// Runs `command` until it exits by itself.
///
/// # Errors
/// When it cannot be spawned, ends without having passed the mark on, or takes longer than `limit`.
pub fn life(mut command: Command, limit: Duration) -> Result<Life> {
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let mark = until_mark(&mut child, start);
    let exit = mark.and_then(|mark| {
        drain(&mut child);
        wait(&mut child, start, limit).map(|exit| Life { mark, exit })
    });
    end(&mut child);
    exit.with_context(|| format!("{command:?}"))
}

/// What a process holds while its guest is halted.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Private pages of everything but guest RAM, in KiB.
    pub private_kib: u64,
    /// Host page tables, in KiB.
    pub page_table_kib: u64,
}

/// Runs `command` until its mark, lets it settle, and reads its memory. The process is killed afterwards.
///
/// # Errors
/// As [`life`].
pub fn footprint(mut command: Command, memory_mib: u32, settle: Duration) -> Result<Footprint> {
    let start = Instant::now();
    let mut child = command.spawn().with_context(|| format!("cannot start {command:?}"))?;
    let read = until_mark(&mut child, start).and_then(|_| {
        thread::sleep(settle);
        read_footprint(Path::new(&format!("/proc/{}", child.id())), memory_mib)
    });
    end(&mut child);
    read.with_context(|| format!("{command:?}"))
}

fn until_mark(child: &mut Child, start: Instant) -> Result<Duration> {
    let out = child.stdout.as_mut().context("standard output is not a pipe")?;
    let mut chunk = [0; 4096];
    loop {
        let got = out.read(&mut chunk)?;
        if got == 0 {
            bail!("ended without the guest's mark");
        }
        if chunk.iter().take(got).any(|byte| *byte == MARK) {
            return Ok(start.elapsed());
        }
    }
}

/// Empties the pipe, so that no subject waits for its reader.
fn drain(child: &mut Child) {
    if let Some(mut out) = child.stdout.take() {
        let _ = std::io::copy(&mut out, &mut std::io::sink());
    }
}

fn wait(child: &mut Child, start: Instant, limit: Duration) -> Result<Duration> {
    loop {
        // The pipe's end comes with the exit: one or two rounds at most.
        if child.try_wait()?.is_some() {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < limit, "still running after {limit:?}");
        thread::sleep(Duration::from_micros(50));
    }
}

fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

fn read_footprint(proc: &Path, memory_mib: u32) -> Result<Footprint> {
    let smaps = fs::read_to_string(proc.join("smaps"))?;
    let status = fs::read_to_string(proc.join("status"))?;
    let page_table_kib = status.lines().find_map(|line| field(line, "VmPTE:")).context("no VmPTE in status")?;
    Ok(Footprint { private_kib: private_kib(&smaps, memory_mib), page_table_kib })
}

/// Private pages of every mapping that is not guest RAM: not named so, and, for VMMs that give no name, smaller than half of it.
fn private_kib(smaps: &str, memory_mib: u32) -> u64 {
    let half_of_ram = u64::from(memory_mib) * 1024 / 2;
    let (mut sum, mut ram) = (0, false);
    for line in smaps.lines() {
        if let Some(size) = field(line, "Size:") {
            ram |= size >= half_of_ram;
        } else if let Some(kib) = field(line, "Private_Clean:").or_else(|| field(line, "Private_Dirty:")) {
            sum += if ram { 0 } else { kib };
        } else if line.split_once(' ').is_some_and(|(range, _)| range.contains('-')) {
            ram = line.contains("guest-ram");
        }
    }
    sum
}

fn field(line: &str, name: &str) -> Option<u64> {
    line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_left_out_by_name_and_by_size() {
        let smaps = "\
7f00-7f10 rw-p 0 00:00 0 [anon:guest-ram]\nSize: 64 kB\nPrivate_Clean: 1 kB\nPrivate_Dirty: 32 kB\n\
7f20-7f30 rw-p 0 00:00 0\nSize: 524288 kB\nPrivate_Clean: 0 kB\nPrivate_Dirty: 4096 kB\n\
7f40-7f50 rw-p 0 00:00 0 [heap]\nSize: 132 kB\nPrivate_Clean: 4 kB\nPrivate_Dirty: 20 kB\n";
        assert_eq!(private_kib(smaps, 512), 24);
    }

    #[test]
    fn a_command_without_a_mark_is_an_error() {
        let mut command = Command::new("echo");
        command.stdout(std::process::Stdio::piped());
        let error = life(command, Duration::from_secs(10)).unwrap_err();
        assert!(format!("{error:#}").contains("without the guest's mark"), "{error:#}");
    }
}
