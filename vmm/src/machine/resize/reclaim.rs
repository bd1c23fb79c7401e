//! What an idle guest does not use goes back to the host, though nobody has asked for less (`--reclaim idle=…`).
//!
//! Again and again the guest is asked what it has (the balloon's statistics). If it has had more
//! free than it is to keep for as long as that counts as idle, the balloon grows by what is too
//! much. If it has not much left, the balloon gives back what is missing; what the guest takes out
//! by itself (`deflate_on_oom`) it is not asked for again. A resize empties the balloon, to what a
//! client wants in it, and idleness begins anew.

use std::time::{Duration, Instant};

use husk_virtio::balloon::{BalloonSize, BalloonStats};

use crate::config::{BalloonConfig, PAGE_BYTES};

/// What the guest keeps unless said.
const KEEP: u64 = 64 << 20;
/// The guest is asked four times within what counts as idle, but neither more often nor more seldom than so.
const PACE: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];

/// The policy, and what it has come to.
#[derive(Debug)]
pub struct Reclaim {
    idle: Duration,
    keep: u64,
    /// What a client wants in the balloon, in bytes.
    base: u64,
    /// Since when the guest has had too much.
    since: Option<Instant>,
    /// When it was asked, if it has not answered.
    asked: Option<Instant>,
    /// When it is asked next.
    next: Instant,
}

/// What the reclaim policy wants of the balloon now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The guest is to say what it has.
    Ask,
    /// The balloon is to have so many bytes.
    Fill(u64),
}

/// What a guest says that it has.
#[derive(Clone, Copy, Debug)]
struct FreeMemory {
    at: Instant,
    free: u64,
    available: u64,
}

impl Reclaim {
    /// The policy of `config`, if it has one.
    pub fn new(config: &BalloonConfig, now: Instant) -> Option<Self> {
        let idle = Duration::from_secs(config.reclaim_idle?);
        Some(Self {
            idle,
            keep: config.reclaim_keep.unwrap_or(KEEP),
            base: config.size,
            since: None,
            asked: None,
            next: now + pace(idle),
        })
    }

    /// What was wanted before is wanted no more: the balloon has `base` bytes, or what a client wanted last.
    pub fn begin(&mut self, base: Option<u64>) -> u64 {
        self.base = base.unwrap_or(self.base);
        self.since = None;
        self.asked = None;
        self.base
    }

    /// What a client wants in the balloon, in bytes.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// What is to be done now.
    pub fn next_action(&mut self, size: BalloonSize, stats: &BalloonStats, now: Instant) -> Option<Action> {
        let said = stats.at.zip(stats.free_bytes()).map(|(at, free)| FreeMemory {
            at,
            free,
            available: stats.available_bytes().unwrap_or(free),
        });
        self.decide(size, said, now)
    }

    fn decide(&mut self, size: BalloonSize, said: Option<FreeMemory>, now: Instant) -> Option<Action> {
        if let Some(said) = said.filter(|said| self.asked.is_some_and(|asked| said.at >= asked)) {
            self.asked = None;
            let target = self.target(size, said, now);
            if target != size.target_bytes {
                return Some(Action::Fill(target));
            }
        }
        if now < self.next {
            return None;
        }
        self.next = now + pace(self.idle);
        if !size.driver {
            self.since = None;
            return None;
        }
        self.asked = Some(now);
        Some(Action::Ask)
    }

    /// How large the balloon is to be. Whatever the guest says, that is at least what a client
    /// wants, and grows by what is idle alone.
    fn target(&mut self, size: BalloonSize, said: FreeMemory, now: Instant) -> u64 {
        // What it has taken out, or has not found in all the time, it needs.
        let has = size.actual_bytes.min(size.target_bytes);
        let target = if said.available < self.keep / 2 {
            self.since = None;
            has.saturating_sub(self.keep.saturating_sub(said.available))
        } else if said.free <= self.keep {
            self.since = None;
            has
        } else {
            let since = *self.since.get_or_insert(now);
            if now.saturating_duration_since(since) < self.idle {
                has
            } else {
                self.since = Some(now);
                has.saturating_add(said.free - self.keep)
            }
        };
        (target / PAGE_BYTES * PAGE_BYTES).max(self.base)
    }

    /// When to look again without having been woken.
    pub fn due(&self) -> Instant {
        self.next
    }
}

fn pace(idle: Duration) -> Duration {
    let [least, most] = PACE;
    (idle / 4).clamp(least, most)
}

#[cfg(test)]
#[path = "reclaim_test.rs"]
mod tests;
