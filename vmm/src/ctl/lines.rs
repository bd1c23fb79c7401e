//! An answer that goes on: lines, in chunks of HTTP, as they come.

use std::time::{Duration, Instant};

use super::client::Client;
use super::client_error::ClientError;
use super::request_in_flight::{BODY_BYTES, HEAD_BYTES, RequestInFlight};

/// How long somebody waits who has no limit: a year.
const FOREVER: Duration = Duration::from_secs(31_536_000);

/// An answer that goes on: lines, as they come.
#[derive(Debug)]
pub struct Lines {
    pub(super) client: Client,
    pub(super) request: String,
    /// What of the present chunk has still to come; `None` where the length of the next one stands.
    pub(super) chunk: Option<usize>,
    /// What has come of the present line.
    pub(super) line: Vec<u8>,
    pub(super) ended: bool,
}

impl Lines {
    /// The next line, without its end; `None` when the other side has said that there will be no
    /// more. Waits for at most `patience` if there is any, else for as long as it takes.
    ///
    /// # Errors
    /// Silence, the end of the connection before that of the stream, or what is no stream.
    pub fn next(&mut self, patience: Option<Duration>) -> Result<Option<Vec<u8>>, ClientError> {
        let patience = patience.unwrap_or(FOREVER);
        let request = self.request.clone();
        let in_flight = RequestInFlight {
            request: &request,
            deadline: Instant::now() + patience,
            patience,
        };
        loop {
            if let Some(end) = self.line.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.line.drain(..=end).collect();
                line.pop();
                return Ok(Some(line));
            }
            if self.ended {
                return Ok(None);
            }
            if !self.advance(&in_flight)? {
                self.client.read_more(&in_flight)?;
            }
        }
    }

    /// Takes a step through what has come (RFC 9112 §7.1); `false` if more has to come first.
    fn advance(&mut self, in_flight: &RequestInFlight<'_>) -> Result<bool, ClientError> {
        let left = &mut self.client.left;
        match self.chunk {
            None => {
                let parsed = httparse::parse_chunk_size(left);
                match parsed.map_err(|_| in_flight.nonsense("no stream of chunks".into()))? {
                    httparse::Status::Partial if left.len() > HEAD_BYTES => {
                        Err(in_flight.nonsense("a long number".into()))
                    }
                    httparse::Status::Partial => Ok(false),
                    httparse::Status::Complete((begin, bytes)) => {
                        left.drain(..begin);
                        let bytes = usize::try_from(bytes).ok().filter(|bytes| *bytes <= BODY_BYTES);
                        let bytes = bytes.ok_or_else(|| in_flight.nonsense("too large a chunk".into()))?;
                        self.ended = bytes == 0;
                        self.chunk = Some(bytes);
                        Ok(true)
                    }
                }
            }
            // The end of the line behind a chunk.
            Some(0) if left.len() < 2 => Ok(false),
            Some(0) => {
                left.drain(..2);
                self.chunk = None;
                Ok(true)
            }
            Some(_) if left.is_empty() => Ok(false),
            Some(bytes) => {
                let now = bytes.min(left.len());
                self.line.extend(left.drain(..now));
                if self.line.len() > BODY_BYTES {
                    return Err(in_flight.nonsense("too long a line".into()));
                }
                self.chunk = Some(bytes - now);
                Ok(true)
            }
        }
    }
}
