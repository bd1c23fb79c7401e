//! Random work on one file by several processes at once, each of which knows at any time what its
//! part of the file holds.
//!
//! Parts do not begin at pages, so that neighbours change bytes of the same page. The last part is
//! one that also grows and shrinks, under the others' hands: it is the end of the file.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Advice, FallocateFlags, fadvise, fallocate, ftruncate};
use rustix::io::{Errno, pread, pwrite};
use serde::{Deserialize, Serialize};

use crate::kernel::Mapping;
use crate::pattern::{self, checksum};
use crate::rng::SeededRng;

/// Bytes of a part: no multiple of a page.
pub const PART_BYTES: usize = 60_000;

/// What a part holds in the end.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Part {
    /// How long it is.
    pub bytes: u64,
    /// Of what it holds.
    pub checksum: u64,
}

/// Who works.
#[derive(Clone, Copy, Debug)]
pub struct Worker {
    /// Of what it chooses.
    pub seed: u64,
    /// What it does so often.
    pub steps: u64,
    /// Its part, from 0.
    pub part: usize,
    /// How many parts the file has.
    pub parts: usize,
}

/// Works on `path`, a file of [`PART_BYTES`] zeroes for each part.
///
/// # Errors
///
/// A call fails, or the file does not hold what was written.
pub fn work(path: &Path, worker: Worker) -> Result<Part> {
    let open = || File::options().read(true).write(true).open(path);
    let mut work = Work {
        file: open()?,
        start: worker.part * PART_BYTES,
        holds: vec![0; PART_BYTES],
        rng: SeededRng::new(worker.seed),
    };
    let is_last = worker.part + 1 == worker.parts;
    for step in 0..worker.steps {
        let what = work.rng.below(if is_last { 13 } else { 12 });
        let done = match what {
            0 => open().map(|file| work.file = file).map_err(Into::into),
            1..4 => work.write(),
            4..6 => work.read(),
            6 => work.write_mapped(),
            7 => work.read_mapped(),
            8 => work.map_for_oneself(),
            9 => work.punch(),
            10 => work.copy(),
            11 => work.forget(),
            _ => work.resize(),
        };
        done.with_context(|| format!("part {} of seed {}, step {step} ({what})", worker.part, worker.seed))?;
    }
    work.file.sync_all()?;
    work.compare(0, work.holds.len()).context("in the end")?;
    Ok(Part {
        bytes: work.holds.len() as u64,
        checksum: checksum(&work.holds),
    })
}

struct Work {
    file: File,
    /// Where its part begins.
    start: usize,
    /// What it holds.
    holds: Vec<u8>,
    rng: SeededRng,
}

impl Work {
    /// Some place in the part, and how many bytes from there.
    fn range(&mut self) -> (usize, usize) {
        let at = self.rng.below(self.holds.len());
        let most = self.rng.one_of(&[10, 500, 5000, 20_000]).min(self.holds.len() - at);
        (at, self.rng.below(most + 1))
    }

    fn fresh(&mut self, bytes: usize) -> Vec<u8> {
        pattern::bytes(self.rng.below(1 << 30) as u64, bytes)
    }

    fn place(&self, at: usize) -> u64 {
        (self.start + at) as u64
    }

    fn write(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        let fresh = self.fresh(bytes);
        write_all(&self.file, &fresh, self.place(at))?;
        self.holds[at..at + bytes].copy_from_slice(&fresh);
        Ok(())
    }

    fn read(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        self.compare(at, bytes)
    }

    fn compare(&self, at: usize, bytes: usize) -> Result<()> {
        let mut found = vec![0xff; bytes];
        let mut read = 0;
        while read < bytes {
            match pread(&self.file, &mut found[read..], self.place(at + read))? {
                0 => break,
                count => read += count,
            }
        }
        ensure!(read == bytes, "{read} bytes of {bytes} at {at}");
        self.same(at, &found)
    }

    fn same(&self, at: usize, found: &[u8]) -> Result<()> {
        let differs = found
            .iter()
            .zip(&self.holds[at..])
            .position(|(found, held)| found != held);
        match differs {
            None => Ok(()),
            Some(place) => {
                let (found, held) = (found[place], self.holds[at + place]);
                anyhow::bail!("byte {} is {found:#x} and should be {held:#x}", at + place)
            }
        }
    }

    fn mapped(&self, shared: bool) -> Result<Mapping> {
        Ok(Mapping::new(&self.file, self.start + self.holds.len(), shared)?)
    }

    fn write_mapped(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        let fresh = self.fresh(bytes);
        let mut mapping = self.mapped(true)?;
        mapping.write(self.start + at, &fresh);
        self.holds[at..at + bytes].copy_from_slice(&fresh);
        if self.rng.below(2) == 0 {
            mapping.sync()?;
        }
        Ok(())
    }

    fn read_mapped(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        let mut found = vec![0; bytes];
        self.mapped(true)?.read(self.start + at, &mut found);
        self.same(at, &found)
    }

    /// Writes to a mapping that nobody else sees.
    fn map_for_oneself(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        let fresh = self.fresh(bytes);
        let mut mapping = self.mapped(false)?;
        mapping.write(self.start + at, &fresh);
        let mut found = vec![0; bytes];
        mapping.read(self.start + at, &mut found);
        ensure!(found == fresh, "a private mapping does not hold what was written");
        self.compare(at, bytes)
    }

    fn punch(&mut self) -> Result<()> {
        let (at, bytes) = self.range();
        let kind = self
            .rng
            .one_of(&[FallocateFlags::PUNCH_HOLE, FallocateFlags::ZERO_RANGE]);
        match fallocate(
            &self.file,
            kind | FallocateFlags::KEEP_SIZE,
            self.place(at),
            bytes as u64,
        ) {
            Err(Errno::INVAL) if bytes == 0 => Ok(()),
            // Not every file system below a share can.
            Err(Errno::OPNOTSUPP) => Ok(()),
            done => {
                self.holds[at..at + bytes].fill(0);
                Ok(done?)
            }
        }
    }

    /// Copies something to somewhere else in the part.
    fn copy(&mut self) -> Result<()> {
        let (from, bytes) = self.range();
        let to = self.rng.below(self.holds.len());
        let bytes = bytes.min(from.abs_diff(to)).min(self.holds.len() - to);
        let (mut from_place, mut to_place, mut copied) = (self.place(from), self.place(to), 0);
        while copied < bytes {
            let file = &self.file;
            match rustix::fs::copy_file_range(file, Some(&mut from_place), file, Some(&mut to_place), bytes - copied)? {
                0 => anyhow::bail!("{copied} bytes copied of {bytes}"),
                count => copied += count,
            }
        }
        self.holds.copy_within(from..from + bytes, to);
        Ok(())
    }

    /// Has the kernel forget what it has of the file.
    fn forget(&self) -> Result<()> {
        self.file.sync_data()?;
        Ok(fadvise(&self.file, 0, None, Advice::DontNeed)?)
    }

    /// Sets the end of the file, and so of the part.
    fn resize(&mut self) -> Result<()> {
        let bytes = 1 + self.rng.below(2 * PART_BYTES);
        ftruncate(&self.file, self.place(bytes))?;
        self.holds.resize(bytes, 0);
        Ok(())
    }
}

fn write_all(file: impl AsFd, bytes: &[u8], place: u64) -> Result<()> {
    let mut written = 0;
    while written < bytes.len() {
        written += pwrite(&file, &bytes[written..], place + written as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::thread;

    use super::*;

    #[test]
    fn each_part_holds_what_its_worker_says() {
        const PARTS: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        file.set_len((PARTS * PART_BYTES) as u64).unwrap();
        let worker = |part| Worker {
            seed: 7 + part as u64,
            steps: 400,
            part,
            parts: PARTS,
        };
        let parts = thread::scope(|scope| {
            let path = &path;
            let workers: Vec<_> = (0..PARTS)
                .map(|part| scope.spawn(move || work(path, worker(part)).unwrap()))
                .collect();
            workers
                .into_iter()
                .map(|worker| worker.join().unwrap())
                .collect::<Vec<_>>()
        });
        let file = File::open(&path).unwrap();
        for (part, found) in parts.iter().enumerate() {
            let mut bytes = vec![0; usize::try_from(found.bytes).unwrap()];
            file.read_exact_at(&mut bytes, (part * PART_BYTES) as u64).unwrap();
            assert_eq!(checksum(&bytes), found.checksum, "{part}");
        }
    }

    #[test]
    fn a_byte_that_somebody_else_changes_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let file = File::create_new(&path).unwrap();
        file.set_len(PART_BYTES as u64).unwrap();
        let work = Work {
            file: File::open(&path).unwrap(),
            start: 0,
            holds: vec![0; PART_BYTES],
            rng: SeededRng::new(1),
        };
        work.compare(0, PART_BYTES).unwrap();
        file.write_all_at(b"x", 5000).unwrap();
        let error = work.compare(0, PART_BYTES).unwrap_err().to_string();
        assert_eq!(error, "byte 5000 is 0x78 and should be 0x0");
        file.set_len(4000).unwrap();
        work.compare(0, PART_BYTES).unwrap_err();
    }
}
