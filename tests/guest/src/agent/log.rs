//! The agent's log: one line a call, to whoever follows it.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

/// Who reads the log now. A line that nobody reads is not kept.
#[derive(Debug, Default)]
pub struct Log(Mutex<Vec<UnixStream>>);

impl Log {
    /// Adds a reader.
    pub fn follow(&self, follower: UnixStream) {
        // A reader that stalls must not hold up the agent: it loses lines.
        if follower.set_nonblocking(true).is_ok() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).push(follower);
        }
    }

    /// Writes a line.
    pub fn say(&self, line: &str) {
        let line = format!("agent: {line}\n");
        let mut followers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        followers.retain_mut(|follower| match follower.write(line.as_bytes()) {
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
            Ok(_) => true,
        });
    }
}
