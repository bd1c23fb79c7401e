//! Work in a folder that is shared: mappings, and many threads at the same few names.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use husk_guest::kernel::Mapping;
use husk_guest::{Reply, pattern};

/// Bytes of the file that threads replace under each other's eyes.
const RECORD: usize = 1000;

/// Maps the first `bytes` bytes of the file `path`, sums them, and stores the pattern of `seed` there.
pub fn map(path: &str, seed: u64, bytes: u64, shared: bool) -> Result<Reply> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = usize::try_from(bytes)?;
    let mut mapping = Mapping::new(&file, length, shared).with_context(|| format!("cannot map {path}"))?;
    let mut found = vec![0; length];
    mapping.read(0, &mut found);
    mapping.write(0, &pattern::bytes(seed, length));
    mapping.sync().with_context(|| format!("cannot write {path}"))?;
    Ok(Reply::Data {
        bytes,
        checksum: pattern::checksum(&found),
    })
}

/// `threads` threads do `rounds` rounds each in the folder `path`: a new file renamed over one that
/// all others read and must find whole, and a number counted up under a lock. The number in the
/// end.
pub fn storm(path: &str, threads: u64, rounds: u64) -> Result<Reply> {
    let folder = Path::new(path);
    File::create(folder.join("counter"))?;
    fs::write(folder.join("record"), record(0))?;
    let ended: Result<()> = thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn(move || {
                    (0..rounds).try_for_each(|round| {
                        replace(folder, thread, round)?;
                        count(folder)
                    })
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().map_err(|_| anyhow!("a thread panicked"))?)
    });
    ended?;
    let text = fs::read_to_string(folder.join("counter"))?;
    Ok(Reply::Text { text })
}

fn record(number: u64) -> Vec<u8> {
    [&number.to_le_bytes()[..], &pattern::bytes(number, RECORD)].concat()
}

/// Puts a new record in the old one's place, and reads a whole one there.
fn replace(folder: &Path, thread: u64, round: u64) -> Result<()> {
    let new = folder.join(format!("record.{thread}"));
    fs::write(&new, record(thread << 32 | round)).context("cannot write a record")?;
    fs::rename(&new, folder.join("record")).context("cannot rename a record")?;
    let found = fs::read(folder.join("record")).context("cannot read the record")?;
    let (number, _) = found.split_first_chunk().context("a torn record")?;
    ensure!(
        found == record(u64::from_le_bytes(*number)),
        "a record of {} bytes is not what was written",
        found.len()
    );
    Ok(())
}

/// Counts the number in the file up.
fn count(folder: &Path) -> Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(folder.join("counter"))?;
    file.lock().context("cannot lock")?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    let number: u64 = text.parse().unwrap_or(0);
    file.rewind()?;
    file.write_all((number + 1).to_string().as_bytes())?;
    file.unlock().context("cannot unlock")
}
