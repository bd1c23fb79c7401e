//! A policy as the program that the kernel runs on every system call (seccomp(2), `SECCOMP_SET_MODE_FILTER`).
//!
//! What a filter costs is its installation: the kernel checks and translates it, then runs it for
//! each of about 900 numbers to learn which calls are always allowed. A list of comparisons, which
//! is what seccompiler makes of a policy, costs that the square of its length. This is a binary
//! search over the numbers, four times as cheap to install; the tests hold it against
//! seccompiler's.
//!
//! Classic BPF jumps forward only, by at most 255 instructions, so programs are made from their end.

use std::collections::BTreeMap;

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::sock_filter;

use super::policy::{Policy, Test};

/// `AUDIT_ARCH_X86_64` (linux/audit.h): `EM_X86_64`, 64 bits, little-endian.
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// Offsets in `struct seccomp_data` (linux/seccomp.h). Arguments have 64 bits each, the low half first.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

const LOAD: u32 = BPF_LD | BPF_W | BPF_ABS;
const AND: u32 = BPF_ALU | BPF_AND | BPF_K;
const JUMP: u32 = BPF_JMP | BPF_JA;
const IF_EQ: u32 = BPF_JMP | BPF_JEQ | BPF_K;
const IF_GE: u32 = BPF_JMP | BPF_JGE | BPF_K;
const RETURN: u32 = BPF_RET | BPF_K;

/// The most system calls that are told apart one after another.
const CHAIN: u32 = 4;

/// The program that lets pass what `policy` allows, and meets everything else with the action
/// `denied` (`SECCOMP_RET_*`).
///
/// Calls in the form of another architecture end the process: their numbers mean something else.
pub(super) fn compile(policy: &Policy, denied: u32) -> Vec<sock_filter> {
    let mut code = Backwards::default();
    let foreign = code.action(libc::SECCOMP_RET_KILL_PROCESS);
    let mut numbers = BTreeMap::new();
    for (call, errno) in policy.refused() {
        numbers.insert(*call, code.action(libc::SECCOMP_RET_ERRNO | errno));
    }
    let fallback = code.action(denied);
    let allow = code.action(libc::SECCOMP_RET_ALLOW);
    for (call, ways) in policy.allowed() {
        let label = ways
            .iter()
            .rev()
            .fold(fallback, |otherwise, way| code.all(way, allow, otherwise));
        numbers.insert(*call, label);
    }
    let search = code.find(&numbers, fallback, CHAIN);
    let search = code.load(NR, search);
    let native = code.branch(IF_EQ, AUDIT_ARCH_X86_64, search, foreign);
    code.load(ARCH, native);
    code.into_program()
}

/// Names an instruction of a program under construction by its distance from the end. Equal labels are the same
/// instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct InstructionLabel(usize);

/// A program from its last instruction to its first.
#[derive(Default)]
struct Backwards(Vec<sock_filter>);

impl Backwards {
    fn push(&mut self, code: u32, k: u32, jt: u8, jf: u8) -> InstructionLabel {
        let code = u16::try_from(code).expect("operation codes of classic BPF have 16 bits");
        self.0.push(sock_filter { code, jt, jf, k });
        InstructionLabel(self.0.len())
    }

    /// Ends the program with `action`.
    fn action(&mut self, action: u32) -> InstructionLabel {
        self.push(RETURN, action, 0, 0)
    }

    /// Instructions between one that is to be pushed next and `to`.
    fn distance(&self, to: InstructionLabel) -> usize {
        self.0.len() - to.0
    }

    /// Makes sure that what is pushed next continues at `to`.
    fn fall_to(&mut self, to: InstructionLabel) {
        let distance = self.distance(to);
        if distance > 0 {
            self.push(JUMP, as_k(distance), 0, 0);
        }
    }

    /// `to`, or a jump to it if it is out of a branch's reach. One instruction may still come between.
    fn near(&mut self, to: InstructionLabel) -> InstructionLabel {
        let distance = self.distance(to);
        if distance < usize::from(u8::MAX) {
            return to;
        }
        self.push(JUMP, as_k(distance), 0, 0)
    }

    /// Goes on at `yes` if the comparison holds, else at `no`.
    fn branch(&mut self, code: u32, k: u32, yes: InstructionLabel, no: InstructionLabel) -> InstructionLabel {
        let yes = self.near(yes);
        let no = self.near(no);
        let offset = |to| u8::try_from(self.distance(to)).expect("`near` has seen to it");
        let (jt, jf) = (offset(yes), offset(no));
        self.push(code, k, jt, jf)
    }

    /// Loads a word of `seccomp_data`, then goes on at `next`.
    fn load(&mut self, offset: u32, next: InstructionLabel) -> InstructionLabel {
        self.fall_to(next);
        self.push(LOAD, offset, 0, 0)
    }

    /// Goes on at `yes` if all of `tests` hold, else at `no`.
    fn all(&mut self, tests: &[Test], yes: InstructionLabel, no: InstructionLabel) -> InstructionLabel {
        tests.iter().rev().fold(yes, |yes, test| {
            let numbers = test.values.iter().map(|value| (*value, yes)).collect();
            let found = self.find(&numbers, no, u32::MAX);
            let masked = if test.mask == u32::MAX {
                found
            } else {
                self.fall_to(found);
                self.push(AND, test.mask, 0, 0)
            };
            self.load(ARGS + 8 * u32::from(test.arg), masked)
        })
    }

    /// Goes on at the label of the accumulator's value, or at `otherwise` when it has none. Up to `chain` values are
    /// compared one after another, which takes the fewest instructions; of more, half are left out by each comparison.
    fn find(
        &mut self,
        labels: &BTreeMap<u32, InstructionLabel>,
        otherwise: InstructionLabel,
        chain: u32,
    ) -> InstructionLabel {
        let mut spans: Vec<Span> = Vec::new();
        for (value, label) in labels {
            match spans.last_mut() {
                Some(span) if span.label == *label && span.last.checked_add(1) == Some(*value) => span.last = *value,
                _ => spans.push(Span {
                    first: *value,
                    last: *value,
                    label: *label,
                }),
            }
        }
        self.search(&spans, 0, otherwise, chain)
    }

    /// [`Backwards::find`] among values that are at least `from`.
    fn search(&mut self, spans: &[Span], from: u32, otherwise: InstructionLabel, chain: u32) -> InstructionLabel {
        let further: u32 = spans.iter().map(|span| span.last - span.first).sum();
        let values = u32::try_from(spans.len()).map_or(u32::MAX, |count| count.saturating_add(further));
        match spans {
            [span] if values > 2 => self.within(span, from, otherwise),
            _ if values <= chain => {
                let values = spans
                    .iter()
                    .flat_map(|span| (span.first..=span.last).map(|value| (value, span.label)));
                let values: Vec<_> = values.collect();
                values
                    .into_iter()
                    .rev()
                    .fold(otherwise, |next, (value, label)| self.branch(IF_EQ, value, label, next))
            }
            _ => {
                let (low, high) = spans.split_at(spans.len() / 2);
                let middle = high.first().map_or(0, |span| span.first);
                let high = self.search(high, middle, otherwise, chain);
                let low = self.search(low, from, otherwise, chain);
                self.branch(IF_GE, middle, high, low)
            }
        }
    }

    /// Goes on at the span's label if the accumulator, which is at least `from`, is in it.
    fn within(&mut self, span: &Span, from: u32, otherwise: InstructionLabel) -> InstructionLabel {
        let below_end = match span.last.checked_add(1) {
            Some(end) => self.branch(IF_GE, end, otherwise, span.label),
            None => span.label,
        };
        if span.first == from {
            return below_end;
        }
        self.branch(IF_GE, span.first, below_end, otherwise)
    }

    fn into_program(mut self) -> Vec<sock_filter> {
        self.0.reverse();
        self.0
    }
}

/// Values next to each other that lead to the same label.
struct Span {
    first: u32,
    last: u32,
    label: InstructionLabel,
}

fn as_k(distance: usize) -> u32 {
    u32::try_from(distance).expect("the kernel takes 4096 instructions")
}

#[cfg(test)]
#[path = "program_test.rs"]
mod tests;
