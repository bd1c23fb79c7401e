//! What `husk fs` has of virtiofsd's command line beside its options: its name, the words of `-o`, and options that have no effect.

use std::ffi::{OsStr, OsString};
use std::path::Path;

use clap::ValueEnum;

use super::{FileServerArgs, FileServerUsage, Level, Negotiation, SandboxMode};
use crate::config::CacheMode;

/// Under this name husk is `husk fs`.
const ALIAS: &str = "virtiofsd";

/// Why an option that is accepted does nothing.
const DEFAULT: &str = "it is so anyway";
const NO_MIGRATION: &str = "the state of a share is not migrated";

/// `--inode-file-handles`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InodeFileHandles {
    /// Never
    Never,
    /// Where the host has them
    #[value(alias = "fallback")]
    Prefer,
    /// Always
    Mandatory,
}

/// `--migration-mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigrationMode {
    /// By path
    FindPaths,
    /// By handle
    FileHandles,
}

/// `--migration-on-error`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MigrationOnError {
    /// End it
    Abort,
    /// Tell the guest
    GuestError,
}

/// What `args` are when husk is started under another name: the same as for `husk fs`.
pub(in crate::cli) fn under_alias(args: Vec<OsString>) -> Vec<OsString> {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name != Some(OsStr::new(ALIAS)) {
        return args;
    }
    let own = ["husk", "fs"].map(OsString::from);
    own.into_iter().chain(args.into_iter().skip(1)).collect()
}

/// What `--print-capabilities` answers (QEMU docs/interop/vhost-user.json).
pub(in crate::cli) const CAPABILITIES: &str = "{\n  \"type\": \"fs\",\n  \"features\": [\n    \"posix-acl-negotiation-mode\",\n    \
                                       \"security-label-negotiation-mode\",\n    \"separate-options\"\n  ]\n}\n";

impl FileServerArgs {
    /// Options that were given and do nothing, and why.
    pub(super) fn ignored(&self) -> Vec<(&'static str, &'static str)> {
        let all = [
            (self.foreground, "-f", "the server always stays in the foreground"),
            (self.killpriv_v2, "--killpriv-v2", "it is so anyway, where the host can"),
            (
                self.inode_file_handles.is_some(),
                "--inode-file-handles",
                "handles are used where the host has them, and descriptors are few in either case",
            ),
            (self.preserve_noatime, "--preserve-noatime", DEFAULT),
            (self.migration_mode.is_some(), "--migration-mode", NO_MIGRATION),
            (self.migration_on_error.is_some(), "--migration-on-error", NO_MIGRATION),
            (
                self.migration_verify_handles,
                "--migration-verify-handles",
                NO_MIGRATION,
            ),
            (self.migration_confirm_paths, "--migration-confirm-paths", NO_MIGRATION),
        ];
        let given = all.into_iter().filter(|(given, ..)| *given);
        given.map(|(_, option, why)| (option, why)).collect()
    }

    /// One of `-o`.
    pub(super) fn take_old(&mut self, text: &str) -> Result<(), FileServerUsage> {
        if let Some((option, value)) = text.split_once('=') {
            return self.take_old_value(option, value);
        }
        match text {
            "xattr" => self.xattr = true,
            "no_xattr" => self.xattr = false,
            "readdirplus" => self.no_readdirplus = false,
            "no_readdirplus" => self.no_readdirplus = true,
            "writeback" => self.writeback = true,
            "no_writeback" => self.writeback = false,
            "allow_direct_io" => self.allow_direct_io = true,
            "no_allow_direct_io" => self.allow_direct_io = false,
            "announce_submounts" => self.no_announce_submounts = false,
            "no_announce_submounts" => self.no_announce_submounts = true,
            "killpriv_v2" => (self.killpriv_v2, self.no_killpriv_v2) = (true, false),
            "no_killpriv_v2" => (self.killpriv_v2, self.no_killpriv_v2) = (false, true),
            "posix_acl" => self.posix_acl = Negotiation::Always,
            "no_posix_acl" => self.posix_acl = Negotiation::Never,
            "security_label" => self.security_label = Negotiation::Always,
            "no_security_label" => self.security_label = Negotiation::Never,
            // One switch for both kinds.
            "no_posix_lock" | "no_flock" => self.locks = false,
            _ => return Err(FileServerUsage::Old(text.into())),
        }
        Ok(())
    }

    fn take_old_value(&mut self, option: &str, value: &str) -> Result<(), FileServerUsage> {
        let bad = |allowed| FileServerUsage::OldValue {
            option: option.into(),
            value: value.into(),
            allowed,
        };
        match option {
            "source" => self.shared_dir = Some(value.into()),
            "cache" => {
                let found = CacheMode::from_str(value, true);
                self.cache = found.map_err(|_| bad("auto, always, none, metadata"))?;
            }
            "loglevel" => {
                let found = Level::from_str(value, true);
                self.log_level = found.map_err(|_| bad("err, warn, info, debug"))?;
            }
            "sandbox" => {
                let found = SandboxMode::from_str(value, true);
                self.sandbox = found.map_err(|_| bad("namespace, chroot"))?;
            }
            "modcaps" => self.modcaps = Some(value.parse().map_err(|_| bad("+NAME and -NAME, joined by colons"))?),
            "xattrmap" => self.xattrmap = Some(value.into()),
            _ => return Err(FileServerUsage::Old(format!("{option}={value}"))),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "virtiofsd_test.rs"]
mod tests;
