//! Commands that take their time: what is in progress, what it excludes, and how each of them ends.
//!
//! An operation is begun by a command and answered when its [`Work`] has come to an end, at its
//! deadline, or when a later command takes its place. The control thread serves everything else
//! meanwhile. What may be asked during which operation is the table of [`relation`]; docs/api.md
//! shows it to clients.

use std::time::Instant;

use crate::api::{ApiError, Command, Kind, Outcome, Responder};

/// What is in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operation {
    /// `vm.boot`, until there is a machine.
    Boot,
    /// `vm.add-…`, until the device is open.
    Add,
    /// `vm.resize`, until the guest has done it, or until its answer is due.
    Resize,
    /// `vm.pause`, until everything is held.
    Pause,
    /// `vm.shutdown`, `vm.reboot` or `vm.delete`, until everything has stopped.
    Stop,
    /// `vmm.shutdown`, likewise: nothing follows it.
    Leave,
}

/// What a command is to an operation in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// It is carried out meanwhile.
    Concurrent,
    /// The command is answered with 409 Conflict while the operation goes on.
    Refused,
    /// It takes the operation's place, if it can be carried out at all.
    Supersedes,
}

/// Which command may come during which operation.
pub(super) fn relation(operation: Operation, command: &Command) -> Relation {
    use Relation::{Concurrent, Refused, Supersedes};
    match (operation, command) {
        (
            _,
            Command::Counters
            | Command::Queues
            | Command::Metrics
            | Command::Events
            | Command::PowerButton
            | Command::ResizeStatus
            | Command::Containers
            | Command::SetContainers(_),
        ) => Concurrent,
        (Operation::Leave, _) => Refused,
        (_, Command::ShutdownVmm) => Supersedes,
        (Operation::Boot, Command::Shutdown | Command::Reboot | Command::Delete) => Supersedes,
        (Operation::Resize, Command::Resize(_) | Command::Shutdown | Command::Reboot | Command::Delete) => Supersedes,
        (Operation::Add, Command::Shutdown | Command::Reboot | Command::Delete) => Supersedes,
        (Operation::Add | Operation::Resize, _) | (Operation::Pause, Command::Resize(_)) => Concurrent,
        (Operation::Pause, Command::Resume | Command::Shutdown | Command::Reboot | Command::Delete) => Supersedes,
        (
            Operation::Boot | Operation::Pause | Operation::Stop,
            Command::Create(_)
            | Command::Boot
            | Command::Shutdown
            | Command::Reboot
            | Command::Delete
            | Command::Pause
            | Command::Resume
            | Command::Resize(_)
            | Command::Add(..)
            | Command::Remove(_),
        ) => Refused,
    }
}

/// Why an operation ends before its work is done.
#[derive(Clone, Copy, Debug)]
pub(super) enum GiveUp<'a> {
    /// The operation has not ended within its time limit.
    Late,
    /// The command of this name takes its place.
    Superseded(&'a str),
}

/// What an operation does to its `Owner`.
pub(super) trait Work<Owner>: Send {
    /// What kind of operation it is.
    fn operation(&self) -> Operation;

    /// The command that began it, as clients write it.
    fn command(&self) -> &'static str;

    /// Looks at what has happened, and goes on. The answer once it is done; it is not called again then. Never waits.
    fn advance(&mut self, owner: &mut Owner) -> Option<Outcome>;

    /// Whether it ends where `command` comes, which may take the place of its like ([`relation`]):
    /// it may have asked for other things.
    fn yields_to(&mut self, _command: &Command) -> bool {
        true
    }

    /// When it is late, where that has changed since it was begun: what is left is other work than what was.
    fn deadline(&self) -> Option<Instant> {
        None
    }

    /// Nobody waits for the answer any more, who asked has gone. The end of it, if that is what it comes to; it is not
    /// called again then. Never waits.
    fn asker_has_gone(&mut self, _owner: &mut Owner) -> Option<Outcome> {
        None
    }

    /// Ends it where it stands: what is half-done is undone, or told.
    fn give_up(&mut self, owner: &mut Owner, why: GiveUp<'_>) -> Outcome;
}

/// Tells one operation from all others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperationId(u64);

/// The operations in progress, oldest first, each with whom to answer by `Reply`.
pub(super) struct Operations<Owner, Reply = Responder> {
    running: Vec<Running<Owner, Reply>>,
    next: u64,
}

struct Running<Owner, Reply> {
    id: OperationId,
    work: Box<dyn Work<Owner>>,
    deadline: Instant,
    reply: Option<Reply>,
}

/// Answers that are ready.
pub(super) type Answers<Reply = Responder> = Vec<(Reply, Outcome)>;

impl<Owner, Reply> Default for Operations<Owner, Reply> {
    fn default() -> Self {
        Self {
            running: Vec::new(),
            next: 0,
        }
    }
}

impl<Owner, Reply> Operations<Owner, Reply> {
    /// Why `command` cannot be carried out at present, if so.
    pub(super) fn refusal(&self, command: &Command) -> Option<ApiError> {
        let refuses = |running: &&Running<_, _>| relation(running.work.operation(), command) == Relation::Refused;
        let by = self.running.iter().find(refuses)?.work.command();
        let what = format!("{by} is being carried out, {} has to wait for its end", command.name());
        Some(ApiError::new(Kind::Conflict, what))
    }

    /// `work` is in progress from now on, until `deadline` at the latest.
    pub(super) fn begin(&mut self, work: Box<dyn Work<Owner>>, deadline: Instant) -> OperationId {
        let id = OperationId(self.next);
        self.next = self.next.wrapping_add(1);
        self.running.push(Running {
            id,
            work,
            deadline,
            reply: None,
        });
        id
    }

    /// Whom to tell of the end of operation `id`.
    pub(super) fn keep(&mut self, id: OperationId, reply: Reply) {
        if let Some(running) = self.running.iter_mut().find(|running| running.id == id) {
            running.reply = Some(reply);
        }
    }

    /// When the next operation will be given up.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.running.iter().map(|running| running.deadline).min()
    }

    /// Whether an operation of this kind is in progress.
    pub(super) fn any(&self, mut wanted: impl FnMut(Operation) -> bool) -> bool {
        self.running.iter().any(|running| wanted(running.work.operation()))
    }

    /// Lets every operation go on, and gives up those whose deadline has come at `now`.
    pub(super) fn advance(&mut self, owner: &mut Owner, now: Instant) -> Answers<Reply> {
        self.end_where(|running| {
            let done = running.work.advance(owner);
            running.deadline = running.work.deadline().unwrap_or(running.deadline);
            let late = || (running.deadline <= now).then(|| running.work.give_up(owner, GiveUp::Late));
            done.or_else(late)
        })
    }

    /// Tells those operations that nobody waits for any more, of which `is_awaited` says so.
    pub(super) fn leave_unawaited(&mut self, owner: &mut Owner, is_awaited: impl Fn(&Reply) -> bool) -> Answers<Reply> {
        self.end_where(|running| {
            let has_gone = running.reply.as_ref().is_some_and(|reply| !is_awaited(reply));
            has_gone.then(|| running.work.asker_has_gone(owner)).flatten()
        })
    }

    /// Gives up what `command` takes the place of.
    pub(super) fn supersede(&mut self, owner: &mut Owner, command: &Command) -> Answers<Reply> {
        self.end_where(|running| {
            let supersedes = relation(running.work.operation(), command) == Relation::Supersedes;
            let ends = supersedes && running.work.yields_to(command);
            ends.then(|| running.work.give_up(owner, GiveUp::Superseded(command.name())))
        })
    }

    /// Joins what another thread of the control flow has begun meanwhile.
    pub(super) fn extend(&mut self, begun: Self) {
        self.running.extend(begun.running);
        self.next = self.next.max(begun.next);
    }

    fn end_where(&mut self, mut end: impl FnMut(&mut Running<Owner, Reply>) -> Option<Outcome>) -> Answers<Reply> {
        let mut answers = Vec::new();
        self.running.retain_mut(|running| match end(running) {
            Some(outcome) => {
                answers.extend(running.reply.take().map(|reply| (reply, outcome)));
                false
            }
            None => true,
        });
        answers
    }
}

/// What a client is told whose command another one took the place of.
pub(super) fn superseded(command: &str, by: &str) -> ApiError {
    ApiError::new(Kind::Conflict, format!("{by} has taken the place of {command}"))
}

#[cfg(test)]
#[path = "operation_test.rs"]
mod tests;
