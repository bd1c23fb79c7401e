//! The value of `--fs`.

use super::pairs::{PairsError, parse_pairs};
use crate::config::FsConfig;

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 5] = ["tag", "socket", "queues", "queue_size", "id"];

/// Why a text describes no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// Something that a share cannot do without.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// Not a number of the right size.
    #[error("{key} is '{found}', allowed: a whole number up to 65535")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
    },
}

/// Reads `tag=NAME,socket=PATH,…`.
pub fn parse_fs(text: &str) -> Result<FsConfig, FsArgError> {
    let mut fs = FsConfig::new("", "");
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "tag" => fs.tag = value,
            "socket" => fs.socket = value.into(),
            "queues" => fs.num_queues = number("queues", value)?,
            "queue_size" => fs.queue_size = number("queue_size", value)?,
            _ => fs.id = Some(value),
        }
    }
    if fs.tag.is_empty() {
        Err(FsArgError::Missing("tag=NAME"))
    } else if fs.socket.as_os_str().is_empty() {
        Err(FsArgError::Missing("socket=PATH"))
    } else {
        Ok(fs)
    }
}

fn number(key: &'static str, value: String) -> Result<u16, FsArgError> {
    value.parse().map_err(|_| FsArgError::Number { key, found: value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_sets_its_field() {
        let fs = parse_fs("tag=t,socket=/s,queues=3,queue_size=64,id=share").unwrap();
        assert_eq!((fs.tag.as_str(), fs.socket), ("t", "/s".into()));
        assert_eq!((fs.num_queues, fs.queue_size, fs.id.as_deref()), (3, 64, Some("share")));
        assert_eq!(parse_fs("tag=t,socket=/s").unwrap(), FsConfig::new("t", "/s"));
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_fs(text).unwrap_err().to_string();
        assert_eq!(message("socket=/s"), "tag=NAME is missing");
        assert_eq!(message("tag=t"), "socket=PATH is missing");
        assert_eq!(
            message("tag=t,socket=/s,queues=-1"),
            "queues is '-1', allowed: a whole number up to 65535"
        );
        assert_eq!(
            message("path=/s"),
            "unknown key 'path', allowed: tag, socket, queues, queue_size, id"
        );
    }
}
