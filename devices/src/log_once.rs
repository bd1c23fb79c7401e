//! What a guest can provoke at will, and so is told once.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether something has been told.
#[derive(Debug, Default)]
pub struct LogOnce(AtomicBool);

impl LogOnce {
    /// Whether nobody has asked before: whoever asks first tells it. From any thread.
    pub fn is_first(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_the_first() {
        let told = LogOnce::default();
        let asked: Vec<bool> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| told.is_first())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(asked.iter().filter(|first| **first).count(), 1);
        assert!(!told.is_first());
    }
}
