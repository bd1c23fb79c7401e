//! `husk top`: the husks of this host, looked at again and again, those first that use most of the processors.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Snapshot, process, table, take_snapshots};
use crate::terminal::{
    Arrival, Input, RawMode, Signal, Signals, show_first_screen, show_own_screen, stop_process, window_size,
};
use crate::wakeup::whole_millis;

/// To the first cell; and what is right of the cursor, and below it, is no more.
const HOME: &str = "\x1b[H";
const CLEAR_LINE: &str = "\x1b[K\r\n";
const CLEAR_BELOW: &str = "\x1b[J";

/// The key that ends it, as it ends other programs of the kind.
const QUIT: u8 = b'q';
const SIGNALS: u64 = 0;
const KEYS: u64 = 1;

/// Shows all husks each `interval` until a signal or the key `q` says otherwise; once, where
/// standard output is no terminal. Each husk has `patience`.
///
/// # Errors
/// What the host says, or standard output.
pub fn top(interval: Duration, patience: Duration) -> io::Result<()> {
    let mut shares = Shares::default();
    if !io::stdout().is_terminal() {
        return write(&shares.refresh(patience));
    }
    // Before the threads that ask: a signal comes to this loop, and the screen is put back.
    let mut signals = Signals::new()?;
    let epoll = Epoll::new()?;
    let watch = |fd, source| epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, source));
    watch(signals.as_raw_fd(), SIGNALS)?;
    let mut screen = Screen::enter()?;
    if let Some((_, input)) = &screen.keys {
        watch(input.as_raw_fd(), KEYS)?;
    }
    loop {
        let begun = Instant::now();
        show(&shares.refresh(patience))?;
        loop {
            let left = interval.saturating_sub(begun.elapsed());
            // Signals and keys are looked for even if there is no time left.
            let mut event = [EpollEvent::default()];
            match epoll.wait(whole_millis(left), &mut event) {
                Ok(0) => break,
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                Ok(_) if event.iter().any(|event| event.data() == KEYS) && screen.is_told_to_quit() => return Ok(()),
                _ => {}
            }
            while let Some(signal) = signals.next()? {
                match signal {
                    Signal::Terminate | Signal::Hangup => return Ok(()),
                    Signal::Suspend => screen.suspend()?,
                    Signal::Continue => screen.resume()?,
                    Signal::WindowChange | Signal::LogMore | Signal::LogLess => {}
                }
            }
        }
    }
}

/// The screen on which everything is shown, and its keys, while it lives.
struct Screen {
    /// None where standard input is no terminal.
    keys: Option<(RawMode, Input)>,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        let keys = match RawMode::enter_for_keys()? {
            Some(mode) => Input::stdin()?.map(|input| (mode, input)),
            None => None,
        };
        show_own_screen()?;
        Ok(Self { keys })
    }

    /// Whether one of the keys that have been pressed is [`QUIT`], or there will be none any more.
    fn is_told_to_quit(&mut self) -> bool {
        let Some((_, input)) = &mut self.keys else {
            return false;
        };
        let mut pressed = Vec::new();
        input.read(usize::MAX, &mut pressed) != Arrival::Bytes || pressed.contains(&QUIT)
    }

    fn suspend(&self) -> io::Result<()> {
        show_first_screen();
        match &self.keys {
            Some((mode, _)) => mode.suspend(),
            None => stop_process(),
        }
        Ok(())
    }

    fn resume(&self) -> io::Result<()> {
        if let Some((mode, _)) = &self.keys {
            mode.resume()?;
        }
        show_own_screen()
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        show_first_screen();
    }
}

/// Processor time of each husk at the last look.
#[derive(Debug, Default)]
struct Shares {
    at: Option<Instant>,
    had: BTreeMap<u32, Duration>,
}

impl Shares {
    fn refresh(&mut self, patience: Duration) -> String {
        let husks = process::all(Path::new("/proc"), patience);
        let now = Instant::now();
        self.rows(take_snapshots(&husks, patience), now)
    }

    /// Those first that have used most since the last look.
    fn rows(&mut self, snapshots: Vec<Snapshot>, now: Instant) -> String {
        let took = self.at.map(|at| now.saturating_duration_since(at).as_secs_f64());
        let share = |snapshot: &Snapshot| {
            let before = self.had.get(&snapshot.husk.pid)?;
            let used = snapshot.husk.processor_time.checked_sub(*before)?.as_secs_f64();
            Some(100.0 * used / took.filter(|took| *took > 0.0)?)
        };
        let mut rows: Vec<_> = snapshots
            .into_iter()
            .map(|snapshot| (share(&snapshot), snapshot))
            .collect();
        rows.sort_by(|(a, _), (b, _)| b.unwrap_or(-1.0).total_cmp(&a.unwrap_or(-1.0)));
        let (shares, snapshots): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        self.at = Some(now);
        self.had = snapshots
            .iter()
            .map(|snapshot| (snapshot.husk.pid, snapshot.husk.processor_time))
            .collect();
        table::table(&snapshots, Some(&shares))
    }
}

/// Over what was there before, as much as the window has room for.
fn show(text: &str) -> io::Result<()> {
    let (rows, columns) = window_size().map_or((24, 80), |window| (window.rows.into(), window.columns.into()));
    let mut out = HOME.to_owned();
    for line in text.lines().take(rows) {
        out.extend(line.chars().take(columns));
        out.push_str(CLEAR_LINE);
    }
    // The last line has no end: the window would move up.
    out.truncate(out.len().saturating_sub(2));
    out.push_str(CLEAR_BELOW);
    write(&out)
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::super::HuskProcess;
    use super::super::snapshot::ReportedState;
    use super::*;

    fn snapshot(pid: u32, used: u64) -> Snapshot {
        Snapshot {
            husk: HuskProcess {
                pid,
                processor_time: Duration::from_secs(used),
                ..HuskProcess::sample()
            },
            reported: ReportedState::default(),
            resident: None,
            overhead: None,
        }
    }

    #[test]
    fn shares_are_those_since_the_last_look_and_the_largest_come_first() {
        let (mut shares, now) = (Shares::default(), Instant::now());
        let first = shares.rows(vec![snapshot(1, 10), snapshot(2, 50)], now);
        assert!(first.lines().skip(1).all(|row| row.contains("  -    ")), "{first}");
        let later = now + Duration::from_secs(2);
        let next = shares.rows(vec![snapshot(1, 11), snapshot(2, 53), snapshot(3, 9)], later);
        let rows: Vec<Vec<&str>> = next
            .lines()
            .skip(1)
            .map(|row| row.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0][1..4], ["2", "0s", "150%"]);
        assert_eq!(rows[1][1..4], ["1", "0s", "50%"]);
        assert_eq!(rows[2][1..4], ["3", "0s", "-"]);
    }
}
