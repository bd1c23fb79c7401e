//! How an operation of the host's on a slot ends: a channel for one [`Outcome`], from the [`OutcomeSender`] of whoever
//! hears the guest's answer to the [`OutcomeReceiver`] of whoever waits for it.

use std::cell::OnceCell;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::task::Waker;
use std::time::{Duration, Instant};

/// How an operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The guest did it.
    Accepted,
    /// The guest said no.
    Refused {
        /// The `_OST` status code (ACPI 6.5 §6.3.5).
        ost: u32,
    },
    /// The guest said that it did it, and nothing else shows that it has: Linux reports success for
    /// some insertions that failed.
    Unproven,
    /// The guest has not answered in time.
    TimedOut,
    /// A later operation on the same slot took its place, or it undid one that the guest had not
    /// heard of or would not do, or the host could not go on with it: the guest has done nothing
    /// for it, and no answer will come.
    Withdrawn,
}

impl Outcome {
    /// The one that speaks for both: a refusal before a success without proof before a time-out
    /// before a withdrawal before success.
    fn and(self, other: Self) -> Self {
        let weight = |outcome| match outcome {
            Self::Accepted => 0,
            Self::Withdrawn => 1,
            Self::TimedOut => 2,
            Self::Unproven => 3,
            Self::Refused { .. } => 4,
        };
        if weight(other) > weight(self) { other } else { self }
    }
}

/// An answer and when it came.
type Answer = (Outcome, Instant);

/// The answering end. Dropping it without an answer withdraws the operation, so nobody waits for what can no longer
/// come. Either way the receiver's waker is woken, once the answer can be seen.
#[derive(Debug)]
pub struct OutcomeSender {
    /// Taken when the sender is dropped.
    answer: Option<SyncSender<Answer>>,
    waker: Waker,
}

impl OutcomeSender {
    /// Answers. Called on vCPU threads: takes no lock that a waiter holds, allocates nothing and never blocks.
    pub fn send(self, outcome: Outcome) {
        if let Some(answer) = &self.answer {
            // The channel has room for the only answer there will be; a waiter that has gone does not want it.
            let _ = answer.try_send((outcome, Instant::now()));
        }
    }
}

impl Drop for OutcomeSender {
    fn drop(&mut self) {
        // First: whoever wakes must find that no answer will come any more.
        drop(self.answer.take());
        self.waker.wake_by_ref();
    }
}

/// The waiting end of one operation, or of several taken together.
#[derive(Debug)]
pub struct OutcomeReceiver(Vec<Pending>);

#[derive(Debug)]
struct Pending {
    asked: Instant,
    answers: Receiver<Answer>,
    answer: OnceCell<Answer>,
}

impl OutcomeReceiver {
    /// Both ends of an operation that begins now: [`OutcomeReceiver::latency`] counts from here.
    pub fn new() -> (OutcomeSender, Self) {
        Self::with(Waker::noop().clone())
    }

    /// As [`OutcomeReceiver::new`], and `waker` is woken when the sender has sent or is dropped: on a vCPU thread, so
    /// it must not block.
    pub fn with(waker: Waker) -> (OutcomeSender, Self) {
        let (sender, answers) = sync_channel(1);
        (
            OutcomeSender {
                answer: Some(sender),
                waker,
            },
            Self(vec![Pending {
                asked: Instant::now(),
                answers,
                answer: OnceCell::new(),
            }]),
        )
    }

    /// One receiver for many: accepted when all are, otherwise the worst of their outcomes. None at all is accepted.
    pub fn all(receivers: impl IntoIterator<Item = Self>) -> Self {
        Self(receivers.into_iter().flat_map(|receiver| receiver.0).collect())
    }

    /// Waits for the answer until `deadline`.
    ///
    /// [`Outcome::TimedOut`] because of `deadline` changes nothing: the guest may still answer, and a later call sees
    /// it. So a caller may wait in short steps and do something in between, such as
    /// [`GedNotifier::retrigger`](crate::ged::GedNotifier::retrigger).
    pub fn wait(&self, deadline: Instant) -> Outcome {
        self.0.iter().fold(Outcome::Accepted, |outcome, pending| {
            outcome.and(pending.wait(deadline))
        })
    }

    /// From the request to the last answer, once [`OutcomeReceiver::wait`] has seen all of them.
    pub fn latency(&self) -> Option<Duration> {
        self.0.iter().try_fold(Duration::ZERO, |longest, pending| {
            let (_, came) = pending.answer.get()?;
            Some(longest.max(came.saturating_duration_since(pending.asked)))
        })
    }
}

impl Pending {
    fn wait(&self, deadline: Instant) -> Outcome {
        if let Some((outcome, _)) = self.answer.get() {
            return *outcome;
        }
        let answer = match self
            .answers
            .recv_timeout(deadline.saturating_duration_since(Instant::now()))
        {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => return Outcome::TimedOut,
            Err(RecvTimeoutError::Disconnected) => (Outcome::Withdrawn, Instant::now()),
        };
        self.answer.get_or_init(|| answer).0
    }
}

#[cfg(test)]
#[path = "outcome_test.rs"]
mod tests;
