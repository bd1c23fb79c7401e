//! Commands on their way to the thread that owns the machine, and the answers on their way back.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Weak};

use husk_virtio::unix::SocketFile;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::command::{Command, Reply};
use super::error::{ApiError, Kind};

/// What came of a command.
pub type Outcome = Result<Reply, ApiError>;

/// A queue between two threads whose receiver can be watched.
struct QueueReceiver<T> {
    items: Receiver<T>,
    eventfd: Arc<EventFd>,
}

/// The other end of a [`QueueReceiver`].
struct QueueSender<T> {
    items: Sender<T>,
    eventfd: Arc<EventFd>,
}

fn queue<T>() -> io::Result<(QueueSender<T>, QueueReceiver<T>)> {
    let eventfd = Arc::new(EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?);
    let (items_sender, items) = mpsc::channel();
    let sender = QueueSender {
        items: items_sender,
        eventfd: eventfd.clone(),
    };
    Ok((sender, QueueReceiver { items, eventfd }))
}

impl<T> Clone for QueueSender<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
            eventfd: self.eventfd.clone(),
        }
    }
}

impl<T> QueueSender<T> {
    /// Hands `item` over; gives it back when nobody will ever take it.
    fn send(&self, item: T) -> Result<(), T> {
        self.items.send(item).map_err(|refused| refused.0)?;
        // Fails only when the counter is full, which wakes the reader just as well.
        let _ = self.eventfd.write(1);
        Ok(())
    }
}

impl<T> QueueReceiver<T> {
    fn next(&self) -> Option<T> {
        if let Ok(item) = self.items.try_recv() {
            return Some(item);
        }
        // Silenced before the last look: what comes after that look wakes again.
        let _ = self.eventfd.read();
        self.items.try_recv().ok()
    }
}

/// The commands that wait to be carried out, in the order of their arrival. Dropped, it refuses
/// them, and no client finds the socket any more.
pub struct CommandReceiver {
    requests: QueueReceiver<Request>,
    /// The names under which clients find the server.
    files: Cell<Vec<SocketFile>>,
}

/// Where the API puts commands.
#[derive(Clone)]
pub(super) struct CommandSender(QueueSender<Request>);

/// The answers that wait to be sent.
pub(super) struct AnswerReceiver(QueueReceiver<Answer>);

/// Where answers are put.
#[derive(Clone)]
pub(super) struct AnswerSender(QueueSender<Answer>);

/// Stands for a client that is connected. Dropped, nobody waits for the answers to what it has asked.
#[derive(Debug, Default)]
pub(super) struct Presence(Arc<()>);

/// What came of the command of one connection.
#[derive(Debug, PartialEq)]
pub(super) struct Answer {
    /// Which connection asked.
    pub(super) connection: u64,
    /// What it is told.
    pub(super) outcome: Outcome,
}

/// A pair of ends for commands.
pub(super) fn command_queue(files: Vec<SocketFile>) -> io::Result<(CommandSender, CommandReceiver)> {
    let (sender, requests) = queue()?;
    let files = Cell::new(files);
    Ok((CommandSender(sender), CommandReceiver { requests, files }))
}

/// A pair of ends for answers.
pub(super) fn answer_queue() -> io::Result<(AnswerSender, AnswerReceiver)> {
    let (sender, queue) = queue()?;
    Ok((AnswerSender(sender), AnswerReceiver(queue)))
}

impl CommandReceiver {
    /// The next command, without blocking. Once it has said `None`, the descriptor is quiet until there is another one.
    pub fn next(&self) -> Option<Request> {
        self.requests.next()
    }

    /// Removes the sockets' files: whoever looks for it from now on finds nothing. Those who are connected stay so.
    pub fn unlink_sockets(&self) {
        self.files.take();
    }
}

/// Readable while a command waits.
impl AsRawFd for CommandReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.requests.eventfd.as_raw_fd()
    }
}

impl CommandSender {
    /// Queues a command of a client who waits for the answer as long as `presence` is there. It will come to
    /// `answer_sender`, in any case.
    pub(super) fn send(&self, command: Command, connection: u64, presence: &Presence, answer_sender: &AnswerSender) {
        let respond = Responder {
            connection,
            asker: Arc::downgrade(&presence.0),
            answer_sender: answer_sender.clone(),
            answered: false,
        };
        // When nobody takes commands any more, the request is dropped here, and answers so.
        let _ = self.0.send(Request { command, respond });
    }

    /// Wakes whoever takes commands, to look which of their [`Responder`]s are awaited still.
    pub(super) fn wake(&self) {
        // As for a command.
        let _ = self.0.eventfd.write(1);
    }
}

impl AnswerSender {
    /// Readable as of an answer: for what else the thread that sends answers has to send.
    pub(super) fn eventfd(&self) -> Arc<EventFd> {
        self.0.eventfd.clone()
    }
}

impl AnswerReceiver {
    pub(super) fn next(&self) -> Option<Answer> {
        self.0.next()
    }
}

impl AsRawFd for AnswerReceiver {
    fn as_raw_fd(&self) -> RawFd {
        self.0.eventfd.as_raw_fd()
    }
}

/// A command and whom to tell of its outcome.
pub struct Request {
    /// What is asked for.
    pub command: Command,
    /// Takes the answer.
    pub respond: Responder,
}

/// Takes one answer. Dropped without one, it answers 500: a client never waits in vain.
pub struct Responder {
    connection: u64,
    asker: Weak<()>,
    answer_sender: AnswerSender,
    answered: bool,
}

impl Responder {
    /// Answers. Never blocks.
    pub fn send(mut self, outcome: Outcome) {
        self.answer(outcome);
    }

    /// Whether the client who asked is still there. When it goes, whoever takes commands is woken.
    pub fn is_awaited(&self) -> bool {
        self.asker.strong_count() > 0
    }

    fn answer(&mut self, outcome: Outcome) {
        self.answered = true;
        // Nobody reads answers when the API has ended.
        let _ = self.answer_sender.0.send(Answer {
            connection: self.connection,
            outcome,
        });
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(Err(ApiError::new(
                Kind::Ending,
                "the command was dropped unanswered, because husk is ending",
            )));
        }
    }
}

#[cfg(test)]
#[path = "queue_test.rs"]
mod tests;
