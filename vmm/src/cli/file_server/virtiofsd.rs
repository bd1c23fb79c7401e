//! What `husk fs` has of virtiofsd's command line beside its options: its name, the words of `-o`, and options that have no effect.

use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::path::Path;
use std::str::FromStr;

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

    /// One word of `-o`.
    pub(super) fn take_old(&mut self, text: &str) -> Result<(), FileServerUsage> {
        let unknown = || FileServerUsage::Old {
            text: text.into(),
            allowed: forms(),
        };
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (text, None),
        };
        let (base, on) = match name.strip_prefix("no_") {
            Some(base) => (base, false),
            None => (name, true),
        };
        let word = OLD.iter().find(|word| match word.takes {
            Takes::Value { .. } => word.name == name && value.is_some(),
            Takes::Switch(_) => word.name == base && value.is_none(),
            Takes::Off(_) => word.name == base && value.is_none() && !on,
        });
        match (word.ok_or_else(unknown)?.takes, value) {
            (Takes::Switch(set), _) => set(self, on),
            (Takes::Off(set), _) => set(self),
            (Takes::Value { take, .. }, value) => {
                let value = value.unwrap_or_default();
                take(self, value).map_err(|why| FileServerUsage::OldValue {
                    option: name.into(),
                    value: value.into(),
                    why,
                })?;
            }
        }
        Ok(())
    }
}

/// A word of `-o`.
struct OldWord {
    name: &'static str,
    takes: Takes,
}

/// What a word of `-o` has.
#[derive(Clone, Copy)]
enum Takes {
    /// A value behind `=`, of the form that `form` says. The error says why it is none.
    Value {
        form: fn() -> String,
        take: fn(&mut FileServerArgs, &str) -> Result<(), String>,
    },
    /// Nothing; `no_` before it means the opposite.
    Switch(fn(&mut FileServerArgs, bool)),
    /// Nothing, and `no_` always before it.
    Off(fn(&mut FileServerArgs)),
}

/// All words of `-o`. Help and errors say what is here.
const OLD: &[OldWord] = &[
    value(
        "source",
        || "DIR".into(),
        |args, value| {
            args.shared_dir = Some(value.into());
            Ok(())
        },
    ),
    value("cache", one_of::<CacheMode>, |args, value| {
        take_one_of(&mut args.cache, value)
    }),
    value("loglevel", one_of::<Level>, |args, value| {
        take_one_of(&mut args.log_level, value)
    }),
    value("sandbox", one_of::<SandboxMode>, |args, value| {
        take_one_of(&mut args.sandbox, value)
    }),
    value(
        "modcaps",
        || "LIST".into(),
        |args, value| take_parsed(&mut args.modcaps, value),
    ),
    value(
        "xattrmap",
        || "RULES".into(),
        |args, value| take_parsed(&mut args.xattrmap, value),
    ),
    switch("xattr", |args, on| args.xattr = on),
    switch("readdirplus", |args, on| args.no_readdirplus = !on),
    switch("writeback", |args, on| args.writeback = on),
    switch("allow_direct_io", |args, on| args.allow_direct_io = on),
    switch("announce_submounts", |args, on| args.no_announce_submounts = !on),
    switch("killpriv_v2", |args, on| {
        (args.killpriv_v2, args.no_killpriv_v2) = (on, !on)
    }),
    switch("posix_acl", |args, on| args.posix_acl = negotiation(on)),
    switch("security_label", |args, on| args.security_label = negotiation(on)),
    // One switch for both kinds.
    off("posix_lock", |args| args.locks = false),
    off("flock", |args| args.locks = false),
];

const fn value(
    name: &'static str,
    form: fn() -> String,
    take: fn(&mut FileServerArgs, &str) -> Result<(), String>,
) -> OldWord {
    let takes = Takes::Value { form, take };
    OldWord { name, takes }
}

const fn switch(name: &'static str, set: fn(&mut FileServerArgs, bool)) -> OldWord {
    let takes = Takes::Switch(set);
    OldWord { name, takes }
}

const fn off(name: &'static str, set: fn(&mut FileServerArgs)) -> OldWord {
    let takes = Takes::Off(set);
    OldWord { name, takes }
}

fn negotiation(on: bool) -> Negotiation {
    if on { Negotiation::Always } else { Negotiation::Never }
}

/// Every name of a value, with those that are not in the help of its option.
fn one_of<T: ValueEnum>() -> String {
    let values = T::value_variants().iter().filter_map(ValueEnum::to_possible_value);
    let names = values.flat_map(|value| value.get_name_and_aliases().map(String::from).collect::<Vec<_>>());
    names.collect::<Vec<_>>().join("|")
}

fn take_one_of<T: ValueEnum>(to: &mut T, value: &str) -> Result<(), String> {
    *to = T::from_str(value, true).map_err(|_| format!("allowed: {}", one_of::<T>()))?;
    Ok(())
}

fn take_parsed<T: FromStr<Err: Display>>(to: &mut Option<T>, value: &str) -> Result<(), String> {
    *to = Some(value.parse().map_err(|error: T::Err| error.to_string())?);
    Ok(())
}

/// How each word is written.
fn forms() -> String {
    let form = |word: &OldWord| match word.takes {
        Takes::Value { form, .. } => format!("{}={}", word.name, form()),
        Takes::Switch(_) => format!("[no_]{}", word.name),
        Takes::Off(_) => format!("no_{}", word.name),
    };
    OLD.iter().map(form).collect::<Vec<_>>().join(", ")
}

/// The help of `-o`.
pub(super) fn old_help() -> String {
    format!(
        "Options as virtiofsd's predecessor had them, joined by commas; repeatable. They count over options of their own\n\n\
         {}. What they mean is said where the option of that name is: source is --shared-dir, no_posix_lock and no_flock take --locks back",
        forms()
    )
}

#[cfg(test)]
#[path = "virtiofsd_test.rs"]
mod tests;
