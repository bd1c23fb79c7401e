//! Choices that a seed makes: the same ones each time.

use crate::pattern::Stream;

/// A source of choices.
#[derive(Clone, Debug)]
pub struct SeededRng(Stream);

impl SeededRng {
    /// The choices of `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Stream::new(seed))
    }

    /// A number below `end`; 0 if there is none.
    pub fn below(&mut self, end: usize) -> usize {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.0.take(8));
        let number = usize::try_from(u64::from_le_bytes(bytes) >> 16).unwrap_or_default();
        number.checked_rem(end).unwrap_or_default()
    }

    /// One of `all`, which has some.
    pub fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}
