//! A client of the REST API: one connection, one request at a time, each answered within a deadline or given up.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;

pub use super::client_error::ClientError;
use super::dial::dial;
use super::lines::Lines;
use super::request_in_flight::{BODY_BYTES, HEAD_BYTES, Head, RequestInFlight, chain_of};

/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// A connection to one husk. After any error but a refusal it is out of step, and good for nothing.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: UnixStream,
    patience: Duration,
    /// What has come and belongs to no answer yet.
    pub(super) left: Vec<u8>,
}

impl Client {
    /// Connects to `socket`. `patience` is what the connection, and each request on it, is given.
    ///
    /// # Errors
    /// Nobody listens, or nobody takes the connection in time.
    pub fn connect(socket: &Path, patience: Duration) -> Result<Self, ClientError> {
        let cannot = |source| ClientError::Connect {
            socket: socket.into(),
            source,
        };
        let stream = dial(socket, patience).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ClientError::Busy {
                socket: socket.into(),
                seconds: patience.as_secs_f64(),
            },
            _ => cannot(error),
        })?;
        stream.set_nonblocking(false).map_err(cannot)?;
        Ok(Self {
            socket: socket.into(),
            stream,
            patience,
            left: Vec::new(),
        })
    }

    /// Asks `GET` of `name`, such as `vm.info`.
    ///
    /// # Errors
    /// A refusal, silence, or what is no answer.
    pub fn get(&mut self, name: &str) -> Result<Value, ClientError> {
        self.ask("GET", name, None)
    }

    /// Asks `GET` of `name`, whose answer is a text.
    ///
    /// # Errors
    /// A refusal, silence, or what is no answer.
    pub fn get_text(&mut self, name: &str) -> Result<String, ClientError> {
        let in_flight = self.begin("GET", name, None)?;
        let body = self.receive(&in_flight)?;
        String::from_utf8(body).map_err(|e| in_flight.nonsense(format!("no text: {e}")))
    }

    /// Asks `GET` of `name`, whose answer goes on for as long as there is something to say.
    ///
    /// # Errors
    /// A refusal, silence, or what is no such answer.
    pub fn lines(mut self, name: &str) -> Result<Lines, ClientError> {
        let in_flight = self.begin("GET", name, None)?;
        let head = self.head(&in_flight)?;
        if head.is_stream && head.status == 200 {
            self.left.drain(..head.bytes);
            return Ok(Lines {
                client: self,
                request: name.into(),
                chunk: None,
                line: Vec::new(),
                ended: false,
            });
        }
        self.body(&head, &in_flight)?;
        Err(in_flight.nonsense("no stream".into()))
    }

    /// Asks `PUT` of `name`; `Value::Null` is the answer without a body.
    ///
    /// # Errors
    /// A refusal, silence, or what is no answer.
    pub fn put(&mut self, name: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        self.ask("PUT", name, body)
    }

    /// As [`Client::put`], with `limit` for the answer if that is less than what each request is
    /// given; `None` if it does not come in that time. husk goes on with it, and further requests
    /// go over another connection.
    ///
    /// # Errors
    /// A refusal, what is no answer, or there is no other connection.
    pub fn put_within(
        &mut self,
        name: &str,
        body: Option<&Value>,
        limit: Duration,
    ) -> Result<Option<Value>, ClientError> {
        let patience = self.patience;
        self.patience = limit.min(patience);
        let answer = self.put(name, body);
        self.patience = patience;
        match answer {
            Err(ClientError::Silent { .. }) => {
                *self = Self::connect(&self.socket, patience)?;
                Ok(None)
            }
            answer => answer.map(Some),
        }
    }

    fn ask(&mut self, method: &str, name: &str, body: Option<&Value>) -> Result<Value, ClientError> {
        let in_flight = self.begin(method, name, body)?;
        match self.receive(&in_flight)?.as_slice() {
            [] => Ok(Value::Null),
            body => serde_json::from_slice(body).map_err(|e| in_flight.nonsense(format!("no JSON: {e}"))),
        }
    }

    /// Sends a request.
    fn begin<'a>(
        &mut self,
        method: &str,
        name: &'a str,
        body: Option<&Value>,
    ) -> Result<RequestInFlight<'a>, ClientError> {
        let in_flight = RequestInFlight {
            request: name,
            deadline: Instant::now() + self.patience,
            patience: self.patience,
        };
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut bytes = format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        if !body.is_empty() {
            bytes.push_str("Content-Type: application/json\r\n");
            bytes.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        bytes.push_str("\r\n");
        bytes.push_str(&body);
        self.send(bytes.as_bytes(), &in_flight)?;
        Ok(in_flight)
    }

    fn send(&mut self, mut bytes: &[u8], in_flight: &RequestInFlight<'_>) -> Result<(), ClientError> {
        while !bytes.is_empty() {
            self.stream
                .set_write_timeout(Some(in_flight.left()?))
                .map_err(|e| in_flight.broken(e))?;
            match self.stream.write(bytes) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(error) if is_early(&error) => {}
                // What was said before hanging up may say why.
                Err(error) if is_end(&error) => return Ok(()),
                Err(source) => return Err(in_flight.broken(source)),
            }
        }
        Ok(())
    }

    /// The body of the answer, empty if there is none.
    fn receive(&mut self, in_flight: &RequestInFlight<'_>) -> Result<Vec<u8>, ClientError> {
        let head = self.head(in_flight)?;
        self.body(&head, in_flight)
    }

    fn head(&mut self, in_flight: &RequestInFlight<'_>) -> Result<Head, ClientError> {
        loop {
            match in_flight.parse_head(&self.left)? {
                // Interim answers (RFC 9110 §15.2) are not waited for.
                Some(head) if head.status < 200 => drop(self.left.drain(..head.bytes)),
                Some(head) => return Ok(head),
                None => self.read_more(in_flight)?,
            }
        }
    }

    fn body(&mut self, head: &Head, in_flight: &RequestInFlight<'_>) -> Result<Vec<u8>, ClientError> {
        if head.is_stream {
            return Err(in_flight.nonsense("a body of unknown length".into()));
        }
        let end = match head.body_bytes {
            Some(bytes) => head.bytes + bytes,
            None => self.read_to_end(in_flight)?,
        };
        while self.left.len() < end {
            self.read_more(in_flight)?;
        }
        let mut answer: Vec<u8> = self.left.drain(..end).collect();
        let body = answer.split_off(head.bytes);
        if !(200..300).contains(&head.status) {
            return Err(ClientError::Refused {
                request: in_flight.request.into(),
                status: head.status,
                chain: chain_of(&body),
            });
        }
        Ok(body)
    }

    /// Reads until the other side hangs up, and returns how much has come.
    fn read_to_end(&mut self, in_flight: &RequestInFlight<'_>) -> Result<usize, ClientError> {
        loop {
            match self.read_more(in_flight) {
                Err(ClientError::Closed { .. }) => return Ok(self.left.len()),
                other => other?,
            }
            if self.left.len() > HEAD_BYTES + BODY_BYTES {
                return Err(in_flight.nonsense(format!("a body of more than {BODY_BYTES} bytes")));
            }
        }
    }

    pub(super) fn read_more(&mut self, in_flight: &RequestInFlight<'_>) -> Result<(), ClientError> {
        let mut chunk = [0; CHUNK_BYTES];
        self.stream
            .set_read_timeout(Some(in_flight.left()?))
            .map_err(|e| in_flight.broken(e))?;
        let closed = || ClientError::Closed {
            request: in_flight.request.into(),
        };
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(closed()),
            Ok(bytes) => {
                self.left.extend(chunk.iter().take(bytes));
                Ok(())
            }
            Err(error) if is_early(&error) => Ok(()),
            Err(error) if is_end(&error) => Err(closed()),
            Err(source) => Err(in_flight.broken(source)),
        }
    }
}

/// Whether the kernel gave up before the deadline is looked at again.
fn is_early(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

/// Whether the other side has hung up.
fn is_end(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

#[cfg(test)]
#[path = "client_test.rs"]
mod tests;
