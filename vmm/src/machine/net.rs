//! Network devices: a tap by name, or by descriptors that somebody else has opened.
#![expect(
    unsafe_code,
    reason = "descriptors that this process was started with are known by number only"
)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use husk_devices::memory::GuestMemory;
use husk_virtio::device::VirtioDevice;
use husk_virtio::net::{self, Net};
use husk_virtio::rate_limit::{BucketConfig, LimiterConfig};

use super::build::BuildError;
use crate::config::{Backend, NetConfig, RateLimiterConfig, TokenBucketConfig};

/// Why a network device cannot be opened, beside what its tap says.
#[derive(Debug, thiserror::Error)]
enum NetError {
    #[error("neither a tap nor descriptors are given, one of them is needed")]
    Nothing,
    #[error("both tap '{0}' and descriptors are given, only one of them can be")]
    Both(String),
    #[error("{found} descriptors for {pairs} queue pairs, one for each is needed")]
    Count { found: usize, pairs: u16 },
}

/// Whether a device can be made of `config` and so many descriptors, as far as that is known before anything is opened.
///
/// # Errors
/// [`BuildError::Device`], with the tap's name.
pub fn check(config: &NetConfig, descriptors: usize) -> Result<(), BuildError> {
    let pairs = config.num_queues / 2;
    let error = match (&config.tap, descriptors) {
        (Some(_), 0) => return Ok(()),
        (Some(tap), _) => NetError::Both(tap.clone()),
        (None, 0) => NetError::Nothing,
        (None, found) if found == usize::from(pairs) => return Ok(()),
        (None, found) => NetError::Count { found, pairs },
    };
    Err(BuildError::device(name(config), error))
}

fn name(config: &NetConfig) -> String {
    match &config.tap {
        Some(tap) => format!("net {tap}"),
        None => format!("net {}", config.mac),
    }
}

/// The device that `config` describes. `fds` are descriptors of its tap, one for each queue pair,
/// if it is not known by name; they are duplicated and stay the caller's. Where the host's kernel
/// moves frames, it reaches `memory`.
///
/// # Errors
/// [`BuildError::Device`], with the tap's name.
pub fn open(config: &NetConfig, fds: &[OwnedFd], memory: &GuestMemory) -> Result<Box<dyn VirtioDevice>, BuildError> {
    let name = name(config);
    let pairs = config.num_queues / 2;
    let device = net::NetConfig {
        mac: config.mac.octets(),
        mtu: config.mtu,
        pairs,
        queue_size: config.queue_size,
        offload_csum: config.offload_csum,
        offload_tso: config.offload_tso,
        offload_ufo: config.offload_ufo,
        limits: config.rate_limiter_config.map(limits).unwrap_or_default(),
    };
    check(config, fds.len())?;
    let opened = match &config.tap {
        Some(tap) => Net::open(device, tap),
        None => {
            let own: Result<_, _> = fds.iter().map(OwnedFd::try_clone).collect();
            Net::adopt(device, own.map_err(|e| BuildError::device(&name, e))?)
        }
    };
    let net = opened.map_err(|error| BuildError::device(&name, error))?;
    Ok(Box::new(match config.backend {
        Backend::Husk => net,
        Backend::Vhost => net
            .by_kernel(memory)
            .map_err(|error| BuildError::device(&name, error))?,
    }))
}

/// The descriptors whose numbers `config` has: for a configuration that was made of this process's
/// own command line. Numbers that came in a message mean nothing here.
///
/// # Errors
/// [`BuildError::Device`] when a descriptor is not open.
pub fn inherited(config: &NetConfig) -> Result<Vec<OwnedFd>, BuildError> {
    let numbers = config.fds.as_deref().unwrap_or_default();
    numbers.iter().map(|number| duplicate(*number)).collect()
}

fn duplicate(number: i32) -> Result<OwnedFd, BuildError> {
    let failed = |source| BuildError::device(format!("net: descriptor {number}"), source);
    if number < 0 {
        return Err(failed(std::io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: not -1; borrowed for one call that fails cleanly if it is not open. Whether it is the
    // user's to give is theirs to know.
    let theirs = unsafe { BorrowedFd::borrow_raw(number) };
    theirs.try_clone_to_owned().map_err(failed)
}

/// A rate limiter as devices take it.
pub fn limits(config: RateLimiterConfig) -> LimiterConfig {
    let bucket = |config: TokenBucketConfig| BucketConfig {
        size: config.size,
        one_time_burst: config.one_time_burst.unwrap_or(0),
        refill: Duration::from_millis(config.refill_time),
    };
    LimiterConfig {
        bandwidth: config.bandwidth.map(bucket),
        ops: config.ops.map(bucket),
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsRawFd;

    use husk_devices::error_chain;
    use husk_devices::memory::GuestMemoryMmap;

    use super::*;

    fn why(config: &NetConfig, fds: &[OwnedFd]) -> String {
        let memory = GuestMemory::new(GuestMemoryMmap::new());
        let error = open(config, fds, &memory).err().unwrap();
        error_chain(&error)
    }

    fn something() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    #[test]
    fn a_device_has_a_tap_or_descriptors_and_not_both() {
        let mut config = NetConfig {
            mac: "02:00:00:00:00:01".parse().unwrap(),
            ..NetConfig::new()
        };
        assert_eq!(
            why(&config, &[]),
            "net 02:00:00:00:00:01: neither a tap nor descriptors are given, one of them is needed"
        );
        assert_eq!(
            why(&config, &[something(), something()]),
            "net 02:00:00:00:00:01: 2 descriptors for 1 queue pairs, one for each is needed"
        );
        assert_eq!(
            why(&config, &[something()]),
            "net 02:00:00:00:00:01: descriptor 1 of 1 is not a tap: Inappropriate ioctl for device (os error 25)"
        );
        config.tap = Some("tap0".into());
        assert_eq!(
            why(&config, &[something()]),
            "net tap0: both tap 'tap0' and descriptors are given, only one of them can be"
        );
    }

    #[test]
    fn inherited_descriptors_are_duplicated() {
        let file = something();
        let config = |number| NetConfig {
            fds: Some(vec![number]),
            ..NetConfig::new()
        };
        let duplicates = inherited(&config(file.as_raw_fd())).unwrap();
        assert_eq!(duplicates.len(), 1);
        assert_ne!(duplicates[0].as_raw_fd(), file.as_raw_fd());
        for number in [-1, i32::MIN, i32::MAX] {
            let error = inherited(&config(number)).unwrap_err();
            assert_eq!(error.to_string(), format!("net: descriptor {number}"));
        }
    }

    #[test]
    fn buckets_keep_their_numbers() {
        let bucket = TokenBucketConfig {
            size: 7,
            one_time_burst: None,
            refill_time: 1000,
        };
        let limits = limits(RateLimiterConfig {
            bandwidth: Some(bucket),
            ops: None,
        });
        let expected = BucketConfig {
            size: 7,
            one_time_burst: 0,
            refill: Duration::from_secs(1),
        };
        assert_eq!((limits.bandwidth, limits.ops), (Some(expected), None));
    }
}
