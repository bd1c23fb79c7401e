//! A share, as the wire format describes it: Cloud Hypervisor's fields, and husk's own for files that it serves itself.

use std::path::PathBuf;

use clap::ValueEnum;
use husk_virtio::fs::share::Cache;
use serde::{Deserialize, Deserializer, Serialize};

use super::extra_fields::ExtraFields;
use super::translation::IdTranslation;
use super::{null_is_default, null_is_yes, yes};

/// A virtio-fs device: of a folder that husk serves, or of a vhost-user back-end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FsConfig {
    /// The name that the guest mounts.
    pub tag: String,
    /// The back-end's listening socket; empty where husk serves the files, and told even so: a shim that reads `vm.info` wants it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub socket: PathBuf,
    /// Request queues; the one for urgent requests comes on top.
    #[serde(default = "FsConfig::one_queue", deserialize_with = "FsConfig::null_is_one_queue")]
    pub num_queues: u16,
    /// Entries of each virtqueue, a power of two.
    #[serde(
        default = "FsConfig::usual_queue_size",
        deserialize_with = "FsConfig::null_is_usual_queue_size"
    )]
    pub queue_size: u16,
    /// The device's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The folder that husk serves, in place of a back-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dir: Option<PathBuf>,
    /// Whether nothing may be changed through this share.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub readonly: bool,
    /// What the guest may keep of what it was told.
    #[serde(
        default,
        deserialize_with = "null_is_default",
        skip_serializing_if = "CacheMode::is_auto"
    )]
    pub cache: CacheMode,
    /// Whether the guest may hold back writes.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub writeback: bool,
    /// Whether the guest's `O_DIRECT` is carried out on the host.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub direct_io: bool,
    /// Whether files whose contents the guest does not keep can be mapped by several of its processes.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub mmap: bool,
    /// Whether extended attributes are served.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub xattr: bool,
    /// Whether POSIX access control lists are served.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub posix_acl: bool,
    /// Whether mounts below the folder are mounts for the guest as well.
    #[serde(default = "yes", deserialize_with = "null_is_yes", skip_serializing_if = "is_on")]
    pub submounts: bool,
    /// Whether the guest's locks are locks of the host, which a process that waits for one has no way out of.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub locks: bool,
    /// Whether the guest says which security label is stored with what it makes.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "is_off")]
    pub security_label: bool,
    /// SELinux label of what is made through the share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Users who have other numbers in the guest; with any, a user of the guest who has none of the host's can do nothing.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub translate_uid: Vec<IdTranslation>,
    /// Groups, likewise.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub translate_gid: Vec<IdTranslation>,
    /// Fields that husk does not know, kept as they came so that `vm.info` echoes them.
    #[serde(flatten)]
    pub extra: ExtraFields,
}

/// What the guest may keep of what it was told, as it is written in the API and at the command line; the server knows it as [`Cache`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Contents until a file is opened anew, names and attributes for a second
    #[default]
    Auto,
    /// Everything, for a day: nobody else changes the directory
    Always,
    /// Nothing
    #[value(alias = "none")]
    Never,
    /// Names and attributes for a day, contents never
    Metadata,
}

impl From<CacheMode> for Cache {
    fn from(mode: CacheMode) -> Self {
        match mode {
            CacheMode::Auto => Self::Auto,
            CacheMode::Always => Self::Always,
            CacheMode::Never => Self::Never,
            CacheMode::Metadata => Self::Metadata,
        }
    }
}

impl CacheMode {
    /// Every mode, with its name.
    pub const ALL: [(&'static str, Self); 4] = [
        ("auto", Self::Auto),
        ("never", Self::Never),
        ("always", Self::Always),
        ("metadata", Self::Metadata),
    ];

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's contract")]
    fn is_auto(&self) -> bool {
        *self == Self::Auto
    }
}

impl FsConfig {
    /// A back-end at `socket`, with one request queue of the usual size.
    pub fn new(tag: impl Into<String>, socket: impl Into<PathBuf>) -> Self {
        Self {
            tag: tag.into(),
            socket: socket.into(),
            num_queues: Self::one_queue(),
            queue_size: Self::usual_queue_size(),
            id: None,
            dir: None,
            readonly: false,
            cache: CacheMode::Auto,
            writeback: false,
            direct_io: false,
            mmap: false,
            xattr: false,
            posix_acl: false,
            submounts: true,
            locks: false,
            security_label: false,
            label: None,
            translate_uid: Vec::new(),
            translate_gid: Vec::new(),
            extra: ExtraFields::default(),
        }
    }

    /// The folder `dir`, served by husk as it usually is.
    #[cfg(test)]
    pub(crate) fn of_dir(tag: impl Into<String>, dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: Some(dir.into()),
            ..Self::new(tag, "")
        }
    }

    /// The first field that says how husk is to serve a folder, and is not as it usually is: it has no meaning to a back-end, which has
    /// options of its own.
    pub(super) fn first_of_folders(&self) -> Option<&'static str> {
        let usual = Self::new("", "");
        [
            ("readonly", self.readonly != usual.readonly),
            ("cache", self.cache != usual.cache),
            ("writeback", self.writeback != usual.writeback),
            ("direct_io", self.direct_io != usual.direct_io),
            ("mmap", self.mmap != usual.mmap),
            ("xattr", self.xattr != usual.xattr),
            ("posix_acl", self.posix_acl != usual.posix_acl),
            ("submounts", self.submounts != usual.submounts),
            ("locks", self.locks != usual.locks),
            ("security_label", self.security_label != usual.security_label),
            ("label", self.label != usual.label),
            ("translate_uid", self.translate_uid != usual.translate_uid),
            ("translate_gid", self.translate_gid != usual.translate_gid),
        ]
        .into_iter()
        .find_map(|(name, unusual)| unusual.then_some(name))
    }

    const fn one_queue() -> u16 {
        1
    }

    fn null_is_one_queue<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::one_queue()))
    }

    fn null_is_usual_queue_size<'de, D: Deserializer<'de>>(from: D) -> Result<u16, D::Error> {
        Ok(Option::deserialize(from)?.unwrap_or(Self::usual_queue_size()))
    }

    const fn usual_queue_size() -> u16 {
        1024
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's contract")]
fn is_off(switch: &bool) -> bool {
    !switch
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's contract")]
fn is_on(switch: &bool) -> bool {
    *switch
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json, to_value};

    use super::*;

    #[test]
    fn a_back_end_has_no_word_of_how_files_are_served() {
        let json = to_value(FsConfig::new("t", "/s")).unwrap();
        assert_eq!(
            json,
            json!({"tag": "t", "socket": "/s", "num_queues": 1, "queue_size": 1024})
        );
        assert_eq!(from_value::<FsConfig>(json).unwrap(), FsConfig::new("t", "/s"));
    }

    /// Those of a folder too.
    #[test]
    fn a_value_of_another_type_is_told_with_its_field() {
        let fields = "tag socket num_queues queue_size id dir readonly cache writeback direct_io mmap xattr posix_acl submounts locks label \
                      translate_uid translate_gid";
        for field in fields.split(' ') {
            let mut json = json!({"tag": "t", "dir": "/d"});
            json[field] = json!([{"no": "value"}]);
            let refusal = crate::config::json::parse::<FsConfig>(json.to_string().as_bytes()).unwrap_err();
            let place = match field {
                "translate_uid" | "translate_gid" => format!("{field}[0]: "),
                _ => format!("{field}: "),
            };
            assert!(refusal.to_string().starts_with(&place), "{field}: {refusal}");
        }
    }

    #[test]
    fn every_field_of_a_folder_is_read_and_written() {
        let json = json!({
            "tag": "t", "socket": "", "num_queues": 2, "queue_size": 64, "dir": "/d", "readonly": true, "cache": "metadata",
            "writeback": true, "direct_io": true, "mmap": true, "xattr": true, "posix_acl": true, "submounts": false, "locks": true,
            "security_label": true, "label": "u:r:t:s0", "translate_uid": [{"guest": 0, "host": 1000, "count": 1}],
            "translate_gid": [{"guest": 0, "host": 1000, "count": 1}, {"guest": 1, "host": 5000, "count": 9}],
        });
        let fs: FsConfig = from_value(json.clone()).unwrap();
        assert_eq!(to_value(&fs).unwrap(), json);
        assert_eq!(fs.first_of_folders(), Some("readonly"));
        for (name, mode) in CacheMode::ALL {
            assert_eq!(to_value(mode).unwrap(), name);
        }
        let nulls = json!({
            "tag": "t", "dir": "/d", "socket": null, "readonly": null, "cache": null, "locks": null, "translate_uid": null,
        });
        assert_eq!(from_value::<FsConfig>(nulls).unwrap(), FsConfig::of_dir("t", "/d"));
    }
}
