//! What is done beside the control thread, because it may take long: the host or a back-end is waited for by a thread that nobody else needs.

use std::io;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::task::Waker;
use std::thread;

/// A result on its way. Dropping this leaves it to its thread, which takes apart what nobody wants any more.
#[derive(Debug)]
pub struct Beside<T>(Receiver<T>);

impl<T: Send + 'static> Beside<T> {
    /// Begins to `work`. `waker` tells of the end.
    ///
    /// # Errors
    /// The host has no thread left.
    pub fn begin(waker: Waker, work: impl FnOnce() -> T + Send + 'static) -> io::Result<Self> {
        let (done, result) = channel();
        let body = move || {
            // When nobody waits for it any more, it goes here.
            drop(done.send(work()));
            waker.wake();
        };
        thread::Builder::new().name("builder".into()).spawn(body)?;
        Ok(Self(result))
    }

    /// What has come of it, once. Never waits.
    pub fn take(&self) -> Option<T> {
        match self.0.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => panic!("a panic anywhere ends the process"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::{Sender, channel};
    use std::task::Wake;

    use super::*;

    /// Says by which thread it was dropped.
    struct Told(Sender<thread::ThreadId>);

    impl Drop for Told {
        fn drop(&mut self) {
            self.0.send(thread::current().id()).unwrap();
        }
    }

    struct Bell(Sender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.0.send(()).unwrap();
        }
    }

    #[test]
    fn a_result_comes_with_a_wake_and_one_that_is_not_wanted_is_dropped_elsewhere() {
        let (rung, rings) = channel();
        let waker: Waker = Arc::new(Bell(rung)).into();
        let (go, gate) = channel::<()>();
        let beside = Beside::begin(waker.clone(), move || gate.recv().unwrap()).unwrap();
        assert_eq!(beside.take(), None, "nobody waits for it");
        go.send(()).unwrap();
        rings.recv().unwrap();
        assert_eq!(beside.take(), Some(()));
        let (told, dropped) = channel();
        let (go, gate) = channel::<()>();
        let beside = Beside::begin(waker, move || {
            gate.recv().unwrap();
            Told(told)
        });
        drop(beside.unwrap());
        go.send(()).unwrap();
        assert_ne!(dropped.recv().unwrap(), thread::current().id());
    }
}
