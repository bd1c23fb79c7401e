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
pub trait Says: Send {
    /// What it has said last, in bytes, and when. `None` if it does not say such things.
    fn available(&self) -> Option<(Instant, u64)>;

    /// Asks it to say so anew. Never waits.
    fn ask(&self);
}

impl Says for BalloonHandle {
    fn available(&self) -> Option<(Instant, u64)> {
        let stats = self.stats();
        let available = stats.at.zip(stats.available_bytes());
        available.filter(|_| self.size().driver)
    }

    fn ask(&self) {
        self.refresh();
    }
}

/// What is known of what a guest can spare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nobody says: it is asked for whatever is wanted.
    Unknown,
    /// It has been asked.
    Awaited,
    /// It needs so many bytes of RAM.
    Needs(u64),
}

/// A guest that is to shrink.
#[derive(Default)]
pub struct Spare {
    guest: Option<Box<dyn Says>>,
    /// When it was asked, if it has not answered, and the RAM that it had then, in bytes.
    asked: Option<(Instant, u64)>,
    needs: Option<u64>,
    /// What it had when it was asked last.
    had: u64,
    pause: Duration,
    /// When it is asked next.
    next: Option<Instant>,
}

impl Spare {
    /// `guest` says what it has available; without one nobody does.
    pub fn new(guest: Option<Box<dyn Says>>) -> Self {
        Self {
            guest,
            ..Self::default()
        }
    }

    /// Nothing is to go any more, or what is known is not to be relied on any further.
    pub fn forget(&mut self) {
        (self.asked, self.needs, self.next) = (None, None, None);
    }

    /// What is known by now of a guest that has `has` bytes of RAM.
    pub fn look(&mut self, has: u64, now: Instant) -> Word {
        let said = self.guest.as_ref().map(|guest| guest.available());
        let Some(Some((at, available))) = said else {
            self.forget();
            return Word::Unknown;
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
                guest.ask();
            }
        }
        self.needs.map_or(Word::Awaited, Word::Needs)
    }

    /// When to look again without having been woken.
    pub fn due(&self) -> Option<Instant> {
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
    pub struct Guest(Arc<Mutex<Said>>);

    #[derive(Default)]
    struct Said {
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

    impl Says for Guest {
        fn available(&self) -> Option<(Instant, u64)> {
            self.0.lock().unwrap().available
        }

        fn ask(&self) {
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
        assert_eq!(Spare::new(None).look(512 * MIB, now), Word::Unknown);
        let guest = Guest::default();
        let mut spare = Spare::new(Some(Box::new(guest.clone())));
        assert_eq!((spare.look(512 * MIB, now), spare.due()), (Word::Unknown, None));
        assert_eq!(guest.asked(), 0);
    }

    #[test]
    fn what_was_said_before_it_was_asked_counts_for_nothing() {
        let guest = Guest::default();
        guest.say(512 * MIB);
        let mut spare = Spare::new(Some(Box::new(guest.clone())));
        let now = Instant::now();
        assert_eq!(spare.look(512 * MIB, now), Word::Awaited);
        assert_eq!((spare.look(512 * MIB, now), guest.asked()), (Word::Awaited, 1));
        guest.say(256 * MIB);
        // It has shrunk meanwhile: what it has said may be of the moment when it was asked.
        assert_eq!(spare.look(300 * MIB, now), Word::Needs(272 * MIB));
        spare.forget();
        assert_eq!(spare.look(300 * MIB, Instant::now()), Word::Awaited);
        assert_eq!(guest.asked(), 2);
    }

    #[test]
    fn a_guest_that_shrinks_is_asked_often_and_one_that_does_not_more_and_more_seldom() {
        let guest = Guest::default();
        guest.say(0);
        let mut spare = Spare::new(Some(Box::new(guest.clone())));
        let mut now = Instant::now();
        let mut pauses = Vec::new();
        for has in [512, 500, 490, 490, 490, 490] {
            spare.look(has * MIB, now);
            let due = spare.due().unwrap();
            pauses.push((due - now).as_millis());
            spare.look(has * MIB, now);
            now = due;
        }
        assert_eq!((pauses, guest.asked()), (vec![250, 250, 250, 500, 1000, 2000], 6));
        for _ in 0..20 {
            spare.look(490 * MIB, now);
            now = spare.due().unwrap();
        }
        assert!(spare.look(490 * MIB, now) == Word::Awaited && spare.due() == Some(now + PAUSE[1]));
    }
}
