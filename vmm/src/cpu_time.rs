//! Processor time that the process, or one of its threads, has used.

#![expect(
    unsafe_code,
    reason = "clocks of processor time have no safe wrapper in the standard library"
)]

use std::os::unix::thread::JoinHandleExt;
use std::thread::JoinHandle;
use std::time::Duration;

/// Of this process so far.
pub fn of_process() -> Duration {
    read(libc::CLOCK_PROCESS_CPUTIME_ID).unwrap_or_default()
}

/// Of `thread` so far, without disturbing it; `None` once it has ended.
pub fn of_thread<T>(thread: &JoinHandle<T>) -> Option<Duration> {
    let mut clock = 0;
    // SAFETY: the handle has not been joined, so the pthread_t is valid even if the thread has returned.
    let found = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &raw mut clock) };
    (found == 0).then(|| read(clock))?
}

fn read(clock: libc::clockid_t) -> Option<Duration> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the time; a clock that is none is refused.
    let read = unsafe { libc::clock_gettime(clock, &raw mut time) };
    if read != 0 {
        return None;
    }
    Some(Duration::new(
        u64::try_from(time.tv_sec).ok()?,
        u32::try_from(time.tv_nsec).ok()?,
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;
    use std::thread;

    use super::*;

    #[test]
    fn a_threads_time_grows_with_its_work_and_not_with_that_of_others() {
        let (go, work) = channel::<()>();
        let (done, finished) = channel();
        let thread = thread::spawn(move || {
            for () in work {
                let before = read(libc::CLOCK_THREAD_CPUTIME_ID).unwrap();
                while read(libc::CLOCK_THREAD_CPUTIME_ID) == Some(before) {}
                done.send(()).unwrap();
            }
        });
        go.send(()).unwrap();
        finished.recv().unwrap();
        let before = of_thread(&thread).unwrap();
        go.send(()).unwrap();
        finished.recv().unwrap();
        let after = of_thread(&thread).unwrap();
        assert!(after > before && of_process() >= after);
        drop(go);
        thread.join().unwrap();
    }
}
