//! The profile `fs`: a folder of the emulated host, used by guests, where the clock counts instructions.
//!
//! The guest measures (`tests/guest/src/measured.rs`). One processor does everything there: guest,
//! VMM, file server and both kernels. So a figure is the work of all of them, and what differs
//! between subjects is the server's part and the way to it.

use std::fs;
use std::path::Path;
use std::process::Child;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use husk_guest::folder::{self, Part, RESTS_IDLE, RESTS_LISTED};
use husk_tests::api::Shim;
use husk_tests::share::FileServer;

use super::emulated::{Extent, Profile};
use super::parts::{Figures, InParts};
use super::rounds::FigureDef;
use super::subject::{Guest, Kind, Share, Subject, TAG};
use super::{Results, footprint, parts, scripted};
use crate::paths::Lab;

/// When a subject is taken to hang, in virtual time.
const LIMIT: Duration = Duration::from_secs(60);
/// How often to look whether the guest rests, and how long after it has begun to do so to look at
/// memory: husk gives back what only the way there needed when a guest has rested for as long as
/// that took.
const PACE: Duration = Duration::from_millis(50);
const SETTLE: Duration = Duration::from_millis(5500);

const IMAGE: &str = "fs.cpio";
const FIGURES: [FigureDef<Figures>; 18] = parts::figures_of![
    "read_mib_s_1m_buffered" in "MiB/s",
    "read_mib_s_4k_buffered" in "MiB/s",
    "read_mib_s_1m_direct" in "MiB/s",
    "read_mib_s_4k_direct" in "MiB/s",
    "write_mib_s_1m_buffered" in "MiB/s",
    "write_mib_s_4k_buffered" in "MiB/s",
    "write_mib_s_1m_direct" in "MiB/s",
    "write_mib_s_4k_direct" in "MiB/s",
    "mmap_read_mib_s" in "MiB/s",
    "random_4k_iops_1" in "1/s",
    "random_4k_iops_16" in "1/s",
    "create_stat_unlink_per_s" in "1/s",
    "readdirplus_entries_per_s" in "1/s",
    "lookup_us" in "virtual µs",
    "untar_ms" in "virtual ms",
    "unlink_tree_ms" in "virtual ms",
    "private_kib_idle" in "KiB",
    "private_kib_100000_inodes" in "KiB",
];

/// Bytes, names and inodes of a shared folder: of the parts of these names, or all.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent, chosen: &[String]) -> Result<Results> {
    let profile = InParts {
        profile: Profile::Fs,
        image: IMAGE,
        commands: format!("mkdir /share\nmount -t virtiofs {TAG} /share\n/init folder /share $part\n"),
        all: Part::ALL,
        figures: &FIGURES,
    };
    profile.run(lab, subjects, extent, chosen)
}

/// One life of `subject` for a part of the profile, in the emulated host.
pub fn sample(subject: &Subject, scratch: &Path, part: usize) -> Result<Figures> {
    let part = *Part::ALL.get(part).context("no such part")?;
    let place = tempfile::tempdir_in(scratch)?;
    let (shared, socket) = (place.path().join("shared"), place.path().join("fs.sock"));
    fs::create_dir(&shared)?;
    folder::prepare(&shared, part).context("cannot fill the folder")?;
    let server = match subject.kind {
        Kind::Husk => None,
        Kind::HuskFs => Some(FileServer::start_husk(Shim::Rust, &shared, &socket, &[])?),
        _ => Some(FileServer::start(&shared, &socket)?),
    };
    let guest = Guest {
        share: Some(match &server {
            None => Share::Own(shared.clone()),
            Some(server) => Share::Socket(server.socket().into()),
        }),
        ..parts::guest(IMAGE, &part)
    };
    let memory_mib = guest.memory_mib;
    let start = subject.start(&guest, scratch)?;
    let (memory, printed) = scripted::run(start, LIMIT, |child| {
        if part != Part::Inodes {
            return Ok(Vec::new());
        }
        let mut processes = vec![child.id()];
        processes.extend(server.as_ref().map(FileServer::pid));
        let mut look = |rests| -> Result<f64> {
            await_rest(child, &shared.join(rests))?;
            private_kib(&processes, memory_mib)
        };
        Ok(vec![
            ("private_kib_idle", look(RESTS_IDLE)),
            ("private_kib_100000_inodes", look(RESTS_LISTED)),
        ])
    })?;
    let mut figures = Figures::had(subject.kind, &printed);
    for (figure, kib) in memory {
        match kib {
            Ok(kib) => figures.add(figure, kib),
            Err(error) => println!("{}: no {figure}: {error:#}", subject.kind.name()),
        }
    }
    figures.of_any()
}

/// Waits until the guest has made `sign`, and a moment more.
fn await_rest(child: &mut Child, sign: &Path) -> Result<()> {
    let start = Instant::now();
    while !sign.exists() {
        ensure!(child.try_wait()?.is_none(), "it has ended");
        ensure!(start.elapsed() < LIMIT, "its guest does not rest");
        thread::sleep(PACE);
    }
    thread::sleep(SETTLE);
    Ok(())
}

/// Private memory of all `processes` and their children, beside guest RAM.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
fn private_kib(processes: &[u32], memory_mib: u32) -> Result<f64> {
    let mut sum = 0;
    for process in processes {
        let folder = Path::new("/proc").join(process.to_string());
        let children = fs::read_to_string(folder.join(format!("task/{process}/children"))).unwrap_or_default();
        for process in std::iter::once(process.to_string()).chain(children.split_whitespace().map(Into::into)) {
            sum += footprint::read(&Path::new("/proc").join(process), memory_mib)?.private_kib;
        }
    }
    Ok(sum as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_all_processes_is_added_up() {
        let own = std::process::id();
        let (one, two) = (
            private_kib(&[own], 512).unwrap(),
            private_kib(&[own, own], 512).unwrap(),
        );
        assert!(one > 0.0 && two > one, "{one} {two}");
        assert!(private_kib(&[u32::MAX], 512).is_err());
    }
}
