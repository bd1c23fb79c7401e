//! How fast a disk is, by the guest's monotonic clock: `/init disk DEVICE PART`, for the steps `shell` and `script`.
//!
//! All of it goes past the guest's cache. Prints a line for each figure, as [`crate::measured`] does.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use husk_guest::blocks::{DISK_BYTES, Part};

use crate::setup;
use crate::speed::{self, Buffer, Figure, LARGE, Places, SMALL};

/// Threads that have a request each under way, where many are to be.
const DEEP: u32 = 32;
/// Transfers by one thread alone, by all of [`DEEP`] together, and with a flush after each.
const ALONE: u32 = 250;
const TOGETHER: u32 = 640;
const FLUSHED: u32 = 100;
/// The same of large ones, which are 256 times as much.
const LARGE_ALONE: u32 = 16;
const LARGE_TOGETHER: u32 = 64;

/// A disk, or a file in its place.
struct Disk {
    path: PathBuf,
    direct: bool,
}

/// One kind of load.
#[derive(Clone, Copy)]
struct Load {
    write: bool,
    random: bool,
    block: usize,
    threads: u32,
}

/// In order, by one thread or by [`DEEP`].
const fn row(write: bool, block: usize, threads: u32) -> Load {
    Load {
        write,
        random: false,
        block,
        threads,
    }
}

/// In no order.
const fn anywhere(write: bool, block: usize, threads: u32) -> Load {
    Load {
        random: true,
        ..row(write, block, threads)
    }
}

/// The figures of a part.
fn figures(part: Part) -> &'static [Figure<Disk>] {
    match part {
        Part::Read => &[
            ("read_mib_s_1m_1", |disk| disk.rate(row(false, LARGE, 1))),
            ("read_mib_s_1m_32", |disk| disk.rate(row(false, LARGE, DEEP))),
            ("read_mib_s_4k_1", |disk| disk.rate(row(false, SMALL, 1))),
            ("read_mib_s_4k_32", |disk| disk.rate(row(false, SMALL, DEEP))),
        ],
        Part::Write => &[
            ("write_mib_s_1m_1", |disk| disk.rate(row(true, LARGE, 1))),
            ("write_mib_s_1m_32", |disk| disk.rate(row(true, LARGE, DEEP))),
            ("write_mib_s_4k_1", |disk| disk.rate(row(true, SMALL, 1))),
            ("write_mib_s_4k_32", |disk| disk.rate(row(true, SMALL, DEEP))),
        ],
        Part::Random => &[
            ("random_read_4k_iops_1", |disk| disk.iops(anywhere(false, SMALL, 1))),
            ("random_read_4k_iops_32", |disk| disk.iops(anywhere(false, SMALL, DEEP))),
            ("random_write_4k_iops_1", |disk| disk.iops(anywhere(true, SMALL, 1))),
            ("random_write_4k_iops_32", |disk| disk.iops(anywhere(true, SMALL, DEEP))),
            ("random_read_mib_s_1m_1", |disk| disk.rate(anywhere(false, LARGE, 1))),
            ("random_read_mib_s_1m_32", |disk| {
                disk.rate(anywhere(false, LARGE, DEEP))
            }),
            ("random_write_mib_s_1m_1", |disk| disk.rate(anywhere(true, LARGE, 1))),
            ("random_write_mib_s_1m_32", |disk| {
                disk.rate(anywhere(true, LARGE, DEEP))
            }),
        ],
        Part::Flush => &[("flushed_4k_iops", Disk::flushed)],
    }
}

/// Carries out `words`; what there is to print.
///
/// # Errors
///
/// They make no sense, or there is no such disk. What cannot be measured is a line.
pub fn perform(words: &[String]) -> Result<String> {
    let [device, part] = words else {
        bail!("cannot do {words:?}");
    };
    let part = part.parse().map_err(anyhow::Error::msg)?;
    setup::wait_for(device)?;
    let disk = Disk {
        path: device.into(),
        direct: true,
    };
    Ok(speed::lines(&disk, figures(part)).join("\n"))
}

impl Load {
    /// How many transfers.
    fn count(self) -> u32 {
        match (self.block, self.threads) {
            (LARGE, 1) => LARGE_ALONE,
            (LARGE, _) => LARGE_TOGETHER,
            (_, 1) => ALONE,
            _ => TOGETHER,
        }
    }

    /// How many bytes.
    fn bytes(self) -> u64 {
        u64::from(self.count()) * self.block as u64
    }
}

impl Disk {
    fn open(&self) -> Result<File> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(speed::flags(self.direct));
        let file = options.open(&self.path);
        file.with_context(|| format!("cannot open {}", self.path.display()))
    }

    /// Carries out `load`; when it began.
    fn carry_out(&self, load: Load) -> Result<Instant> {
        let (file, next, count) = (self.open()?, AtomicU32::new(0), load.count());
        let start = Instant::now();
        speed::at_once(load.threads, |number| {
            let (mut buffer, mut places) = (Buffer::new(load.block), Places::new(number));
            buffer.bytes().fill(0x5a);
            loop {
                let turn = next.fetch_add(1, Ordering::Relaxed);
                if turn >= count {
                    return Ok(());
                }
                let blocks = DISK_BYTES / load.block as u64;
                let block = match load.random {
                    true => places.below(blocks),
                    false => u64::from(turn) % blocks,
                };
                let offset = block * load.block as u64;
                match load.write {
                    true => file.write_all_at(buffer.bytes(), offset)?,
                    false => file.read_exact_at(buffer.bytes(), offset)?,
                }
            }
        })?;
        Ok(start)
    }

    /// MiB a second.
    fn rate(&self, load: Load) -> Result<f64> {
        Ok(speed::mib_per_second(load.bytes(), self.carry_out(load)?))
    }

    /// Transfers a second.
    fn iops(&self, load: Load) -> Result<f64> {
        let start = self.carry_out(load)?;
        Ok(f64::from(load.count()) / start.elapsed().as_secs_f64())
    }

    /// Small writes in order, each followed by a flush, a second.
    fn flushed(&self) -> Result<f64> {
        let (file, mut buffer) = (self.open()?, Buffer::new(SMALL));
        let start = Instant::now();
        for turn in 0..FLUSHED {
            file.write_all_at(buffer.bytes(), u64::from(turn) * SMALL as u64)?;
            file.sync_data()?;
        }
        Ok(f64::from(FLUSHED) / start.elapsed().as_secs_f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_figure_is_had_of_a_file_and_nothing_goes_beyond_its_end() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(DISK_BYTES).unwrap();
        let disk = Disk {
            path: file.path().into(),
            direct: false,
        };
        for &part in Part::ALL {
            let lines = speed::lines(&disk, figures(part));
            assert_eq!(lines.len(), figures(part).len());
            for (line, (name, _)) in lines.iter().zip(figures(part)) {
                let value = line
                    .strip_prefix(&format!("{name} "))
                    .unwrap_or_else(|| panic!("{line}"));
                assert!(value.parse::<f64>().unwrap() > 0.0, "{line}");
            }
        }
        assert_eq!(file.as_file().metadata().unwrap().len(), DISK_BYTES);
    }

    #[test]
    fn a_disk_that_is_not_there_has_no_figures_and_says_why() {
        let disk = Disk {
            path: "/nowhere/vda".into(),
            direct: true,
        };
        for line in speed::lines(&disk, figures(Part::Random)) {
            assert!(
                line.starts_with("no random_") && line.contains("cannot open /nowhere/vda"),
                "{line}"
            );
        }
    }
}
