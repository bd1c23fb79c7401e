//! What serves a share from the start of its driver to the reset: queues, the server of files, and who helps.
//!
//! A queue's own thread carries requests out where it finds them, since for most of them another
//! thread would cost more than they do. It calls for help when others wait and requests are not
//! short. And when one takes long, the watcher notices, and a helper takes the thread's place at
//! the doorbell until it is back: no request waits for one before it for more than some
//! milliseconds.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use husk_devices::error_chain;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::helper_pool::{HelperPool, Sleep, Wanted};
use super::metrics::LocalMetrics;
use super::request_queue::{FetchedRequest, Progress, RequestQueue};
use crate::fs::fuse;
use crate::fs::serve::{Outcome, Serve};
use crate::ring::RingState;
use crate::threads::{ThreadClass, Threads};

/// Requests that usually take so long are worth a second thread.
const SLOW_REQUEST: Duration = Duration::from_micros(30);
/// Time between two looks of the watcher.
const WATCH_INTERVAL: Duration = Duration::from_millis(1);
/// Looks without work after which the watcher sleeps; after as many without a change it looks less and less often.
const IDLE_LOOKS: u32 = 32;
/// How much less often: by so many powers of two.
const BACKOFF_SHIFT_MAX: u32 = 5;
/// How long a thread in another's place stays at the doorbell before it looks whether the other is back.
const STAND_IN_POLL_MS: i32 = 20;

/// Everything that threads of a share use together.
pub(super) struct Session {
    serve: Arc<dyn Serve>,
    pub queues: Vec<RequestQueue>,
    pool: HelperPool,
    threads: Arc<dyn Threads>,
    /// What its threads are called.
    name: String,
    pub metrics: Arc<LocalMetrics>,
    /// Queues whose own thread has not ended.
    left: AtomicUsize,
}

impl Session {
    /// A session over `queues`, each of which has a thread of its own.
    pub fn new(
        serve: Arc<dyn Serve>,
        queues: Vec<RequestQueue>,
        threads: Arc<dyn Threads>,
        name: &str,
        metrics: Arc<LocalMetrics>,
    ) -> Arc<Self> {
        let left = AtomicUsize::new(queues.len());
        Arc::new(Self {
            serve,
            queues,
            pool: HelperPool::new(),
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

    /// See [`Serve::reserve_fds`].
    pub fn reserve_fds(&self) {
        self.serve.reserve_fds();
    }

    /// Answers the doorbell of a queue on the queue's own thread.
    pub fn answer(self: &Arc<Self>, queue: usize) {
        let Some(found) = self.queues.get(queue) else { return };
        found.begin();
        self.work(queue, found, true);
    }

    /// Carries out what there is in a queue.
    fn work(self: &Arc<Self>, number: usize, queue: &RequestQueue, own: bool) {
        let mut since = Instant::now();
        while let Some(FetchedRequest {
            chain,
            backlog,
            busy,
            average,
        }) = queue.next()
        {
            if own {
                queue.set_own(queue.progress().done.wrapping_add(1).max(1));
                self.wake_watcher();
            }
            // Those that are under way have somebody who comes for the next one.
            if backlog >= busy && average >= SLOW_REQUEST {
                self.request_helper(number);
            }
            let generation = self.serve.generation();
            let outcome = self.carry_out(&chain);
            let now = Instant::now();
            let kept = queue.end(&*self.serve, chain, outcome, now.saturating_duration_since(since), now);
            since = now;
            if own {
                queue.set_own(0);
            }
            self.count(outcome, kept);
            if self.serve.generation() != generation {
                // Also for one that was handed in before the lock went, and was put aside after that.
                self.queues.iter().for_each(RequestQueue::try_again);
            } else if outcome == Outcome::Wait && !own {
                // The queue's own thread sets its timer.
                queue.ring();
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

    fn request_helper(self: &Arc<Self>, queue: usize) {
        if self.pool.request_helper(queue) == Wanted::Thread {
            self.metrics.helpers.inc();
            self.start("h", Member::Helper(queue));
        }
    }

    fn wake_watcher(self: &Arc<Self>) {
        if self.pool.wake_watcher() == Wanted::Thread {
            self.start("w", Member::Watcher);
        }
    }

    fn start(self: &Arc<Self>, what: &str, member: Member) {
        let membership = PoolMembership {
            session: self.clone(),
            member: Some(member),
            began: false,
        };
        let started = self
            .threads
            .start(&format!("io-{}-{what}", self.name), Box::new(move || membership.live()));
        if let Err(error) = started {
            log::warn!("{}: no thread to help: {error}", self.name);
        }
    }

    /// Prepares a thread of the pool and takes from it what it does not need. Returns what it may wait by.
    fn prepare(&self) -> Option<Epoll> {
        let prepared = self.enter().and_then(|()| Epoll::new());
        let confined = prepared.and_then(|epoll| self.threads.confine(ThreadClass::Files).map(|()| epoll));
        confined
            .inspect_err(|error| {
                log::warn!(
                    "{}: a thread that was to help cannot: {}",
                    self.name,
                    error_chain(error)
                )
            })
            .ok()
    }

    /// What a helper does.
    fn help(self: &Arc<Self>, doorbells: &Epoll) {
        while let Some(number) = self.pool.next_request() {
            let Some(queue) = self.queues.get(number) else { continue };
            let away = queue.progress().own;
            self.work(number, queue, false);
            while away != 0 && queue.claim_doorbell() {
                let rang = self.stand_in(queue, away, doorbells).unwrap_or(false);
                queue.unclaim_doorbell();
                if !rang || !queue.begin_in_place(away) {
                    break;
                }
                self.work(number, queue, false);
            }
        }
    }

    /// Waits at the doorbell of `queue` as long as its own thread is in request `away`; whether it rang.
    fn stand_in(&self, queue: &RequestQueue, away: u64, doorbells: &Epoll) -> io::Result<bool> {
        let (doorbell, nothing) = (queue.doorbell().as_raw_fd(), EpollEvent::default());
        doorbells.ctl(ControlOperation::Add, doorbell, EpollEvent::new(EventSet::IN, 0))?;
        let mut rang = Ok(0);
        while let Ok(0) = rang
            && queue.progress().own == away
            && !self.pool.is_closed()
        {
            rang = doorbells.wait(STAND_IN_POLL_MS, &mut [nothing]);
        }
        doorbells.ctl(ControlOperation::Delete, doorbell, nothing)?;
        Ok(rang? > 0)
    }

    /// What the watcher does. `false`: it slept until [`Sleep::IdleTimeout`].
    fn watch(self: &Arc<Self>) -> bool {
        let mut before = vec![Progress::default(); self.queues.len()];
        let mut still = 0u32;
        loop {
            let slower = still.checked_div(IDLE_LOOKS).unwrap_or_default().min(BACKOFF_SHIFT_MAX);
            if !self.pool.pause(WATCH_INTERVAL.saturating_mul(1 << slower)) {
                return true;
            }
            let (changed, working) = self.look(&mut before);
            still = if changed { 0 } else { still.saturating_add(1) };
            if working || still < IDLE_LOOKS {
                continue;
            }
            self.pool.doze();
            if self.queues.iter().any(|queue| queue.progress().own != 0) {
                self.pool.stay_awake();
                still = 0;
                continue;
            }
            match self.pool.sleep() {
                Sleep::Work => still = 0,
                Sleep::IdleTimeout => return false,
                Sleep::Closed => return true,
            }
        }
    }

    /// Sends help to each queue whose own thread is where it was `before`, and nobody else gets on; whether anything
    /// has changed, and whether any thread is in a request.
    fn look(self: &Arc<Self>, before: &mut [Progress]) -> (bool, bool) {
        let (mut changed, mut working) = (false, false);
        for (number, (queue, before)) in self.queues.iter().zip(before).enumerate() {
            let now = queue.progress();
            let was = std::mem::replace(before, now);
            changed |= now != was;
            working |= now.own != 0;
            if now == was && now.own != 0 && !queue.is_doorbell_claimed() {
                self.request_helper(number);
            }
        }
        (changed, working)
    }

    /// The own thread of a queue ends, and the queue with it. The last one waits for those who help, and the server
    /// begins anew.
    pub fn finish(&self, queue: usize) -> Option<RingState> {
        let state = self.queues.get(queue).and_then(RequestQueue::finish);
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.pool.close();
            self.queues.iter().for_each(RequestQueue::ring);
            self.pool.wait();
            self.serve.reset();
        }
        state
    }

    /// Helpers that there are.
    #[cfg(test)]
    pub fn helpers(&self) -> usize {
        self.pool.helpers()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    /// Wanted at this queue.
    Helper(usize),
    Watcher,
}

/// A thread's membership of the pool, given up when it ends or was never had.
struct PoolMembership {
    session: Arc<Session>,
    /// `None` once it was given up.
    member: Option<Member>,
    began: bool,
}

impl PoolMembership {
    fn live(mut self) {
        let Some(doorbells) = self.session.prepare() else {
            return;
        };
        self.began = true;
        match self.member {
            Some(Member::Helper(_)) => self.session.help(&doorbells),
            Some(Member::Watcher) if !self.session.watch() => self.member = None,
            Some(Member::Watcher) | None => {}
        }
    }
}

impl Drop for PoolMembership {
    fn drop(&mut self) {
        let pool = &self.session.pool;
        match (self.member, self.began) {
            (Some(Member::Helper(_)), true) => pool.helper_gone(),
            (Some(Member::Helper(queue)), false) => pool.helper_refused(queue),
            (Some(Member::Watcher), true) => pool.watcher_gone(),
            (Some(Member::Watcher), false) => pool.watcher_refused(),
            (None, _) => {}
        }
    }
}
