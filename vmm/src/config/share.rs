//! What makes a folder of the host one that a guest can mount.

use std::collections::BTreeSet;

use super::path;
use super::validate::{ConfigError, QUEUE_SIZES};
use super::{FsConfig, VmConfig};

/// The most request queues of a file system device.
pub const MAX_FS_QUEUES: u16 = 64;
/// The most bytes of its tag (virtio 1.2 §5.11.4).
const MAX_TAG_BYTES: usize = husk_virtio::fs::TAG_BYTES;

/// Why a share cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// A name that a guest could not mount.
    #[error("fs: tag '{tag}' has {} bytes, 1 to {MAX_TAG_BYTES} without NUL are allowed", tag.len())]
    Tag {
        /// What was asked for.
        tag: String,
    },
    /// Two shares of one name.
    #[error("fs: tag '{0}' is used by two devices, tags must differ")]
    DuplicateTag(String),
    /// Nobody to serve the files.
    #[error("fs {0}: no socket given")]
    NoSocket(String),
    /// Too few or too many request queues.
    #[error("fs {tag}: {found} request queues asked for, 1 to {MAX_FS_QUEUES} allowed")]
    Queues {
        /// The tag.
        tag: String,
        /// What was asked for.
        found: u16,
    },
    /// A virtqueue size that virtio or husk does not allow.
    #[error("fs {tag}: queue size {found} is not a power of two from {} to {}", QUEUE_SIZES.start(), QUEUE_SIZES.end())]
    QueueSize {
        /// The tag.
        tag: String,
        /// What was asked for.
        found: u16,
    },
    /// Files are served by another process, which does not see guest RAM.
    #[error("fs {0}: the process that serves it has to share the guest's memory: memory.shared=true is needed")]
    PrivateMemory(String),
}

impl VmConfig {
    /// Checks the shares together.
    pub(super) fn validate_shares(&self) -> Result<(), ShareError> {
        let mut tags = BTreeSet::new();
        for fs in &self.fs {
            if !self.memory.shared {
                return Err(ShareError::PrivateMemory(fs.tag.clone()));
            }
            if !tags.insert(&fs.tag) {
                return Err(ShareError::DuplicateTag(fs.tag.clone()));
            }
        }
        Ok(())
    }
}

impl FsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        Ok(path::socket(&format!("fs {}", self.tag), &self.socket)?)
    }

    fn check(&self) -> Result<(), ShareError> {
        let tag = || self.tag.clone();
        if !(1..=MAX_TAG_BYTES).contains(&self.tag.len()) || self.tag.contains('\0') {
            return Err(ShareError::Tag { tag: tag() });
        }
        if self.socket.as_os_str().is_empty() {
            return Err(ShareError::NoSocket(tag()));
        }
        let found = self.num_queues;
        if !(1..=MAX_FS_QUEUES).contains(&found) {
            return Err(ShareError::Queues { tag: tag(), found });
        }
        let found = self.queue_size;
        if !found.is_power_of_two() || !QUEUE_SIZES.contains(&found) {
            return Err(ShareError::QueueSize { tag: tag(), found });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_have_names_that_differ_and_memory_that_is_shared() {
        let with = |change: fn(&mut FsConfig)| {
            let mut fs = FsConfig::new("share", "/s");
            change(&mut fs);
            let mut config = VmConfig {
                fs: vec![FsConfig::new("other", "/o"), fs],
                ..VmConfig::default()
            };
            config.memory.shared = true;
            let checked = config.validate_devices();
            checked
                .and_then(|()| Ok(config.validate_shares()?))
                .unwrap_err()
                .to_string()
        };
        assert_eq!(
            with(|fs| fs.tag.clear()),
            "fs: tag '' has 0 bytes, 1 to 36 without NUL are allowed"
        );
        let long = "ä".repeat(19);
        assert_eq!(
            with(|fs| fs.tag = "ä".repeat(19)),
            format!("fs: tag '{long}' has 38 bytes, 1 to 36 without NUL are allowed")
        );
        assert!(with(|fs| fs.tag = "a\0b".into()).contains("without NUL"));
        assert_eq!(
            with(|fs| fs.tag = "other".into()),
            "fs: tag 'other' is used by two devices, tags must differ"
        );
        assert_eq!(with(|fs| fs.socket = "".into()), "fs share: no socket given");
        assert_eq!(
            with(|fs| fs.num_queues = 0),
            "fs share: 0 request queues asked for, 1 to 64 allowed"
        );
        assert_eq!(
            with(|fs| fs.queue_size = 2048),
            "fs share: queue size 2048 is not a power of two from 16 to 1024"
        );
        let private = VmConfig {
            fs: vec![FsConfig::new("share", "/s")],
            ..VmConfig::default()
        };
        assert_eq!(
            private.validate_shares().unwrap_err().to_string(),
            "fs share: the process that serves it has to share the guest's memory: memory.shared=true is needed"
        );
    }

    #[test]
    fn a_share_with_shared_memory_passes() {
        let mut config = VmConfig::default();
        config.memory.shared = true;
        config.fs = vec![FsConfig::new("x".repeat(36), "/s"), FsConfig::new("y", "/s")];
        config.validate_shares().unwrap();
    }
}
