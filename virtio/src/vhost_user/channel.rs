//! One question, one answer, over a stream socket whose other end may do anything.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::error::BackendError;
use super::message::{ANSWER_BYTES, Answer, HEADER_BYTES, Request, header};
use super::socket::{Heard, peek};

/// How long a back-end may take for an answer. What it is asked takes microseconds, unless the host is short of everything.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The connection to a back-end. Used by one thread at a time; an exchange takes at most twice the time limit.
#[derive(Debug)]
pub(super) struct Channel {
    socket: UnixStream,
    limit: Duration,
    /// Whether the back-end answers requests that ask for nothing but success (`REPLY_ACK`).
    acknowledges: bool,
    /// Questions and answers have lost step: nothing that comes would be understood.
    lost: bool,
}

impl Channel {
    /// Speaks over `socket`, with patience for `limit` at a time.
    pub fn new(socket: UnixStream, limit: Duration) -> Result<Self, BackendError> {
        let limited = socket
            .set_read_timeout(Some(limit))
            .and_then(|()| socket.set_write_timeout(Some(limit)));
        limited.map_err(BackendError::Setup)?;
        Ok(Self {
            socket,
            limit,
            acknowledges: false,
            lost: false,
        })
    }

    /// From now on every request is acknowledged.
    pub fn expect_acknowledgements(&mut self) {
        self.acknowledges = true;
    }

    /// Asks for a number.
    pub fn ask(&mut self, request: Request, payload: &[u8]) -> Result<[u8; ANSWER_BYTES], BackendError> {
        self.exchange(request, false, payload, &[], true)
    }

    /// Asks for something to be done.
    pub fn command(&mut self, request: Request, payload: &[u8], fds: &[RawFd]) -> Result<(), BackendError> {
        let answer = self.exchange(request, self.acknowledges, payload, fds, self.acknowledges)?;
        match u64::from_ne_bytes(answer) {
            0 => Ok(()),
            code => Err(BackendError::Refused { request, code }),
        }
    }

    /// Whether the back-end is still there, and silent as it should be while it is asked nothing.
    pub fn check(&mut self) -> Result<(), BackendError> {
        let checked = match peek(&self.socket) {
            Ok(Heard::Nothing) if !self.lost => return Ok(()),
            Ok(Heard::Something) => Err(BackendError::Unasked),
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
        let deadline = Instant::now().checked_add(self.limit);
        let (mut rest, mut fds) = (message, fds);
        while !rest.is_empty() {
            match self.socket.send_with_fds(&[rest], fds) {
                Ok(sent) => {
                    rest = rest.get(sent..).unwrap_or_default();
                    // They went with the first byte.
                    fds = &[];
                }
                Err(error) => self.judge(request, io::Error::from_raw_os_error(error.errno()), deadline)?,
            }
        }
        Ok(())
    }

    fn receive(&self, request: Request) -> Result<[u8; ANSWER_BYTES], BackendError> {
        let deadline = Instant::now().checked_add(self.limit);
        let (mut header, mut body) = ([0; HEADER_BYTES], [0; ANSWER_BYTES]);
        self.fill(request, &mut header, deadline)?;
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
        self.fill(request, &mut body, deadline)?;
        Ok(body)
    }

    /// Reads until `buffer` is full. Plain reads: the kernel closes any descriptor that comes along.
    fn fill(&self, request: Request, mut buffer: &mut [u8], deadline: Option<Instant>) -> Result<(), BackendError> {
        while !buffer.is_empty() {
            match (&self.socket).read(buffer) {
                Ok(0) => return Err(BackendError::Gone(Some(request))),
                Ok(count) => {
                    buffer = buffer.get_mut(count..).unwrap_or_default();
                    // Neither may one byte at a time take for ever.
                    if !buffer.is_empty() && is_over(deadline) {
                        return Err(self.silent(request));
                    }
                }
                Err(error) => self.judge(request, error, deadline)?,
            }
        }
        Ok(())
    }

    /// Whether to try again after `error`.
    fn judge(&self, request: Request, error: io::Error, deadline: Option<Instant>) -> Result<(), BackendError> {
        match error.kind() {
            io::ErrorKind::Interrupted if !is_over(deadline) => Ok(()),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Err(self.silent(request)),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(BackendError::Gone(Some(request))),
            _ => Err(BackendError::Broken { request, source: error }),
        }
    }

    fn silent(&self, request: Request) -> BackendError {
        BackendError::Silent {
            request,
            limit: self.limit,
        }
    }
}

fn is_over(deadline: Option<Instant>) -> bool {
    deadline.is_none_or(|deadline| Instant::now() >= deadline)
}

impl AsRawFd for Channel {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

#[cfg(test)]
#[path = "channel_test.rs"]
mod tests;
