//! The profiles `startup` and `memory`: a payload of a few instructions on this machine's own KVM.

use std::fs::{self, File};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use husk_benches::GuestAction;

use super::Results;
use super::footprint::{self, Footprint};
use super::measure::{self, Life};
use super::rounds::{self, FigureDef, Samples};
use super::subject::{Guest, Subject};
use crate::progress;

const MEMORY_MIB: u32 = 512;

/// When a run is taken to hang: thousands of times what it takes.
const LIMIT: Duration = Duration::from_secs(20);

/// From the guest's first instruction to the look at the process: husk gives back what the start
/// needed after a second of quiet.
const SETTLE: Duration = Duration::from_millis(2000);

/// The disk of the `memory` profile. Nobody reads it.
const DISK_BYTES: u64 = 64 << 20;

/// From exec to the guest's first instruction, and to the exit.
///
/// # Errors
///
/// The payload cannot be written.
pub fn startup(subjects: &[Subject], runs: u32) -> Result<Results> {
    let scratch = tempfile::tempdir()?;
    let guest = guest(scratch.path(), GuestAction::PowerOff)?;
    let samples = each("startup", subjects, runs, |subject| {
        measure::life(subject.start(&guest, scratch.path())?, LIMIT)
    })?;
    let figure_defs: [FigureDef<Life>; 2] = [
        ("first_instruction_ms", "ms", |life| life.mark.as_secs_f64() * 1e3),
        ("exit_ms", "ms", |life| life.exit.as_secs_f64() * 1e3),
    ];
    Ok(rounds::summarise("startup", &samples, &figure_defs))
}

/// What a process holds beside guest RAM, with a serial port, a disk and a random number generator;
/// the floor has no devices.
///
/// # Errors
///
/// Payload or disk cannot be written.
pub fn memory(subjects: &[Subject], runs: u32) -> Result<Results> {
    let samples = each("memory", subjects, runs, |subject| {
        halted(subject, SETTLE, |process| footprint::read(process, MEMORY_MIB))
    })?;
    let figure_defs: [FigureDef<Footprint>; 2] = [
        ("private_kib", "KiB", |footprint| footprint.private_kib as f64),
        ("page_table_kib", "KiB", |footprint| footprint.page_table_kib as f64),
    ];
    Ok(rounds::summarise("memory", &samples, &figure_defs))
}

/// Takes a `look` at the folder below `/proc` of `subject`'s process, with a disk and a random
/// number generator, when its guest has halted and `settle` has passed.
///
/// # Errors
///
/// Payload or disk cannot be written, the guest does not come to its mark, or `look` fails.
pub fn halted<T>(subject: &Subject, settle: Duration, look: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let scratch = tempfile::tempdir()?;
    let disk = scratch.path().join("disk.raw");
    File::create(&disk)?.set_len(DISK_BYTES)?;
    let guest = Guest {
        disk: Some(disk),
        ..guest(scratch.path(), GuestAction::Halt)?
    };
    measure::at_rest(subject.start(&guest, scratch.path())?, settle, LIMIT, look)
}

/// Takes samples of every subject in turn, as a step that the user sees.
fn each<T>(
    name: &str,
    subjects: &[Subject],
    runs: u32,
    mut sample: impl FnMut(&Subject) -> Result<T>,
) -> Result<Vec<Samples<T>>> {
    let what = format!("{name}: {runs} runs of each subject");
    let all = rounds::order(subjects.len(), runs).len();
    progress::counted(&what, all, |done| {
        Ok(rounds::interleaved(subjects, runs, |subject| {
            let taken = sample(subject);
            done();
            taken
        }))
    })
}

fn guest(scratch: &Path, action: GuestAction) -> Result<Guest> {
    let kernel = scratch.join("payload.elf");
    fs::write(&kernel, husk_benches::elf(action)).with_context(|| format!("cannot write {}", kernel.display()))?;
    Ok(Guest {
        kernel,
        initramfs: None,
        cmdline: "quiet".into(),
        memory_mib: MEMORY_MIB,
        disk: None,
        vsock: None,
        tap: None,
        room: None,
        share: None,
    })
}
