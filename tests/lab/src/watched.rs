//! A long-running process that is passed on, limited in time, and never left behind.

use std::io::{ErrorKind, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command::typed;
use crate::stall::{HostProgress, StallDetector};
use crate::sys;

/// How often the watchdog looks.
const PERIOD: Duration = Duration::from_millis(100);

/// Why the watchdog killed the process.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    Late(Duration),
    Still(String),
    Interrupted,
}

/// When a process is given up.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// After this time.
    pub timeout: Option<Duration>,
    /// When it shows no progress any more, if it shows any at all.
    pub progress: Option<Arc<HostProgress>>,
}

/// Runs `command` until it ends by itself, is given up, or the user interrupts the lab. If
/// `captured`, it reads nothing and `output` gets what it writes; if not, it has the user's
/// terminal.
///
/// # Errors
///
/// It did not start, failed, was late, stood still or was interrupted. It does not run any more then.
pub fn run(command: &mut Command, captured: bool, limits: &Limits, output: &mut dyn FnMut(&[u8])) -> Result<()> {
    sys::die_with_parent(command);
    sys::watch_interrupts();
    if captured {
        command.stdin(Stdio::null()).stdout(Stdio::piped());
    }
    let terminal = sys::SavedTerminal::save();
    let spawned = command.stderr(Stdio::piped()).spawn();
    let mut child = spawned.with_context(|| format!("cannot start `{}`", typed(command)))?;
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let complaints = thread::spawn(move || stderr.map(read_text).unwrap_or_default());
    let child = Arc::new(Mutex::new(child));
    let (ended, watch) = mpsc::channel::<()>();
    let watchdog = thread::spawn({
        let (child, limits) = (Arc::clone(&child), limits.clone());
        move || watch_over(&child, &limits, &watch)
    });
    if let Some(mut stdout) = stdout {
        pass_on(&mut stdout, output);
    }
    let status = wait(&child)?;
    drop(ended);
    drop(terminal);
    let complaints = complaints.join().unwrap_or_default();
    match watchdog.join().unwrap_or_default() {
        _ if sys::interrupted() => bail!("interrupted"),
        Some(Verdict::Late(timeout)) => bail!("killed after {} s without an end", timeout.as_secs()),
        Some(Verdict::Still(how)) => bail!("{how}; killed"),
        _ if !status.success() => bail!("it failed ({status}): {}", complaints.trim()),
        _ => Ok(()),
    }
}

/// Waits for the end of the process without holding the lock that the watchdog needs.
fn wait(child: &Mutex<Child>) -> Result<ExitStatus> {
    loop {
        if let Some(status) = child.lock().unwrap_or_else(PoisonError::into_inner).try_wait()? {
            return Ok(status);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Kills the process when it is to be given up or the lab is interrupted; why, if it did.
fn watch_over(child: &Mutex<Child>, limits: &Limits, ended: &Receiver<()>) -> Option<Verdict> {
    let start = Instant::now();
    let pid = child.lock().unwrap_or_else(PoisonError::into_inner).id();
    let look = || limits.progress.as_ref()?.look(pid).ok();
    let mut watch = limits
        .progress
        .as_ref()
        .zip(look())
        .map(|(progress, first)| StallDetector::new(progress, first));
    let verdict = loop {
        if ended.recv_timeout(PERIOD) != Err(RecvTimeoutError::Timeout) {
            return None;
        }
        if sys::interrupted() {
            break Verdict::Interrupted;
        }
        if let Some(timeout) = limits.timeout.filter(|timeout| start.elapsed() > *timeout) {
            break Verdict::Late(timeout);
        }
        if let Some((watch, now)) = watch.as_mut().zip(look())
            && let Some(standstill) = watch.standstill(now)
        {
            break Verdict::Still(watch.told(standstill));
        }
    };
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    // Whoever is left of what it has started would hold its output open.
    if matches!(child.try_wait(), Ok(None)) {
        sys::kill_tree(pid);
    }
    Some(verdict)
}

/// Everything that `source` has, as text.
pub fn read_text(mut source: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = source.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

fn pass_on(source: &mut impl Read, output: &mut dyn FnMut(&[u8])) {
    let mut buffer = [0; 8192];
    loop {
        match source.read(&mut buffer) {
            Ok(count) if count > 0 => output(buffer.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Ok(_) | Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn output_is_passed_on_and_failure_has_its_words() {
        let mut said = Vec::new();
        run(
            &mut shell("echo one; echo two"),
            true,
            &Limits::default(),
            &mut |bytes| said.extend_from_slice(bytes),
        )
        .unwrap();
        assert_eq!(said, b"one\ntwo\n");
        let error = run(
            &mut shell("echo why >&2; exit 3"),
            true,
            &Limits::default(),
            &mut |_| {},
        )
        .unwrap_err();
        assert!(error.to_string().contains("why"), "{error}");
    }

    #[test]
    fn what_does_not_end_is_killed() {
        let limits = Limits {
            timeout: Some(Duration::from_millis(200)),
            progress: None,
        };
        let error = run(&mut shell("exec sleep 100"), true, &limits, &mut |_| {}).unwrap_err();
        assert!(error.to_string().contains("killed after"), "{error}");
    }

    /// Why `script` was given up, which has `patience` to say something.
    fn given_up(script: &str, patience: Duration) -> String {
        let progress = Arc::new(HostProgress::new(patience));
        let limits = Limits {
            timeout: None,
            progress: Some(Arc::clone(&progress)),
        };
        let ended = run(&mut shell(script), true, &limits, &mut |_| progress.line());
        ended.unwrap_err().to_string()
    }

    #[test]
    fn what_spins_and_what_sleeps_is_given_up() {
        let patience = Duration::from_secs(2);
        let error = given_up("echo begun; while :; do :; done", patience);
        assert_eq!(
            error,
            "stands still: it has come to nothing in 2 s of processor time; killed"
        );
        let error = given_up("echo begun; sleep 1000; true", patience);
        assert_eq!(error, "stands still: it has slept for 2 s; killed");
    }
}
