//! A request that is on its way: how long is left for it, and the head of its answer.

use std::io;
use std::time::{Duration, Instant};

use super::client_error::ClientError;

/// The longest head of an answer.
pub(super) const HEAD_BYTES: usize = 16 << 10;
/// The most fields of it.
const HEAD_FIELDS: usize = 64;
/// The longest body.
pub(super) const BODY_BYTES: usize = 16 << 20;

/// A request on its way.
pub(super) struct RequestInFlight<'a> {
    pub(super) request: &'a str,
    pub(super) deadline: Instant,
    pub(super) patience: Duration,
}

/// The head of an answer: its bytes, status and length of body.
pub(super) struct Head {
    pub(super) bytes: usize,
    pub(super) status: u16,
    /// `None`: up to the end of the connection.
    pub(super) body_bytes: Option<usize>,
    pub(super) is_stream: bool,
}

impl RequestInFlight<'_> {
    /// How long is left, which is never nothing.
    pub(super) fn left(&self) -> Result<Duration, ClientError> {
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
    pub(super) fn parse_head(&self, bytes: &[u8]) -> Result<Option<Head>, ClientError> {
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
        // RFC 9112 §6.3. A refusal that does not say how long its reason is has none: its server
        // may keep the connection.
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

    pub(super) fn broken(&self, source: io::Error) -> ClientError {
        ClientError::Broken {
            request: self.request.into(),
            source,
        }
    }

    pub(super) fn nonsense(&self, what: String) -> ClientError {
        ClientError::Nonsense {
            request: self.request.into(),
            what,
        }
    }
}

/// The causes in an error's body, joined as husk joins them; another body as it is.
pub(super) fn chain_of(body: &[u8]) -> String {
    match serde_json::from_slice::<Vec<String>>(body) {
        Ok(chain) if !chain.is_empty() => chain.join(": "),
        _ if body.is_empty() => "no reason given".into(),
        _ => String::from_utf8_lossy(body).into_owned(),
    }
}
