//! Lines that the program that measures in the emulated host writes for the lab outside, among others for people.
//!
//! Each says one thing as soon as it is known: what has been said is not lost with the host.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// How such a line begins.
const MARK: &str = "husk-lab: ";

/// What a line says; `T` is a sample.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line<T> {
    /// The host's clock, in milliseconds.
    CountedMs(u64),
    /// This life begins.
    Begins(usize),
    /// The guest of this life was broken, and why; it is done again.
    Broken(usize, String),
    /// This life has ended.
    Ended(usize, Result<T, String>),
}

impl<T: Serialize> Line<T> {
    /// Writes it to standard output.
    pub fn print(&self) {
        println!("{}", self.text());
    }

    fn text(&self) -> String {
        let json = serde_json::to_string(self);
        format!("{MARK}{}", json.unwrap_or_else(|error| error.to_string()))
    }
}

impl<T: DeserializeOwned> Line<T> {
    /// What `line` says, if it is one of these.
    pub fn parse(line: &str) -> Option<Self> {
        serde_json::from_str(line.strip_prefix(MARK)?).ok()
    }
}

/// Bytes as they come, made lines.
#[derive(Default)]
pub struct Lines {
    open: Vec<u8>,
}

impl Lines {
    /// Gives `to` every line that ends in `bytes`, if it says anything.
    pub fn more(&mut self, bytes: &[u8], mut to: impl FnMut(&str)) {
        for byte in bytes {
            if *byte != b'\n' {
                self.open.push(*byte);
                continue;
            }
            let line = std::mem::take(&mut self.open);
            let line = String::from_utf8_lossy(&line);
            if !line.trim().is_empty() {
                to(line.trim());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_means_outside_what_it_meant_inside() {
        let lines: [Line<(f64, f64)>; 5] = [
            Line::CountedMs(1500),
            Line::Begins(0),
            Line::Broken(1, "Kernel panic - not syncing: \"why\"\nand more".into()),
            Line::Ended(2, Ok((1306.25, 0.1))),
            Line::Ended(3, Err("no KVM".into())),
        ];
        for line in lines {
            let text = line.text();
            assert!(!text.contains('\n'), "{text}");
            assert_eq!(Line::parse(&text), Some(line));
        }
        assert_eq!(Line::<f64>::parse("husk-lab: hello"), None);
        assert_eq!(Line::<f64>::parse("{\"begins\":0}"), None);
    }

    #[test]
    fn lines_are_whole_however_they_come() {
        let (mut lines, mut got) = (Lines::default(), Vec::new());
        for bytes in [&b"lab: fir"[..], b"st\r\nlab: sec", b"ond\r\n", b"\r\nrest"] {
            lines.more(bytes, |line| got.push(line.to_string()));
        }
        assert_eq!(got, ["lab: first", "lab: second"]);
    }
}
