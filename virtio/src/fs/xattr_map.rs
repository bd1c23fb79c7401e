//! Names of extended attributes that are others on the host: rules as virtiofsd has them
//! (`--xattrmap`), and what they make of a name.
//!
//! | type | a name of the guest that begins with `KEY` | a name of the host that begins with `PREPEND` |
//! |---|---|---|
//! | `prefix` | has `PREPEND` put before it | is listed without it |
//! | `ok` | stays as it is | is listed as it is |
//! | `bad` | is not there to be read, and may not be set or removed | is not listed |
//! | `unsupported` | is of a kind that the share does not have | is not listed |
//!
//! A rule is written `:TYPE:SCOPE:KEY:PREPEND:`, with any other character in the place of the colon
//! that is no letter and no digit. Its scope is `client` for names of the guest, `server` for names
//! of the host, `all` for both. White space may be between rules. Of those that a name begins as,
//! the first counts; and there is one for every name. `:map:KEY:PREPEND:` comes last and stands for
//! those that put `PREPEND` before all names, or those that begin with `KEY`, and let nobody reach
//! the names of the host that come of it by these.

use std::borrow::Cow;
use std::ffi::{CStr, CString};
use std::str::FromStr;

/// Longest name, without its NUL (`XATTR_NAME_MAX` of linux/limits.h).
const NAME_MAX: usize = 255;

/// Access control lists (acl(5)).
pub(crate) const ACL_NAMES: [&CStr; 2] = [c"system.posix_acl_access", c"system.posix_acl_default"];

/// Rules. There is one for every name of either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct XattrMap {
    rules: Vec<Rule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    action: Action,
    scope: Scope,
    /// What names of the guest begin with that it is for.
    key: Vec<u8>,
    /// The same of the host; of a prefix also what is put before names of the guest.
    prepend: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Prefix,
    Ok,
    Bad,
    Unsupported,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    Client,
    Server,
    All,
}

/// Why the guest does not get at an attribute by a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// A rule says so.
    Bad,
    /// A rule says that there are none of its kind.
    Unsupported,
    /// The host has no names as long as this would be there.
    TooLong,
}

/// What is wrong with rules.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadXattrMap {
    /// None at all.
    #[error("there is no rule, allowed: :TYPE:SCOPE:KEY:PREPEND: once or more")]
    Empty,
    /// One of them.
    #[error("rule {number}: {fault}")]
    Rule {
        /// Which, beginning with 1.
        number: usize,
        /// Why.
        fault: BadRule,
    },
    /// Some names have none.
    #[error("no rule is for every other name of the {side}, allowed at the end: {end}")]
    Open {
        /// `guest` or `host`.
        side: &'static str,
        /// What would do.
        end: &'static str,
    },
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadRule {
    /// It begins with what could be a part of a word.
    #[error("it begins with '{0}', allowed: the character between its fields, as in :ok:all:::")]
    Separator(char),
    /// No such type.
    #[error("type '{0}', allowed: prefix, ok, bad, unsupported, map")]
    Type(String),
    /// No such scope.
    #[error("scope '{0}', allowed: client, server, all")]
    Scope(String),
    /// Fields are missing.
    #[error("it has {found} of {needed} fields, each of which ends with '{separator}'")]
    Unfinished {
        /// Fields that are there.
        found: usize,
        /// Fields of its type.
        needed: usize,
        /// What ends a field.
        separator: char,
    },
    /// Longer than any name.
    #[error("a part of a name has {0} bytes, allowed: up to {NAME_MAX}")]
    TooLong(usize),
    /// The end of a text, within it.
    #[error("a part of a name has a NUL in it")]
    Nul,
    /// A map rule ends the map.
    #[error("rules follow a map, allowed: a map as the last rule")]
    MapNotLast,
}

impl XattrMap {
    /// The name on the host of what the guest calls `name`.
    pub(crate) fn to_host<'n>(&self, name: &'n CStr) -> Result<Cow<'n, CStr>, Refusal> {
        let bytes = name.to_bytes();
        let is_for = |rule: &&Rule| rule.scope != Scope::Server && bytes.starts_with(&rule.key);
        // There is one, as was seen when they were read.
        let rule = self.rules.iter().find(is_for).ok_or(Refusal::Unsupported)?;
        match rule.action {
            Action::Ok => Ok(Cow::Borrowed(name)),
            Action::Bad => Err(Refusal::Bad),
            Action::Unsupported => Err(Refusal::Unsupported),
            Action::Prefix => {
                let long = [&*rule.prepend, bytes].concat();
                let fits = Some(long).filter(|long| long.len() <= NAME_MAX);
                let name = fits.and_then(|long| CString::new(long).ok());
                name.map(Cow::Owned).ok_or(Refusal::TooLong)
            }
        }
    }

    /// What the guest is told that begins `name` of the host, or is all of it; `None` if it does not hear of it.
    pub(crate) fn to_guest<'n>(&self, name: &'n [u8]) -> Option<&'n [u8]> {
        let is_for = |rule: &&Rule| rule.scope != Scope::Client && name.starts_with(&rule.prepend);
        let rule = self.rules.iter().find(is_for)?;
        match rule.action {
            Action::Ok => Some(name),
            Action::Prefix => name.strip_prefix(&*rule.prepend),
            Action::Bad | Action::Unsupported => None,
        }
    }

    /// Whether access control lists have their names on both sides, by which alone the host goes.
    pub fn keeps_acl(&self) -> bool {
        ACL_NAMES.iter().all(|name| self.keeps(name))
    }

    /// Whether an attribute has this name on both sides.
    fn keeps(&self, name: &CStr) -> bool {
        let there = self.to_host(name);
        there.is_ok_and(|there| *there == *name) && self.to_guest(name.to_bytes()) == Some(name.to_bytes())
    }

    /// Whether every name has a rule.
    fn check_end(&self) -> Result<(), BadXattrMap> {
        let end = ":bad:all::: or :ok:all:::";
        let mut rules = self.rules.iter();
        if !rules.any(|rule| rule.scope != Scope::Server && rule.key.is_empty()) {
            return Err(BadXattrMap::Open { side: "guest", end });
        }
        let mut rules = self.rules.iter();
        if !rules.any(|rule| rule.scope != Scope::Client && rule.prepend.is_empty()) {
            return Err(BadXattrMap::Open { side: "host", end });
        }
        Ok(())
    }
}

impl FromStr for XattrMap {
    type Err = BadXattrMap;

    fn from_str(text: &str) -> Result<Self, BadXattrMap> {
        let mut rules = Vec::new();
        let mut rest = text.trim_ascii();
        let mut number = 0_usize;
        while let Some(separator) = rest.chars().next() {
            number = number.saturating_add(1);
            let of_rule = |fault| BadXattrMap::Rule { number, fault };
            if separator.is_alphanumeric() {
                return Err(of_rule(BadRule::Separator(separator)));
            }
            let mut fields = Fields::new(rest, separator);
            let is_last = fields.rules(&mut rules).map_err(of_rule)?;
            rest = fields.rest.trim_ascii_start();
            if is_last && !rest.is_empty() {
                return Err(of_rule(BadRule::MapNotLast));
            }
        }
        if rules.is_empty() {
            return Err(BadXattrMap::Empty);
        }
        let map = Self { rules };
        map.check_end()?;
        Ok(map)
    }
}

/// The fields of the rule that a text begins with.
struct Fields<'t> {
    separator: char,
    found: usize,
    /// What follows those that were taken.
    rest: &'t str,
}

/// Fields of a rule, and of one that is a map.
const FIELDS: usize = 4;
const MAP_FIELDS: usize = 3;

impl<'t> Fields<'t> {
    fn new(text: &'t str, separator: char) -> Self {
        Self {
            separator,
            found: 0,
            rest: text.strip_prefix(separator).unwrap_or_default(),
        }
    }

    /// The next of the `needed` that there are.
    fn next(&mut self, needed: usize) -> Result<&'t str, BadRule> {
        let (field, rest) = self.rest.split_once(self.separator).ok_or(BadRule::Unfinished {
            found: self.found,
            needed,
            separator: self.separator,
        })?;
        self.found = self.found.saturating_add(1);
        self.rest = rest;
        Ok(field)
    }

    /// The next one, which is a part of a name.
    fn part(&mut self, needed: usize) -> Result<Vec<u8>, BadRule> {
        let part = self.next(needed)?.as_bytes();
        if part.len() > NAME_MAX {
            return Err(BadRule::TooLong(part.len()));
        }
        if part.contains(&0) {
            return Err(BadRule::Nul);
        }
        Ok(part.to_vec())
    }

    /// Adds what the rule stands for. Whether it must be the last one.
    fn rules(&mut self, rules: &mut Vec<Rule>) -> Result<bool, BadRule> {
        let action = match self.next(FIELDS)? {
            "prefix" => Action::Prefix,
            "ok" => Action::Ok,
            "bad" => Action::Bad,
            "unsupported" => Action::Unsupported,
            "map" => {
                let (key, prepend) = (self.part(MAP_FIELDS)?, self.part(MAP_FIELDS)?);
                rules.extend(map(key, prepend));
                return Ok(true);
            }
            other => return Err(BadRule::Type(other.into())),
        };
        let scope = match self.next(FIELDS)? {
            "client" => Scope::Client,
            "server" => Scope::Server,
            "all" => Scope::All,
            other => return Err(BadRule::Scope(other.into())),
        };
        rules.push(Rule {
            action,
            scope,
            key: self.part(FIELDS)?,
            prepend: self.part(FIELDS)?,
        });
        Ok(false)
    }
}

/// The rules that `:map:KEY:PREPEND:` stands for.
fn map(key: Vec<u8>, prepend: Vec<u8>) -> Vec<Rule> {
    let of = |action, key: &[u8], prepend: &[u8]| Rule {
        action,
        scope: Scope::All,
        key: key.to_vec(),
        prepend: prepend.to_vec(),
    };
    let first = of(Action::Prefix, &key, &prepend);
    if key.is_empty() {
        // What has not the prefix is the host's own.
        return vec![first, of(Action::Bad, b"", b"")];
    }
    // Neither does the guest reach the names that come of it, nor see those of the host that it would take for its own.
    vec![first, of(Action::Bad, &prepend, &key), of(Action::Ok, b"", b"")]
}

#[cfg(test)]
#[path = "xattr_map_test.rs"]
mod tests;
