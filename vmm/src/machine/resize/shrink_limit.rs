//! How small a guest can become, by its own word.
//!
//! Linux lets go of a block of memory as long as it has as many free pages elsewhere, whatever its programs need next:
//! it kills them then, or panics. So a guest that says what it has available (`VIRTIO_BALLOON_S_AVAIL`, virtio 1.2
//! §5.5.6.4) is asked for no more than that, less a margin. It is asked anew while it shrinks, and, when it cannot
//! spare what is wanted, more and more seldom whether it can by now.

use std::time::{Duration, Instant};

use husk_virtio::balloon::BalloonHandle;

/// What a guest keeps available beside what it uses: a sixteenth of that, within these bounds.
const MARGIN: [u64; 2] = [16 << 20, 256 << 20];
/// A guest that shrinks is asked again after so long, one that does not after twice as long each time, but not later
/// than so.
const PAUSE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];

/// Who says what a guest has available.
pub trait AvailableMemory: Send {
    /// What it has said last, in bytes, and when. `None` if it does not say such things.
    fn available(&self) -> Option<(Instant, u64)>;

    /// Asks it to say so anew. Never waits.
    fn request_update(&self);
}

impl AvailableMemory for BalloonHandle {
    fn available(&self) -> Option<(Instant, u64)> {
        let stats = self.stats();
        let available = stats.at.zip(stats.available_bytes());
        available.filter(|_| self.size().driver)
    }

    fn request_update(&self) {
        self.refresh();
    }
}

/// How small a guest can become, as far as that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MinimumSize {
    /// Nobody says: it is asked for whatever is wanted.
    Unknown,
    /// The balloon's statistics have been asked for and have not come since: nothing may be taken yet.
    Pending,
    /// Bytes of RAM that the guest uses, and the margin: it must not be made smaller than this.
    Bytes(u64),
}

/// How small a guest that is to shrink may be made.
#[derive(Default)]
pub struct ShrinkLimit {
    guest: Option<Box<dyn AvailableMemory>>,
    /// When it was asked, if it has not answered, and the RAM that it had then, in bytes.
    asked: Option<(Instant, u64)>,
    needs: Option<u64>,
    /// What it had when it was asked last.
    had: u64,
    pause: Duration,
    /// When it is asked next.
    next: Option<Instant>,
}

impl ShrinkLimit {
    /// `guest` says what it has available; without one nobody does.
    pub fn new(guest: Option<Box<dyn AvailableMemory>>) -> Self {
        Self {
            guest,
            ..Self::default()
        }
    }

    /// Nothing is to go any more, or what is known is not to be relied on any further.
    pub fn reset(&mut self) {
        (self.asked, self.needs, self.next) = (None, None, None);
    }

    /// What is known by now of a guest that has `has` bytes of RAM.
    pub fn poll(&mut self, has: u64, now: Instant) -> MinimumSize {
        let said = self.guest.as_ref().map(|guest| guest.available());
        let Some(Some((at, available))) = said else {
            self.reset();
            return MinimumSize::Unknown;
        };
        if let Some((_, had)) = self.asked.take_if(|(asked, _)| at >= *asked) {
            // It had that at most when it answered.
            self.needs = Some(needs(had, available));
        }
        if self.next.is_none_or(|next| now >= next) {
            let [least, most] = PAUSE;
            let goes_on = self.next.is_none() || has != self.had;
            self.pause = if goes_on {
                least
            } else {
                self.pause.saturating_mul(2).min(most)
            };
            self.next = Some(now + self.pause);
            self.had = has;
            self.asked.get_or_insert((now, has));
            if let Some(guest) = &self.guest {
                guest.request_update();
            }
        }
        self.needs.map_or(MinimumSize::Pending, MinimumSize::Bytes)
    }

    /// When to look again without having been woken.
    pub fn next_poll(&self) -> Option<Instant> {
        self.next
    }
}

/// What a guest of `has` bytes needs that has `available` bytes left. It may say anything.
fn needs(has: u64, available: u64) -> u64 {
    let [least, most] = MARGIN;
    let used = has.saturating_sub(available);
    used.saturating_add((used / 16).clamp(least, most))
}

#[cfg(test)]
pub(super) mod testing {
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A guest that answers when it is told to.
    #[derive(Clone, Default)]
    pub struct Guest(Arc<Mutex<Answers>>);

    #[derive(Default)]
    struct Answers {
        available: Option<(Instant, u64)>,
        asked: usize,
    }

    impl Guest {
        /// It says that it has `available` bytes.
        pub fn say(&self, available: u64) {
            self.0.lock().unwrap().available = Some((Instant::now(), available));
        }

        /// How often it was asked.
        pub fn asked(&self) -> usize {
            self.0.lock().unwrap().asked
        }
    }

    impl AvailableMemory for Guest {
        fn available(&self) -> Option<(Instant, u64)> {
            self.0.lock().unwrap().available
        }

        fn request_update(&self) {
            self.0.lock().unwrap().asked += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::testing::Guest;
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn a_guest_keeps_what_it_uses_and_a_margin() {
        assert_eq!(needs(512 * MIB, 400 * MIB), 128 * MIB);
        assert_eq!(needs(8192 * MIB, 4096 * MIB), (4096 + 256) * MIB);
        assert_eq!(needs(2048 * MIB, 1024 * MIB), (1024 + 64) * MIB);
        assert_eq!(needs(MIB, u64::MAX), 16 * MIB);
        assert_eq!(needs(u64::MAX, 0), u64::MAX);
    }

    #[test]
    fn who_says_nothing_is_not_asked() {
        let now = Instant::now();
        assert_eq!(ShrinkLimit::new(None).poll(512 * MIB, now), MinimumSize::Unknown);
        let guest = Guest::default();
        let mut limit = ShrinkLimit::new(Some(Box::new(guest.clone())));
        assert_eq!(
            (limit.poll(512 * MIB, now), limit.next_poll()),
            (MinimumSize::Unknown, None)
        );
        assert_eq!(guest.asked(), 0);
    }

    #[test]
    fn what_was_said_before_it_was_asked_counts_for_nothing() {
        let guest = Guest::default();
        guest.say(512 * MIB);
        let mut limit = ShrinkLimit::new(Some(Box::new(guest.clone())));
        let now = Instant::now();
        assert_eq!(limit.poll(512 * MIB, now), MinimumSize::Pending);
        assert_eq!((limit.poll(512 * MIB, now), guest.asked()), (MinimumSize::Pending, 1));
        guest.say(256 * MIB);
        // It has shrunk meanwhile: what it has said may be of the moment when it was asked.
        assert_eq!(limit.poll(300 * MIB, now), MinimumSize::Bytes(272 * MIB));
        limit.reset();
        assert_eq!(limit.poll(300 * MIB, Instant::now()), MinimumSize::Pending);
        assert_eq!(guest.asked(), 2);
    }

    #[test]
    fn a_guest_that_shrinks_is_asked_often_and_one_that_does_not_more_and_more_seldom() {
        let guest = Guest::default();
        guest.say(0);
        let mut limit = ShrinkLimit::new(Some(Box::new(guest.clone())));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for has in [512, 500, 490, 490, 490, 490] {
            limit.poll(has * MIB, now);
            let due = limit.next_poll().unwrap();
            pauses.push((due - now).as_millis());
            limit.poll(has * MIB, now);
            now = due;
        }
        assert_eq!((pauses, guest.asked()), (vec![250, 250, 250, 500, 1000, 2000], 6));
        for _ in 0..20 {
            limit.poll(490 * MIB, now);
            now = limit.next_poll().unwrap();
        }
        assert!(limit.poll(490 * MIB, now) == MinimumSize::Pending && limit.next_poll() == Some(now + PAUSE[1]));
    }
}
