//! HTTP/1.1 requests out of a stream of bytes, however it is torn (RFC 9112).
//!
//! Bodies have a `Content-Length`; chunked ones are refused with 411, which clients answer by
//! sending the length. A request that is refused here ends its connection: where the next one
//! begins is not known.

use std::fmt;

use crate::metrics::Format;

/// The most bytes of a request line and headers.
pub const HEAD_BYTES: usize = 16 << 10;
/// The most headers.
pub const HEADERS: usize = 64;
/// The most bytes of any body.
pub const BODY_BYTES: usize = 256 << 10;
/// The most bytes of requests that have begun and not come to their end, of all clients together.
pub const UNFINISHED_BYTES: usize = 1 << 20;

/// What is done to a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Ask.
    Get,
    /// As `Get`, without the body of the answer.
    Head,
    /// Do.
    Put,
    /// Anything else: no resource has it.
    Other,
}

/// A whole request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// The method.
    pub method: Method,
    /// The path of the target, without query.
    pub path: String,
    /// The body; empty when there is none.
    pub body: Vec<u8>,
    /// Whether the client wants the connection closed after the answer.
    pub close: bool,
    /// What figures are written in, if those are asked for.
    pub format: Format,
    /// How many bytes of the stream have gone by when this request ends.
    pub end: u64,
}

/// Why a stream cannot be understood any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not HTTP.
    #[error("not an HTTP/1.1 request: {0}")]
    Syntax(httparse::Error),
    /// Too long a head.
    #[error("request line and headers exceed {HEAD_BYTES} bytes or {HEADERS} headers")]
    Head,
    /// Too long a body.
    #[error("body of {found} bytes, at most {most} allowed")]
    Body {
        /// How long it is to be.
        found: u64,
        /// How long it may be there.
        most: usize,
    },
    /// All clients together have sent too much of what they have not brought to its end; this one began first.
    #[error(
        "unfinished requests of more than {UNFINISHED_BYTES} bytes in all, none has waited for longer than this one"
    )]
    Unfinished,
    /// A length that is no number, or two that differ.
    #[error("content-length is not one whole number")]
    Length,
    /// A body without a length.
    #[error("transfer-encoding is not supported, send content-length")]
    Encoding,
    /// An expectation other than `100-continue`.
    #[error("expect: only 100-continue is supported")]
    Expectation,
    /// More than the connection carries at a time.
    #[error("more file descriptors than one request can carry")]
    Descriptors,
}

impl Malformed {
    /// The HTTP status code.
    pub const fn status(self) -> u16 {
        match self {
            Self::Syntax(httparse::Error::Version) => 505,
            Self::Syntax(_) | Self::Length | Self::Descriptors => 400,
            Self::Head => 431,
            Self::Body { .. } | Self::Unfinished => 413,
            Self::Encoding => 411,
            Self::Expectation => 417,
        }
    }
}

/// A request whose head has come.
struct Head {
    method: Method,
    path: String,
    body_bytes: usize,
    close: bool,
    format: Format,
    /// Whether the client waits for leave to send the body.
    waits: bool,
}

/// The bytes of one connection, and how far they have been understood.
pub struct Parser {
    /// The most bytes of the body of a request with this method and path.
    most: fn(Method, &str) -> usize,
    buffer: Vec<u8>,
    /// Bytes of the buffer in which the end of the head was looked for.
    searched: usize,
    /// Bytes of the stream before the buffer.
    consumed: u64,
    head: Option<Head>,
}

impl Parser {
    /// Nothing received yet. `most` says how many bytes the body of a request with this method and path may have: what
    /// is longer is refused before it has come.
    pub fn new(most: fn(Method, &str) -> usize) -> Self {
        Self {
            most,
            buffer: Vec::new(),
            searched: 0,
            consumed: 0,
            head: None,
        }
    }

    /// Takes what has been received.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// How many bytes wait for the end of their request, or for their turn.
    pub fn waiting(&self) -> usize {
        self.buffer.len()
    }

    /// Forgets what waits, of a stream that is of no more use.
    pub fn forget(&mut self) {
        self.take(self.buffer.len());
    }

    /// How many bytes of the stream have been received.
    pub fn received(&self) -> u64 {
        self.consumed.saturating_add(self.buffer.len() as u64)
    }

    /// The next request, once it is whole.
    ///
    /// # Errors
    /// The stream is of no more use then.
    pub fn next_message(&mut self) -> Result<Option<Message>, Malformed> {
        if self.head.is_none() {
            self.head = self.take_head()?;
        }
        let Some(head) = self.head.take_if(|head| head.body_bytes <= self.buffer.len()) else {
            return Ok(None);
        };
        let body = self.take(head.body_bytes);
        Ok(Some(Message {
            method: head.method,
            path: head.path,
            body,
            close: head.close,
            format: head.format,
            end: self.consumed,
        }))
    }

    /// Whether the client waits for `100 Continue`. True once for each request.
    pub fn take_wait(&mut self) -> bool {
        self.head.as_mut().is_some_and(|head| std::mem::take(&mut head.waits))
    }

    fn take_head(&mut self) -> Result<Option<Head>, Malformed> {
        self.skip_empty_lines();
        let Some(bytes) = self.find_head() else {
            return if self.buffer.len() > HEAD_BYTES {
                Err(Malformed::Head)
            } else {
                Ok(None)
            };
        };
        if bytes > HEAD_BYTES {
            return Err(Malformed::Head);
        }
        let head = parse(self.buffer.get(..bytes).unwrap_or_default(), self.most)?;
        self.take(bytes);
        Ok(Some(head))
    }

    /// RFC 9112 §2.2: empty lines before a request are ignored.
    fn skip_empty_lines(&mut self) {
        if self.searched == 0 {
            let empty = self.buffer.iter().take_while(|byte| matches!(byte, b'\r' | b'\n'));
            let empty = empty.count();
            self.take(empty);
        }
    }

    /// How many bytes the head has, if it has come: up to the first empty line. Looks at each byte once.
    fn find_head(&mut self) -> Option<usize> {
        let from = self.searched.saturating_sub(3);
        let bytes = self.buffer.get(from..)?;
        let end = (0..bytes.len()).find_map(|at| {
            let rest = bytes.get(at..)?;
            let end = [&b"\n\r\n"[..], b"\n\n"]
                .into_iter()
                .find(|end| rest.starts_with(end))?;
            Some(from.saturating_add(at).saturating_add(end.len()))
        });
        self.searched = self.buffer.len();
        end
    }

    /// Removes the first `count` bytes.
    fn take(&mut self, count: usize) -> Vec<u8> {
        let rest = self.buffer.split_off(count.min(self.buffer.len()));
        let taken = std::mem::replace(&mut self.buffer, rest);
        self.consumed = self.consumed.saturating_add(taken.len() as u64);
        self.searched = 0;
        taken
    }
}

/// What is waited for, for a log.
impl fmt::Debug for Parser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wants = self.head.as_ref().map(|head| head.body_bytes);
        write!(f, "Parser({} bytes, body of {wants:?})", self.buffer.len())
    }
}

fn parse(bytes: &[u8], most: fn(Method, &str) -> usize) -> Result<Head, Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(bytes) {
        Ok(httparse::Status::Complete(_)) => {}
        // An empty line inside the head, which the parser takes for something else than its end.
        Ok(httparse::Status::Partial) => return Err(Malformed::Syntax(httparse::Error::NewLine)),
        Err(httparse::Error::TooManyHeaders) => return Err(Malformed::Head),
        Err(error) => return Err(Malformed::Syntax(error)),
    }
    let method = match request.method {
        Some("GET") => Method::Get,
        Some("HEAD") => Method::Head,
        Some("PUT") => Method::Put,
        _ => Method::Other,
    };
    let mut head = Head {
        method,
        path: path(request.path.unwrap_or_default()).to_string(),
        body_bytes: 0,
        // HTTP/1.0 closes unless told otherwise (RFC 9112 §9.3).
        close: request.version == Some(0),
        format: Format::default(),
        waits: false,
    };
    let mut length = None;
    for header in request.headers {
        let is = |name: &str| header.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            length = Some(content_length(header.value, length)?);
        } else if is("transfer-encoding") {
            return Err(Malformed::Encoding);
        } else if is("connection") {
            head.close = tokens(header.value).fold(head.close, |close, token| match token {
                b if b.eq_ignore_ascii_case(b"close") => true,
                b if b.eq_ignore_ascii_case(b"keep-alive") => false,
                _ => close,
            });
        } else if is("accept") {
            head.format = Format::accepted(&String::from_utf8_lossy(header.value));
        } else if is("expect") {
            if !header.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Malformed::Expectation);
            }
            head.waits = true;
        }
    }
    let (found, most) = (length.unwrap_or(0), most(head.method, &head.path));
    head.body_bytes = usize::try_from(found)
        .ok()
        .filter(|bytes| *bytes <= most)
        .ok_or(Malformed::Body { found, most })?;
    head.waits &= head.body_bytes > 0;
    Ok(head)
}

fn content_length(value: &[u8], before: Option<u64>) -> Result<u64, Malformed> {
    let digits = str::from_utf8(value)
        .ok()
        .filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
    let digits = digits.filter(|digits| !digits.is_empty()).ok_or(Malformed::Length)?;
    // What no integer holds is too long, and no less a number.
    let length = digits.parse().unwrap_or(u64::MAX);
    if before.is_some_and(|before| before != length) {
        return Err(Malformed::Length);
    }
    Ok(length)
}

fn tokens(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// The path of a target in origin or absolute form (RFC 9112 §3.2).
fn path(target: &str) -> &str {
    let after = target.split_once("://").filter(|(scheme, _)| !scheme.contains('/'));
    let path = match after {
        Some((_, rest)) => rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/"),
        None => target,
    };
    path.split_once(['?', '#']).map_or(path, |(path, _)| path)
}

#[cfg(test)]
#[path = "http_test.rs"]
mod tests;
