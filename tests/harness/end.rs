//! The end of a process: waited for with a limit, which the standard library does not offer, or brought about.

use std::io;
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

/// How often to look: short, since tests and the soak tell how long an end took.
const PACE: Duration = Duration::from_millis(1);

/// Waits until `child` has ended by itself; `None` if it has not after `patience`.
///
/// # Errors
///
/// The kernel's, when somebody else has waited for it.
pub fn end_of(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let start = Instant::now();
    loop {
        let status = child.try_wait()?;
        if status.is_some() || start.elapsed() >= patience {
            return Ok(status);
        }
        thread::sleep(PACE);
    }
}

/// Kills `child`, unless it has ended, and collects it.
///
/// # Errors
///
/// The kernel's, when somebody else has waited for it.
pub fn kill(child: &mut Child) -> io::Result<ExitStatus> {
    // Fails only for one that has been collected.
    let _ = child.kill();
    child.wait()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_end_is_told_from_none() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(end_of(&mut child, Duration::ZERO).unwrap(), None);
        drop(child.stdin.take());
        let status = end_of(&mut child, Duration::from_secs(60)).unwrap();
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
        assert!(kill(&mut child).unwrap().success(), "an end stays what it was");
    }

    #[test]
    fn one_that_would_go_on_is_killed_and_collected() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        assert_eq!(kill(&mut child).unwrap().signal(), Some(9));
    }
}
