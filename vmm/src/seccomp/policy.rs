//! What a filter allows: system calls, some of them with certain arguments only.

use std::collections::BTreeMap;

/// An argument that a call is allowed with.
///
/// Only its low 32 bits are looked at: the kernel takes all the arguments that are checked here as
/// 32-bit values, or knows no flag above them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Check {
    /// Which argument, from 0.
    pub arg: u8,
    /// The bits that count.
    pub mask: u32,
    /// What these bits may be; no others are set.
    pub values: Values,
}

/// What an argument may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Values {
    /// The masked argument equals one of these values.
    Of(&'static [u32]),
    /// The process's own number.
    OwnPid,
}

/// A call that is allowed if all checks hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub call: libc::c_long,
    pub checks: &'static [Check],
}

/// A call with whatever arguments.
pub(super) const fn any(call: libc::c_long) -> Rule {
    Rule { call, checks: &[] }
}

/// A call if all `checks` hold.
pub(super) const fn only(call: libc::c_long, checks: &'static [Check]) -> Rule {
    Rule { call, checks }
}

/// Argument `arg` is one of `values`.
pub(super) const fn one_of(arg: u8, values: &'static [u32]) -> Check {
    Check {
        arg,
        mask: u32::MAX,
        values: Values::Of(values),
    }
}

/// Argument `arg` has none of the bits `bits`.
pub(super) const fn without(arg: u8, bits: u32) -> Check {
    Check {
        arg,
        mask: bits,
        values: Values::Of(&[0]),
    }
}

/// A [`Check`] of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Test {
    pub arg: u8,
    pub mask: u32,
    /// Nothing but bits of `mask`.
    pub values: Vec<u32>,
}

impl Test {
    fn new(check: &Check, pid: u32) -> Self {
        let mut values = match check.values {
            Values::Of(values) => values.to_vec(),
            Values::OwnPid => vec![pid],
        };
        values.sort_unstable();
        values.dedup();
        debug_assert!(values.iter().all(|value| value & !check.mask == 0));
        Self {
            arg: check.arg,
            mask: check.mask,
            values,
        }
    }
}

/// All of the calls that a thread may make. A call is listed with the ways in which it may be made:
/// lists of tests that must all hold. An empty list always does.
#[derive(Debug, Default)]
pub(super) struct Policy {
    allowed: BTreeMap<u32, Vec<Vec<Test>>>,
    refused: BTreeMap<u32, u32>,
}

impl Policy {
    /// What any of `groups` allows a thread of process `pid`, less `refused`, which are answered
    /// with their error numbers.
    pub fn new(groups: &[&[Rule]], refused: &[(libc::c_long, libc::c_int)], pid: u32) -> Self {
        let mut policy = Self::default();
        for (call, errno) in refused {
            policy.refused.insert(
                number(*call),
                u32::try_from(*errno).expect("error numbers are positive"),
            );
        }
        for rule in groups.iter().copied().flatten() {
            policy.allow(rule, pid);
        }
        policy
    }

    /// A policy of these very parts.
    #[cfg(test)]
    pub fn of(allowed: BTreeMap<u32, Vec<Vec<Test>>>) -> Self {
        let refused = BTreeMap::new();
        Self { allowed, refused }
    }

    /// Leaves out what fails with an error number.
    #[cfg(test)]
    pub fn forget_refused(&mut self) {
        self.refused.clear();
    }

    /// Calls by number, each with the ways it may be made.
    pub fn allowed(&self) -> &BTreeMap<u32, Vec<Vec<Test>>> {
        &self.allowed
    }

    /// Calls that fail with an error number.
    pub fn refused(&self) -> &BTreeMap<u32, u32> {
        &self.refused
    }

    fn allow(&mut self, rule: &Rule, pid: u32) {
        let ways = self.allowed.entry(number(rule.call)).or_default();
        if ways.iter().any(Vec::is_empty) {
            return;
        }
        let way: Vec<Test> = rule.checks.iter().map(|check| Test::new(check, pid)).collect();
        if way.is_empty() {
            ways.clear();
        }
        // Two lists of values for the same argument are one.
        if let [test] = way.as_slice()
            && let Some(values) = ways.iter_mut().find_map(|way| values_beside(way, test))
        {
            values.extend(&test.values);
            values.sort_unstable();
            values.dedup();
            return;
        }
        if !ways.contains(&way) {
            ways.push(way);
        }
    }
}

/// The values of `way`, if it is one test of what `test` looks at.
fn values_beside<'a>(way: &'a mut [Test], test: &Test) -> Option<&'a mut Vec<u32>> {
    match way {
        [one] if (one.arg, one.mask) == (test.arg, test.mask) => Some(&mut one.values),
        _ => None,
    }
}

fn number(call: libc::c_long) -> u32 {
    u32::try_from(call).expect("system call numbers of x86_64 are small")
}
