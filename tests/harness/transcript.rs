//! What a guest has said so far.

/// Bytes as they arrive, read as text only where they are whole: a read may end within a character.
#[derive(Debug, Default)]
pub(crate) struct Transcript {
    bytes: Vec<u8>,
    /// How much has been read as lines.
    read: usize,
}

impl Transcript {
    /// Appends what was read.
    pub fn push(&mut self, chunk: &[u8]) {
        self.bytes.extend_from_slice(chunk);
    }

    /// The next complete line, without its end.
    pub fn next_line(&mut self) -> Option<String> {
        let rest = self.bytes.get(self.read..)?;
        let end = rest.iter().position(|byte| *byte == b'\n')?;
        let line = rest.get(..end)?;
        let line = String::from_utf8_lossy(line.strip_suffix(b"\r").unwrap_or(line)).into_owned();
        self.read += end + 1;
        Some(line)
    }

    /// Whether `text` has been said.
    pub fn contains(&self, text: &str) -> bool {
        self.text().contains(text)
    }

    /// Everything.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_that_arrives_in_pieces_is_whole_in_its_line() {
        let mut transcript = Transcript::default();
        for byte in "ünï\r\ncode".as_bytes() {
            transcript.push(&[*byte]);
        }
        assert_eq!(transcript.next_line().as_deref(), Some("ünï"));
        assert_eq!(transcript.next_line(), None);
        transcript.push(b"\n");
        assert_eq!(transcript.next_line().as_deref(), Some("code"));
        assert!(transcript.contains("ï\r\nco"));
    }
}
