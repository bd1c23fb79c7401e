//! What measurements of folders and disks have in common.

use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};

/// A small transfer.
pub const SMALL: usize = 4 << 10;
/// A large one.
pub const LARGE: usize = 1 << 20;

/// Memory that begins at a page, as `O_DIRECT` wants it.
pub struct Buffer {
    memory: Vec<u8>,
    length: usize,
}

impl Buffer {
    /// So many bytes of zeroes.
    pub fn new(length: usize) -> Self {
        Self {
            memory: vec![0; length + SMALL],
            length,
        }
    }

    /// All of it.
    pub fn bytes(&mut self) -> &mut [u8] {
        let start = self.memory.as_ptr().align_offset(SMALL);
        self.memory.get_mut(start..start + self.length).unwrap_or_default()
    }
}

/// Places in no order, the same ones for the same seed.
pub struct Places(u64);

impl Places {
    /// Those of `seed`.
    pub fn new(seed: u32) -> Self {
        Self(u64::from(seed) + 1)
    }

    /// One below `end`, which is not 0.
    pub fn below(&mut self, end: u64) -> u64 {
        // Knuth's linear congruential generator; its upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Has `count` threads do `work`, each told its number; one alone is the caller.
///
/// # Errors
///
/// Of any of them.
pub fn at_once(count: u32, work: impl Fn(u32) -> Result<()> + Sync) -> Result<()> {
    if count == 1 {
        return work(0);
    }
    let work = &work;
    thread::scope(|scope| {
        let threads: Vec<_> = (0..count).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().try_for_each(|thread| match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("a thread panicked"),
        })
    })
}

/// Flags of open(2) for a file that is read and written past the guest's cache, or not.
pub fn flags(direct: bool) -> i32 {
    if direct { libc::O_DIRECT } else { 0 }
}

/// MiB a second since `start`.
#[expect(clippy::cast_precision_loss, reason = "a figure for people")]
pub fn mib_per_second(bytes: u64, start: Instant) -> f64 {
    bytes as f64 / f64::from(1 << 20) / start.elapsed().as_secs_f64()
}

/// A figure's name, and what measures it.
pub type Figure<T> = (&'static str, fn(&T) -> Result<f64>);

/// Measures each of `figures` of `subject`, a line each: `NAME VALUE` or `no NAME: WHY`.
pub fn lines<T>(subject: &T, figures: &[Figure<T>]) -> Vec<String> {
    let line = |(name, measure): &Figure<T>| match measure(subject) {
        Ok(value) => format!("{name} {value:.3}"),
        Err(error) => format!("no {name}: {error:#}"),
    };
    figures.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_at_a_page() {
        let mut buffer = Buffer::new(LARGE);
        let bytes = buffer.bytes();
        assert_eq!((bytes.len(), bytes.as_ptr().align_offset(SMALL)), (LARGE, 0));
    }

    #[test]
    fn places_are_the_same_for_the_same_seed_and_lie_below_the_end() {
        let some = |seed| {
            let mut places = Places::new(seed);
            (0..100).map(|_| places.below(7)).collect::<Vec<_>>()
        };
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
        assert!((0..7).all(|place| some(3).contains(&place)) && some(3).iter().all(|place| *place < 7));
    }

    #[test]
    fn an_error_of_any_thread_is_the_error_of_all() {
        at_once(4, |_| Ok(())).unwrap();
        let error = at_once(4, |number| if number == 3 { bail!("three") } else { Ok(()) }).unwrap_err();
        assert_eq!(error.to_string(), "three");
    }
}
