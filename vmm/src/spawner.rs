//! Threads for devices, created by a thread that may.
//!
//! A driver starts its device by a register write, on a vCPU thread. A vCPU has no need to create
//! threads, and what it creates would inherit its seccomp filter, which has no room for a device's
//! work. So vCPUs send a request to the thread `spawner`, whose filter has that room and no other,
//! and go on with their guest.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::Waker;
use std::thread;

use husk_devices::error_chain;
use husk_virtio::threads::{ThreadBody, ThreadClass, Threads, builder};

use crate::seccomp::{Mode, Role};

/// A thread to be started: its name, of which the kernel keeps 15 bytes, and what it does.
struct SpawnRequest {
    name: String,
    body: ThreadBody,
}

/// Starts and confines the threads of the process's devices, whichever machine they belong to.
pub struct Spawner {
    seccomp: Mode,
    waker: Waker,
    requests: Sender<SpawnRequest>,
}

impl Spawner {
    /// Starts the thread that carries requests out, confined as `seccomp` says; it ends with the spawner. Threads wake
    /// `waker` when they have done what they were asked for. To be called on a thread without a filter: a filter is
    /// inherited, and this thread's has what no other role has.
    ///
    /// # Errors
    /// When the host has no thread left.
    pub fn start(seccomp: Mode, waker: Waker) -> io::Result<Self> {
        let (requests, received): (_, Receiver<SpawnRequest>) = channel();
        let carry_out = move || match seccomp.enter(Role::Spawner) {
            Ok(()) => received.into_iter().for_each(carry_out),
            // Whoever sends a request is told that nobody takes it.
            Err(error) => log::error!("the thread that starts device threads ends: {}", error_chain(&error)),
        };
        thread::Builder::new().name("spawner".into()).spawn(carry_out)?;
        Ok(Self {
            seccomp,
            waker,
            requests,
        })
    }
}

fn carry_out(SpawnRequest { name, body }: SpawnRequest) {
    // A thread that cannot be had drops the body, which is how its owner learns.
    if let Err(error) = builder(&name).spawn(body) {
        log::error!("cannot start the thread {name}: {error}");
    }
}

/// The role of threads that do this for a device.
fn role(thread_class: ThreadClass) -> Role {
    match thread_class {
        ThreadClass::Stream => Role::Stream,
        ThreadClass::Block => Role::Block,
        ThreadClass::Net => Role::Net,
        ThreadClass::Pmem => Role::Pmem,
        ThreadClass::Vsock => Role::Vsock,
        ThreadClass::Vhost => Role::Vhost,
        ThreadClass::RemoteFiles => Role::Fs,
        ThreadClass::Files => Role::Files,
        ThreadClass::Mem => Role::Mem,
        ThreadClass::Balloon => Role::Balloon,
    }
}

impl Threads for Spawner {
    fn start(&self, name: &str, body: ThreadBody) -> io::Result<()> {
        let name = name.to_owned();
        self.requests
            .send(SpawnRequest { name, body })
            .map_err(|_| io::Error::other("the thread that starts threads is gone"))
    }

    fn confine(&self, thread_class: ThreadClass) -> io::Result<()> {
        self.seccomp.enter(role(thread_class)).map_err(io::Error::other)
    }

    fn waker(&self) -> Waker {
        self.waker.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_have_the_names_that_were_asked_for_as_far_as_there_is_room() {
        let spawner = Spawner::start(Mode::Off, Waker::noop().clone()).unwrap();
        let (said, heard) = channel();
        for name in ["io-a", "io-a-name-beyond-measure"] {
            let said = said.clone();
            let body = move || {
                said.send(thread::current().name().unwrap_or_default().to_owned())
                    .unwrap()
            };
            Threads::start(&spawner, name, Box::new(body)).unwrap();
        }
        drop(said);
        let mut names: Vec<String> = heard.iter().collect();
        names.sort();
        assert_eq!(names, ["io-a", "io-a-name-beyon"]);
    }

    #[test]
    fn a_request_that_nobody_carries_out_is_refused() {
        let (requests, received) = channel();
        drop(received);
        let spawner = Spawner {
            seccomp: Mode::Off,
            waker: Waker::noop().clone(),
            requests,
        };
        let error = Threads::start(&spawner, "io-a", Box::new(|| ())).unwrap_err();
        assert_eq!(error.to_string(), "the thread that starts threads is gone");
    }
}
