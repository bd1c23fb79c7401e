//! A device for transport tests: copies what it reads to what it writes, and misbehaves on request.

use husk_devices::MetricsSource;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use rustix::thread::gettid;
use vmm_sys_util::eventfd::EventFd;

use crate::config::ConfigBytes;
use crate::device::{
    Activation, ConfigAccess, Handler, HandlerError, Profile, Retire, StartError, VirtioDevice, Watch,
};
use crate::ring::{Ring, RingState, Step};

/// What a test may ask of an [`Echo`], and learn from it.
#[derive(Default)]
pub(crate) struct EchoControl {
    /// The next start fails.
    pub fail_start: AtomicBool,
    /// Stopping takes until this is false again.
    pub hold_stop: AtomicBool,
    /// Successful starts.
    pub starts: AtomicUsize,
    /// Handlers that are alive.
    pub alive: AtomicUsize,
    /// The numbers of the threads on which they wait.
    pub threads: Mutex<Vec<i32>>,
    /// Features of the last start.
    pub features: Mutex<u64>,
    /// What the kernel is to signal for every queue, if not the queue's own kick.
    pub doorbell: OnceLock<Arc<EventFd>>,
    /// It was told that it will not be started again.
    pub retired: AtomicBool,
}

impl Retire for EchoControl {
    fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
    }
}

/// One handler per enabled queue.
pub(crate) struct Echo {
    pub control: Arc<EchoControl>,
    pub config: Arc<Mutex<ConfigBytes>>,
    pub queue_sizes: Vec<u16>,
}

impl Echo {
    pub fn new() -> Self {
        Self {
            control: Arc::default(),
            config: Arc::new(Mutex::new(ConfigBytes::new([1, 2, 3, 4]))),
            queue_sizes: vec![8, 16],
        }
    }
}

impl VirtioDevice for Echo {
    fn profile(&self) -> Profile {
        Profile {
            id: 42,
            class: 0xff_00_00,
            features: 0b101,
            queue_sizes: self.queue_sizes.clone(),
        }
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(())
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn doorbell(&self, _queue: u16) -> Option<Arc<EventFd>> {
        self.control.doorbell.get().cloned()
    }

    fn on_retire(&self) -> Option<Arc<dyn Retire>> {
        Some(self.control.clone())
    }

    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        if self.control.fail_start.load(Ordering::SeqCst) {
            return Err(StartError::QueueMissing(1));
        }
        self.control.starts.fetch_add(1, Ordering::SeqCst);
        *self.control.features.lock().unwrap() = activation.features;
        let handler = |ring| {
            self.control.alive.fetch_add(1, Ordering::SeqCst);
            Box::new(Echoing {
                ring,
                control: self.control.clone(),
            }) as Box<dyn Handler>
        };
        Ok(activation.rings.into_iter().flatten().map(handler).collect())
    }
}

struct Echoing {
    ring: Ring,
    control: Arc<EchoControl>,
}

impl Handler for Echoing {
    fn watch(&mut self, watch: &mut dyn Watch) -> Result<(), HandlerError> {
        self.control
            .threads
            .lock()
            .unwrap()
            .push(gettid().as_raw_nonzero().get());
        watch
            .readable(self.ring.kick().as_raw_fd(), 0)
            .map_err(|source| HandlerError::Host {
                what: "cannot watch",
                source,
            })
    }

    fn wake(&mut self, _: u32, _: &mut dyn Watch) -> Result<(), HandlerError> {
        self.ring.drain(|reader, writer| {
            let done = writer.available_bytes().min(reader.available_bytes());
            std::io::copy(&mut std::io::Read::take(reader, done as u64), writer).unwrap();
            Ok(Step::Used(u32::try_from(done).unwrap()))
        })
    }

    fn stop(self: Box<Self>) -> Vec<RingState> {
        while self.control.hold_stop.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        let own = gettid().as_raw_nonzero().get();
        self.control.threads.lock().unwrap().retain(|thread| *thread != own);
        self.control.alive.fetch_sub(1, Ordering::SeqCst);
        vec![self.ring.into_state()]
    }
}
