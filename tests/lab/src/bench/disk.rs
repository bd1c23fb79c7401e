//! The profile `block`: a disk that is read and written by guests past their caches, where the
//! clock counts instructions.
//!
//! The guest measures (`tests/guest/src/measured_disk.rs`). The pages of its file are in the
//! emulated host's memory, so a figure is the work of guest, VMM and both kernels for a request,
//! and what differs between subjects is the VMM's part and how often it interrupts the guest.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use husk_guest::blocks::{DISK_BYTES, Part};
use husk_guest::pattern;

use super::emulated::{Extent, Profile};
use super::parts::{Figures, InParts};
use super::rounds::FigureDef;
use super::scraper::Scraper;
use super::subject::{Guest, Kind, Subject};
use super::{Results, parts, scripted};
use crate::paths::Lab;

/// When a subject is taken to hang, in virtual time.
const LIMIT: Duration = Duration::from_secs(60);

const IMAGE: &str = "block.cpio";
/// Where the guest finds its disk.
const DEVICE: &str = "/dev/vda";

const FIGURES: [FigureDef<Figures>; 17] = parts::figures_of![
    "read_mib_s_1m_1" in "MiB/s",
    "read_mib_s_1m_32" in "MiB/s",
    "read_mib_s_4k_1" in "MiB/s",
    "read_mib_s_4k_32" in "MiB/s",
    "write_mib_s_1m_1" in "MiB/s",
    "write_mib_s_1m_32" in "MiB/s",
    "write_mib_s_4k_1" in "MiB/s",
    "write_mib_s_4k_32" in "MiB/s",
    "random_read_4k_iops_1" in "1/s",
    "random_read_4k_iops_32" in "1/s",
    "random_write_4k_iops_1" in "1/s",
    "random_write_4k_iops_32" in "1/s",
    "random_read_mib_s_1m_1" in "MiB/s",
    "random_read_mib_s_1m_32" in "MiB/s",
    "random_write_mib_s_1m_1" in "MiB/s",
    "random_write_mib_s_1m_32" in "MiB/s",
    "flushed_4k_iops" in "1/s",
];

/// Reads, writes and flushes of a disk: of the parts of these names, or all.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent, chosen: &[String]) -> Result<Results> {
    let profile = InParts {
        profile: Profile::Block,
        image: IMAGE,
        commands: format!("/init disk {DEVICE} $part\n"),
        all: Part::ALL,
        figures: &FIGURES,
    };
    profile.run(lab, subjects, extent, chosen)
}

/// One life of `subject` for a part of the profile, in the emulated host.
pub fn sample(subject: &Subject, scratch: &Path, part: usize) -> Result<Figures> {
    let part = *Part::ALL.get(part).context("no such part")?;
    // Where this was started there is ext4, which has a file's pages at hand for io_uring, as hosts
    // have it. What is flushed lies in memory: how long a disk of the emulated host takes is no
    // work of anybody.
    let place = match part {
        Part::Flush => tempfile::tempdir_in(scratch)?,
        Part::Read | Part::Write | Part::Random => tempfile::tempdir_in(std::env::current_dir()?)?,
    };
    let disk = place.path().join("disk.raw");
    // Not a hole anywhere: what a hole costs to read or to fill is the file system's.
    pattern::write(&mut File::create(&disk)?, 1, DISK_BYTES).context("cannot fill the disk")?;
    let guest = Guest {
        disk: Some(disk),
        ..parts::guest(IMAGE, &part)
    };
    let mut start = subject.start(&guest, scratch)?;
    let scraper = (subject.kind == Kind::HuskScraped).then(|| Scraper::of(&mut start.command, place.path()));
    let ((), printed) = scripted::run(start, LIMIT, |_| scraper.as_ref().map_or(Ok(()), Scraper::begin))?;
    Figures::had(subject.kind, &printed).of_any()
}
