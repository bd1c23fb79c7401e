//! The value of `--net`.

use super::backend::{BadBackend, backend};
use super::pairs::{PairsError, parse_pairs};
use super::rate::{BadRate, per_second};
use super::switch::{BadSwitch, switch};
use crate::config::{BadMac, MAX_NET_PAIRS, NetConfig, RateLimiterConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 13] = [
    "tap",
    "fd",
    "mac",
    "queues",
    "queue_size",
    "mtu",
    "id",
    "csum",
    "tso",
    "ufo",
    "bandwidth",
    "ops",
    "backend",
];

/// Why a text describes no network device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// Nothing to connect to.
    #[error("tap=NAME or fd=N is needed")]
    NoTap,
    /// Two things to connect to.
    #[error("tap and fd are both given, only one of them can be")]
    TapAndFd,
    /// Not a MAC address.
    #[error(transparent)]
    Mac(#[from] BadMac),
    /// The value of a key that is a rate does not parse.
    #[error(transparent)]
    Rate(#[from] BadRate),
    /// The value of a key that is on or off does not parse.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
    /// Nobody who moves frames.
    #[error(transparent)]
    Backend(#[from] BadBackend),
    /// Not a number of the right size.
    #[error("{key} is '{found}', allowed: {allowed}")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What it can be.
        allowed: &'static str,
    },
    /// More queues than a number holds.
    #[error("queues is {0}, allowed: 1 to {MAX_NET_PAIRS}")]
    Queues(u16),
}

/// Reads `tap=NAME,mac=…`. A pair of queues for each descriptor, or for each of `queues`.
pub fn parse_net(text: &str) -> Result<NetConfig, NetArgError> {
    let mut net = NetConfig::new();
    let mut queues = None;
    let mut limits = RateLimiterConfig::default();
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "tap" => net.tap = Some(value),
            "fd" => net.fds = Some(descriptors(&value)?),
            "mac" => net.mac = value.parse()?,
            "queues" => queues = Some(number("queues", value)?),
            "queue_size" => net.queue_size = number("queue_size", value)?,
            "mtu" => net.mtu = Some(number("mtu", value)?),
            "id" => net.id = Some(value),
            "csum" => net.offload_csum = switch("csum", value)?,
            "tso" => net.offload_tso = switch("tso", value)?,
            "ufo" => net.offload_ufo = switch("ufo", value)?,
            "backend" => net.backend = backend(value)?,
            "bandwidth" => limits.bandwidth = Some(per_second("bandwidth", value)?),
            _ => limits.ops = Some(per_second("ops", value)?),
        }
    }
    net.rate_limiter_config = (limits != RateLimiterConfig::default()).then_some(limits);
    let given = match (&net.tap, &net.fds) {
        (None, None) => return Err(NetArgError::NoTap),
        (Some(_), Some(_)) => return Err(NetArgError::TapAndFd),
        (Some(_), None) => 1,
        (None, Some(fds)) => u16::try_from(fds.len()).unwrap_or(u16::MAX),
    };
    let pairs = queues.unwrap_or(given);
    net.num_queues = pairs.checked_mul(2).ok_or(NetArgError::Queues(pairs))?;
    Ok(net)
}

/// One or more descriptor numbers, with colons between.
fn descriptors(text: &str) -> Result<Vec<i32>, NetArgError> {
    let bad = || NetArgError::Number {
        key: "fd",
        found: text.into(),
        allowed: "numbers of open descriptors, with ':' between",
    };
    let number = |word: &str| word.parse().ok().filter(|fd| *fd >= 0).ok_or_else(bad);
    text.split(':').map(number).collect()
}

fn number(key: &'static str, found: String) -> Result<u16, NetArgError> {
    let allowed = "a whole number up to 65535";
    found.parse().map_err(|_| NetArgError::Number { key, found, allowed })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Backend, TokenBucketConfig};

    #[test]
    fn a_tap_is_enough_and_has_a_random_address() {
        let (one, other) = (parse_net("tap=t0").unwrap(), parse_net("tap=t0").unwrap());
        assert_eq!(
            (one.tap.as_deref(), one.num_queues, one.queue_size),
            (Some("t0"), 2, 256)
        );
        assert_ne!(one.mac, other.mac);
        assert_eq!(one.rate_limiter_config, None);
    }

    #[test]
    fn every_key_sets_its_field() {
        let text = "tap=t,mac=02:00:00:00:00:01,queues=4,queue_size=512,mtu=9000,id=n,csum=off,tso=off,ufo=off,bandwidth=1000,ops=10,backend=vhost";
        let net = parse_net(text).unwrap();
        let bucket = |size| {
            Some(TokenBucketConfig {
                size,
                one_time_burst: None,
                refill_time: 1000,
            })
        };
        let expected = NetConfig {
            tap: Some("t".into()),
            mac: "02:00:00:00:00:01".parse().unwrap(),
            num_queues: 8,
            queue_size: 512,
            mtu: Some(9000),
            id: Some("n".into()),
            backend: Backend::Vhost,
            offload_csum: false,
            offload_tso: false,
            offload_ufo: false,
            rate_limiter_config: Some(RateLimiterConfig {
                bandwidth: bucket(1000),
                ops: bucket(10),
            }),
            ..NetConfig::new()
        };
        assert_eq!(net, expected);
        assert_eq!(
            KEYS.len(),
            text.split(',').count() + 1,
            "every key but fd is tried above"
        );
    }

    #[test]
    fn descriptors_bring_a_pair_of_queues_each() {
        let net = parse_net("fd=3:7").unwrap();
        assert_eq!((net.fds, net.num_queues, net.tap), (Some(vec![3, 7]), 4, None));
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_net(text).unwrap_err().to_string();
        assert_eq!(message("mtu=1500"), "tap=NAME or fd=N is needed");
        assert_eq!(
            message("tap=a,fd=3"),
            "tap and fd are both given, only one of them can be"
        );
        for fd in ["", "x", "-1", "3:", "3,4"] {
            assert!(parse_net(&format!("fd={fd}")).is_err(), "{fd}");
        }
        assert_eq!(
            message("fd=3:x"),
            "fd is '3:x', allowed: numbers of open descriptors, with ':' between"
        );
        assert!(message("tap=a,mac=1").starts_with("mac is '1', allowed: "));
        assert_eq!(
            message("tap=a,mtu=70000"),
            "mtu is '70000', allowed: a whole number up to 65535"
        );
        assert_eq!(message("tap=a,tso=maybe"), "tso is 'maybe', allowed: on, off");
        assert_eq!(
            message("tap=a,backend=kernel"),
            "backend is 'kernel', allowed: husk, vhost"
        );
        assert_eq!(
            message("tap=a,ops=0"),
            "ops is '0', allowed: how many a second, 1 or more"
        );
        assert_eq!(message("tap=a,queues=40000"), "queues is 40000, allowed: 1 to 127");
    }
}
