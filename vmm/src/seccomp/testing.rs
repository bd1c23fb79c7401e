//! The kernel's side of a filter, for tests: an interpreter of the part of classic BPF that filters use.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JA, BPF_JEQ, BPF_JGE, BPF_JGT, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W};
use seccompiler::sock_filter;

/// A system call as a filter sees it (`struct seccomp_data`).
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub number: u32,
    pub arch: u32,
    pub args: [u64; 6],
}

impl Call {
    /// A call from x86_64 code, all arguments 0.
    pub fn new(number: u32) -> Self {
        Self {
            number,
            arch: 0xc000_003e,
            args: [0; 6],
        }
    }

    fn word(&self, offset: u32) -> u32 {
        let bytes: Vec<u8> = [self.number, self.arch, 0, 0]
            .iter()
            .flat_map(|word| word.to_le_bytes())
            .chain(self.args.iter().flat_map(|arg| arg.to_le_bytes()))
            .collect();
        let offset = usize::try_from(offset).unwrap();
        u32::from_le_bytes(bytes[offset..offset + 4].try_into().unwrap())
    }
}

/// What `program` does with `call` (`SECCOMP_RET_*`).
pub(super) fn decide(program: &[sock_filter], call: &Call) -> u32 {
    let (mut at, mut accumulator) = (0, 0);
    loop {
        let sock_filter { code, jt, jf, k } = program[at].clone();
        at += 1;
        let branch = |holds| usize::from(if holds { jt } else { jf });
        match u32::from(code) {
            code if code == BPF_LD | BPF_W | BPF_ABS => accumulator = call.word(k),
            code if code == BPF_ALU | BPF_AND | BPF_K => accumulator &= k,
            code if code == BPF_JMP | BPF_JA => at += usize::try_from(k).unwrap(),
            code if code == BPF_JMP | BPF_JEQ | BPF_K => at += branch(accumulator == k),
            code if code == BPF_JMP | BPF_JGE | BPF_K => at += branch(accumulator >= k),
            code if code == BPF_JMP | BPF_JGT | BPF_K => at += branch(accumulator > k),
            code if code == BPF_RET | BPF_K => return k,
            other => panic!("instruction {other:#x} at {}", at - 1),
        }
    }
}
