//! A guest's output as entries of journald, a line each.
//!
//! They are the guest's words: control characters are spaces, lines are cut at [`LINE_BYTES`], and
//! of more than [`MAX_LINES`] in [`WINDOW`] the rest is counted, so that a guest cannot push the
//! log of others out of the journal. Nothing waits: a line for which journald has no room stays
//! with whoever writes.

use std::fmt::{self, Write as _};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;
use std::time::{Duration, Instant};

use log::Level;

use crate::event_limit::EventLimit;
use crate::log::{Sent, connect, journal_head, send};

/// The most bytes of a line.
pub const LINE_BYTES: usize = 1_024;
/// Lines that a guest may write in [`WINDOW`]: a boot's, and then some.
const MAX_LINES: u64 = 2_000;
/// The window of [`MAX_LINES`].
const WINDOW: Duration = Duration::from_secs(10);

/// journald, as it takes a guest's lines.
#[derive(Debug)]
pub struct Journal {
    socket: File,
    identifier: String,
    /// The port's name.
    port: String,
    /// What the guest has said of a line so far.
    line: Vec<u8>,
    limit: EventLimit,
}

impl Journal {
    /// Connects to journald at `socket`, for the lines of the port called `port`, under `identifier`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn open(socket: &Path, identifier: &str, port: &str) -> io::Result<Self> {
        Ok(Self {
            socket: connect(socket)?,
            identifier: identifier.to_owned(),
            port: port.to_owned(),
            line: Vec::with_capacity(LINE_BYTES),
            limit: EventLimit::new(MAX_LINES, WINDOW),
        })
    }

    /// Takes the head of `bytes`, and says how many bytes that was.
    ///
    /// # Errors
    /// `WouldBlock` when journald has no room for the line that would be whole; `BrokenPipe` when it has gone.
    pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut taken = 0;
        for byte in bytes {
            let is_end = *byte == b'\n';
            if is_end || self.line.len() >= LINE_BYTES {
                match self.end_line(Instant::now()) {
                    Ok(()) => {}
                    Err(_) if taken > 0 => return Ok(taken),
                    Err(error) => return Err(error),
                }
            }
            if !is_end {
                self.line.push(*byte);
            }
            taken += 1;
        }
        Ok(taken)
    }

    /// Sends the line, unless there were too many.
    fn end_line(&mut self, now: Instant) -> io::Result<()> {
        if self.limit.is_over(now) {
            self.send_suppressed_count()?;
        }
        if !self.limit.allows(now) {
            self.limit.suppress(1);
        } else {
            let text = String::from_utf8_lossy(self.line.trim_ascii_end());
            // An empty line says nothing in a journal.
            if !text.is_empty() {
                let sent = self.send(format_args!("{text}"), Level::Info)?;
                self.limit.suppress(u64::from(!sent));
                self.limit.record(now);
            }
        }
        self.line.clear();
        Ok(())
    }

    fn send_suppressed_count(&mut self) -> io::Result<()> {
        if self.limit.suppressed() > 0 {
            let told = format_args!("... {} lines of the guest were left out", self.limit.suppressed());
            self.send(told, Level::Warn)?;
            self.limit.take_suppressed();
        }
        Ok(())
    }

    /// Sends one entry; `false` if it cannot be sent.
    fn send(&self, said: fmt::Arguments<'_>, level: Level) -> io::Result<bool> {
        let mut entry = String::with_capacity(LINE_BYTES);
        // A text takes everything.
        let _ = journal_head(&mut entry, (said, ""), level, &self.identifier);
        let _ = writeln!(entry, "HUSK_CONSOLE={}", self.port);
        match send(&self.socket, entry.as_bytes()) {
            Sent::Through => Ok(true),
            Sent::Full => Err(io::ErrorKind::WouldBlock.into()),
            Sent::Lost => Ok(false),
            Sent::Away => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }
}

impl AsFd for Journal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsRawFd for Journal {
    /// A descriptor that is writable while journald has room.
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

/// A prompt has no end of line.
impl Drop for Journal {
    fn drop(&mut self) {
        let _ = self.end_line(Instant::now());
        let _ = self.send_suppressed_count();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    fn daemon() -> (tempfile::TempDir, UnixDatagram, Journal) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let daemon = UnixDatagram::bind(&path).unwrap();
        daemon.set_nonblocking(true).unwrap();
        let journal = Journal::open(&path, "web-console", "serial").unwrap();
        (folder, daemon, journal)
    }

    fn entries(daemon: &UnixDatagram) -> Vec<String> {
        let mut bytes = [0; 8_192];
        let text = |count: usize, bytes: &[u8]| String::from_utf8(bytes[..count].to_vec()).unwrap();
        std::iter::from_fn(|| daemon.recv(&mut bytes).ok().map(|count| text(count, &bytes))).collect()
    }

    fn messages(daemon: &UnixDatagram) -> Vec<String> {
        let message = |entry: String| {
            entry
                .lines()
                .next()
                .unwrap()
                .strip_prefix("MESSAGE=")
                .unwrap()
                .to_owned()
        };
        entries(daemon).into_iter().map(message).collect()
    }

    #[test]
    fn a_line_is_an_entry_however_it_comes() {
        let (_folder, daemon, mut journal) = daemon();
        for piece in ["Linux ver", "sion 6\r\n", "\r\n", "a\nb"] {
            assert_eq!(journal.write(piece.as_bytes()).unwrap(), piece.len());
        }
        let expected = "MESSAGE=Linux version 6\nPRIORITY=6\nSYSLOG_IDENTIFIER=web-console\nHUSK_CONSOLE=serial\n";
        let found = entries(&daemon);
        assert_eq!((found.len(), found[0].as_str()), (2, expected));
        drop(journal);
        assert_eq!(messages(&daemon), ["b"], "a prompt");
    }

    #[test]
    fn the_guests_words_are_words_and_nothing_else() {
        let (_folder, daemon, mut journal) = daemon();
        journal.write(b"\x1b[31mred\0\xff\tPRIORITY=0\n").unwrap();
        assert_eq!(messages(&daemon), [" [31mred \u{fffd} PRIORITY=0"]);
        let long = [b'x'; LINE_BYTES + 5];
        journal.write(&long).unwrap();
        journal.write(b"\n").unwrap();
        let lengths: Vec<usize> = messages(&daemon).iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_BYTES, 5]);
    }

    #[test]
    fn a_guest_that_says_too_much_is_counted() {
        let (_folder, daemon, mut journal) = daemon();
        let mut found = Vec::new();
        for number in 0..MAX_LINES + 7 {
            journal.write(format!("line {number}\n").as_bytes()).unwrap();
            found.extend(messages(&daemon));
        }
        assert_eq!((found.len() as u64, journal.limit.suppressed()), (MAX_LINES, 7));
        journal.line.extend(b"later");
        journal.end_line(Instant::now() + WINDOW).unwrap();
        assert_eq!(messages(&daemon), ["... 7 lines of the guest were left out", "later"]);
    }

    #[test]
    fn a_line_without_room_stays_and_none_is_lost_or_told_twice() {
        let (_folder, daemon, mut journal) = daemon();
        let mut sent = 0;
        let refused = loop {
            match journal.write(format!("{sent}\n").as_bytes()) {
                Ok(count) if count == format!("{sent}\n").len() => sent += 1,
                // All but the end of the line.
                Ok(count) => break count,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(refused, sent.to_string().len());
        assert_eq!(journal.write(b"\n").unwrap_err().kind(), io::ErrorKind::WouldBlock);
        let mut found = messages(&daemon);
        assert_eq!(journal.write(b"\n").unwrap(), 1);
        found.extend(messages(&daemon));
        let expected: Vec<String> = (0..=sent).map(|number| number.to_string()).collect();
        assert_eq!(found, expected);
        drop(daemon);
        assert_eq!(journal.write(b"x\n").unwrap(), 1);
        assert_eq!(journal.write(b"\n").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
