//! The vCPU threads of one VM, named `vcpu0`, `vcpu1`, …

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
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
    threads: Vec<JoinHandle<()>>,
}

impl Cpus {
    /// Starts one thread for each of `vcpus`, confined as `seccomp` says, the first one first: it alone has work at once, the others wait in KVM for the
    /// guest to start them (Intel SDM vol. 3A §9.4, INIT-SIPI).
    ///
    /// # Errors
    /// What the host says when it has no thread left; those already started are stopped.
    pub fn start(
        vcpus: Vec<Vcpu>,
        board: &Arc<Board>,
        kicker: Kicker,
        seccomp: Mode,
        trace: &Trace,
    ) -> io::Result<Self> {
        let mut cpus = Self {
            kicker,
            stop: Arc::default(),
            threads: Vec::with_capacity(vcpus.len()),
        };
        for vcpu in vcpus {
            let (board, stop, trace) = (board.clone(), cpus.stop.clone(), trace.clone());
            let builder = thread::Builder::new()
                .name(format!("vcpu{}", vcpu.id()))
                .stack_size(STACK_BYTES);
            cpus.threads.push(builder.spawn(move || {
                if let Err(error) = seccomp.enter(Role::Vcpu) {
                    return board.end(Ending::Failed(format!("vCPU {}: {error:?}", vcpu.id())));
                }
                trace.enter_guest();
                run(vcpu, &board, &stop);
            })?);
        }
        Ok(cpus)
    }

    /// Takes every vCPU out of the guest and waits for its thread. Not to be called on a vCPU thread.
    pub fn stop(&mut self) {
        self.stop.store(true, Ordering::Release);
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
