//! One question, one answer, over a stream socket whose other end may do anything.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::deadline::Deadline;
use super::error::BackendError;
use super::message::{ANSWER_BYTES, Answer, HEADER_BYTES, Request, header};
use super::socket::{Pending, peek};
use crate::syscall::is_ready;

/// How long a back-end may take for everything that it is asked on one occasion: to agree, to take
/// all rings or give them back, to follow a change of memory. Each question takes it microseconds,
/// unless the host is short of everything.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to a back-end. Used by one thread at a time. All exchanges together end by the
/// deadline that was set last.
#[derive(Debug)]
pub(super) struct Channel {
    /// Non-blocking. Others have it, too, to hang up while somebody waits here.
    socket: Arc<UnixStream>,
    deadline: Deadline,
    /// Whether the back-end answers requests that ask for nothing but success (`REPLY_ACK`).
    acknowledges: bool,
    /// Questions and answers have lost step: nothing that comes would be understood.
    lost: bool,
}

impl Channel {
    /// Speaks over `socket` until `deadline`.
    pub fn new(socket: Arc<UnixStream>, deadline: Deadline) -> Result<Self, BackendError> {
        socket.set_nonblocking(true).map_err(BackendError::Setup)?;
        Ok(Self {
            socket,
            deadline,
            acknowledges: false,
            lost: false,
        })
    }

    /// Sets the end of all exchanges that follow.
    pub fn set_deadline(&mut self, deadline: Deadline) {
        self.deadline = deadline;
    }

    /// Whether nothing more can be said: questions and answers have lost step, or the connection has ended.
    pub fn is_lost(&self) -> bool {
        self.lost
    }

    /// From now on every request is acknowledged.
    pub fn expect_acknowledgements(&mut self) {
        self.acknowledges = true;
    }

    /// Asks for a number.
    pub fn ask(&mut self, request: Request, payload: &[u8]) -> Result<[u8; ANSWER_BYTES], BackendError> {
        self.exchange(request, false, payload, &[], true)
    }

    /// The answer to a question that was only told, and to which there was none yet ([`Channel::has_answered`]).
    pub fn answer(&mut self, request: Request) -> Result<[u8; ANSWER_BYTES], BackendError> {
        if self.lost {
            return Err(BackendError::Gone(None));
        }
        let received = self.receive(request);
        self.lost = received.is_err();
        received
    }

    /// Whether there is something to read: an answer, or the end of the connection.
    pub fn has_answered(&self) -> bool {
        // Whoever watches the connection is told, and looks again.
        is_ready(self.socket.as_raw_fd(), libc::POLLIN, Duration::ZERO).unwrap_or(false)
    }

    /// Asks for something to be done.
    pub fn command(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> Result<(), BackendError> {
        let answer = self.exchange(request, self.acknowledges, payload, fds, self.acknowledges)?;
        match u64::from_ne_bytes(answer) {
            0 => Ok(()),
            code => Err(BackendError::Refused { request, code }),
        }
    }

    /// Says what is to be done, and asks for no answer.
    pub fn tell(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> Result<(), BackendError> {
        self.exchange(request, false, payload, fds, false).map(drop)
    }

    /// Whether the back-end is still there, and silent as it should be while it is asked nothing.
    pub fn check(&mut self) -> Result<(), BackendError> {
        let checked = match peek(&self.socket) {
            Ok(Pending::Nothing) if !self.lost => return Ok(()),
            Ok(Pending::Something) => Err(BackendError::Unasked),
            _ => Err(BackendError::Gone(None)),
        };
        self.lost = true;
        checked
    }

    /// Ends the connection for both sides: whoever watches it wakes up.
    pub fn hang_up(&mut self) {
        self.lost = true;
        // Fails only when the other end has gone already.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    fn exchange(
        &mut self,
        request: Request,
        answer_wanted: bool,
        payload: &[u8],
        fds: &[RawFd],
        answered: bool,
    ) -> Result<[u8; ANSWER_BYTES], BackendError> {
        if self.lost {
            return Err(BackendError::Gone(None));
        }
        let header = header(request, answer_wanted, payload);
        let exchanged = self.send(request, &[&header, payload].concat(), fds).and_then(|()| {
            if answered {
                self.receive(request)
            } else {
                Ok([0; ANSWER_BYTES])
            }
        });
        self.lost = exchanged.is_err();
        exchanged
    }

    fn send(&self, request: Request, message: &[u8], fds: &[RawFd]) -> Result<(), BackendError> {
        let (mut rest, mut fds) = (message, fds);
        while !rest.is_empty() {
            match self.socket.send_with_fds(&[rest], fds) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    // They went with the first byte.
                    fds = &[];
                }
                Err(error) => {
                    let error = io::Error::from_raw_os_error(error.errno());
                    self.wait_after(request, error, libc::POLLOUT)?;
                }
            }
        }
        Ok(())
    }

    fn receive(&self, request: Request) -> Result<[u8; ANSWER_BYTES], BackendError> {
        let (mut header, mut body) = ([0; HEADER_BYTES], [0; ANSWER_BYTES]);
        self.fill(request, &mut header)?;
        let answer = Answer::parse(&header);
        if !answer.is_to(request) {
            let Answer {
                request: found,
                flags,
                size,
            } = answer;
            return Err(BackendError::Answer {
                request,
                found,
                flags,
                size,
            });
        }
        self.fill(request, &mut body)?;
        Ok(body)
    }

    /// Reads until `buffer` is full. Plain reads: the kernel closes any descriptor that comes along.
    fn fill(&self, request: Request, mut buffer: &mut [u8]) -> Result<(), BackendError> {
        while !buffer.is_empty() {
            match (&*self.socket).read(buffer) {
                Ok(0) => return Err(BackendError::Gone(Some(request))),
                Ok(count) => buffer = buffer.get_mut(count..).unwrap_or_default(),
                Err(error) => self.wait_after(request, error, libc::POLLIN)?,
            }
        }
        Ok(())
    }

    /// Waits until it is worth trying again after `error`, for the socket to be ready for `events` if that was missing.
    fn wait_after(&self, request: Request, error: io::Error, events: i16) -> Result<(), BackendError> {
        let broken = |source| BackendError::Broken { request, source };
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(BackendError::Gone(Some(request))),
            io::ErrorKind::WouldBlock => {
                let silent = || BackendError::Silent {
                    request,
                    limit: self.deadline.limit(),
                };
                let left = self.deadline.left().ok_or_else(silent)?;
                match is_ready(self.socket.as_raw_fd(), events, left) {
                    Err(error) if error.kind() != io::ErrorKind::Interrupted => Err(broken(error)),
                    // If time has run out, the next look at the clock says so.
                    _ => Ok(()),
                }
            }
            _ => Err(broken(error)),
        }
    }
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
