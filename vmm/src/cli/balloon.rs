//! The value of `--balloon`.

use super::pairs::{PairsError, parse_pairs};
use super::size::{BadSize, size};
use super::switch::{BadSwitch, switch};
use crate::config::BalloonConfig;

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 3] = ["size", "deflate_on_oom", "free_page_reporting"];

/// Why a text describes no balloon.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BalloonArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// The value of a key that is a size does not parse.
    #[error(transparent)]
    Size(#[from] BadSize),
    /// The value of a key that is on or off does not parse.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
}

/// Reads `size=SIZE,free_page_reporting=on,…`. An empty balloon unless said.
pub fn parse_balloon(text: &str) -> Result<BalloonConfig, BalloonArgError> {
    let mut balloon = BalloonConfig::default();
    for (key, found) in parse_pairs(text, &KEYS)? {
        match key {
            "size" => balloon.size = size(key, found)?,
            "deflate_on_oom" => balloon.deflate_on_oom = switch(key, found)?,
            _ => balloon.free_page_reporting = switch(key, found)?,
        }
    }
    Ok(balloon)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_sets_its_field() {
        let balloon = parse_balloon("size=64M,deflate_on_oom=on,free_page_reporting=on").unwrap();
        assert_eq!(
            (balloon.size, balloon.deflate_on_oom, balloon.free_page_reporting),
            (64 << 20, true, true)
        );
        assert_eq!(parse_balloon("free_page_reporting=on").unwrap().size, 0);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_balloon(text).unwrap_err().to_string();
        assert!(message("size=much").starts_with("size is 'much': "));
        assert_eq!(message("deflate_on_oom=1"), "deflate_on_oom is '1', allowed: on, off");
        assert!(message("shrink=on").starts_with("unknown key 'shrink', allowed: size, deflate_on_oom"));
    }
}
