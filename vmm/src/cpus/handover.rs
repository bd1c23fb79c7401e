//! One vCPU between the control thread and its own: what the thread is asked to do, and who has the vCPU.
//!
//! The thread has the vCPU while the guest runs on it, and gives it back whenever it is asked out
//! of the guest. So the control thread makes its calls on the vCPU itself, under its own seccomp
//! filter, and nobody waits for anybody: a command is given and seen to.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use husk_devices::lock;

/// What a thread is asked to do with its vCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VcpuCommand {
    /// Take the vCPU and run the guest (`KVM_RUN`) until told otherwise.
    Run,
    /// Leave the guest, give the vCPU back to the control thread, and wait for the next command.
    Wait,
    /// Leave the guest, give the vCPU back, and end the thread; no command follows.
    End,
}

/// The place where a vCPU changes hands.
#[derive(Debug)]
pub struct Handover<T> {
    /// Written under the lock only; read without it between two entries into the guest.
    command: AtomicU8,
    inner: Mutex<Inner<T>>,
    changed: Condvar,
    /// The guest has begun to start the vCPU.
    begun: AtomicBool,
    /// The thread has no timer of its own.
    untimed: AtomicBool,
    /// Woken by everything that the thread does here.
    waker: Waker,
}

#[derive(Debug)]
struct Inner<T> {
    vcpu: Option<T>,
    gone: bool,
}

impl<T> Handover<T> {
    /// No vCPU yet. `waker` is woken when the thread has done what it was asked to.
    pub fn new(command: VcpuCommand, waker: Waker) -> Self {
        Self {
            command: AtomicU8::new(command as u8),
            inner: Mutex::new(Inner {
                vcpu: None,
                gone: false,
            }),
            changed: Condvar::new(),
            begun: AtomicBool::new(false),
            untimed: AtomicBool::new(false),
            waker,
        }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        // Changed by one assignment each, so there is no half-done state that a panic could have left behind.
        lock(&self.inner)
    }

    fn is(&self, command: VcpuCommand) -> bool {
        self.command.load(Ordering::Acquire) == command as u8
    }
}

/// The control thread's side.
impl<T> Handover<T> {
    /// Changes the command. A thread that runs the guest sees it when it is kicked.
    pub fn command(&self, command: VcpuCommand) {
        // Under the lock, so that the thread is not between looking at the command and waiting.
        let _inner = self.inner();
        self.command.store(command as u8, Ordering::Release);
        self.changed.notify_one();
    }

    /// Puts `vcpu` here for the thread.
    pub fn put(&self, vcpu: T) {
        self.inner().vcpu = Some(vcpu);
        self.changed.notify_one();
    }

    /// Takes the vCPU away, if the thread does not have it.
    pub fn take_back(&self) -> Option<T> {
        self.inner().vcpu.take()
    }

    /// Whether the vCPU is here, or the thread at its end: the thread runs the guest no more, or not yet.
    pub fn is_out(&self) -> bool {
        let inner = self.inner();
        inner.gone || inner.vcpu.is_some()
    }

    /// Whether the thread is at its end.
    pub fn is_gone(&self) -> bool {
        self.inner().gone
    }

    /// What `act` says of the vCPU, if it is here.
    pub fn with<R>(&self, act: impl FnOnce(&mut T) -> R) -> Option<R> {
        self.inner().vcpu.as_mut().map(act)
    }

    /// Whether the guest has begun to start the vCPU.
    pub fn has_begun(&self) -> bool {
        self.begun.load(Ordering::Acquire)
    }

    /// Whether the thread has no timer of its own.
    pub fn is_untimed(&self) -> bool {
        self.untimed.load(Ordering::Acquire)
    }
}

/// The thread's side.
impl<T> Handover<T> {
    /// Whether the thread has to leave the guest.
    pub fn calls_out(&self) -> bool {
        !self.is(VcpuCommand::Run)
    }

    /// Waits for a vCPU that is to run. `None` when the thread is to end.
    pub fn next(&self) -> Option<T> {
        let mut inner = self.inner();
        loop {
            if self.is(VcpuCommand::End) {
                return None;
            }
            if self.is(VcpuCommand::Run)
                && let Some(vcpu) = inner.vcpu.take()
            {
                return Some(vcpu);
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Gives the vCPU back.
    pub fn give_back(&self, vcpu: T) {
        self.inner().vcpu = Some(vcpu);
        self.waker.wake_by_ref();
    }

    /// The guest has begun to start the vCPU.
    pub fn begin(&self) {
        self.begun.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }

    /// The thread has no timer of its own.
    pub fn go_untimed(&self) {
        self.untimed.store(true, Ordering::Release);
        self.waker.wake_by_ref();
    }

    /// Marks the thread as gone when it is dropped, however that comes.
    pub fn exit_guard(&self) -> ThreadExitGuard<'_, T> {
        ThreadExitGuard(self)
    }
}

/// Held by the vCPU's thread for as long as it lives; dropping it (also by a panic) marks the thread as gone and wakes
/// the control thread.
pub struct ThreadExitGuard<'a, T>(&'a Handover<T>);

impl<T> Drop for ThreadExitGuard<'_, T> {
    fn drop(&mut self) {
        self.0.inner().gone = true;
        self.0.waker.wake_by_ref();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::sync::{Arc, OnceLock, Weak};
    use std::task::Wake;
    use std::thread;
    use std::time::{Duration, Instant};

    use husk_devices::testing::{until as until_true, until_asleep};
    use rustix::thread::gettid;

    use super::*;
    use crate::wakeup::Wakeup;

    /// Nothing here takes this long.
    const NEVER: Duration = Duration::from_secs(600);

    /// A thread that runs its vCPU, a number, by counting it up until it is called out.
    fn counting(command: VcpuCommand) -> (Arc<Handover<u64>>, Wakeup, thread::JoinHandle<()>) {
        let wakeup = Wakeup::new().unwrap();
        let handover = Arc::new(Handover::new(command, wakeup.waker()));
        let thread = thread::spawn({
            let handover = handover.clone();
            move || {
                let _exit_guard = handover.exit_guard();
                while let Some(mut vcpu) = handover.next() {
                    while !handover.calls_out() {
                        vcpu += 1;
                    }
                    handover.give_back(vcpu);
                }
            }
        });
        (handover, wakeup, thread)
    }

    fn until(wakeup: &Wakeup, done: impl FnMut() -> bool) {
        assert!(wakeup.wait_until(Instant::now() + NEVER, done));
    }

    /// Notes what whoever is woken finds: the vCPU, the beginning, the end.
    #[derive(Default)]
    struct Finds {
        handover: OnceLock<Weak<Handover<u64>>>,
        found: Mutex<Vec<(Option<u64>, bool, bool)>>,
    }

    impl Wake for Finds {
        fn wake(self: Arc<Self>) {
            let handover = self.handover.get().and_then(Weak::upgrade).unwrap();
            let vcpu = handover.with(|vcpu| *vcpu);
            let found = (vcpu, handover.has_begun(), handover.is_gone());
            self.found.lock().unwrap().push(found);
        }
    }

    #[test]
    fn whatever_the_thread_does_can_be_seen_by_whoever_is_woken() {
        let finds = Arc::new(Finds::default());
        let handover = Arc::new(Handover::new(VcpuCommand::Wait, finds.clone().into()));
        finds.handover.set(Arc::downgrade(&handover)).unwrap();
        let found = || std::mem::take(&mut *finds.found.lock().unwrap());
        let exit_guard = handover.exit_guard();
        handover.put(1);
        handover.command(VcpuCommand::Run);
        assert!(handover.is_out() && !handover.is_gone());
        assert_eq!(handover.next(), Some(1));
        assert!(!handover.is_out() && !handover.has_begun());
        assert_eq!(
            found(),
            [],
            "what the control thread does wakes nobody, and a thread that goes off is none"
        );
        handover.begin();
        assert_eq!(found(), [(None, true, false)]);
        handover.give_back(2);
        assert_eq!(found(), [(Some(2), true, false)]);
        drop(exit_guard);
        assert_eq!(found(), [(Some(2), true, true)]);
    }

    #[test]
    fn every_command_but_to_run_calls_out_and_the_last_one_needs_no_vcpu() {
        for (command, calls_out) in [
            (VcpuCommand::Run, false),
            (VcpuCommand::Wait, true),
            (VcpuCommand::End, true),
        ] {
            let handover = Handover::<u64>::new(command, Waker::noop().clone());
            assert_eq!(handover.calls_out(), calls_out, "{command:?} from the start");
            let handover = Handover::<u64>::new(VcpuCommand::Wait, Waker::noop().clone());
            handover.command(command);
            assert_eq!(handover.calls_out(), calls_out, "{command:?}");
        }
        let handover = Handover::new(VcpuCommand::Run, Waker::noop().clone());
        handover.put(1);
        handover.command(VcpuCommand::End);
        assert_eq!(handover.next(), None);
        assert_eq!(handover.take_back(), Some(1), "it stays where it is");
    }

    #[test]
    fn no_command_comes_between_the_look_of_a_thread_and_its_wait() {
        let handover = Arc::new(Handover::<u64>::new(VcpuCommand::Wait, Waker::noop().clone()));
        // As of a thread that has looked at the command and does not wait yet.
        let looked = handover.inner();
        let (name, id) = channel();
        let control = thread::spawn({
            let handover = handover.clone();
            move || {
                name.send(gettid().as_raw_nonzero().get()).unwrap();
                handover.command(VcpuCommand::Run);
            }
        });
        until_asleep(id.recv().unwrap());
        assert!(
            handover.calls_out(),
            "it is given once the thread waits, and so wakes it"
        );
        drop(looked);
        control.join().unwrap();
        assert!(!handover.calls_out());
    }

    #[test]
    fn a_vcpu_comes_back_when_it_is_called_out_and_goes_on_from_there() {
        let (handover, wakeup, thread) = counting(VcpuCommand::Run);
        assert!(!handover.is_out(), "it has none yet");
        handover.put(0);
        for _ in 0..3 {
            handover.command(VcpuCommand::Wait);
            until(&wakeup, || handover.is_out());
            let before = handover.with(|vcpu| *vcpu).unwrap();
            handover.command(VcpuCommand::Run);
            until_true(|| handover.with(|_| ()).is_none());
            handover.command(VcpuCommand::Wait);
            until(&wakeup, || handover.is_out());
            assert!(handover.with(|vcpu| *vcpu).unwrap() >= before);
            handover.command(VcpuCommand::Run);
        }
        handover.command(VcpuCommand::End);
        until(&wakeup, || handover.is_gone());
        assert!(handover.take_back().is_some(), "a thread that ends leaves its vCPU");
        thread.join().unwrap();
    }

    #[test]
    fn a_vcpu_that_is_put_while_everything_waits_stays_where_it_is() {
        let (handover, wakeup, thread) = counting(VcpuCommand::Wait);
        handover.put(7);
        assert!(handover.is_out());
        handover.command(VcpuCommand::End);
        until(&wakeup, || handover.is_gone());
        assert_eq!(handover.take_back(), Some(7));
        thread.join().unwrap();
    }

    #[test]
    fn a_thread_without_a_vcpu_ends_when_it_is_told_to() {
        let (handover, wakeup, thread) = counting(VcpuCommand::Run);
        handover.command(VcpuCommand::End);
        until(&wakeup, || handover.is_gone());
        assert!(handover.is_out());
        thread.join().unwrap();
    }
}
