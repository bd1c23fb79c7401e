//! File system device whose files husk serves itself (virtio 1.2 §5.11): no other process, and no
//! memory that one has to share.
//!
//! Queues and configuration are those of the device with a back-end: see [`fs`](super).
//!
//! | part | what it holds |
//! |---|---|
//! | `request_queue` | one queue: its ring, whose turn it is, requests that wait for a lock |
//! | `session` | from the start of the driver to the reset: all queues, and how requests are carried out |
//! | `helper_pool` | the threads that help |
//! | `handler` | a queue's own thread |

mod handler;
mod helper_pool;
mod metrics;
mod request_queue;
mod session;

use std::sync::{Arc, Mutex};

use husk_devices::metrics::MetricsSource;

use super::serve::Serve;
use crate::config::ConfigBytes;
use crate::device::{Activation, ConfigAccess, Handler, Profile, StartError, VirtioDevice};
use crate::threads::{ThreadClass, Threads};
use handler::RequestQueueHandler;
pub use metrics::LocalMetrics;
use request_queue::RequestQueue;
use session::Session;

/// What such a device is to be.
#[derive(Clone, Debug)]
pub struct LocalConfig {
    /// The name that the guest mounts. Cut to [`TAG_BYTES`](super::TAG_BYTES).
    pub tag: String,
    /// Request queues, each with a thread of its own.
    pub queues: u16,
    /// Entries of every queue: a power of two up to 32768.
    pub queue_size: u16,
    /// What the threads that help are called.
    pub name: String,
}

/// A file system device that serves its files itself.
pub struct Local {
    profile: Profile,
    config: Arc<Mutex<ConfigBytes>>,
    serve: Arc<dyn Serve>,
    threads: Arc<dyn Threads>,
    name: String,
    metrics: Arc<LocalMetrics>,
}

impl Local {
    /// A device whose requests `serve` carries out. Threads beside those of its queues come from `threads`.
    pub fn new(config: &LocalConfig, serve: Arc<dyn Serve>, threads: &Arc<dyn Threads>) -> Self {
        Self {
            profile: super::profile(config.queues, config.queue_size),
            config: Arc::new(Mutex::new(ConfigBytes::new(super::config_space(
                &config.tag,
                config.queues,
            )))),
            serve,
            threads: threads.clone(),
            name: config.name.clone(),
            metrics: Arc::default(),
        }
    }

    /// What the device counts, without its server.
    pub fn metrics(&self) -> Arc<LocalMetrics> {
        self.metrics.clone()
    }

    /// A session over the rings that the driver enabled, and the numbers of its queues.
    fn session(&self, activation: Activation) -> Result<Arc<Session>, StartError> {
        for (queue, ring) in (0u16..2).zip(&activation.rings) {
            // A driver with fewer processors than request queues leaves the others alone.
            if ring.is_none() {
                return Err(StartError::QueueMissing(queue));
            }
        }
        let queues = activation.rings.into_iter().flatten().map(RequestQueue::new).collect();
        let Self { serve, threads, .. } = self;
        Ok(Session::new(
            serve.clone(),
            queues,
            threads.clone(),
            &self.name,
            self.metrics.clone(),
        ))
    }
}

/// What the device counts, and its server.
struct Meter {
    metrics: Arc<LocalMetrics>,
    serve: Arc<dyn Serve>,
}

impl MetricsSource for Meter {
    fn metrics(&self) -> Vec<(&'static str, u64)> {
        let mut counters = self.metrics.metrics();
        counters.extend(self.serve.counters());
        counters
    }
}

impl VirtioDevice for Local {
    fn profile(&self) -> Profile {
        self.profile.clone()
    }

    fn thread_class(&self) -> ThreadClass {
        ThreadClass::Files
    }

    fn metrics_source(&self) -> Arc<dyn MetricsSource> {
        Arc::new(Meter {
            metrics: self.metrics.clone(),
            serve: self.serve.clone(),
        })
    }

    fn config(&self) -> Arc<Mutex<dyn ConfigAccess>> {
        self.config.clone()
    }

    fn start(&mut self, activation: Activation) -> Result<Vec<Box<dyn Handler>>, StartError> {
        let session = self.session(activation)?;
        let handler = |queue| Box::new(RequestQueueHandler::new(session.clone(), queue)) as Box<dyn Handler>;
        Ok((0..session.queues.len()).map(handler).collect())
    }
}

#[cfg(test)]
#[path = "local_test.rs"]
mod tests;
