//! Lines for a reader that may have no room: which of them are lost, and what the next one has to tell of those.
//!
//! A line that is lost is counted, and the number goes out with a later one: in a line of its own
//! ([`PendingLines::push_notice`]) or in the later line itself ([`PendingLines::push`]). A line of
//! which only a part was written is ended before anything else is. A loss counts as told only when
//! the bytes that tell of it have been written: a notice or an end of line that could not be
//! written is to be written again, and is no lost line.

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::NonBlockingFile;

/// What a reader has lost and was not told of. Nothing here waits: a signal handler may look at it.
#[derive(Debug)]
pub struct LostLines {
    lost: AtomicU64,
    torn: AtomicBool,
}

/// A loss that lines which are about to be written tell of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[must_use = "what is dropped is never told"]
pub struct LossReport {
    /// Lines that were lost and have not been told of.
    pub lost: u64,
    /// Of the last line only a part was written.
    pub torn: bool,
}

impl LostLines {
    /// Nothing is lost.
    pub const fn new() -> Self {
        Self {
            lost: AtomicU64::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// `lines` more are lost, of which nothing was written; or were taken, and not told of.
    pub fn lose(&self, lines: u64) {
        self.lost.fetch_add(lines, Ordering::Relaxed);
    }

    /// `loss` is still to be told of, or in addition.
    pub fn add(&self, loss: LossReport) {
        self.lose(loss.lost);
        self.torn.fetch_or(loss.torn, Ordering::Relaxed);
    }

    /// Takes all of it: what the caller does not tell of, it gives back by [`LostLines::add`].
    pub fn take(&self) -> LossReport {
        LossReport {
            lost: self.take_lost(),
            torn: self.torn.swap(false, Ordering::Relaxed),
        }
    }

    /// As [`LostLines::take`], for what has no torn lines: the number of those that were lost and
    /// have not been told of.
    pub fn take_lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// Lines that were lost and have not been told of.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Whether the next line has to end another one first.
    pub fn is_torn(&self) -> bool {
        self.torn.load(Ordering::Relaxed)
    }
}

impl Default for LostLines {
    fn default() -> Self {
        Self::new()
    }
}

/// Whole lines on their way to a reader, of which the first may have been written in part.
#[derive(Debug, Default)]
pub struct PendingLines {
    bytes: Vec<u8>,
    /// How many bytes at the beginning end a line that was torn.
    ending: usize,
    /// How many bytes of the first line have been written.
    begun: usize,
    lines: VecDeque<PendingLine>,
}

#[derive(Clone, Copy, Debug)]
struct PendingLine {
    bytes: usize,
    /// How many lines the reader lacks if this one is not written.
    worth: u64,
}

impl PendingLines {
    /// Ends the torn line of `loss`, if there is one, by `end`. Before the first of the lines.
    pub fn end_torn(&mut self, loss: LossReport, end: &str) {
        if loss.torn && self.bytes.is_empty() {
            self.bytes.extend(end.as_bytes());
            self.ending = end.len();
        }
    }

    /// Adds a line that does nothing but tell of `lost` lines.
    pub fn push_notice(&mut self, line: &[u8], lost: u64) {
        self.add(line, lost);
    }

    /// Adds a line that also tells of `lost` lines.
    pub fn push(&mut self, line: &[u8], lost: u64) {
        self.add(line, lost.saturating_add(1));
    }

    fn add(&mut self, line: &[u8], worth: u64) {
        self.bytes.extend(line);
        let bytes = line.len();
        self.lines.push_back(PendingLine { bytes, worth });
    }

    /// What has not been written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes note that the first `count` bytes have been written.
    pub fn wrote(&mut self, count: usize) {
        let count = count.min(self.bytes.len());
        self.bytes.drain(..count);
        let ended = count.min(self.ending);
        self.ending = self.ending.saturating_sub(ended);
        self.begun = self.begun.saturating_add(count.saturating_sub(ended));
        while let Some(first) = self.lines.front().filter(|line| line.bytes <= self.begun) {
            self.begun = self.begun.saturating_sub(first.bytes);
            self.lines.pop_front();
        }
    }

    /// Gives up what has not been written; the loss that this is.
    pub fn take_unwritten(&mut self) -> LossReport {
        let lost = self
            .lines
            .iter()
            .fold(0, |sum: u64, line| sum.saturating_add(line.worth));
        let torn = self.ending > 0 || self.begun > 0;
        *self = Self::default();
        LossReport { lost, torn }
    }

    /// Takes what has not been written: it is somebody else's to write.
    pub fn take_bytes(&mut self) -> Vec<u8> {
        std::mem::take(self).bytes
    }

    /// Writes as far as `to` takes it, in one write where it takes all in one, so that lines of two threads do not mix.
    ///
    /// # Errors
    /// Why it takes no more at present; [`PendingLines::wrote`] has taken note of what it took.
    pub fn write_to(&mut self, to: &NonBlockingFile) -> io::Result<()> {
        while !self.bytes.is_empty() {
            let count = to.write(&self.bytes)?;
            self.wrote(count);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: LossReport = LossReport { lost: 0, torn: false };

    /// A torn line is ended, a notice of `lost` follows, then a line.
    fn lines(loss: LossReport) -> PendingLines {
        let mut lines = PendingLines::default();
        lines.end_torn(loss, "\r\n");
        if loss.lost > 0 {
            lines.push_notice(b"lost\n", loss.lost);
        }
        lines.push(b"line\n", 0);
        lines
    }

    #[test]
    fn a_loss_is_told_by_the_bytes_that_were_written() {
        let loss = LossReport { lost: 7, torn: true };
        for (written, left) in [
            (0, LossReport { lost: 8, torn: true }),
            (1, LossReport { lost: 8, torn: true }),
            (2, LossReport { lost: 8, torn: false }),
            (3, LossReport { lost: 8, torn: true }),
            (7, LossReport { lost: 1, torn: false }),
            (8, LossReport { lost: 1, torn: true }),
            (11, LossReport { lost: 1, torn: true }),
            (12, NOTHING),
        ] {
            let mut lines = lines(loss);
            assert_eq!(lines.bytes(), b"\r\nlost\nline\n");
            lines.wrote(written);
            assert_eq!(lines.take_unwritten(), left, "{written}");
            assert_eq!(lines.take_unwritten(), NOTHING, "once");
        }
        for byte in 0..=12 {
            let mut lines = lines(loss);
            (0..byte).for_each(|_| lines.wrote(1));
            let mut at_once = self::lines(loss);
            at_once.wrote(byte);
            assert_eq!(lines.take_unwritten(), at_once.take_unwritten(), "{byte}");
        }
    }

    #[test]
    fn a_line_that_tells_is_lost_with_what_it_tells_wherever_it_stands() {
        let mut lines = PendingLines::default();
        lines.push(b"a\n", 0);
        lines.push(b"b\n", 3);
        lines.wrote(2);
        assert_eq!(lines.take_unwritten(), LossReport { lost: 4, torn: false });
    }

    #[test]
    fn a_loss_is_taken_once() {
        let lost_lines = LostLines::new();
        lost_lines.lose(1);
        lost_lines.add(LossReport { lost: 3, torn: true });
        lost_lines.add(NOTHING);
        assert_eq!((lost_lines.lost(), lost_lines.is_torn()), (4, true));
        assert_eq!(lost_lines.take(), LossReport { lost: 4, torn: true });
        assert_eq!(lost_lines.take(), NOTHING);
        lost_lines.add(LossReport { lost: 2, torn: true });
        assert_eq!(
            (lost_lines.take_lost(), lost_lines.take()),
            (2, LossReport { lost: 0, torn: true })
        );
    }
}
