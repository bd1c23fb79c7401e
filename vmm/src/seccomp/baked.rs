//! The filters as they were compiled when husk was: what is left to do is to fill in what only the process knows.

use libc::{BPF_JEQ, BPF_JMP, BPF_K, BPF_RET};
use seccompiler::sock_filter;

use super::Role;
use super::roles::{ANY_PID, DENIED};

/// `(code, jt, jf, k)` of each instruction.
type Instruction = (u16, u8, u8, u32);

// `FILTERS: [&[Instruction]; _]`, by role; written by build.rs.
include!(concat!(env!("OUT_DIR"), "/filters.rs"));

/// The filter of `role` for this process. What it does not allow is met with the action `denied` (`SECCOMP_RET_*`).
pub(super) fn program(role: Role, denied: u32) -> Vec<sock_filter> {
    let pid = std::process::id();
    let instruction = |(code, jt, jf, k): &Instruction| {
        let k = match (u32::from(*code), *k) {
            (IF_EQ, ANY_PID) => pid,
            (RETURN, DENIED) => denied,
            (_, k) => k,
        };
        let (code, jt, jf) = (*code, *jt, *jf);
        sock_filter { code, jt, jf, k }
    };
    FILTERS[role as usize].iter().map(instruction).collect()
}

const IF_EQ: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const RETURN: u32 = BPF_RET | BPF_K;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seccomp::program::compile;
    use crate::seccomp::tables;

    #[test]
    fn what_was_compiled_with_husk_is_what_is_compiled_now() {
        let pid = std::process::id();
        for role in tables::ROLES {
            assert_eq!(
                program(role, DENIED),
                compile(&tables::policy(role, pid), DENIED),
                "{role:?}"
            );
            let logging = compile(&tables::policy(role, pid), libc::SECCOMP_RET_LOG);
            assert_eq!(program(role, libc::SECCOMP_RET_LOG), logging, "{role:?}");
        }
    }

    #[test]
    fn roles_are_in_order() {
        for (number, role) in tables::ROLES.into_iter().enumerate() {
            assert_eq!(role as usize, number);
        }
    }
}
