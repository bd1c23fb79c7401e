//! The value of `--disk`.

use super::pairs::{PairsError, parse_pairs};
use super::rate::{BadRate, per_second};
use super::switch::{BadSwitch, switch};
use crate::config::{DiskConfig, RateLimiterConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 10] = [
    "path",
    "readonly",
    "direct",
    "queues",
    "queue_size",
    "id",
    "discard",
    "io_uring",
    "bandwidth",
    "ops",
];

/// Why a text describes no disk.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiskError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// No path, or an empty one.
    #[error("path=FILE is missing")]
    NoPath,
    /// The value of a key that is a rate does not parse.
    #[error(transparent)]
    Rate(#[from] BadRate),
    /// The value of a key that is on or off does not parse.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
    /// Not a number of the right size.
    #[error("{key} is '{found}', allowed: a whole number up to 65535")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
    },
}

/// Reads `path=FILE,readonly=on,…`. A disk gives no space back to the host unless `discard=on`.
pub fn parse_disk(text: &str) -> Result<DiskConfig, DiskError> {
    let mut disk = DiskConfig {
        sparse: false,
        ..DiskConfig::new("")
    };
    let mut limits = RateLimiterConfig::default();
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "path" => disk.path = value.into(),
            "readonly" => disk.readonly = switch(key, value)?,
            "direct" => disk.direct = switch(key, value)?,
            "queues" => disk.num_queues = number(key, value)?,
            "queue_size" => disk.queue_size = number(key, value)?,
            "id" => disk.id = Some(value),
            "discard" => disk.sparse = switch(key, value)?,
            "io_uring" => disk.disable_io_uring = !switch(key, value)?,
            "bandwidth" => limits.bandwidth = Some(per_second(key, value)?),
            _ => limits.ops = Some(per_second("ops", value)?),
        }
    }
    disk.rate_limiter_config = (limits != RateLimiterConfig::default()).then_some(limits);
    if disk.path.as_os_str().is_empty() {
        Err(DiskError::NoPath)
    } else {
        Ok(disk)
    }
}

fn number(key: &'static str, found: String) -> Result<u16, DiskError> {
    found.parse().map_err(|_| DiskError::Number { key, found })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenBucketConfig;

    #[test]
    fn a_path_is_enough() {
        assert_eq!(
            parse_disk("path=/d").unwrap(),
            DiskConfig {
                sparse: false,
                ..DiskConfig::new("/d")
            }
        );
    }

    #[test]
    fn every_key_sets_its_field() {
        let text = "path=/d,readonly=on,direct=true,queues=4,queue_size=256,id=root,discard=on,io_uring=off,bandwidth=1000,ops=10";
        let bucket = |size| TokenBucketConfig {
            size,
            one_time_burst: None,
            refill_time: 1000,
        };
        let expected = DiskConfig {
            path: "/d".into(),
            readonly: true,
            direct: true,
            num_queues: 4,
            queue_size: 256,
            id: Some("root".into()),
            sparse: true,
            disable_io_uring: true,
            rate_limiter_config: Some(RateLimiterConfig {
                bandwidth: Some(bucket(1000)),
                ops: Some(bucket(10)),
            }),
            ..DiskConfig::new("")
        };
        assert_eq!(parse_disk(text).unwrap(), expected);
        assert_eq!(KEYS.len(), text.split(',').count(), "every key is tried above");
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_disk(text).unwrap_err().to_string();
        assert_eq!(message("readonly=on"), "path=FILE is missing");
        assert_eq!(message("path="), "path=FILE is missing");
        assert_eq!(
            message("path=/d,readonly=maybe"),
            "readonly is 'maybe', allowed: on, off"
        );
        assert_eq!(message("path=/d,io_uring="), "io_uring is '', allowed: on, off");
        assert_eq!(
            message("path=/d,queues=-1"),
            "queues is '-1', allowed: a whole number up to 65535"
        );
        assert_eq!(
            message("path=/d,bandwidth=0"),
            "bandwidth is '0', allowed: how many a second, 1 or more"
        );
        assert_eq!(
            message("path=/d,ro=on"),
            "unknown key 'ro', allowed: path, readonly, direct, queues, queue_size, id, discard, io_uring, bandwidth, ops"
        );
    }
}
