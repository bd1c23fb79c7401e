//! What a guest can do without, or can spend on more, by its own word.
//!
//! Linux lets go of a block of memory as long as it has as many free pages elsewhere, whatever its programs need next:
//! it kills them then, or panics. So a guest that says what it has available (`VIRTIO_BALLOON_S_AVAIL`, virtio 1.2
//! §5.5.6.4) is asked for no more than that, less a margin. It is asked anew while it shrinks, and, when it cannot
//! limit what is wanted, more and more seldom whether it can by now.
//!
//! A guest that grows has to describe what comes in memory that it has, and is asked as well.
//!
//! Who has said such things once may not do so for ever: a driver hangs, another one comes. A guest that has not
//! answered for [`SILENCE`] is one that says nothing, until it does.

use std::time::{Duration, Instant};

use husk_virtio::balloon::BalloonHandle;

/// What a guest keeps available beside what it uses: a sixteenth of that, within these bounds.
const MARGIN: [u64; 2] = [16 << 20, 256 << 20];
/// A guest that shrinks is asked again after so long, one that does not after twice as long each time, but not later
/// than so.
const PAUSE: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(15)];
/// After so long without an answer a guest that shrinks is one that says nothing.
const SILENCE: Duration = PAUSE[1];
/// One that grows waits for memory meanwhile: what it is given without its word is little at first.
const SILENCE_GROWING: Duration = PAUSE[0];

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

/// What is known of what a guest has available.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Nobody says.
    Unknown,
    /// It has been asked.
    Pending,
    /// So many bytes.
    Bytes(u64),
}

/// What a guest has said.
#[derive(Clone, Copy, Debug)]
struct Said {
    /// The RAM that it had when it was asked, in bytes: what it had at most when it answered.
    had: u64,
    /// What of it was available, in bytes.
    available: u64,
}

/// A guest that is to shrink, or to grow.
#[derive(Default)]
pub struct ShrinkLimit {
    guest: Option<Box<dyn AvailableMemory>>,
    /// When it was asked, if it has not answered, and the RAM that it had then, in bytes.
    asked: Option<(Instant, u64)>,
    said: Option<Said>,
    /// What it had when it was asked last.
    had: u64,
    pause: Duration,
    /// When it is asked next.
    next: Option<Instant>,
    /// Since when it has been asked and has not answered, whatever has been forgotten meanwhile.
    unanswered: Option<Instant>,
    /// It has been noted that it does not answer.
    is_silent: bool,
    /// No vCPU runs: that it does not answer says nothing.
    is_held: bool,
}

impl ShrinkLimit {
    /// `guest` says what it has available; without one nobody does.
    pub fn new(guest: Option<Box<dyn AvailableMemory>>) -> Self {
        Self {
            guest,
            ..Self::default()
        }
    }

    /// Nothing is to come or go any more, or what is known is not to be relied on any further.
    pub fn reset(&mut self) {
        (self.asked, self.said, self.next) = (None, None, None);
    }

    /// The guest is paused, or runs again at `now`: it has all its time to answer then.
    pub fn hold(&mut self, is_held: bool, now: Instant) {
        self.is_held = is_held;
        self.unanswered = self.unanswered.map(|_| now);
    }

    /// What is known by now of what a guest needs that has `has` bytes of RAM.
    pub fn poll(&mut self, has: u64, now: Instant) -> MinimumSize {
        // One that is paused says nothing, and would be asked for everything when it runs again.
        let silence = (!self.is_held).then_some(SILENCE);
        match self.hear(has, now, silence) {
            None => MinimumSize::Unknown,
            Some(None) => MinimumSize::Pending,
            Some(Some(said)) => MinimumSize::Bytes(needs(said.had, said.available)),
        }
    }

    /// What is known by now of what a guest has available that has `has` bytes of RAM.
    pub fn room(&mut self, has: u64, now: Instant) -> Room {
        match self.hear(has, now, Some(SILENCE_GROWING)) {
            None => Room::Unknown,
            Some(None) => Room::Pending,
            Some(Some(said)) => Room::Bytes(said.available),
        }
    }

    /// What the guest has said since it was asked, if it has; `None` if it says nothing, or has not for `silence`.
    fn hear(&mut self, has: u64, now: Instant, silence: Option<Duration>) -> Option<Option<Said>> {
        let word = self.guest.as_ref().and_then(|guest| guest.available());
        let Some((at, available)) = word else {
            self.reset();
            self.unanswered = None;
            return None;
        };
        if self.unanswered.take_if(|since| at >= *since).is_some() {
            self.is_silent = false;
        }
        if let Some((_, had)) = self.asked.take_if(|(asked, _)| at >= *asked) {
            self.said = Some(Said { had, available });
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
            self.unanswered.get_or_insert(now);
            if let Some(guest) = &self.guest {
                guest.request_update();
            }
        }
        let waited = self.unanswered.map(|since| now.saturating_duration_since(since));
        if waited.zip(silence).is_some_and(|(waited, silence)| waited >= silence) {
            if !std::mem::replace(&mut self.is_silent, true) {
                log::warn!(
                    "the balloon's driver does not say any more what memory the guest has: that is not waited for"
                );
            }
            return None;
        }
        Some(self.said)
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
            self.say_at(Instant::now(), available);
        }

        /// As [`Guest::say`], at `at`.
        pub fn say_at(&self, at: Instant, available: u64) {
            self.0.lock().unwrap().available = Some((at, available));
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
            guest.say_at(now, 0);
            limit.poll(has * MIB, now);
            now = due;
        }
        assert_eq!((pauses, guest.asked()), (vec![250, 250, 250, 500, 1000, 2000], 6));
        for _ in 0..20 {
            guest.say_at(now, 0);
            limit.poll(490 * MIB, now);
            now = limit.next_poll().unwrap();
        }
        limit.poll(490 * MIB, now);
        assert_eq!(limit.next_poll(), Some(now + PAUSE[1]));
    }

    /// Its driver hangs. Another one may let go of memory all the same, and only a pause says nothing of the guest.
    #[test]
    fn a_guest_that_falls_silent_is_asked_for_all_in_the_end() {
        let (guest, start) = (Guest::default(), Instant::now());
        guest.say_at(start, 0);
        let mut limit = ShrinkLimit::new(Some(Box::new(guest.clone())));
        let after = |seconds: u64| start + Duration::from_secs(seconds);
        let look = |limit: &mut ShrinkLimit, seconds| limit.poll(512 * MIB, after(seconds));
        assert_eq!([1, 15].map(|at| look(&mut limit, at)), [MinimumSize::Pending; 2]);
        limit.hold(true, after(15));
        assert_eq!(look(&mut limit, 600), MinimumSize::Pending);
        limit.hold(false, after(601));
        assert_eq!([602, 615].map(|at| look(&mut limit, at)), [MinimumSize::Pending; 2]);
        assert_eq!(look(&mut limit, 616), MinimumSize::Unknown);
        // What it did not answer is not forgotten with what it was asked for.
        limit.reset();
        assert_eq!(look(&mut limit, 617), MinimumSize::Unknown);
        guest.say_at(after(618), 256 * MIB);
        assert_eq!(look(&mut limit, 618), MinimumSize::Bytes(272 * MIB));
        assert!(!limit.is_silent);
    }

    #[test]
    fn a_guest_that_grows_is_waited_for_a_moment() {
        let (guest, start) = (Guest::default(), Instant::now());
        let mut limit = ShrinkLimit::new(Some(Box::new(guest.clone())));
        assert_eq!(limit.room(512 * MIB, start), Room::Unknown);
        guest.say_at(start, 64 * MIB);
        let after = |millis: u64| start + Duration::from_millis(millis);
        assert_eq!(limit.room(512 * MIB, after(1)), Room::Pending);
        guest.say_at(after(2), 32 * MIB);
        assert_eq!(limit.room(512 * MIB, after(3)), Room::Bytes(32 * MIB));
        limit.reset();
        assert_eq!(limit.room(512 * MIB, after(4)), Room::Pending);
        limit.hold(true, after(5));
        assert_eq!(
            limit.room(512 * MIB, after(300)),
            Room::Unknown,
            "it may be paused for long"
        );
        limit.reset();
        assert_eq!(
            limit.room(512 * MIB, after(301)),
            Room::Unknown,
            "it is not waited for twice"
        );
    }
}
