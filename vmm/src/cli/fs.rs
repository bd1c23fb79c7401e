//! The value of `--fs`.

use super::pairs::{PairsError, parse_pairs};
use super::switch::{BadSwitch, switch};
use super::translation::translations;
use crate::config::{CacheMode, FsConfig, IdTranslation};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 19] = [
    "tag",
    "dir",
    "socket",
    "readonly",
    "cache",
    "writeback",
    "direct_io",
    "mmap",
    "xattr",
    "posix_acl",
    "submounts",
    "locks",
    "security_label",
    "label",
    "translate_uid",
    "translate_gid",
    "queues",
    "queue_size",
    "id",
];

/// Why a text describes no share.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FsArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// A switch with a third position.
    #[error(transparent)]
    Switch(#[from] BadSwitch),
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
    /// No way to cache.
    #[error("cache is '{0}', allowed: auto, never, always, metadata")]
    Cache(String),
    /// No ranges of users or groups.
    #[error("{key} is '{found}', {allowed}")]
    Translation {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What may be there.
        allowed: String,
    },
}

/// Reads `tag=NAME,dir=DIR,…` or `tag=NAME,socket=PATH,…`.
pub fn parse_fs(text: &str) -> Result<FsConfig, FsArgError> {
    let mut fs = FsConfig::new("", "");
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "tag" => fs.tag = value,
            "dir" => fs.dir = Some(value.into()),
            "socket" => fs.socket = value.into(),
            "readonly" => fs.readonly = switch("readonly", value)?,
            "cache" => fs.cache = cache(value)?,
            "writeback" => fs.writeback = switch("writeback", value)?,
            "direct_io" => fs.direct_io = switch("direct_io", value)?,
            "mmap" => fs.mmap = switch("mmap", value)?,
            "xattr" => fs.xattr = switch("xattr", value)?,
            "posix_acl" => fs.posix_acl = switch("posix_acl", value)?,
            "submounts" => fs.submounts = switch("submounts", value)?,
            "locks" => fs.locks = switch("locks", value)?,
            "security_label" => fs.security_label = switch("security_label", value)?,
            "label" => fs.label = Some(value),
            "translate_uid" => fs.translate_uid = ranges("translate_uid", value)?,
            "translate_gid" => fs.translate_gid = ranges("translate_gid", value)?,
            "queues" => fs.num_queues = number("queues", value)?,
            "queue_size" => fs.queue_size = number("queue_size", value)?,
            _ => fs.id = Some(value),
        }
    }
    if fs.tag.is_empty() {
        Err(FsArgError::Missing("tag=NAME"))
    } else if fs.socket.as_os_str().is_empty() && fs.dir.is_none() {
        Err(FsArgError::Missing("dir=DIR or socket=PATH"))
    } else {
        Ok(fs)
    }
}

fn number(key: &'static str, value: String) -> Result<u16, FsArgError> {
    value.parse().map_err(|_| FsArgError::Number { key, found: value })
}

fn cache(value: String) -> Result<CacheMode, FsArgError> {
    let mut modes = CacheMode::ALL.into_iter();
    let found = modes.find_map(|(name, mode)| (name == value).then_some(mode));
    found.ok_or(FsArgError::Cache(value))
}

fn ranges(key: &'static str, found: String) -> Result<Vec<IdTranslation>, FsArgError> {
    translations(&found).map_err(|allowed| FsArgError::Translation { key, found, allowed })
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
        assert_eq!(parse_fs("tag=t,dir=/d").unwrap(), FsConfig::of_dir("t", "/d"));
        let text = "tag=t,dir=/d,readonly=on,cache=never,writeback=on,direct_io=on,mmap=on,xattr=on,posix_acl=on,submounts=off,\
                    locks=on,security_label=on,label=\"u:r:t:s0:c1,c2\",translate_uid=map:0:1000:1,translate_gid=map:0:1000:1+map:1:5000:9";
        let range = IdTranslation::both_ways;
        let folder = FsConfig {
            readonly: true,
            cache: CacheMode::Never,
            writeback: true,
            direct_io: true,
            mmap: true,
            xattr: true,
            posix_acl: true,
            submounts: false,
            locks: true,
            security_label: true,
            label: Some("u:r:t:s0:c1,c2".into()),
            translate_uid: vec![range(0, 1000, 1)],
            translate_gid: vec![range(0, 1000, 1), range(1, 5000, 9)],
            ..FsConfig::of_dir("t", "/d")
        };
        assert_eq!(parse_fs(text).unwrap(), folder);
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_fs(text).unwrap_err().to_string();
        assert_eq!(message("socket=/s"), "tag=NAME is missing");
        assert_eq!(message("tag=t"), "dir=DIR or socket=PATH is missing");
        assert_eq!(
            message("tag=t,socket=/s,queues=-1"),
            "queues is '-1', allowed: a whole number up to 65535"
        );
        assert_eq!(
            message("tag=t,dir=/d,cache=none"),
            "cache is 'none', allowed: auto, never, always, metadata"
        );
        assert_eq!(
            message("tag=t,dir=/d,translate_uid=map:0:1000:1+0:1:2"),
            "translate_uid is 'map:0:1000:1+0:1:2', allowed: map, guest or squash-guest:GUEST:HOST:COUNT, host or \
             squash-host:HOST:GUEST:COUNT, forbid-guest:GUEST:COUNT, with numbers of 32 bits; several are joined by +"
        );
        assert_eq!(message("tag=t,dir=/d,locks=no"), "locks is 'no', allowed: on, off");
        assert_eq!(
            message("path=/s"),
            format!("unknown key 'path', allowed: {}", KEYS.join(", "))
        );
    }
}
