//! Threads for devices, created by a thread that may.
//!
//! A driver starts its device by a register write, on a vCPU thread. A vCPU has no need to create threads, and what it creates would
//! inherit its seccomp filter, which has no room for a device's work. So vCPUs send an order to the thread `spawner`, whose filter
//! is the process's, and go on with their guest.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::task::Waker;
use std::thread;

use husk_virtio::threads::{Body, Threads, builder};

use crate::seccomp::{Mode, Role};

/// A thread to be.
struct Order {
    name: String,
    body: Body,
}

/// Starts and confines the threads of one machine's devices.
pub struct Spawner {
    seccomp: Mode,
    waker: Waker,
    orders: Sender<Order>,
    /// The other end, until there is a thread for it.
    idle: Mutex<Option<Receiver<Order>>>,
}

impl Spawner {
    /// A spawner whose threads confine themselves as `seccomp` says, and wake `waker` when they have done what they were asked for.
    /// Orders wait until [`Spawner::run`].
    pub fn new(seccomp: Mode, waker: Waker) -> Self {
        let (orders, idle) = channel();
        Self {
            seccomp,
            waker,
            orders,
            idle: Mutex::new(Some(idle)),
        }
    }

    /// Starts the thread that carries orders out; it ends with the spawner. To be called on a thread with the process's filter.
    /// Costs the time of a thread, so a machine calls it when its first vCPU runs. A second call does nothing.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn run(&self) -> io::Result<()> {
        let Some(orders) = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take() else {
            return Ok(());
        };
        let carry_out = move || {
            for Order { name, body } in orders {
                // A thread that cannot be had drops the body, which is how its owner learns.
                if let Err(error) = builder(&name).spawn(body) {
                    log::error!("cannot start the thread {name}: {error}");
                }
            }
        };
        thread::Builder::new().name("spawner".into()).spawn(carry_out).map(drop)
    }
}

impl Threads for Spawner {
    fn start(&self, name: &str, body: Body) -> io::Result<()> {
        let name = name.to_owned();
        self.orders
            .send(Order { name, body })
            .map_err(|_| io::Error::other("the thread that starts threads is gone"))
    }

    fn confine(&self, device: u32) -> io::Result<()> {
        self.seccomp.enter(Role::of_device(device)).map_err(io::Error::other)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_wait_for_the_thread_that_carries_them_out() {
        let spawner = Spawner::new(Mode::Off, Waker::noop().clone());
        let (said, heard) = channel();
        for name in ["io-a", "io-a-name-beyond-measure"] {
            let said = said.clone();
            let body = move || {
                said.send(thread::current().name().unwrap_or_default().to_owned())
                    .unwrap()
            };
            spawner.start(name, Box::new(body)).unwrap();
        }
        drop(said);
        assert!(heard.try_recv().is_err());
        spawner.run().unwrap();
        spawner.run().unwrap();
        let mut names: Vec<String> = heard.iter().collect();
        names.sort();
        assert_eq!(names, ["io-a", "io-a-name-beyon"]);
    }

    #[test]
    fn an_order_that_nobody_will_carry_out_is_dropped_with_the_spawner() {
        let spawner = Spawner::new(Mode::Off, Waker::noop().clone());
        let (said, heard) = channel::<()>();
        spawner.start("io-a", Box::new(move || drop(said))).unwrap();
        drop(spawner);
        assert!(heard.recv().is_err());
    }
}
