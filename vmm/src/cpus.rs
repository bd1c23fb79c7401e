//! The vCPU threads of one VM, named `vcpu0`, `vcpu1`, …

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::Waker;
use std::thread::{self, JoinHandle};

use crate::kvm::{Kicker, Vcpu, VcpuExit};
use crate::machine::board::{Board, Ending};
use crate::seccomp::{Mode, Role};
use crate::trace::Trace;

/// A vCPU thread needs little: the run loop, a device's register write, and what a panic message takes.
const STACK_BYTES: usize = 128 << 10;

/// vCPUs on their threads.
#[derive(Debug)]
pub struct Cpus {
    kicker: Kicker,
    orders: Arc<Orders>,
    /// Threads that wait for their vCPU.
    seats: Vec<Sender<Vcpu>>,
    threads: Vec<JoinHandle<()>>,
}

impl Cpus {
    /// Starts a thread for each of `count` vCPUs, confined as `seccomp` says, while the rest of the machine is still being built:
    /// neither the thread nor its filter is waited for when the guest can run. `waker` is woken when one of them has come where it was
    /// asked to.
    ///
    /// # Errors
    /// What the host says when it has no thread left; those already started end.
    pub fn prepare(
        count: u32,
        board: &Arc<Board>,
        kicker: Kicker,
        seccomp: Mode,
        trace: &Trace,
        waker: &Waker,
    ) -> io::Result<Self> {
        let mut cpus = Self {
            kicker,
            orders: Arc::new(Orders::new(waker.clone())),
            seats: Vec::new(),
            threads: Vec::new(),
        };
        for id in 0..count {
            let (seat, vcpu) = channel::<Vcpu>();
            let (board, orders, trace) = (board.clone(), cpus.orders.clone(), trace.clone());
            let builder = thread::Builder::new().name(format!("vcpu{id}")).stack_size(STACK_BYTES);
            cpus.threads.push(builder.spawn(move || {
                let _presence = Presence(&orders);
                if let Err(error) = seccomp.enter(Role::Vcpu) {
                    return board.end(Ending::Failed(format!("vCPU {id}: {error:?}")));
                }
                if let Ok(vcpu) = vcpu.recv() {
                    trace.enter_guest();
                    run(vcpu, &board, &orders);
                }
            })?);
            cpus.seats.push(seat);
        }
        Ok(cpus)
    }

    /// Lets the guest run, once: `vcpus` take their threads, the first one first. It alone has work at once, the others wait in KVM
    /// for the guest to start them (Intel SDM vol. 3A §9.4, INIT-SIPI).
    pub fn run(&mut self, vcpus: Vec<Vcpu>) {
        for (vcpu, seat) in vcpus.into_iter().zip(self.seats.drain(..)) {
            // A thread that could not be confined is gone; the board knows.
            let _ = seat.send(vcpu);
        }
    }

    /// Asks every vCPU out of the guest, and returns at once: see [`Cpus::is_paused`]. Their threads stay, for [`Cpus::resume`].
    pub fn pause(&self) {
        self.orders.paused.store(true, Ordering::Release);
        self.kick();
    }

    /// Whether every vCPU is out of the guest, after [`Cpus::pause`].
    pub fn is_paused(&self) -> bool {
        // A vCPU that has no thread of its own yet waits for it, which is as good.
        let running = if self.seats.is_empty() { self.threads.len() } else { 0 };
        self.orders.are(|muster| muster.parked + muster.gone >= running)
    }

    /// Lets the guest go on after [`Cpus::pause`].
    pub fn resume(&self) {
        self.orders.paused.store(false, Ordering::Release);
        self.orders.announce();
    }

    fn kick(&self) {
        for thread in &self.threads {
            self.kicker.kick(thread);
        }
    }

    /// Asks every vCPU out of the guest, for good, and returns at once: see [`Cpus::is_stopped`].
    pub fn stop(&mut self) {
        self.orders.stopped.store(true, Ordering::Release);
        self.orders.announce();
        self.seats.clear();
        self.kick();
    }

    /// Whether every vCPU's thread is at its end, after [`Cpus::stop`].
    pub fn is_stopped(&self) -> bool {
        self.orders.are(|muster| muster.gone >= self.threads.len())
    }
}

/// Waits for the threads. Not to be dropped on a vCPU thread.
impl Drop for Cpus {
    fn drop(&mut self) {
        self.stop();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

/// What the vCPU threads are to do, and where they are.
#[derive(Debug)]
struct Orders {
    stopped: AtomicBool,
    paused: AtomicBool,
    muster: Mutex<Muster>,
    changed: Condvar,
    /// Woken by every thread that has come where it was asked to.
    waker: Waker,
}

/// How many threads are where.
#[derive(Debug, Default)]
struct Muster {
    /// Out of the guest, because of a pause.
    parked: usize,
    /// At their end.
    gone: usize,
}

impl Orders {
    fn new(waker: Waker) -> Self {
        Self {
            stopped: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            muster: Mutex::default(),
            changed: Condvar::new(),
            waker,
        }
    }

    /// Whether vCPUs must leave the guest.
    fn call_out(&self) -> bool {
        self.stopped.load(Ordering::Acquire) || self.paused.load(Ordering::Acquire)
    }

    /// Tells the waiting that an order has changed.
    fn announce(&self) {
        // Under the lock, so that nobody is between looking at the orders and waiting.
        drop(self.muster.lock().unwrap_or_else(PoisonError::into_inner));
        self.changed.notify_all();
    }

    fn are(&self, wanted: impl Fn(&Muster) -> bool) -> bool {
        wanted(&self.muster.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits out a pause on a vCPU thread. Returns whether the guest goes on.
    fn park(&self) -> bool {
        let mut muster = self.muster.lock().unwrap_or_else(PoisonError::into_inner);
        muster.parked += 1;
        self.waker.wake_by_ref();
        while self.paused.load(Ordering::Acquire) && !self.stopped.load(Ordering::Acquire) {
            muster = self.changed.wait(muster).unwrap_or_else(PoisonError::into_inner);
        }
        muster.parked -= 1;
        !self.stopped.load(Ordering::Acquire)
    }
}

/// A vCPU thread counts itself out when it ends, however that comes.
struct Presence<'a>(&'a Orders);

impl Drop for Presence<'_> {
    fn drop(&mut self) {
        self.0.muster.lock().unwrap_or_else(PoisonError::into_inner).gone += 1;
        self.0.waker.wake_by_ref();
    }
}

fn run(mut vcpu: Vcpu, board: &Board, orders: &Orders) {
    loop {
        match vcpu.run(|| orders.call_out(), |port| board.answer(port)) {
            VcpuExit::Stopped if board.ending().is_none() && orders.park() => vcpu.was_held(),
            VcpuExit::Stopped => return,
            VcpuExit::TripleFault => return board.end(Ending::TripleFault),
            VcpuExit::Failed(why) => return board.end(Ending::Failed(format!("vCPU {}: {why}", vcpu.id()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::news::News;

    /// Nothing here takes this long.
    const NEVER: Duration = Duration::from_secs(600);

    #[test]
    fn a_pause_is_told_of_every_thread_and_ends_with_an_order() {
        let news = News::new().unwrap();
        let orders = Arc::new(Orders::new(news.waker()));
        let until = |done: fn(&Muster) -> bool| {
            assert!(news.wait_until(Instant::now() + NEVER, || orders.are(done)));
        };
        orders.paused.store(true, Ordering::Release);
        assert!(orders.call_out());
        let thread = thread::spawn({
            let orders = orders.clone();
            move || {
                let _presence = Presence(&orders);
                orders.park()
            }
        });
        until(|muster| muster.parked == 1);
        orders.paused.store(false, Ordering::Release);
        orders.announce();
        assert!(thread.join().unwrap(), "the guest goes on");
        until(|muster| (muster.parked, muster.gone) == (0, 1));
        assert!(!orders.call_out());
    }

    #[test]
    fn a_stop_ends_a_pause() {
        let orders = Orders::new(Waker::noop().clone());
        orders.paused.store(true, Ordering::Release);
        orders.stopped.store(true, Ordering::Release);
        assert!(!orders.park());
    }
}
