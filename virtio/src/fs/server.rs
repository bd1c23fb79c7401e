//! A FUSE server over a `FileSystem`: takes requests apart, holds them against the protocol's and
//! the session's rules, has the file system carry them out, and puts the replies together.
//!
//! | file | what |
//! |---|---|
//! | `session.rs` | `INIT`, `DESTROY`, and what both sides agreed on |
//! | `request_parser.rs`, `reply.rs` | one request while it is taken apart, and its reply |
//! | `names.rs` | what is done with a name: look-ups, creations, removals; and how look-ups are taken back |
//! | `files.rs`, `dirs.rs` | open files and directories |
//! | `attrs.rs`, `xattrs.rs` | attributes, space, rights; extended attributes |
//! | `locks.rs` | locks, and the interruption of those who wait for one |
//!
//! The guest is not trusted. A request is read once, and only after its length was held against
//! what its opcode needs; a name reaches the file system as a `Name` only; a reply that would not
//! fit is found out before anything is done. Nothing is kept between requests but the session's
//! agreement (one atomic) and a bounded list of interrupted requests.

mod attrs;
mod counters;
mod dirs;
mod files;
mod locks;
mod names;
mod reply;
mod request_parser;
mod session;
mod xattrs;

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::filesystem::FileSystem;
use super::protocol::{Failure, MALFORMED, Opcode};
use super::serve::{Outcome, Serve};
use super::share::{Confinement, ShareConfig};
use super::tree::Tree;
use crate::ring::{Reader, Writer};
use counters::Counters;
use locks::Interrupted;
use reply::Reply;
use request_parser::RequestParser;
use session::Session;

/// What a request comes to.
type Done = Result<Outcome, Failure>;

/// Serves one tree of files to one guest.
pub struct Server {
    fs: Box<dyn FileSystem>,
    session: Session,
    interrupted: Interrupted,
    counters: Counters,
}

pub use super::tree::ShareError;

impl Server {
    /// Opens the directory that is to be shared. No request is served on a thread that has not called [`Serve::enter`].
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn open(config: &ShareConfig) -> Result<Self, ShareError> {
        Tree::open(config).map(Self::new)
    }

    /// The same of the directory that `dir` holds, whatever its path leads to by now. [`ShareConfig::dir`] is its name
    /// in what is said.
    ///
    /// # Errors
    /// See [`ShareError`].
    pub fn open_at(config: &ShareConfig, dir: BorrowedFd<'_>) -> Result<Self, ShareError> {
        Tree::open_at(config, dir).map(Self::new)
    }

    /// What holds each thread that serves, should the rules of this server have a fault. `None` if that cannot be told.
    pub fn confinement(&self) -> Option<Confinement> {
        self.fs.confinement()
    }

    /// Has the process make files with the share's label, if it has one, for good: called by its
    /// only thread, from which all others have it (credentials(7)), so that none of them need reach
    /// `/proc` for it.
    ///
    /// # Errors
    /// The host's.
    pub fn label_process(&self) -> io::Result<()> {
        self.fs.label_process()
    }

    /// Has the host's kernel hold the whole process to the share, by Landlock, for good: called by
    /// its only thread, and with [`ShareConfig::confine`] left off. In the directory `leave` files
    /// may still be removed. The version of Landlock's rules; `None` if this host has none that
    /// will do.
    ///
    /// # Errors
    /// The host's.
    pub fn restrict_process(&self, leave: Option<BorrowedFd<'_>>) -> io::Result<Option<u32>> {
        self.fs.restrict_process(leave)
    }

    /// A server over `fs`.
    pub(super) fn new(fs: impl FileSystem + 'static) -> Self {
        Self {
            fs: Box::new(fs),
            session: Session::default(),
            interrupted: Interrupted::default(),
            counters: Counters::default(),
        }
    }

    fn carry_out(&self, mut request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        let Some(opcode) = request.opcode() else {
            self.counters.unknown_requests.inc();
            return Err(Errno::NOSYS.into());
        };
        let rule = opcode.rule();
        // Whoever pauses or ends the share waits for what has been begun: a chain of buffers may hold 4 GiB.
        if request.left() > session::MOST_ASKED {
            return Err(MALFORMED);
        }
        if request.left() < rule.request || request.has_extensions() && !opcode.creates() {
            return Err(MALFORMED);
        }
        if rule.reply.is_some_and(|bytes| reply.room() < bytes) {
            self.counters.short_replies.inc();
            return Err(Failure::Malformed(Errno::IO));
        }
        // Which begins what the others are in.
        if opcode != Opcode::Init {
            request.features = self.session.features().ok_or(Failure::Malformed(Errno::NOTCONN))?;
        }
        if rule.changes && request.features.readonly() {
            return Err(Errno::ROFS.into());
        }
        self.dispatch(opcode, request, reply)
    }

    fn dispatch(&self, opcode: Opcode, request: RequestParser<'_>, reply: &mut Reply<'_>) -> Done {
        match opcode {
            Opcode::Lookup => self.lookup(request, reply),
            Opcode::Forget => self.forget(request),
            Opcode::Getattr => self.getattr(request, reply),
            Opcode::Setattr => self.setattr(request, reply),
            Opcode::Readlink => self.readlink(&request, reply),
            Opcode::Symlink => self.symlink(request, reply),
            Opcode::Mknod => self.mknod(request, reply),
            Opcode::Mkdir => self.mkdir(request, reply),
            Opcode::Unlink => self.unlink(request, reply),
            Opcode::Rmdir => self.rmdir(request, reply),
            Opcode::Rename => self.rename(request, reply),
            Opcode::Link => self.link(request, reply),
            Opcode::Open => self.open_file(request, reply),
            Opcode::Read => self.read(request, reply),
            Opcode::Write => self.write(request, reply),
            Opcode::Statfs => self.statfs(&request, reply),
            Opcode::Release => self.release(request, reply),
            Opcode::Fsync => self.fsync(request, reply),
            Opcode::Setxattr => self.setxattr(request, reply),
            Opcode::Getxattr => self.getxattr(request, reply),
            Opcode::Listxattr => self.listxattr(request, reply),
            Opcode::Removexattr => self.removexattr(request, reply),
            Opcode::Flush => self.flush(request, reply),
            Opcode::Init => self.init(request, reply),
            Opcode::Opendir => self.opendir(request, reply),
            Opcode::Readdir => self.readdir(request, reply),
            Opcode::Readdirplus => self.readdirplus(request, reply),
            Opcode::Releasedir => self.releasedir(request, reply),
            Opcode::Fsyncdir => self.fsyncdir(request, reply),
            Opcode::Getlk => self.getlk(request, reply),
            Opcode::Setlk => self.setlk(request, reply, false),
            Opcode::Setlkw => self.setlk(request, reply, true),
            Opcode::Access => self.access(request, reply),
            Opcode::Create => self.create(request, reply),
            Opcode::Tmpfile => self.tmpfile(request, reply),
            Opcode::Interrupt => self.interrupt(request),
            Opcode::Destroy => self.destroy(&request, reply),
            // None of the host's would mean the same to the guest. Without this answer it asks for
            // each look at a file's flags again.
            Opcode::Ioctl => Err(Errno::NOTTY.into()),
            Opcode::BatchForget => self.batch_forget(request),
            Opcode::Fallocate => self.fallocate(request, reply),
            Opcode::Rename2 => self.rename2(request, reply),
            Opcode::Lseek => self.lseek(request, reply),
            Opcode::CopyFileRange => self.copy_file_range(request, reply),
            Opcode::Syncfs => self.syncfs(request, reply),
            Opcode::Statx => self.statx(request, reply),
        }
    }

    /// Counts a failure, and answers with it if there is an answer.
    fn refuse(&self, opcode: Option<Opcode>, failure: Failure, reply: &mut Reply<'_>) -> Outcome {
        match failure {
            Failure::Malformed(_) => self.counters.malformed_requests.inc(),
            Failure::Refused(_) => self.counters.errors.inc(),
        }
        if opcode.is_some_and(|opcode| opcode.rule().reply.is_none()) {
            return Outcome::Done(0);
        }
        reply.error(failure.errno())
    }

    /// Ends the session, if there is one.
    fn end(&self) {
        self.session.end();
        self.interrupted.clear();
        self.fs.reset();
    }
}

impl Serve for Server {
    fn enter(&self) -> io::Result<()> {
        self.fs.enter()
    }

    fn reserve_fds(&self) {
        self.fs.reserve_fds();
    }

    fn handle(&self, request: Reader<'_>, reply: Writer<'_>) -> Outcome {
        self.counters.requests.inc();
        let room = reply.available_bytes();
        let Some((request, whole)) = RequestParser::read(request) else {
            self.counters.malformed_requests.inc();
            return Outcome::Done(0);
        };
        let opcode = request.opcode();
        let is_answered = opcode.is_none_or(|opcode| opcode.rule().reply.is_some());
        if is_answered && room < reply::HEADER_BYTES {
            self.counters.short_replies.inc();
            self.counters.malformed_requests.inc();
            return Outcome::Done(0);
        }
        let mut reply = Reply::new(request.unique, reply);
        let done = if whole {
            self.carry_out(request, &mut reply)
        } else {
            Err(MALFORMED)
        };
        done.unwrap_or_else(|failure| self.refuse(opcode, failure, &mut reply))
    }

    fn give_up(&self, request: Reader<'_>) {
        if let Some((request, _)) = RequestParser::read(request) {
            self.give_up(request);
        }
    }

    fn generation(&self) -> u64 {
        // Both only grow, so that the sum changes with either.
        self.fs.lock_generation().wrapping_add(self.interrupted.generation())
    }

    fn reset(&self) {
        self.end();
    }

    fn counters(&self) -> Vec<(&'static str, u64)> {
        let mut all = self.counters.list();
        all.extend(self.fs.counters());
        all
    }
}

#[cfg(test)]
mod tests;
