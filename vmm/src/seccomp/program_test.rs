use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::*;
use crate::seccomp::roles::DENIED;
use crate::seccomp::tables;
use crate::seccomp::testing::{Call, decide};

/// What seccompiler makes of the same policy; `None` where that is longer than the kernel takes.
fn reference(policy: &Policy) -> Option<BpfProgram> {
    let rules = policy.allowed().iter().map(|(call, ways)| {
        let rules = if ways.iter().any(Vec::is_empty) {
            Vec::new()
        } else {
            ways.iter().flat_map(|way| combinations(way)).collect()
        };
        (i64::from(*call), rules)
    });
    let (denied, allowed) = (SeccompAction::Trap, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules.collect(), denied, allowed, TargetArch::x86_64).unwrap();
    match filter.try_into() {
        Ok(program) => Some(program),
        Err(BackendError::FilterTooLarge(_)) => None,
        Err(error) => panic!("{error}"),
    }
}

/// A rule for every combination of the tests' values.
fn combinations(way: &[Test]) -> Vec<SeccompRule> {
    let mut rules = vec![vec![]];
    for test in way {
        let operator = |_| match test.mask {
            u32::MAX => SeccompCmpOp::Eq,
            mask => SeccompCmpOp::MaskedEq(u64::from(mask)),
        };
        rules = rules
            .into_iter()
            .flat_map(|rule: Vec<SeccompCondition>| {
                test.values.iter().map(move |value| {
                    let value = u64::from(*value);
                    let condition = SeccompCondition::new(test.arg, SeccompCmpArgLen::Dword, operator(()), value);
                    [rule.clone(), vec![condition.unwrap()]].concat()
                })
            })
            .collect();
    }
    rules.into_iter().map(|rule| SeccompRule::new(rule).unwrap()).collect()
}

/// Calls that could tell two programs apart: every number near an allowed one, every argument near a tested one.
fn telling_calls(policy: &Policy) -> Vec<Call> {
    let mut calls: Vec<Call> = (0..600)
        .chain([0x4000_0000, 0x4000_0010, u32::MAX])
        .map(Call::new)
        .collect();
    for (number, ways) in policy.allowed() {
        let bases: Vec<Call> = ways.iter().map(|way| passing(*number, way)).collect();
        let tests: Vec<&Test> = ways.iter().flatten().collect();
        for (base, test) in bases.iter().flat_map(|base| tests.iter().map(move |test| (base, test))) {
            for value in test.values.iter().flat_map(|value| near(*value, test.mask)) {
                let mut call = base.clone();
                call.args[usize::from(test.arg)] = value;
                calls.push(call);
            }
        }
    }
    calls
}

fn passing(number: u32, way: &[Test]) -> Call {
    let mut call = Call::new(number);
    for test in way {
        call.args[usize::from(test.arg)] = u64::from(test.values[0]);
    }
    call
}

fn near(value: u32, mask: u32) -> Vec<u64> {
    let mut values: Vec<u32> = (0..32).map(|bit| value ^ (1 << bit)).collect();
    values.extend([
        0,
        u32::MAX,
        value,
        value.wrapping_add(1),
        value.wrapping_sub(1),
        value | !mask,
    ]);
    let wide = values.iter().map(|value| u64::from(*value) | 0xdead_beef << 32);
    wide.chain(values.iter().map(|value| u64::from(*value))).collect()
}

fn assert_equivalent(policy: &Policy) {
    let (ours, theirs) = (compile(policy, DENIED), reference(policy).unwrap());
    for call in telling_calls(policy) {
        assert_eq!(decide(&ours, &call), decide(&theirs, &call), "{call:x?}");
    }
}

#[test]
fn every_role_is_filtered_as_seccompiler_would() {
    for role in tables::ROLES {
        let mut policy = tables::policy(role, 4711);
        policy.forget_refused();
        assert_equivalent(&policy);
        assert!(
            compile(&policy, DENIED).len() < reference(&policy).unwrap().len() / 2,
            "{role:?}: the reason for a program of our own"
        );
    }
}

fn tests() -> impl Strategy<Value = Vec<Test>> {
    let mask = prop_oneof![Just(u32::MAX), Just(4), any::<u32>()];
    let test = (0_u8..6, mask, btree_set(prop_oneof![0..20_u32, any::<u32>()], 1..4));
    vec(
        test.prop_map(|(arg, mask, values)| Test {
            arg,
            mask,
            values: values.into_iter().map(|value| value & mask).collect(),
        }),
        0..3,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn any_policy_is_filtered_as_seccompiler_would(allowed in btree_map(0..500_u32, vec(tests(), 1..3), 0..60)) {
        assert_equivalent(&Policy::of(allowed));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4))]
    /// Places further apart than a branch can reach.
    #[test]
    fn large_policies_are_filtered_as_seccompiler_would(allowed in btree_map(0..5000_u32, vec(tests(), 1..2), 150..200)) {
        let policy = Policy::of(allowed);
        prop_assume!(reference(&policy).is_some());
        assert_equivalent(&policy);
    }
}

#[test]
fn a_call_of_another_architecture_ends_the_process() {
    let program = compile(&Policy::of([(0, vec![vec![]])].into()), DENIED);
    let mut call = Call::new(0);
    assert_eq!(decide(&program, &call), libc::SECCOMP_RET_ALLOW);
    // AUDIT_ARCH_I386.
    call.arch = 0x4000_0003;
    assert_eq!(decide(&program, &call), libc::SECCOMP_RET_KILL_PROCESS);
}

#[test]
fn refused_calls_fail_with_their_error() {
    let policy = Policy::new(&[], &[(libc::SYS_clone3, libc::ENOSYS)], 1);
    let program = compile(&policy, DENIED);
    let clone3 = Call::new(u32::try_from(libc::SYS_clone3).unwrap());
    assert_eq!(decide(&program, &clone3), libc::SECCOMP_RET_ERRNO | 38);
    assert_eq!(decide(&program, &Call::new(0)), DENIED);
}
