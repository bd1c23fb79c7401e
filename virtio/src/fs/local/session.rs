//! What serves a share from the start of its driver to the reset: queues, the server of files, and who helps.
//!
//! A queue's own thread carries requests out where it finds them, since for most of them another thread would cost more than they do. It
//! calls for help when others wait and requests are not short. And when one takes long, the watcher notices, and a helper takes the
//! thread's place at the doorbell until it is back: no request waits for one before it for more than some milliseconds.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use husk_devices::chain;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::crew::{Crew, Sleep, Wanted};
use super::lane::{Lane, Progress, Turn};
use super::metrics::LocalMetrics;
use crate::fs::fuse;
use crate::fs::serve::{Outcome, Serve};
use crate::ring::RingState;
use crate::threads::{ThreadClass, Threads};

/// Requests that usually take so long are worth a second thread.
const WORTH: Duration = Duration::from_micros(30);
/// Time between two looks of the watcher.
const TICK: Duration = Duration::from_millis(1);
/// Looks without work after which the watcher sleeps; after as many without a change it looks less and less often.
const STILL: u32 = 32;
/// How much less often: by so many powers of two.
const SLOWEST: u32 = 5;
/// How long a thread in another's place stays at the doorbell before it looks whether the other is back.
const POST_MS: i32 = 20;

/// Everything that threads of a share use together.
pub(super) struct Session {
    serve: Arc<dyn Serve>,
    pub lanes: Vec<Lane>,
    crew: Crew,
    threads: Arc<dyn Threads>,
    /// What its threads are called.
    name: String,
    pub metrics: Arc<LocalMetrics>,
    /// Lanes whose own thread has not ended.
    left: AtomicUsize,
}

impl Session {
    /// A session over `lanes`, each of which has a thread of its own.
    pub fn new(
        serve: Arc<dyn Serve>,
        lanes: Vec<Lane>,
        threads: Arc<dyn Threads>,
        name: &str,
        metrics: Arc<LocalMetrics>,
    ) -> Arc<Self> {
        let left = AtomicUsize::new(lanes.len());
        Arc::new(Self {
            serve,
            lanes,
            crew: Crew::new(),
            threads,
            name: name.to_owned(),
            metrics,
            left,
        })
    }

    /// Prepares the calling thread for [`Session::work`].
    ///
    /// # Errors
    /// The host's.
    pub fn enter(&self) -> io::Result<()> {
        self.serve.enter()
    }

    /// See [`Serve::make_room`].
    pub fn make_room(&self) {
        self.serve.make_room();
    }

    /// Answers the doorbell of a lane on the lane's own thread.
    pub fn answer(self: &Arc<Self>, lane: usize) {
        let Some(found) = self.lanes.get(lane) else { return };
        found.begin();
        self.work(lane, found, true);
    }

    /// Carries out what there is in a lane.
    fn work(self: &Arc<Self>, number: usize, lane: &Lane, own: bool) {
        let mut since = Instant::now();
        while let Some(Turn {
            chain,
            backlog,
            busy,
            usual,
        }) = lane.next()
        {
            if own {
                lane.set_own(lane.progress().done.wrapping_add(1).max(1));
                self.alarm();
            }
            // Those that are under way have somebody who comes for the next one.
            if backlog >= busy && usual >= WORTH {
                self.call(number);
            }
            let generation = self.serve.generation();
            let outcome = self.carry_out(&chain);
            let now = Instant::now();
            let kept = lane.end(&*self.serve, chain, outcome, now.saturating_duration_since(since), now);
            since = now;
            if own {
                lane.set_own(0);
            }
            self.count(outcome, kept);
            if self.serve.generation() != generation {
                // Also for one that was handed in before the lock went, and was put aside after that.
                self.lanes.iter().for_each(Lane::try_again);
            } else if outcome == Outcome::Wait && !own {
                // The lane's own thread sets its timer.
                lane.ring();
            }
        }
    }

    fn carry_out(&self, chain: &crate::ring::Chain) -> Outcome {
        let request = chain.reader();
        if request.available_bytes() < fuse::REQUEST_BYTES {
            self.metrics.malformed.inc();
            return Outcome::Done(0);
        }
        self.serve.handle(request, chain.writer())
    }

    fn count(&self, outcome: Outcome, kept: bool) {
        match (outcome, kept) {
            (Outcome::Done(_), _) => {}
            (Outcome::Wait, true) => self.metrics.waits.inc(),
            (Outcome::Wait, false) => self.metrics.refused_waits.inc(),
        }
    }

    fn call(self: &Arc<Self>, lane: usize) {
        if self.crew.call(lane) == Wanted::Thread {
            self.metrics.helpers.inc();
            self.start("h", Member::Helper);
        }
    }

    fn alarm(self: &Arc<Self>) {
        if self.crew.alarm() == Wanted::Thread {
            self.start("w", Member::Watcher);
        }
    }

    fn start(self: &Arc<Self>, what: &str, member: Member) {
        let place = Place {
            session: self.clone(),
            member: Some(member),
            began: false,
        };
        let started = self
            .threads
            .start(&format!("io-{}-{what}", self.name), Box::new(move || place.live()));
        if let Err(error) = started {
            log::warn!("{}: no thread to help: {error}", self.name);
        }
    }

    /// Prepares a thread of the crew and takes from it what it does not need. Returns what it may wait by.
    fn prepare(&self) -> Option<Epoll> {
        let prepared = self.enter().and_then(|()| Epoll::new());
        let confined = prepared.and_then(|epoll| self.threads.confine(ThreadClass::Files).map(|()| epoll));
        confined
            .inspect_err(|error| log::warn!("{}: a thread that was to help cannot: {}", self.name, chain(error)))
            .ok()
    }

    /// What a helper does.
    fn help(self: &Arc<Self>, doorbells: &Epoll) {
        while let Some(number) = self.crew.answer() {
            let Some(lane) = self.lanes.get(number) else { continue };
            let away = lane.progress().own;
            self.work(number, lane, false);
            while away != 0 && lane.attend() {
                let rang = self.stand_in(lane, away, doorbells).unwrap_or(false);
                lane.leave();
                if !rang {
                    break;
                }
                lane.begin();
                self.work(number, lane, false);
            }
        }
    }

    /// Waits at the doorbell of `lane` as long as its own thread is in request `away`; whether it rang.
    fn stand_in(&self, lane: &Lane, away: u64, doorbells: &Epoll) -> io::Result<bool> {
        let (doorbell, nothing) = (lane.doorbell().as_raw_fd(), EpollEvent::default());
        doorbells.ctl(ControlOperation::Add, doorbell, EpollEvent::new(EventSet::IN, 0))?;
        let mut rang = Ok(0);
        while let Ok(0) = rang
            && lane.progress().own == away
            && !self.crew.is_closed()
        {
            rang = doorbells.wait(POST_MS, &mut [nothing]);
        }
        doorbells.ctl(ControlOperation::Delete, doorbell, nothing)?;
        Ok(rang? > 0)
    }

    /// What the watcher does. `false`: it was sent home.
    fn watch(self: &Arc<Self>) -> bool {
        let mut before = vec![Progress::default(); self.lanes.len()];
        let mut still = 0u32;
        loop {
            let slower = still.checked_div(STILL).unwrap_or_default().min(SLOWEST);
            if !self.crew.pause(TICK.saturating_mul(1 << slower)) {
                return true;
            }
            let (changed, working) = self.look(&mut before);
            still = if changed { 0 } else { still.saturating_add(1) };
            if working || still < STILL {
                continue;
            }
            self.crew.doze();
            if self.lanes.iter().any(|lane| lane.progress().own != 0) {
                self.crew.stay_awake();
                still = 0;
                continue;
            }
            match self.crew.sleep() {
                Sleep::Alarmed => still = 0,
                Sleep::SentHome => return false,
                Sleep::Closed => return true,
            }
        }
    }

    /// Sends help to each lane whose own thread is where it was `before`, and nobody else gets on; whether anything has changed, and
    /// whether any thread is in a request.
    fn look(self: &Arc<Self>, before: &mut [Progress]) -> (bool, bool) {
        let (mut changed, mut working) = (false, false);
        for (number, (lane, before)) in self.lanes.iter().zip(before).enumerate() {
            let now = lane.progress();
            let was = std::mem::replace(before, now);
            changed |= now != was;
            working |= now.own != 0;
            if now == was && now.own != 0 && !lane.is_attended() {
                self.call(number);
            }
        }
        (changed, working)
    }

    /// The own thread of a lane ends, and the lane with it. The last one waits for those who help, and the server begins anew.
    pub fn finish(&self, lane: usize) -> Option<RingState> {
        let state = self.lanes.get(lane).and_then(Lane::finish);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.crew.close();
            self.lanes.iter().for_each(Lane::ring);
            self.crew.wait();
            self.serve.reset();
        }
        state
    }

    /// Helpers that there are.
    #[cfg(test)]
    pub fn helpers(&self) -> usize {
        self.crew.helpers()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Helper,
    Watcher,
}

/// A thread's place in the crew, given up when it ends or was never had.
struct Place {
    session: Arc<Session>,
    /// `None` once it was given up.
    member: Option<Member>,
    began: bool,
}

impl Place {
    fn live(mut self) {
        let Some(doorbells) = self.session.prepare() else {
            return;
        };
        self.began = true;
        match self.member {
            Some(Member::Helper) => self.session.help(&doorbells),
            Some(Member::Watcher) if !self.session.watch() => self.member = None,
            Some(Member::Watcher) | None => {}
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let crew = &self.session.crew;
        if !self.began {
            crew.bar();
        }
        match self.member {
            Some(Member::Helper) => crew.helper_gone(),
            Some(Member::Watcher) => crew.watcher_gone(),
            None => {}
        }
    }
}
