//! The running half of a device as its transport holds it: I/O threads, and whether one of them gave up.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use husk_devices::error_chain;
use husk_devices::metrics::Counter;

use super::bus_master::BusMaster;
use super::workers::Workers;
use crate::device::{Handler, HandlerError, Retire, StartError};
use crate::ring::{Notify, RingState};
use crate::threads::{ThreadClass, Threads, UnconfinedThreads};
use crate::worker::Worker;

/// What runs of one device: nothing before `DRIVER_OK`.
pub(super) struct Running {
    thread_class: ThreadClass,
    threads: Arc<dyn Threads>,
    workers: Arc<Workers>,
    bus_master: BusMaster,
    needs_reset: Arc<AtomicBool>,
    failures: Arc<Counter>,
}

impl Running {
    /// Nothing yet of a device whose threads are of `thread_class`; `device` is told when it is retired.
    pub fn new(thread_class: ThreadClass, device: Option<Arc<dyn Retire>>) -> Self {
        Self {
            thread_class,
            threads: Arc::new(UnconfinedThreads),
            workers: Arc::new(Workers::new(device)),
            bus_master: BusMaster::new(),
            needs_reset: Arc::default(),
            failures: Arc::default(),
        }
    }

    /// Where threads come from, from now on.
    pub fn set_threads(&mut self, threads: Arc<dyn Threads>) {
        self.threads = threads;
    }

    /// Gives each handler a thread. If there are none because the device did not start, or a thread cannot be had, the
    /// device needs a reset.
    pub fn start(&mut self, name: &str, started: Result<Vec<Box<dyn Handler>>, StartError>, config_changed: Notify) {
        self.needs_reset = Arc::default();
        let spawned = started.and_then(|handlers| self.spawn(name, handlers, &config_changed));
        if let Err(error) = spawned {
            self.workers.stop();
            self.failure_reporter(name, config_changed)(&error);
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        handlers: Vec<Box<dyn Handler>>,
        config_changed: &Notify,
    ) -> Result<(), StartError> {
        let several = handlers.len() > 1;
        for (n, handler) in handlers.into_iter().enumerate() {
            let report = self.failure_reporter(name, config_changed.clone());
            let on_failure = Box::new(move |error: HandlerError| report(&error));
            let thread = if several {
                format!("io-{name}-{n}")
            } else {
                format!("io-{name}")
            };
            let worker = self
                .bus_master
                .gate(handler)
                .and_then(|handler| Worker::spawn_on(&self.threads, self.thread_class, &thread, handler, on_failure));
            self.workers.add(worker.map_err(|source| StartError::Host {
                what: "start an I/O thread",
                source,
            })?);
        }
        Ok(())
    }

    /// What to do when the device can go on no longer: usable on any thread, takes no lock.
    fn failure_reporter(&self, name: &str, config_changed: Notify) -> impl Fn(&dyn Error) + Send + use<> {
        let (name, needs_reset, failures) = (name.to_owned(), self.needs_reset.clone(), self.failures.clone());
        move |error| {
            // A guest can do this in a loop: only the first time is worth a warning.
            let level = match failures.get() {
                0 => log::Level::Warn,
                _ => log::Level::Debug,
            };
            failures.inc();
            log::log!(level, "{name}: needs a reset: {}", error_chain(error));
            needs_reset.store(true, Ordering::Release);
            config_changed.signal();
        }
    }

    /// Whether the device has failed since it was started.
    pub fn needs_reset(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    /// Failures ever: counted whoever looks.
    pub fn failures(&self) -> &Arc<Counter> {
        &self.failures
    }

    /// The threads.
    pub fn workers(&self) -> &Arc<Workers> {
        &self.workers
    }

    /// Gives or takes the right to read and write memory. Waits for nobody: see [`BusMaster`].
    pub fn set_bus_master(&self, allowed: bool) {
        self.bus_master.set(allowed);
    }

    /// Waits for the threads and forgets them and their failure. Returns where the rings stood.
    pub fn join(&mut self) -> Vec<RingState> {
        let states = self.workers.take().into_iter().flat_map(Worker::join).collect();
        self.bus_master.forget();
        self.needs_reset = Arc::default();
        states
    }
}
