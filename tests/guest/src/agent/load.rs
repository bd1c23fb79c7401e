//! Work for processors, memory and a share that checks itself, for as long as a caller wants it to go on.

use std::fs::{self, File};
use std::hint::black_box;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use husk_guest::Reply;
use husk_guest::call::{Load, Rounds};
use husk_guest::pattern::{self, Stream};

/// Bytes that a processor sums in a round, and bytes of memory that are compared at a time.
const CHUNK: usize = 64 << 10;

/// How long memory is held before it is looked at again.
const HOLD: Duration = Duration::from_millis(20);

/// Works as `load` says until nothing more comes from `reader`.
pub fn work(reader: &mut impl Read, load: &Load) -> Reply {
    let stop = &AtomicBool::new(false);
    thread::scope(|scope| {
        let processors: Vec<_> = (0..load.threads)
            .map(|_| scope.spawn(|| repeat(stop, compute)))
            .collect();
        let memory =
            (load.memory_bytes > 0).then(|| scope.spawn(|| repeat(stop, |round| hold(round, load.memory_bytes))));
        let files = load.folder.as_deref().map(Path::new);
        let files =
            files.map(|folder| scope.spawn(move || repeat(stop, |round| store(folder, round, load.file_bytes))));
        // Nothing comes but the end; if the caller breaks off, that is one as well.
        let _ = std::io::copy(reader, &mut std::io::sink());
        stop.store(true, Ordering::Relaxed);
        let (mut rounds, mut errors) = (Rounds::default(), Vec::new());
        let mut collect = |sum: &mut u64, worker: thread::ScopedJoinHandle<'_, (u64, Result<()>)>| match worker.join() {
            Ok((done, ended)) => {
                *sum += done;
                errors.extend(ended.err().map(|error| format!("round {done}: {error:#}")));
            }
            Err(_) => errors.push("a thread panicked".into()),
        };
        processors
            .into_iter()
            .for_each(|worker| collect(&mut rounds.processors, worker));
        memory
            .into_iter()
            .for_each(|worker| collect(&mut rounds.memory, worker));
        files.into_iter().for_each(|worker| collect(&mut rounds.files, worker));
        Reply::Worked { rounds, errors }
    })
}

/// Does rounds until it is told to stop or one fails; how many were done.
fn repeat(stop: &AtomicBool, job: impl Fn(u64) -> Result<()>) -> (u64, Result<()>) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = job(round) {
            return (round, Err(error));
        }
        round += 1;
    }
    (round, Ok(()))
}

/// The same sum twice, on whatever processor.
fn compute(round: u64) -> Result<()> {
    let sum = || pattern::checksum(&pattern::bytes(black_box(round), CHUNK));
    let (first, second) = (sum(), sum());
    ensure!(first == second, "a sum was {first:#x}, then {second:#x}");
    Ok(())
}

/// New memory that must still hold what was written.
fn hold(round: u64, bytes: u64) -> Result<()> {
    let held = pattern::bytes(round, usize::try_from(bytes)?);
    thread::sleep(HOLD);
    let mut expected = Stream::new(round);
    let mut pieces = held.chunks(CHUNK).zip(0_u64..);
    let torn = pieces.find(|(piece, _)| expected.take(piece.len()) != *piece);
    ensure!(
        torn.is_none(),
        "memory is not as it was written, in piece {:?}",
        torn.map(|(_, at)| at)
    );
    Ok(())
}

/// A file that is read back.
fn store(folder: &Path, round: u64, bytes: u64) -> Result<()> {
    let path = folder.join("load");
    let what = || path.display().to_string();
    let mut file = File::create(&path).with_context(what)?;
    let written = pattern::write(&mut file, round, bytes).with_context(what)?;
    file.sync_all().with_context(what)?;
    let read = pattern::read(&mut File::open(&path).with_context(what)?).with_context(what)?;
    ensure!(read == (bytes, written), "{} is not as it was written", what());
    fs::remove_file(&path).with_context(what)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::Shutdown;
    use std::os::unix::net::UnixStream;

    use super::*;

    fn load(folder: &Path) -> Load {
        Load {
            threads: 2,
            memory_bytes: 200_000,
            folder: Some(folder.to_string_lossy().into_owned()),
            file_bytes: 5000,
        }
    }

    #[test]
    fn work_goes_on_until_the_caller_has_had_enough() {
        let folder = tempfile::tempdir().unwrap();
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        let load = load(folder.path());
        let working = thread::spawn(move || work(&mut theirs, &load));
        thread::sleep(Duration::from_millis(100));
        ours.write_all(b"not yet").unwrap();
        assert!(!working.is_finished());
        ours.shutdown(Shutdown::Write).unwrap();
        let Reply::Worked { rounds, errors } = working.join().unwrap() else {
            panic!("no summary")
        };
        assert!(
            rounds.processors > 0 && rounds.memory > 0 && rounds.files > 0,
            "{rounds:?}"
        );
        assert_eq!(errors, Vec::<String>::new());
    }

    #[test]
    fn what_goes_wrong_is_told_with_its_round() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let mut load = load("/no/such".as_ref());
        load.threads = 0;
        load.memory_bytes = 0;
        // The end is there before the work begins: it is told at once, with or without a round.
        let stop = AtomicBool::new(false);
        let (done, ended) = repeat(&stop, |round| store("/no/such".as_ref(), round, 1));
        assert!(done == 0 && format!("{:#}", ended.unwrap_err()).contains("/no/such"));
        assert!(matches!(work(&mut theirs, &load), Reply::Worked { .. }));
    }
}
