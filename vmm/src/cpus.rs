//! The vCPU threads of one VM, named `vcpu0`, `vcpu1`, …

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
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
    stop: Arc<AtomicBool>,
    /// Threads that wait for their vCPU.
    seats: Vec<Sender<Vcpu>>,
    threads: Vec<JoinHandle<()>>,
}

impl Cpus {
    /// Starts a thread for each of `count` vCPUs, confined as `seccomp` says, while the rest of the machine is still being built:
    /// neither the thread nor its filter is waited for when the guest can run.
    ///
    /// # Errors
    /// What the host says when it has no thread left; those already started end.
    pub fn prepare(count: u32, board: &Arc<Board>, kicker: Kicker, seccomp: Mode, trace: &Trace) -> io::Result<Self> {
        let mut cpus = Self {
            kicker,
            stop: Arc::default(),
            seats: Vec::new(),
            threads: Vec::new(),
        };
        for id in 0..count {
            let (seat, vcpu) = channel::<Vcpu>();
            let (board, stop, trace) = (board.clone(), cpus.stop.clone(), trace.clone());
            let builder = thread::Builder::new().name(format!("vcpu{id}")).stack_size(STACK_BYTES);
            cpus.threads.push(builder.spawn(move || {
                if let Err(error) = seccomp.enter(Role::Vcpu) {
                    return board.end(Ending::Failed(format!("vCPU {id}: {error:?}")));
                }
                if let Ok(vcpu) = vcpu.recv() {
                    trace.enter_guest();
                    run(vcpu, &board, &stop);
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

    /// Takes every vCPU out of the guest and waits for its thread. Not to be called on a vCPU thread.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.seats.clear();
        for thread in &self.threads {
            self.kicker.kick(thread);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("a vCPU thread panicked");
            }
        }
    }
}

impl Drop for Cpus {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(mut vcpu: Vcpu, board: &Board, stop: &AtomicBool) {
    match vcpu.run(|| stop.load(Ordering::Acquire), |port| board.answer(port)) {
        VcpuExit::Stopped => {}
        VcpuExit::TripleFault => board.end(Ending::TripleFault),
        VcpuExit::Failed(why) => board.end(Ending::Failed(format!("vCPU {}: {why}", vcpu.id()))),
    }
}
