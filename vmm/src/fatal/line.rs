//! A line that can be made in a signal handler: no allocation, no lock, no waiting.

#![expect(unsafe_code, reason = "system calls of a signal handler")]

use std::fmt;
use std::os::fd::BorrowedFd;

use crate::terminal;

/// A thread's name with its NUL (prctl(2), `PR_GET_NAME`).
const NAME_BYTES: usize = 16;

/// The usual length: a handler has a stack of a few KiB.
const USUAL: usize = 320;

/// A line of text of at most `N` bytes. What does not fit is left out.
#[derive(Debug)]
pub struct LineBuffer<const N: usize = USUAL> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for LineBuffer<N> {
    fn default() -> Self {
        Self { bytes: [0; N], len: 0 }
    }
}

impl<const N: usize> fmt::Write for LineBuffer<N> {
    /// Appends whole characters.
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for found in text.chars() {
            if N.saturating_sub(self.len) < found.len_utf8() {
                break;
            }
            self.push(found.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }
}

impl<const N: usize> LineBuffer<N> {
    /// Appends text.
    pub fn push(&mut self, text: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(self.len).zip(text) {
            *place = *byte;
            self.len += 1;
        }
    }

    /// What there is so far.
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Begins anew.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Appends a decimal number.
    pub fn push_number(&mut self, number: libc::c_int) {
        if number < 0 {
            self.push(b"-");
        }
        self.push_digits::<10>(number.unsigned_abs() as usize);
    }

    /// Appends an address.
    pub fn push_hex(&mut self, number: usize) {
        self.push(b"0x");
        self.push_digits::<16>(number);
    }

    fn push_digits<const BASE: usize>(&mut self, number: usize) {
        let mut digits = [0_u8; 20];
        let (mut rest, mut first) = (number, digits.len());
        for (at, digit) in digits.iter_mut().enumerate().rev() {
            *digit = b"0123456789abcdef".get(rest % BASE).copied().unwrap_or(b'?');
            (rest, first) = (rest / BASE, at);
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(first..).unwrap_or_default());
    }

    /// Appends the name of the calling thread.
    pub fn push_thread(&mut self) {
        let mut name = [0_u8; NAME_BYTES];
        // SAFETY: fills the name, which has room for it.
        unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
        self.push_name(&name);
    }

    /// Appends the number of the process.
    pub fn push_process(&mut self) {
        // SAFETY: a number.
        self.push_number(unsafe { libc::getpid() });
    }

    fn push_name(&mut self, name: &[u8; NAME_BYTES]) {
        self.push(name.split(|byte| *byte == 0).next().unwrap_or_default());
    }

    /// Says it as the last line of the process, on standard error and in the log.
    pub fn say(&self) {
        crate::log::tell_death(str::from_utf8(self.bytes()).unwrap_or("it ends, and cannot say why"));
    }

    /// Writes it on standard error, unless there is no room: a reader that does not read must not
    /// keep the process alive.
    pub fn write_on_stderr(&self) {
        // SAFETY: standard error is open for as long as the process, or the write fails.
        let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
        if terminal::has_room(stderr) {
            // SAFETY: the bytes are the line's own.
            unsafe { libc::write(libc::STDERR_FILENO, self.bytes.as_ptr().cast(), self.len) };
        }
    }

    #[cfg(test)]
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes().to_vec()).unwrap()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_people_write_them() {
        let mut line = LineBuffer::<192>::default();
        for number in [0, 59, i32::MAX, i32::MIN] {
            line.push_number(number);
            line.push(b" ");
        }
        for number in [0, 0xdead_beef, usize::MAX] {
            line.push_hex(number);
            line.push(b" ");
        }
        assert_eq!(
            line.text(),
            "0 59 2147483647 -2147483648 0x0 0xdeadbeef 0xffffffffffffffff "
        );
    }

    #[test]
    fn a_thread_is_named_up_to_its_nul_and_what_does_not_fit_is_left_out() {
        let mut line = LineBuffer::<192>::default();
        line.push_name(b"vcpu0\0garbage\0\0\0");
        line.push_name(b"a-name-of-16-byt");
        assert_eq!(line.text(), "vcpu0a-name-of-16-byt");
        line.push(&[b'x'; 300]);
        assert_eq!(line.text().len(), 192);
        line.clear();
        fmt::Write::write_str(&mut line, &"é".repeat(300)).unwrap();
        assert_eq!(line.text(), "é".repeat(96), "whole characters");
    }
}
