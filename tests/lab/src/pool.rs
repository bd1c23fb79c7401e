//! Test programs in emulated hosts: several hosts at a time, in each one program, or a few short ones.
//!
//! A host has one processor and QEMU one thread for it, since QEMU's threads do not always agree in
//! time on code that a kernel rewrites while it runs. So as many hosts as this machine has
//! processors share the work, and a program that takes long can have no other program's remains
//! before it. What a program prints is shown in one piece when it has ended; which run, how far
//! they are, and what has failed is seen before ([`ProgressBoard`]).

use std::io::{self, Stdout, Write};
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::board::ProgressBoard;
use crate::build::Built;
use crate::command::{command, output};
use crate::emulator::{Emulator, Request};
use crate::host::Host;
use crate::progress::{self, Ticker};
use crate::report::Report;
use crate::sys;
use crate::tally::Tally;

/// When an emulated host is taken to hang. The largest test program takes a fraction of it.
const TIMEOUT: Duration = Duration::from_secs(40 * 60);

/// Emulated hosts that may be tried for one piece of work, should they die.
pub const HOSTS: u32 = 3;

/// The most hosts at a time: each takes up to 5 GiB of memory.
const MOST: usize = 4;

/// What a test takes, most of it the boot of its guest: 7 s on two processors of 2026.
const SECONDS_A_TEST: usize = 8;

/// Programs that take no longer than this together share a host, whose boot takes 5 s.
const SHARED_SECONDS: usize = 120;

/// Programs whose tests take longer, or have no guest, and what all of them took there.
const SECONDS: [(&str, usize); 13] = [
    ("resize_memory", 740),
    ("fs", 730),
    ("shim", 580),
    ("vsock", 310),
    ("net", 260),
    ("hotplug", 185),
    ("machine", 185),
    ("hostile", 150),
    ("console", 125),
    ("resize", 120),
    ("pod", 75),
    ("errors", 10),
    ("husk_tests", 1),
];

/// Runs the tests of `programs`, or those whose name contains `filter`, and adds them to `report`; whether all held.
///
/// # Errors
///
/// The emulated host of filtered tests died. Without a filter, that is a failure of the program that ran there.
pub fn run(emulator: &Emulator, programs: &[Built], filter: Option<&str>, report: &mut Report<Stdout>) -> Result<bool> {
    // A filter leaves little to do: all of it in one host, and shown as it comes.
    if let Some(filter) = filter {
        let request = request(programs.iter(), &[format!("--filter={filter}")])?;
        let (part, held) = in_some_host(emulator, &request, io::stdout, &|_| ())?;
        report.tally.add(part.tally);
        return Ok(held);
    }
    let mut waiting = batches(programs);
    waiting.sort_by_key(|batch| batch.seconds);
    let hosts = thread::available_parallelism().map_or(1, NonZeroUsize::get).min(MOST);
    let board = Arc::new(ProgressBoard::new(
        programs.iter().map(|program| tests_in(program).len()),
    ));
    let ticker = Ticker::with(
        &format!("{} test programs in emulated hosts, {hosts} at a time", programs.len()),
        {
            let board = Arc::clone(&board);
            move || board.line()
        },
    );
    let waiting = Mutex::new(waiting);
    let all = Mutex::new((report, true));
    thread::scope(|scope| {
        for _ in 0..hosts {
            scope.spawn(|| {
                while let Some(batch) = next(&waiting) {
                    let ended = beyond_doubt(emulator, &batch, &board);
                    let (report, held) = &mut *lock(&all);
                    *held &= conclude(&batch, ended, report);
                }
            });
        }
    });
    ticker.end("");
    Ok(lock(&all).1)
}

/// Programs that run one after another in one host.
#[derive(Debug)]
struct Batch<'a> {
    programs: Vec<&'a Built>,
    /// About how long they take.
    seconds: usize,
}

impl Batch<'_> {
    fn name(&self) -> String {
        let names: Vec<&str> = self.programs.iter().map(|program| program.name.as_str()).collect();
        names.join(", ")
    }
}

/// Which programs share a host: those that take little longer than its boot.
fn batches(programs: &[Built]) -> Vec<Batch<'_>> {
    let mut shortest_first: Vec<(usize, &Built)> = programs.iter().map(|program| (seconds(program), program)).collect();
    shortest_first.sort_by_key(|(seconds, _)| *seconds);
    let mut batches: Vec<Batch<'_>> = Vec::new();
    for (seconds, program) in shortest_first {
        match batches.last_mut() {
            Some(batch) if batch.seconds + seconds <= SHARED_SECONDS => {
                batch.programs.push(program);
                batch.seconds += seconds;
            }
            _ => batches.push(Batch {
                programs: vec![program],
                seconds,
            }),
        }
    }
    batches
}

/// About how long `program` takes: what is long must begin early, or one host works on it alone in the end.
fn seconds(program: &Built) -> usize {
    let known = SECONDS.iter().find(|(name, _)| *name == program.name);
    known.map_or_else(|| tests_in(program).len() * SECONDS_A_TEST, |(_, seconds)| *seconds)
}

/// What is left to do, the longest first: the others fill the gaps at the end.
fn next<'a>(waiting: &Mutex<Vec<Batch<'a>>>) -> Option<Batch<'a>> {
    if sys::interrupted() {
        return None;
    }
    lock(waiting).pop()
}

/// The tests that a program has; none if it does not say.
fn tests_in(program: &Built) -> Vec<String> {
    let listed = output(command(&program.path).args(["--list", "--format", "terse"])).unwrap_or_default();
    let names = listed.lines().filter_map(|line| line.strip_suffix(": test"));
    names.map(Into::into).collect()
}

/// Those of `programs` that are called `filter`, or have a test whose name contains it; all of them without a filter.
pub fn with_tests(mut programs: Vec<Built>, filter: Option<&str>) -> Vec<Built> {
    if let Some(filter) = filter {
        programs.retain(|program| program.name == filter || tests_in(program).iter().any(|test| test.contains(filter)));
    }
    programs
}

/// Shows and counts how programs ended; whether their tests held.
fn conclude(batch: &Batch<'_>, ended: Result<(Report<Vec<u8>>, bool)>, report: &mut Report<Stdout>) -> bool {
    progress::interrupt();
    match ended {
        Ok((part, held)) => {
            let _ = report.out.write_all(&part.out).and_then(|()| report.out.flush());
            report.tally.add(part.tally);
            held
        }
        Err(error) => {
            let failure = format!("{}: {error:#}", batch.name());
            progress::say(&failure);
            report.tally.failures.push(failure);
            false
        }
    }
}

/// What the tests of a batch printed and whether they held, those that did not in another host once
/// more, and in a third one. What kills an emulated host can also kill a guest in it, and then a
/// test fails that has found nothing; what fails each time has.
fn beyond_doubt(emulator: &Emulator, batch: &Batch<'_>, board: &ProgressBoard) -> Result<(Report<Vec<u8>>, bool)> {
    let (programs, name) = (&batch.programs, batch.name());
    let whole = request(programs.iter().copied(), &[])?;
    let tests = programs.iter().map(|program| tests_in(program).len()).sum();
    board.begin(&name, programs.len(), tests);
    let tell = |tally: &Tally| board.tell(&name, tally);
    let ended = again_if_it_failed(emulator, programs, &whole, &tell);
    board.end(&name);
    ended
}

fn again_if_it_failed(
    emulator: &Emulator,
    programs: &[&Built],
    whole: &Request,
    tell: &dyn Fn(&Tally),
) -> Result<(Report<Vec<u8>>, bool)> {
    let (mut report, mut held) = in_some_host(emulator, whole, Vec::new, tell)?;
    for _ in 1..HOSTS {
        if held || sys::interrupted() {
            break;
        }
        let failed = std::mem::take(&mut report.tally.failures);
        report.tally.said.clear();
        progress::interrupt();
        progress::say(&format!("in another emulated host, once more: {}", failed.join(", ")));
        writeln!(
            report.out,
            "lab: in another emulated host, once more: {}",
            failed.join(", ")
        )?;
        let request = if let Some((programs, exact)) = named(programs, &failed) {
            request(programs.into_iter(), &exact)?
        } else {
            // A program died, and said nothing of its other tests: all of them again.
            report.tally = Tally::on(Host::Emulated);
            request(programs.iter().copied(), &[])?
        };
        let again;
        (again, held) = in_some_host(emulator, &request, Vec::new, tell)?;
        report.out.extend(again.out);
        report.tally.add(again.tally);
    }
    Ok((report, held))
}

/// Those of `programs` that failures are about, and the options that run the tests that have
/// failed; `None` if one is about more than a test.
fn named<'a>(programs: &[&'a Built], failed: &[String]) -> Option<(Vec<&'a Built>, Vec<String>)> {
    let mut concerned: Vec<&Built> = Vec::new();
    let mut options = Vec::new();
    for failure in failed {
        let mut of = programs.iter().copied();
        let (program, test) = of.find_map(|program| Some((program, test_name(program, failure)?)))?;
        options.push(format!("--exact={test}"));
        if !concerned.iter().any(|known| known.name == program.name) {
            concerned.push(program);
        }
    }
    Some((concerned, options))
}

/// The name of the test that a failure of `program` is about; `None` of the program itself.
fn test_name<'a>(program: &Built, failure: &'a str) -> Option<&'a str> {
    let test = failure.strip_prefix(&program.name)?.strip_prefix(": ")?;
    (!test.contains(' ')).then_some(test)
}

/// What the lab itself runs in the host to run `programs` there, with these options.
fn request<'a>(programs: impl Iterator<Item = &'a Built>, options: &[String]) -> Result<Request> {
    let mut request = Request {
        timeout: Some(TIMEOUT),
        // How large, how long: what a test takes from its environment.
        env: std::env::vars()
            .filter(|(name, _)| name.starts_with("HUSK_TEST_"))
            .collect(),
        ..Request::default()
    };
    request.files.push((std::env::current_exe()?, "bin/husk-lab".into()));
    request.command.extend(["husk-lab".into(), "suite".into()]);
    request.command.extend_from_slice(options);
    for program in programs {
        let place = format!("tests/{}", program.name);
        request.files.push((program.path.clone(), place.clone()));
        request.command.push(format!("/work/{place}"));
    }
    Ok(request)
}

/// What `request` printed, and whether all tests held, in the first emulated host that lives to its
/// end. One that dies is started again with what it was to run, and the user is told.
fn in_some_host<W: Write>(
    emulator: &Emulator,
    request: &Request,
    out: impl Fn() -> W,
    tell: &dyn Fn(&Tally),
) -> Result<(Report<W>, bool)> {
    for _ in 1..HOSTS {
        match in_one_host(emulator, request, out(), tell) {
            Err(death) if !sys::interrupted() => {
                progress::interrupt();
                progress::say(&format!(
                    "{death:#}\nlab: the emulated host did not last: its tests run again"
                ));
            }
            ended => return ended,
        }
    }
    in_one_host(emulator, request, out(), tell)
}

/// What `request` printed, and whether all tests held, in one boot of the emulated host.
fn in_one_host<W: Write>(
    emulator: &Emulator,
    request: &Request,
    out: W,
    tell: &dyn Fn(&Tally),
) -> Result<(Report<W>, bool)> {
    let mut report = Report::new(out);
    report.tally = Tally::on(Host::Emulated);
    let exit = emulator.run(request, &mut |bytes| {
        report.bytes(bytes);
        tell(&report.tally);
    })?;
    report.tally.close();
    Ok((report, exit == 0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_that_are_known_to_take_long_exist() {
        let tests = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        for (name, _) in SECONDS.iter().filter(|(name, _)| *name != "husk_tests") {
            let file = tests.join(format!("{name}.rs"));
            assert!(file.exists() || tests.join(name).join("main.rs").exists(), "{name}");
        }
    }

    fn program(name: &str) -> Built {
        Built {
            name: name.into(),
            path: "/nowhere".into(),
        }
    }

    #[test]
    fn what_is_short_shares_a_host_and_what_is_long_has_its_own() {
        // What is unknown has as many tests as it says, and this one says nothing.
        let programs = ["pod", "unknown", "shim", "husk_tests", "fs"].map(program);
        let batches = batches(&programs);
        let names: Vec<String> = batches.iter().map(Batch::name).collect();
        assert_eq!(names, ["unknown, husk_tests, pod", "shim", "fs"]);
        assert!(batches.is_sorted_by_key(|batch| batch.seconds));
    }

    #[test]
    fn only_tests_that_failed_run_again_unless_a_program_died() {
        let [boot, fs] = ["boot", "fs"].map(program);
        let names = |failed: &[&str]| {
            let failed: Vec<String> = failed.iter().map(|name| (*name).into()).collect();
            let (programs, options) = named(&[&boot, &fs], &failed)?;
            let programs: Vec<String> = programs.iter().map(|program| program.name.clone()).collect();
            Some((programs.join(" "), options.join(" ")))
        };
        let of = |programs: &str, options: &str| Some((programs.into(), options.into()));
        assert_eq!(names(&["fs: a", "fs: b"]), of("fs", "--exact=a --exact=b"));
        assert_eq!(names(&["fs: a", "boot: b"]), of("fs boot", "--exact=a --exact=b"));
        assert_eq!(names(&["fs: a", "boot (died before its summary)"]), None);
    }

    #[test]
    fn a_failure_names_a_test_or_the_program() {
        let program = Built {
            name: "boot".into(),
            path: "/boot".into(),
        };
        assert_eq!(test_name(&program, "boot: it::boots"), Some("it::boots"));
        assert_eq!(test_name(&program, "boot (died before its summary)"), None);
        assert_eq!(test_name(&program, "boot (a test without a name)"), None);
    }
}
