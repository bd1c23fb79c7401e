//! A client of the REST API: one connection, one request at a time, each answered within a deadline or given up.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use husk_virtio::unix;
use serde_json::Value;

/// The longest head of an answer.
const HEAD_BYTES: usize = 16 << 10;
/// The most fields of it.
const HEAD_FIELDS: usize = 64;
/// The longest body.
const BODY_BYTES: usize = 16 << 20;
/// Between two attempts to connect to a listener whose queue is full.
const RETRY: Duration = Duration::from_millis(10);
/// How long somebody waits who has no limit: a year.
const FOREVER: Duration = Duration::from_secs(31_536_000);
/// What is read at once.
const CHUNK_BYTES: usize = 16 << 10;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there, or not for us.
    #[error("cannot connect to {}", .socket.display())]
    Connect {
        /// The API's socket.
        socket: PathBuf,
        /// The host's answer.
        source: io::Error,
    },
    /// Somebody listens, and does not take connections.
    #[error("{} takes no connection within {seconds} s", .socket.display())]
    Busy {
        /// The API's socket.
        socket: PathBuf,
        /// How long it was given.
        seconds: f64,
    },
    /// No answer.
    #[error("{request} was not answered within {seconds} s{}", goes_on(.request))]
    Silent {
        /// The request.
        request: String,
        /// How long it was given.
        seconds: f64,
    },
    /// The connection ended.
    #[error("the connection ended before {request} was answered")]
    Closed {
        /// The request.
        request: String,
    },
    /// The connection broke.
    #[error("{request} cannot be asked")]
    Broken {
        /// The request.
        request: String,
        /// The host's answer.
        source: io::Error,
    },
    /// What came is no answer of this API.
    #[error("the answer to {request} is {what}")]
    Nonsense {
        /// The request.
        request: String,
        /// What came instead, in words.
        what: String,
    },
    /// The server answered with a status other than 2xx.
    #[error("{request} was refused ({status}): {chain}")]
    Refused {
        /// The request.
        request: String,
        /// The HTTP status.
        status: u16,
        /// What failed, then why, in one line.
        chain: String,
    },
}

/// What there is to know of a request that was not answered: one that changes something is carried out nevertheless.
fn goes_on(request: &str) -> &'static str {
    match request {
        "vm.info" | "vm.containers" | "vmm.ping" | "vm.counters" | "vm.queues" | "vm.resize-status" | "vmm.metrics"
        | "vm.events" | "vmm.log-level" => "",
        _ => "; husk goes on with it, and husk ctl SOCKET info shows how far it has come",
    }
}

impl ClientError {
    /// The status of a refusal.
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A connection to one husk. After any error but a refusal it is out of step, and good for nothing.
#[derive(Debug)]
pub struct Client {
    socket: PathBuf,
    stream: UnixStream,
    patience: Duration,
    /// What has come and belongs to no answer yet.
    left: Vec<u8>,
}

/// An answer that goes on: lines, as they come.
#[derive(Debug)]
pub struct Lines {
    client: Client,
    request: String,
    /// What of the present chunk has still to come; `None` where the length of the next one stands.
    chunk: Option<usize>,
    /// What has come of the present line.
    line: Vec<u8>,
    ended: bool,
}

/// A request on its way.
struct RequestInFlight<'a> {
    request: &'a str,
    deadline: Instant,
    patience: Duration,
}

/// The head of an answer: its bytes, status and length of body.
struct Head {
    bytes: usize,
    status: u16,
    /// `None`: up to the end of the connection.
    body_bytes: Option<usize>,
    is_stream: bool,
}

/// Connects to `socket`; for `patience`, if its listener has a full queue.
///
/// # Errors
/// `WouldBlock` if it is full for as long; what the host says otherwise.
pub fn dial(socket: &Path, patience: Duration) -> io::Result<UnixStream> {
    let begin = Instant::now();
    // A path through /proc/PID/root may be too long for an address, where the socket's own is not.
    let (_folder, short) = match shortened(socket) {
        Some((folder, short)) => (Some(folder), Some(short)),
        None => (None, None),
    };
    let socket = short.as_deref().unwrap_or(socket);
    loop {
        match unix::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && begin.elapsed() < patience => {}
            connected => return connected,
        }
        thread::sleep(RETRY);
    }
}

/// The same socket by a path that fits into an address, and the open directory that this path begins in. `None` where `socket` fits, or
/// where there is no such directory.
fn shortened(socket: &Path) -> Option<(File, PathBuf)> {
    if socket.as_os_str().len() <= unix::PATH_MAX {
        return None;
    }
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    let folder = options.open(socket.parent()?).ok()?;
    let path = format!("/proc/self/fd/{}", folder.as_raw_fd());
    Some((folder, Path::new(&path).join(socket.file_name()?)))
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

    /// As [`Client::put`], with `limit` for the answer if that is less than what each request is given; `None` if it does not come in that
    /// time. husk goes on with it, and further requests go over another connection.
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

    fn read_more(&mut self, in_flight: &RequestInFlight<'_>) -> Result<(), ClientError> {
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

impl Lines {
    /// The next line, without its end; `None` when the other side has said that there will be no more. Waits for at most `patience` if
    /// there is any, else for as long as it takes.
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

impl RequestInFlight<'_> {
    /// How long is left, which is never nothing.
    fn left(&self) -> Result<Duration, ClientError> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(ClientError::Silent {
                request: self.request.into(),
                seconds: self.patience.as_secs_f64(),
            });
        }
        // The kernel counts microseconds, and takes 0 for no limit.
        Ok(left.max(Duration::from_micros(1)))
    }

    /// `None` until it is complete.
    fn parse_head(&self, bytes: &[u8]) -> Result<Option<Head>, ClientError> {
        let mut fields = [httparse::EMPTY_HEADER; HEAD_FIELDS];
        let mut response = httparse::Response::new(&mut fields);
        let parsed = response.parse(bytes);
        let head_bytes = match parsed.map_err(|e| self.nonsense(format!("no HTTP: {e}")))? {
            httparse::Status::Complete(bytes) => bytes,
            httparse::Status::Partial if bytes.len() > HEAD_BYTES => {
                return Err(self.nonsense(format!("a head of more than {HEAD_BYTES} bytes")));
            }
            httparse::Status::Partial => return Ok(None),
        };
        let field = |name: &str| {
            let mut named = response.headers.iter();
            named.find(|field| field.name.eq_ignore_ascii_case(name))
        };
        let is_stream = field("Transfer-Encoding").is_some();
        let status = response.code.unwrap_or_default();
        // RFC 9112 §6.3. A refusal that does not say how long its reason is has none: its server may keep the connection.
        let has_body = (200..300).contains(&status) && status != 204;
        let too_long = || self.nonsense(format!("a body of more than {BODY_BYTES} bytes, or of none"));
        let body_bytes = match field("Content-Length") {
            None => (!has_body).then_some(0),
            Some(field) => Some(
                str::from_utf8(field.value)
                    .ok()
                    .and_then(|text| text.trim().parse().ok())
                    .filter(|bytes| *bytes <= BODY_BYTES)
                    .ok_or_else(too_long)?,
            ),
        };
        Ok(Some(Head {
            bytes: head_bytes,
            status,
            is_stream,
            body_bytes,
        }))
    }

    fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            request: self.request.into(),
            source,
        }
    }

    fn nonsense(&self, what: String) -> ClientError {
        ClientError::Nonsense {
            request: self.request.into(),
            what,
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

/// The causes in an error's body, joined as husk joins them; another body as it is.
fn chain_of(body: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(chain) if !chain.is_empty() => chain.join(": "),
        _ if body.is_empty() => "no reason given".into(),
        _ => String::from_utf8_lossy(body).into_owned(),
    }
}

#[cfg(test)]
#[path = "client_test.rs"]
mod tests;
