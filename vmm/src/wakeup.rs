//! The control thread's wakeup, for when something that it watches may have changed: one eventfd, written to through
//! [`Waker`]s.
//!
//! The guest's answers, workers that have stopped or are held, and slots that were let go of all wake it. It says
//! *that* something changed, not *what*: whoever is woken looks at everything it watches, so that any number of wakes
//! between two looks is as good as one.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// The end that the control thread polls. Readable after a wake, until [`Wakeup::clear`].
#[derive(Debug)]
pub struct Wakeup(Arc<WakeupFd>);

#[derive(Debug)]
struct WakeupFd(EventFd);

impl Wake for WakeupFd {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    /// One write(2), which never blocks: any thread may.
    fn wake_by_ref(self: &Arc<Self>) {
        // Fails only when the counter is full, and then it is readable all the same.
        let _ = self.0.write(1);
    }
}

impl Wakeup {
    /// Not woken yet.
    ///
    /// # Errors
    /// When the host has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(WakeupFd(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?))))
    }

    /// What wakes it. Cheap to clone, for any thread.
    pub fn waker(&self) -> Waker {
        Waker::from(self.0.clone())
    }

    /// Makes it unreadable again. To be called *before* looking at what is watched: what changes after the look wakes
    /// again.
    pub fn clear(&self) {
        // Fails only when nothing has woken it.
        let _ = self.0.0.read();
    }

    /// Calls `done` now and after each wake, until it says true or `deadline` has come. Whether it did. For a thread
    /// that has nothing else left to do.
    pub fn wait_until(&self, deadline: Instant, mut done: impl FnMut() -> bool) -> bool {
        let epoll = self.watched();
        loop {
            self.clear();
            if done() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            match &epoll {
                // Interrupted or not: what counts is looked at again.
                Ok(epoll) => drop(epoll.wait(whole_millis(left), &mut [EpollEvent::default()])),
                // A host without a descriptor left costs time, not the end.
                Err(_) => std::thread::sleep(left.min(Duration::from_millis(10))),
            }
        }
    }

    fn watched(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        epoll.ctl(
            ControlOperation::Add,
            self.as_raw_fd(),
            EpollEvent::new(EventSet::IN, 0),
        )?;
        Ok(epoll)
    }
}

impl AsRawFd for Wakeup {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Milliseconds that are not over before `time` is: a wait that ends early would be followed by a busy one.
pub fn whole_millis(time: Duration) -> i32 {
    let millis = time.as_nanos().div_ceil(1_000_000);
    i32::try_from(millis).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    /// Nothing here takes this long.
    const NEVER: Duration = Duration::from_secs(600);

    #[test]
    fn who_waits_looks_again_at_every_wake() {
        let wakeup = Wakeup::new().unwrap();
        let count = Arc::new(AtomicU32::new(0));
        let thread = thread::spawn({
            let (waker, count) = (wakeup.waker(), count.clone());
            move || {
                for _ in 0..3 {
                    count.fetch_add(1, Ordering::Release);
                    waker.wake_by_ref();
                }
            }
        });
        assert!(wakeup.wait_until(Instant::now() + NEVER, || count.load(Ordering::Acquire) == 3));
        thread.join().unwrap();
    }

    #[test]
    fn a_deadline_ends_the_wait_for_what_never_comes() {
        let wakeup = Wakeup::new().unwrap();
        let mut looks = 0;
        assert!(!wakeup.wait_until(Instant::now(), || {
            looks += 1;
            false
        }));
        assert_eq!(looks, 1, "it looks once, however late it is");
    }

    #[test]
    fn a_wake_before_the_wait_is_not_lost() {
        let wakeup = Wakeup::new().unwrap();
        wakeup.waker().wake();
        let epoll = wakeup.watched().unwrap();
        assert_eq!(epoll.wait(0, &mut [EpollEvent::default()]).unwrap(), 1);
        wakeup.clear();
        assert_eq!(epoll.wait(0, &mut [EpollEvent::default()]).unwrap(), 0);
    }

    #[test]
    fn a_wait_never_ends_before_its_time() {
        assert_eq!(whole_millis(Duration::ZERO), 0);
        assert_eq!(whole_millis(Duration::from_nanos(1)), 1);
        assert_eq!(whole_millis(Duration::from_millis(7)), 7);
        assert_eq!(whole_millis(Duration::MAX), i32::MAX);
    }
}
