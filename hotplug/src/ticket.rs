//! A promise that the guest keeps: a [`Ticket`] for who waits, a [`Promise`] for who answers.

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
    /// The guest said that it did it, and nothing else shows that it has: Linux reports success for some insertions that failed.
    Unproven,
    /// The guest has not answered in time.
    TimedOut,
    /// A later operation on the same slot took its place, or it undid one that the guest had not heard of or would not do, or the host could
    /// not go on with it: the guest has done nothing for it, and no answer will come.
    Withdrawn,
}

impl Outcome {
    /// The one that speaks for both: a refusal before a success without proof before a time-out before a withdrawal before
    /// success.
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

/// The answering end. Dropping it unkept withdraws the operation, so nobody waits for what can no longer come. Either way the
/// ticket's waker is woken, once the answer can be seen.
#[derive(Debug)]
pub struct Promise {
    /// Taken when the promise ends.
    answer: Option<SyncSender<Answer>>,
    waker: Waker,
}

impl Promise {
    /// Answers. Called on vCPU threads: takes no lock that a waiter holds, allocates nothing and never blocks.
    pub fn keep(self, outcome: Outcome) {
        if let Some(answer) = &self.answer {
            // The channel has room for the only answer there will be; a waiter that has gone does not want it.
            let _ = answer.try_send((outcome, Instant::now()));
        }
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        // First: whoever wakes must find that no answer will come any more.
        drop(self.answer.take());
        self.waker.wake_by_ref();
    }
}

/// The waiting end of one operation, or of several taken together.
#[derive(Debug)]
pub struct Ticket(Vec<Line>);

#[derive(Debug)]
struct Line {
    asked: Instant,
    answers: Receiver<Answer>,
    answer: OnceCell<Answer>,
}

impl Ticket {
    /// A promise and the ticket that waits for it. The clock starts here.
    pub fn new() -> (Promise, Self) {
        Self::with(Waker::noop().clone())
    }

    /// As [`Ticket::new`], and `waker` is woken when the promise is kept or dropped: on a vCPU thread, so it must not block.
    pub fn with(waker: Waker) -> (Promise, Self) {
        let (sender, answers) = sync_channel(1);
        (
            Promise {
                answer: Some(sender),
                waker,
            },
            Self(vec![Line {
                asked: Instant::now(),
                answers,
                answer: OnceCell::new(),
            }]),
        )
    }

    /// One ticket for many: accepted when all are, otherwise the worst of their outcomes. None at all is accepted.
    pub fn all(tickets: impl IntoIterator<Item = Self>) -> Self {
        Self(tickets.into_iter().flat_map(|ticket| ticket.0).collect())
    }

    /// Waits for the answer until `deadline`.
    ///
    /// [`Outcome::TimedOut`] because of `deadline` changes nothing: the guest may still answer, and a later call sees it. So a
    /// caller may wait in short steps and do something in between, such as [`Bell::retrigger`](crate::ged::Bell::retrigger).
    pub fn wait(&self, deadline: Instant) -> Outcome {
        self.0
            .iter()
            .fold(Outcome::Accepted, |outcome, line| outcome.and(line.wait(deadline)))
    }

    /// From the request to the last answer, once [`Ticket::wait`] has seen all of them.
    pub fn latency(&self) -> Option<Duration> {
        self.0.iter().try_fold(Duration::ZERO, |longest, line| {
            let (_, kept) = line.answer.get()?;
            Some(longest.max(kept.saturating_duration_since(line.asked)))
        })
    }
}

impl Line {
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
#[path = "ticket_test.rs"]
mod tests;
