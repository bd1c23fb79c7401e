//! The capabilities that serving files takes, and no others (capabilities(7)).

use std::str::FromStr;

use husk_virtio::fs::share::SERVING;
use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

/// What is done to the usual set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    add: CapabilitySet,
    drop: CapabilitySet,
}

impl Default for Capabilities {
    fn default() -> Self {
        Self {
            add: CapabilitySet::empty(),
            drop: CapabilitySet::empty(),
        }
    }
}

/// What is wrong with a list of changes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadCapabilities {
    /// Not of the form.
    #[error("'{0}': allowed: +NAME or -NAME, joined by colons")]
    Form(String),
    /// Of no such name.
    #[error("there is no capability {0}, see capabilities(7)")]
    Unknown(String),
}

impl FromStr for Capabilities {
    type Err = BadCapabilities;

    /// `+sys_admin:-chown`. Of a name that comes twice, the last counts.
    fn from_str(text: &str) -> Result<Self, BadCapabilities> {
        let mut found = Self::default();
        for change in text.split(':') {
            let form = || BadCapabilities::Form(change.into());
            let (sign, name) = change.split_at_checked(1).ok_or_else(form)?;
            let name = name.to_ascii_uppercase();
            let name = name.strip_prefix("CAP_").unwrap_or(&name);
            let (to, from) = match sign {
                "+" => (&mut found.add, &mut found.drop),
                "-" => (&mut found.drop, &mut found.add),
                _ => return Err(form()),
            };
            let one = CapabilitySet::from_name(name).ok_or_else(|| BadCapabilities::Unknown(name.into()))?;
            to.insert(one);
            from.remove(one);
        }
        Ok(found)
    }
}

impl Capabilities {
    /// Those to be kept, of what the thread has. `of_others`: it may act for other users.
    fn kept(self, permitted: CapabilitySet, of_others: bool) -> CapabilitySet {
        let usual = if of_others { SERVING } else { CapabilitySet::empty() };
        (usual | self.add).difference(self.drop) & permitted
    }

    /// Puts all others away, for now.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn lower(self, of_others: bool) -> rustix::io::Result<()> {
        let sets = capabilities(None)?;
        let effective = self.kept(sets.permitted, of_others);
        set_capabilities(None, CapabilitySets { effective, ..sets })
    }

    /// Takes back what was put away.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn raise() -> rustix::io::Result<()> {
        let sets = capabilities(None)?;
        let effective = sets.permitted;
        set_capabilities(None, CapabilitySets { effective, ..sets })
    }

    /// Gives all others up, for ever. How many are left.
    ///
    /// # Errors
    /// What the host says.
    pub(super) fn reduce(self, of_others: bool) -> rustix::io::Result<u32> {
        let kept = self.kept(capabilities(None)?.permitted, of_others);
        let sets = CapabilitySets {
            effective: kept,
            permitted: kept,
            inheritable: CapabilitySet::empty(),
        };
        set_capabilities(None, sets)?;
        Ok(kept.bits().count_ones())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_add_and_drop_and_never_go_beyond_what_there_is() {
        let changed: Capabilities = "+sys_admin:-chown:+CAP_KILL:-kill".parse().unwrap();
        let all = CapabilitySet::all();
        let expected = (SERVING | CapabilitySet::SYS_ADMIN).difference(CapabilitySet::CHOWN);
        assert_eq!(changed.kept(all, true), expected);
        assert_eq!(changed.kept(all, false), CapabilitySet::SYS_ADMIN);
        assert_eq!(
            changed.kept(CapabilitySet::CHOWN | CapabilitySet::FOWNER, true),
            CapabilitySet::FOWNER
        );
        assert_eq!(Capabilities::default().kept(all, true), SERVING);
    }

    #[test]
    fn what_is_no_change_is_told() {
        for (text, expected) in [
            ("", BadCapabilities::Form(String::new())),
            ("chown", BadCapabilities::Form("chown".into())),
            ("+chown:", BadCapabilities::Form(String::new())),
            ("+", BadCapabilities::Unknown(String::new())),
            ("+all", BadCapabilities::Unknown("ALL".into())),
        ] {
            assert_eq!(text.parse::<Capabilities>(), Err(expected), "{text}");
        }
    }
}
