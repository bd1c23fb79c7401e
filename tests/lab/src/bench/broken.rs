//! Guests that the emulation has broken so that their kernel panics, or sleeps for ever: their
//! lives are done again with other ones (`docs/adr/0015-one-thread-per-emulated-host.md`). Those
//! that only spin are seen from outside ([`crate::stall`]).

use std::error::Error;
use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};
use husk_tests::pod::AgentTimeout;
use husk_tests::processor_time::{processor_ticks, stat_of};

use super::work_queue::{GUESTS, Life};

/// By how much a life begins later for each guest that was given up before it. Counted time repeats
/// itself, so without that the next guest would break just as the last one. Its multiples fall
/// everywhere between two ticks of the host's clock.
const SHIFT: Duration = Duration::from_micros(1700);

/// For how long it is looked whether a process does something, and what one takes of a processor,
/// in ticks, that only waits: a VMM's own timers, of which there are a few a second.
const LOOK: Duration = Duration::from_secs(2);
const SLEEPERS_TICKS: u64 = 4;

/// What a kernel says in the end.
const PANIC: &str = "Kernel panic - not syncing";

/// A guest whose kernel has given up, in its own words, or that was never heard of.
#[derive(Debug)]
pub struct GuestFailure(String);

impl GuestFailure {
    /// `error`, if it is that a pod's agent never answered.
    pub fn silent(error: anyhow::Error) -> anyhow::Error {
        match error.is::<AgentTimeout>() {
            true => Self(format!("{error:#}")).into(),
            false => error,
        }
    }

    /// `error`, unless process `pid` does nothing at all: then its guest waits for what does not come.
    pub fn asleep(pid: u32, error: anyhow::Error) -> anyhow::Error {
        let stat = stat_of(pid);
        let ticks = || processor_ticks(&stat);
        let before = ticks();
        thread::sleep(LOOK);
        match (before, ticks()) {
            (Ok(before), Ok(after)) if after.saturating_sub(before) <= SLEEPERS_TICKS => {
                let words = format!("{error:#}, and has done nothing for {} s", LOOK.as_secs());
                Self(words).into()
            }
            _ => error,
        }
    }

    /// The first panic in what a guest has said.
    pub fn find(said: &str) -> Option<Self> {
        let line = said.lines().find(|line| line.contains(PANIC))?;
        let start = line.find(PANIC)?;
        Some(Self(line.get(start..)?.trim().into()))
    }
}

impl fmt::Display for GuestFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for GuestFailure {}

/// Does `once` for `life`, and does it again with another guest when its guest was broken: `broken`
/// hears why. `given_up` guests were before this one.
///
/// # Errors
///
/// As `once`, or all guests were broken.
pub fn avoided<T>(
    life: &Life,
    given_up: &mut u32,
    mut broken: impl FnMut(&str),
    mut once: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut last = String::new();
    for _ in life.broken..GUESTS {
        thread::sleep(SHIFT.saturating_mul(*given_up));
        last = match once() {
            Err(error) if error.is::<GuestFailure>() => format!("{error:#}"),
            result => return result,
        };
        *given_up = given_up.saturating_add(1);
        broken(&last);
    }
    bail!("{GUESTS} guests broke, one after the other; the last one: {last}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIFE: Life = Life {
        number: 0,
        subject: 0,
        part: 0,
        broken: 0,
    };

    /// What comes of `outcomes`, one after the other; how often it was done, and what was said of broken guests.
    fn tried(life: Life, outcomes: &[Result<u32, &str>]) -> (Result<u32>, u32, Vec<String>) {
        let (mut given_up, mut times, mut said) = (0, 0, Vec::new());
        let result = avoided(
            &life,
            &mut given_up,
            |why| said.push(why.to_string()),
            || {
                let outcome = outcomes[usize::try_from(times).unwrap() % outcomes.len()];
                times += 1;
                outcome
                    .map_err(|words| GuestFailure::find(words).map_or_else(|| anyhow::anyhow!("{words}"), Into::into))
            },
        );
        assert_eq!(usize::try_from(given_up).unwrap(), said.len());
        (result, times, said)
    }

    const WORDS: &str =
        "[    0.5] BUG\n[    0.5] Kernel panic - not syncing: stack\r\n[    0.5] Kernel Offset: disabled";

    #[test]
    fn what_works_and_what_fails_is_done_once() {
        let (result, times, said) = tried(LIFE, &[Ok(7)]);
        assert_eq!((result.unwrap(), times, said.len()), (7, 1, 0));
        let (result, times, said) = tried(LIFE, &[Err("no such option")]);
        assert_eq!((result.unwrap_err().to_string().as_str(), times), ("no such option", 1));
        assert!(said.is_empty());
    }

    #[test]
    fn a_guest_that_panicked_is_given_up_and_the_next_one_counts() {
        let (result, times, said) = tried(LIFE, &[Err(WORDS), Err(WORDS), Ok(7)]);
        assert_eq!((result.unwrap(), times), (7, 3));
        assert_eq!(said, ["Kernel panic - not syncing: stack"; 2]);
    }

    #[test]
    fn who_does_nothing_sleeps_and_who_works_has_failed() {
        let does = |command: &str| {
            let mut child = std::process::Command::new("sh").args(["-c", command]).spawn().unwrap();
            let judged = GuestFailure::asleep(child.id(), anyhow::anyhow!("it does not end"));
            child.kill().unwrap();
            child.wait().unwrap();
            judged
        };
        let sleeps = does("exec sleep 60");
        assert!(sleeps.is::<GuestFailure>(), "{sleeps}");
        assert_eq!(sleeps.to_string(), "it does not end, and has done nothing for 2 s");
        assert!(!does("while :; do :; done").is::<GuestFailure>());
    }

    #[test]
    fn guests_are_given_up_so_often_and_no_more() {
        let (result, times, _) = tried(LIFE, &[Err(WORDS)]);
        assert_eq!(times, GUESTS);
        assert!(result.unwrap_err().to_string().ends_with("not syncing: stack"));
        let (_, times, _) = tried(Life { broken: 6, ..LIFE }, &[Err(WORDS)]);
        assert_eq!(times, GUESTS - 6);
    }
}
