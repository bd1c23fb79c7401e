//! What makes a folder of the host one that a guest can mount.

use husk_virtio::transport::pci::QUEUES_MAX;

use super::device_list::first_duplicate;
use super::error::ConfigError;
use super::path;
use super::translation;
use super::validate::QUEUE_SIZES;
use super::{FsConfig, VmConfig};

/// The most request queues of a file system device, beside the one for urgent requests.
pub const MAX_FS_QUEUES: u16 = QUEUES_MAX - 1;
/// The most bytes of its tag (virtio 1.2 §5.11.4).
const MAX_TAG_BYTES: usize = husk_virtio::fs::TAG_BYTES;

/// The most bytes of a label: those of an extended attribute that file systems keep in an inode, with room to spare.
pub(crate) const MAX_LABEL_BYTES: usize = 255;

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
    #[error("fs {0}: neither dir nor socket given")]
    NoFiles(String),
    /// Two who would serve them.
    #[error("fs {0}: dir and socket given, allowed: one of the two")]
    TwiceFiles(String),
    /// A wish that only husk itself could meet.
    #[error("fs {tag}: {field} is for files that husk serves (dir); a back-end at a socket has options of its own")]
    NotOurs {
        /// The tag.
        tag: String,
        /// The field.
        field: &'static str,
    },
    /// A label that no kernel could take.
    #[error(
        "fs {tag}: label '{label}' is no SELinux label, written as user:role:type or user:role:type:level, up to {MAX_LABEL_BYTES} bytes"
    )]
    Label {
        /// The tag.
        tag: String,
        /// What was asked for.
        label: String,
    },
    /// Lists without the attributes that they are kept in.
    #[error("fs {0}: posix_acl needs xattr")]
    AclWithoutXattr(String),
    /// Labels without the attributes that they are.
    #[error("fs {0}: security_label needs xattr")]
    LabelsWithoutXattr(String),
    /// Numbers of users or groups that cannot be told from each other.
    #[error("fs {tag}: {field} {why}")]
    Translation {
        /// The tag.
        tag: String,
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// More queues than would ever be used.
    #[error("fs {tag}: {found} request queues asked for, allowed with dir: 1 to {max}, one for each vCPU")]
    QueuesOfVcpus {
        /// The tag.
        tag: String,
        /// What was asked for.
        found: u16,
        /// vCPUs that there can be.
        max: u32,
    },
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
        for fs in &self.fs {
            let max = self.cpus.max_vcpus;
            if fs.dir.is_some() && u32::from(fs.num_queues) > max {
                let (tag, found) = (fs.tag.clone(), fs.num_queues);
                return Err(ShareError::QueuesOfVcpus { tag, found, max });
            }
            if fs.dir.is_none() && !self.memory.shared {
                return Err(ShareError::PrivateMemory(fs.tag.clone()));
            }
        }
        match first_duplicate(self.fs.iter().map(|fs| fs.tag.as_str())) {
            Some(tag) => Err(ShareError::DuplicateTag(tag.into())),
            None => Ok(()),
        }
    }
}

impl FsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.check()?;
        let name = format!("fs {}", self.tag);
        let Some(dir) = &self.dir else {
            return Ok(path::socket(&name, &self.socket)?);
        };
        Ok(path::file(&name, dir)?)
    }

    fn check(&self) -> Result<(), ShareError> {
        let tag = || self.tag.clone();
        if !(1..=MAX_TAG_BYTES).contains(&self.tag.len()) || self.tag.contains('\0') {
            return Err(ShareError::Tag { tag: tag() });
        }
        match (&self.dir, self.socket.as_os_str().is_empty()) {
            (None, true) => return Err(ShareError::NoFiles(tag())),
            (Some(_), false) => return Err(ShareError::TwiceFiles(tag())),
            (None, false) => {
                if let Some(field) = self.first_of_folders() {
                    return Err(ShareError::NotOurs { tag: tag(), field });
                }
            }
            (Some(_), true) => {}
        }
        if let Some(label) = self.label.as_ref().filter(|label| !is_label(label)) {
            let label = label.clone();
            return Err(ShareError::Label { tag: tag(), label });
        }
        if self.posix_acl && !self.xattr {
            return Err(ShareError::AclWithoutXattr(tag()));
        }
        if self.security_label && !self.xattr {
            return Err(ShareError::LabelsWithoutXattr(tag()));
        }
        for (field, ranges) in [
            ("translate_uid", &self.translate_uid),
            ("translate_gid", &self.translate_gid),
        ] {
            if let Some(why) = translation::fault(ranges, self.posix_acl) {
                return Err(ShareError::Translation { tag: tag(), field, why });
            }
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

/// Whether the kernel could take `label`, of up to [`MAX_LABEL_BYTES`]: what the types and levels
/// of its policy are, only it knows.
pub(crate) fn is_label(label: &str) -> bool {
    let mut parts = label.splitn(4, ':');
    let named = (0..3).all(|_| parts.next().is_some_and(|part| !part.is_empty()));
    let level = parts.next().is_none_or(|level| !level.is_empty());
    named && level && label.len() <= MAX_LABEL_BYTES && label.bytes().all(|byte| byte.is_ascii_graphic())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::IdTranslation;

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
        assert_eq!(
            with(|fs| fs.socket = "".into()),
            "fs share: neither dir nor socket given"
        );
        assert_eq!(
            with(|fs| fs.num_queues = 0),
            "fs share: 0 request queues asked for, 1 to 254 allowed"
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
    fn a_folder_is_served_by_husk_alone_and_is_not_looked_for_before_it_is_opened() {
        let with = |change: &dyn Fn(&mut FsConfig)| {
            let mut fs = FsConfig::of_dir("share", "/there/is/none");
            change(&mut fs);
            let config = VmConfig {
                fs: vec![fs],
                ..VmConfig::default()
            };
            let checked = config.validate_devices();
            checked
                .and_then(|()| Ok(config.validate_shares()?))
                .map_err(|error| error.to_string())
        };
        assert_eq!(with(&|_| ()), Ok(()), "and needs no shared memory");
        let refused = |change: &dyn Fn(&mut FsConfig)| with(change).unwrap_err();
        assert_eq!(
            refused(&|fs| fs.socket = "/s".into()),
            "fs share: dir and socket given, allowed: one of the two"
        );
        assert_eq!(refused(&|fs| fs.dir = Some("".into())), "fs share: no path given");
        assert_eq!(
            refused(&|fs| fs.num_queues = 2),
            "fs share: 2 request queues asked for, allowed with dir: 1 to 1, one for each vCPU"
        );
        assert_eq!(refused(&|fs| fs.posix_acl = true), "fs share: posix_acl needs xattr");
        assert_eq!(
            refused(&|fs| fs.security_label = true),
            "fs share: security_label needs xattr"
        );
        let none = IdTranslation::both_ways(1, 2, 0);
        assert_eq!(
            refused(&|fs| fs.translate_gid = vec![none]),
            "fs share: translate_gid map:1:2:0 maps no number"
        );
        for (label, good) in [
            ("system_u:object_r:container_file_t:s0:c1,c2", true),
            ("u:r:t", true),
            ("u:r", false),
            ("u::t", false),
            ("u:r:t:", false),
            ("u:r:t t", false),
            ("", false),
        ] {
            let found = with(&|fs| fs.label = Some(label.into()));
            assert_eq!(found.is_ok(), good, "{label}: {found:?}");
        }
        let mut remote = FsConfig::new("share", "/s");
        remote.readonly = true;
        assert_eq!(
            remote.validate().unwrap_err().to_string(),
            "fs share: readonly is for files that husk serves (dir); a back-end at a socket has options of its own"
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
