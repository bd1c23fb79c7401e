//! The threads that serve.
//!
//! A queue's own thread serves what comes, one request after the other, without a word to anybody:
//! that is the quickest way. Other workers come to it when there is more to do, at once as long as
//! there are processors, and beyond that when a look every other millisecond finds requests that
//! nobody takes since all threads sleep in file operations. The look is that of the thread
//! `fs-watch`, which sleeps itself when there was nothing to do for a while, and which also hands
//! requests in again that wait for a lock: then it looks as often as those are to be tried.

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
/// A worker that found nothing to do for so long ends.
const IDLE: Duration = Duration::from_secs(2);
/// Room for the deepest file operation; only what is touched takes memory.
const STACK: usize = 256 << 10;

thread_local! {
    static ENTERED: Cell<bool> = const { Cell::new(false) };
}

/// The threads, and the queues that they serve.
pub(super) struct WorkerPool {
    serve: Arc<dyn Serve>,
    queues: Vec<Queue>,
    /// Most workers.
    max_workers: usize,
    processors: usize,
    workers: Mutex<Workers>,
    /// Told when there is a task.
    has_task: Condvar,
    /// Threads that serve at this moment.
    active: AtomicUsize,
    asleep: AtomicBool,
    watch: Mutex<()>,
    woken: Condvar,
}

#[derive(Default)]
struct Workers {
    /// Queues that need one.
    tasks: Vec<usize>,
    idle: usize,
    all: usize,
    /// The host refused one; it is said once.
    refused: bool,
}

impl WorkerPool {
    /// Serves `queues` queues with at most `max_workers` workers.
    ///
    /// # Errors
    /// The host has no thread for the watch.
    pub fn start(serve: Arc<dyn Serve>, queues: u16, max_workers: usize) -> std::io::Result<Arc<Self>> {
        let pool = Arc::new(Self {
            serve,
            queues: (0..queues).map(Queue::new).collect(),
            max_workers,
            processors: thread::available_parallelism().map_or(1, usize::from),
            workers: Mutex::default(),
            has_task: Condvar::new(),
            active: AtomicUsize::new(0),
            asleep: AtomicBool::new(false),
            watch: Mutex::new(()),
            woken: Condvar::new(),
        });
        let watch = pool.clone();
        let builder = thread::Builder::new().name("fs-watch".into()).stack_size(STACK);
        builder.spawn(move || watch.run_watchdog())?;
        Ok(pool)
    }

    /// A queue.
    pub fn queue(&self, index: usize) -> Option<&Queue> {
        self.queues.get(index)
    }

    /// Forgets how the front-end has set the queues up, and what the guest knew. Waits for requests that are being
    /// served.
    pub fn reset(&self) {
        self.queues.iter().for_each(Queue::reset);
        self.serve.reset();
    }

    /// As [`WorkerPool::reset`], after the front-end.
    pub fn forget(&self) {
        self.queues.iter().for_each(Queue::forget);
        self.serve.reset();
    }

    /// Serves a queue until there is nothing in it. Called on its own thread.
    pub fn serve_queue(self: &Arc<Self>, index: usize) {
        let Some(queue) = self.queues.get(index) else { return };
        queue.start();
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
                self.wake_worker(index);
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

    /// Has a worker look at a queue.
    fn wake_worker(self: &Arc<Self>, index: usize) {
        let mut workers = lock(&self.workers);
        if workers.tasks.contains(&index) {
            return;
        }
        if workers.tasks.len() < workers.idle {
            workers.tasks.push(index);
            self.has_task.notify_one();
        } else if workers.all < self.max_workers {
            self.spawn_worker(&mut workers, index);
        }
    }

    fn spawn_worker(self: &Arc<Self>, workers: &mut Workers, index: usize) {
        let pool = self.clone();
        let name = format!("fs-{}", workers.all);
        let builder = thread::Builder::new().name(name).stack_size(STACK);
        match builder.spawn(move || pool.run_worker(index)) {
            Ok(_) => workers.all = workers.all.saturating_add(1),
            Err(error) if !std::mem::replace(&mut workers.refused, true) => {
                log::warn!("no more than {} threads serve: {error}", workers.all.saturating_add(1));
            }
            Err(_) => {}
        }
    }

    /// The life of a worker, which begins with a task.
    fn run_worker(self: &Arc<Self>, mut index: usize) {
        if !self.enter() {
            lock(&self.workers).all -= 1;
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

    /// What is to be done next; `None` if there was nothing for a while, and the thread is no worker any more.
    fn next_task(&self) -> Option<usize> {
        let mut workers = lock(&self.workers);
        workers.idle = workers.idle.saturating_add(1);
        let waited = self
            .has_task
            .wait_timeout_while(workers, IDLE, |workers| workers.tasks.is_empty());
        let (mut workers, _) = waited.unwrap_or_else(PoisonError::into_inner);
        workers.idle = workers.idle.saturating_sub(1);
        let task = workers.tasks.pop();
        if task.is_none() {
            workers.all = workers.all.saturating_sub(1);
        }
        task
    }

    fn run_watchdog(self: &Arc<Self>) {
        let mut before: Vec<Load> = vec![Load::default(); self.queues.len()];
        let (mut quiet, mut waiting) = (0_u32, false);
        loop {
            match (quiet > QUIET, waiting) {
                (false, _) => thread::sleep(TICK),
                (true, false) => {
                    self.wait_until_active();
                    quiet = 0;
                    thread::sleep(TICK);
                }
                // A lock of the guest's goes by a request; whether one of the host's has gone is asked now and then.
                (true, true) => {
                    if self.wait_for_work() {
                        quiet = 0;
                    }
                }
            }
            waiting = false;
            let mut rest = self.active.load(Ordering::SeqCst) == 0;
            let generation = self.serve.generation();
            for (index, (queue, before)) in self.queues.iter().zip(&mut before).enumerate() {
                // Several queues have one thread of their own, which may be in a request of another one.
                queue.start();
                let load = queue.load(generation);
                let slow = load.taken.wrapping_sub(before.taken) < load.serving.try_into().unwrap_or(u64::MAX);
                if load.due || load.backlog > 0 && (slow || load.serving == 0) {
                    self.wake_worker(index);
                }
                rest &= load.backlog == 0;
                waiting |= load.waiting > 0;
                *before = load;
            }
            quiet = if rest { quiet.saturating_add(1) } else { 0 };
        }
    }

    /// Until a thread serves, which it says, or it is time to try requests again that wait for a lock.
    fn wait_for_work(&self) -> bool {
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
    fn wait_until_active(&self) {
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

#[cfg(test)]
#[path = "worker_pool_test.rs"]
mod tests;
