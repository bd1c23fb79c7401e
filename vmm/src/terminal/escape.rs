//! The way out of a raw terminal: a prefix key and what may follow it.

/// Ctrl-A.
const PREFIX: u8 = 0x01;
/// After the prefix: end the VM.
const QUIT: u8 = b'x';

/// The user wants to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quit;

/// Finds the escape sequence in a stream of keys, however the stream is cut.
///
/// Ctrl-A x quits, Ctrl-A Ctrl-A is one Ctrl-A for the guest, and Ctrl-A with any other key is passed on as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct Escape {
    after_prefix: bool,
}

impl Escape {
    /// Appends to `out` what of `input` is for the guest. `Some` when the sequence was found; the
    /// rest of `input` is then dropped.
    pub fn feed(&mut self, input: &[u8], out: &mut Vec<u8>) -> Option<Quit> {
        for byte in input.iter().copied() {
            match (self.after_prefix, byte) {
                (false, PREFIX) => self.after_prefix = true,
                (false, _) => out.push(byte),
                (true, QUIT) => return Some(Quit),
                (true, PREFIX) => {
                    self.after_prefix = false;
                    out.push(PREFIX);
                }
                (true, _) => {
                    self.after_prefix = false;
                    out.extend([PREFIX, byte]);
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(chunks: &[&[u8]]) -> (Vec<u8>, bool) {
        let (mut escape, mut out) = (Escape::default(), Vec::new());
        let quit = chunks.iter().any(|chunk| escape.feed(chunk, &mut out).is_some());
        (out, quit)
    }

    #[test]
    fn keys_pass_unchanged() {
        assert_eq!(feed(&[b"ls -x\r\x03\x1b[A"]), (b"ls -x\r\x03\x1b[A".to_vec(), false));
    }

    #[test]
    fn prefix_and_x_quit_and_drop_the_rest() {
        assert_eq!(feed(&[b"ab\x01xcd"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn the_sequence_may_come_in_pieces() {
        assert_eq!(feed(&[b"ab\x01", b"", b"x"]), (b"ab".to_vec(), true));
    }

    #[test]
    fn a_doubled_prefix_is_one_for_the_guest() {
        assert_eq!(feed(&[b"\x01\x01x"]), (b"\x01x".to_vec(), false));
    }

    #[test]
    fn another_key_after_the_prefix_passes_with_it() {
        assert_eq!(feed(&[b"\x01k", b"x"]), (b"\x01kx".to_vec(), false));
    }
}
