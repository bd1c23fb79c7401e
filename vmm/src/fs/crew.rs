//! The threads that serve.
//!
//! A queue's own thread serves what comes, one request after the other, without a word to anybody: that is the quickest way. Helpers come
//! to it when there is more to do, at once as long as there are processors, and beyond that when a look every other millisecond finds
//! requests that nobody takes since all threads sleep in file operations. The look is that of the thread `fs-watch`, which sleeps itself
//! when there was nothing to do for a while, and which also hands requests in again that wait for a lock: then it looks
//! as often as those are to be tried.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use husk_devices::lock;
use husk_virtio::fs::serve::{RETRY, Serve};
use husk_virtio::ring::Chain;

use super::queue::{Load, Queue};

/// How often the watch looks.
const TICK: Duration = Duration::from_millis(2);
/// After so many looks that found nothing it sleeps.
const QUIET: u32 = 20;
/// A helper that found nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(2);
/// Room for the deepest file operation; only what is touched takes memory.
const STACK: usize = 256 << 10;

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The threads, and the queues that they serve.
pub(super) struct Crew {
    serve: Arc<dyn Serve>,
    queues: Vec<Queue>,
    /// Most helpers.
    most: usize,
    processors: usize,
    helpers: Mutex<Helpers>,
    /// Told when there is a task.
    called: Condvar,
    /// Threads that serve at this moment.
    active: AtomicUsize,
    asleep: AtomicBool,
    watch: Mutex<()>,
    woken: Condvar,
}

#[derive(Default)]
struct Helpers {
    /// Queues that need one.
    tasks: Vec<usize>,
    idle: usize,
    all: usize,
    /// The host refused one; it is said once.
    refused: bool,
}

impl Crew {
    /// Serves `queues` queues with at most `most` helpers.
    ///
    /// # Errors
    /// The host has no thread for the watch.
    pub fn start(serve: Arc<dyn Serve>, queues: u16, most: usize) -> std::io::Result<Arc<Self>> {
        let crew = Arc::new(Self {
            serve,
            queues: (0..queues).map(Queue::new).collect(),
            most,
            processors: thread::available_parallelism().map_or(1, usize::from),
            helpers: Mutex::default(),
            called: Condvar::new(),
            active: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            watch: Mutex::new(()),
            woken: Condvar::new(),
        });
        let watch = crew.clone();
        let builder = thread::Builder::new().name("fs-watch".into()).stack_size(STACK);
        builder.spawn(move || watch.keep_watch())?;
        Ok(crew)
    }

    /// A queue.
    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// Forgets everything that the front-end brought, and what the guest knew. Waits for requests that are being served.
    pub fn reset(&self) {
        self.queues.iter().for_each(Queue::reset);
        self.serve.reset();
    }

    /// Serves a queue until there is nothing in it. Called on its own thread.
    pub fn attend(self: &Arc<Self>, index: usize) {
        let Some(queue) = self.queues.get(index) else { return };
        if !self.enter() {
            return;
        }
        self.begin();
        self.drain(index, queue);
        self.active.fetch_sub(1, Ordering::SeqCst);
    }

    fn drain(self: &Arc<Self>, index: usize, queue: &Queue) {
        while let Some(chain) = queue.take() {
            let load = queue.load(0);
            if load.backlog > 0 && load.serving < self.processors {
                self.call(index);
            }
            self.handle(queue, chain, false);
        }
    }

    fn handle(&self, queue: &Queue, chain: Chain, waited: bool) {
        // Asked before: what changes meanwhile is not missed.
        let generation = self.serve.generation();
        let outcome = self.serve.handle(chain.reader(), chain.writer());
        queue.give_back(&*self.serve, chain, outcome, generation, waited);
    }

    /// Prepares the calling thread, once. A thread that is not cannot serve, and the process cannot either.
    fn enter(&self) -> bool {
        if ENTERED.get() {
            return true;
        }
        match self.serve.enter() {
            Ok(()) => ENTERED.set(true),
            Err(error) => log::error!("a thread cannot serve: {error}"),
        }
        ENTERED.get()
    }

    /// One more thread serves.
    fn begin(&self) {
        self.active.fetch_add(1, Ordering::SeqCst);
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _guard = lock(&self.watch);
            self.woken.notify_one();
        }
    }

    /// Has a helper look at a queue.
    fn call(self: &Arc<Self>, index: usize) {
        let mut helpers = lock(&self.helpers);
        if helpers.tasks.contains(&index) {
            return;
        }
        if helpers.tasks.len() < helpers.idle {
            helpers.tasks.push(index);
            self.called.notify_one();
        } else if helpers.all < self.most {
            self.hire(&mut helpers, index);
        }
    }

    fn hire(self: &Arc<Self>, helpers: &mut Helpers, index: usize) {
        let crew = self.clone();
        let name = format!("fs-{}", helpers.all);
        let builder = thread::Builder::new().name(name).stack_size(STACK);
        match builder.spawn(move || crew.help(index)) {
            Ok(_) => helpers.all = helpers.all.saturating_add(1),
            Err(error) if !std::mem::replace(&mut helpers.refused, true) => {
                log::warn!("no more than {} threads serve: {error}", helpers.all.saturating_add(1));
            }
            Err(_) => {}
        }
    }

    /// The life of a helper, which begins with a task.
    fn help(self: &Arc<Self>, mut index: usize) {
        if !self.enter() {
            lock(&self.helpers).all -= 1;
            return;
        }
        loop {
            if let Some(queue) = self.queues.get(index) {
                self.begin();
                while let Some(chain) = queue.take_waiting(self.serve.generation()) {
                    self.handle(queue, chain, true);
                }
                self.drain(index, queue);
                self.active.fetch_sub(1, Ordering::SeqCst);
            }
            match self.next_task() {
                Some(task) => index = task,
                None => return,
            }
        }
    }

    /// What is to be done next; `None` if there was nothing for a while, and the thread is no helper any more.
    fn next_task(&self) -> Option<usize> {
        let mut helpers = lock(&self.helpers);
        helpers.idle = helpers.idle.saturating_add(1);
        let waited = self
            .called
            .wait_timeout_while(helpers, IDLE, |helpers| helpers.tasks.is_empty());
        let (mut helpers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        helpers.idle = helpers.idle.saturating_sub(1);
        let task = helpers.tasks.pop();
        if task.is_none() {
            helpers.all = helpers.all.saturating_sub(1);
        }
        task
    }

    fn keep_watch(self: &Arc<Self>) {
        let mut before: Vec<Load> = vec![Load::default(); self.queues.len()];
        let (mut quiet, mut waiting) = (0_u32, false);
        loop {
            match (quiet > QUIET, waiting) {
                (false, _) => thread::sleep(TICK),
                (true, false) => {
                    self.sleep();
                    quiet = 0;
                    thread::sleep(TICK);
                }
                // A lock of the guest's goes by a request; whether one of the host's has gone is asked now and then.
                (true, true) => {
                    if self.doze() {
                        quiet = 0;
                    }
                }
            }
            waiting = false;
            let mut rest = self.active.load(Ordering::SeqCst) == 0;
            let generation = self.serve.generation();
            for (index, (queue, before)) in self.queues.iter().zip(&mut before).enumerate() {
                let load = queue.load(generation);
                let slow = load.taken.wrapping_sub(before.taken) < load.serving.try_into().unwrap_or(u64::MAX);
                if load.due || load.backlog > 0 && (slow || load.serving == 0) {
                    self.call(index);
                }
                rest &= load.backlog == 0;
                waiting |= load.waiting > 0;
                *before = load;
            }
            quiet = if rest { quiet.saturating_add(1) } else { 0 };
        }
    }

    /// Until a thread serves, which it says, or it is time to try requests again that wait for a lock.
    fn doze(&self) -> bool {
        let guard = lock(&self.watch);
        self.asleep.store(true, Ordering::SeqCst);
        if self.active.load(Ordering::SeqCst) > 0 {
            self.asleep.store(false, Ordering::SeqCst);
        }
        let asleep = |(): &mut ()| self.asleep.load(Ordering::SeqCst);
        let waited = self.woken.wait_timeout_while(guard, RETRY, asleep);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
        !self.asleep.swap(false, Ordering::SeqCst)
    }

    /// Until a thread serves. What only the work before needed is given back to the host.
    fn sleep(&self) {
        let guard = lock(&self.watch);
        self.asleep.store(true, Ordering::SeqCst);
        if self.active.load(Ordering::SeqCst) > 0 {
            self.asleep.store(false, Ordering::SeqCst);
        }
        let asleep = |(): &mut ()| self.asleep.load(Ordering::SeqCst);
        let waited = self.woken.wait_timeout_while(guard, IDLE, asleep);
        let (guard, waited) = waited.unwrap_or_else(PoisonError::into_inner);
        if waited.timed_out() {
            crate::trim::trim();
            let waited = self.woken.wait_while(guard, asleep);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
        }
    }
}
