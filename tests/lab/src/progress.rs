//! Steps that the user sees: what is being done, for how long already, and how long it took.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;

/// The longest that a step under way says nothing.
const LONGEST_PERIOD: Duration = Duration::from_secs(60);

/// Runs `work` as a visible step.
///
/// # Errors
///
/// What `work` returned.
pub fn step<T>(what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ticker = Ticker::start(what);
    let result = work();
    ticker.end(if result.is_ok() { "" } else { ", failed" });
    result
}

/// Runs `work`, which does the same `all` times, as a visible step that says how far it is; `work`
/// tells of each time that is done.
///
/// # Errors
///
/// What `work` returned.
pub fn counted<T>(what: &str, all: usize, work: impl FnOnce(&dyn Fn()) -> Result<T>) -> Result<T> {
    let done = Arc::new(AtomicUsize::new(0));
    let ticker = Ticker::with(what, {
        let done = Arc::clone(&done);
        move || format!(", {} of {all}", done.load(Ordering::Relaxed))
    });
    let result = work(&|| {
        done.fetch_add(1, Ordering::Relaxed);
    });
    ticker.end(if result.is_ok() { "" } else { ", failed" });
    result
}

/// Says something that is not a step.
pub fn say(text: &str) {
    // A step may be under way on this line.
    let clear = if std::io::stderr().is_terminal() {
        "\r\x1b[K"
    } else {
        ""
    };
    eprintln!("{clear}lab: {text}");
}

/// Takes the line of a step under way off the terminal, to make room for something else. It comes back by itself.
pub fn interrupt() {
    if std::io::stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}

/// A step under way. On a terminal its line counts seconds; elsewhere a line appears after five
/// seconds, ten, twenty, and so on, and then every minute.
pub struct Ticker {
    what: String,
    start: Instant,
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Ticker {
    /// Shows the step.
    pub fn start(what: &str) -> Self {
        Self::with(what, String::new)
    }

    /// Shows the step, and behind its seconds how far it is.
    pub fn with(what: &str, how_far: impl Fn() -> String + Send + 'static) -> Self {
        let (stop, stopped) = mpsc::channel();
        let terminal = std::io::stderr().is_terminal();
        let mut period = Duration::from_millis(if terminal { 200 } else { 5000 });
        let start = Instant::now();
        let line = what.to_string();
        if terminal {
            eprint!("\rlab: {line} ...");
        } else {
            eprintln!("lab: {line} ...");
        }
        let thread = thread::spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                let (seconds, how_far) = (start.elapsed().as_secs(), how_far());
                if terminal {
                    eprint!("\rlab: {line} ... {seconds} s{how_far}");
                    let _ = std::io::stderr().flush();
                } else {
                    eprintln!("lab: {line} ... {seconds} s so far{how_far}");
                    period = LONGEST_PERIOD.min(start.elapsed());
                }
            }
        });
        Self {
            what: what.into(),
            start,
            thread: Some((stop, thread)),
        }
    }

    /// Ends the step; `how` follows the time it took.
    pub fn end(mut self, how: &str) {
        self.stop();
        let seconds = self.start.elapsed().as_secs_f64();
        let clear = if std::io::stderr().is_terminal() {
            "\r\x1b[K"
        } else {
            ""
        };
        eprintln!("{clear}lab: {}: {seconds:.1} s{how}", self.what);
    }

    fn stop(&mut self) {
        if let Some((stop, thread)) = self.thread.take() {
            let _ = stop.send(());
            let _ = thread.join();
        }
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop();
    }
}
