//! The bytes of an answer, as Kata's shims read them.
//!
//! The Rust shim parses everything between `HTTP/1.1 ` and the end of the line as a number, looks
//! for `Content-Length: ` in exactly this spelling, and decodes each piece of the answer as text on
//! its own: hence an empty reason phrase, and bodies in ASCII. The Go shim decodes a body by its
//! `Content-Type`. An answer without a body has neither header.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

/// The interim answer to `Expect: 100-continue`.
pub const CONTINUE: &[u8] = b"HTTP/1.1 100 \r\n\r\n";

/// What bodies are made of, but for text that was asked for.
const JSON: &str = "application/json";

/// What a stream is made of: a JSON object a line.
const LINES: &str = "application/x-ndjson";

/// The end of a stream (RFC 9112 §7.1).
pub const END: &[u8] = b"0\r\n\r\n";

/// Appends the head of an answer whose body comes in [chunks](chunk), one day to end with [`END`],
/// and the connection with it.
pub fn begin_stream(out: &mut impl Extend<u8>) {
    let head = format!(
        "{}Content-Type: {LINES}\r\nTransfer-Encoding: chunked\r\n\r\n",
        start(200, true)
    );
    out.extend(head.into_bytes());
}

/// The first lines of every answer. `close` announces that the connection ends with it.
fn start(status: u16, close: bool) -> String {
    let connection = if close { "close" } else { "keep-alive" };
    format!("HTTP/1.1 {status} \r\nServer: Cloud Hypervisor API\r\nConnection: {connection}\r\n")
}

/// Appends a piece of such a body, unless there is nothing in it.
pub fn chunk(out: &mut impl Extend<u8>, bytes: Vec<u8>) {
    if !bytes.is_empty() {
        out.extend(format!("{:x}\r\n", bytes.len()).into_bytes());
        out.extend(bytes);
        out.extend(*b"\r\n");
    }
}

/// An answer, before it is put into bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The HTTP status code.
    pub status: u16,
    /// The body; JSON is in ASCII.
    pub body: Option<Vec<u8>>,
    /// The body's media type.
    pub content_type: &'static str,
    /// The methods that the path has, if it was asked for by another (RFC 9110 §15.5.6).
    pub allow: Option<&'static str>,
}

impl Response {
    /// Success without more to say.
    pub const fn done() -> Self {
        Self {
            status: 204,
            body: None,
            content_type: JSON,
            allow: None,
        }
    }

    /// An answer that says `value`.
    pub fn json(status: u16, value: &impl Serialize) -> Self {
        Self {
            status,
            body: Some(to_ascii_json(value)),
            content_type: JSON,
            allow: None,
        }
    }

    /// Success, with a body that is [JSON in ASCII](to_ascii_json) already.
    pub fn ascii_json(text: String) -> Self {
        Self::text(text, JSON)
    }

    /// Success, with a text.
    pub fn text(text: String, content_type: &'static str) -> Self {
        Self {
            status: 200,
            body: Some(text.into_bytes()),
            content_type,
            allow: None,
        }
    }

    /// The same, which says what methods there are.
    #[must_use]
    pub const fn allowing(mut self, methods: &'static str) -> Self {
        self.allow = Some(methods);
        self
    }

    /// Whether what was asked for is done.
    pub const fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    /// Appends the answer to `out`. `close` announces that the connection ends with it, `head`
    /// leaves the body out (RFC 9110 §9.3.2).
    pub fn write(&self, out: &mut Vec<u8>, close: bool, head: bool) {
        out.extend_from_slice(start(self.status, close).as_bytes());
        if let Some(methods) = self.allow {
            out.extend_from_slice(format!("Allow: {methods}\r\n").as_bytes());
        }
        if let Some(body) = &self.body {
            let (of, length) = (self.content_type, body.len());
            let about = format!("Content-Type: {of}\r\nContent-Length: {length}\r\n");
            out.extend_from_slice(about.as_bytes());
        }
        out.extend_from_slice(b"\r\n");
        if let (Some(body), false) = (&self.body, head) {
            out.extend_from_slice(body);
        }
    }
}

/// `value` as JSON in ASCII.
pub(super) fn to_ascii_json(value: &impl Serialize) -> Vec<u8> {
    let mut json = Vec::with_capacity(512);
    let mut serializer = serde_json::Serializer::with_formatter(&mut json, Ascii);
    value
        .serialize(&mut serializer)
        .expect("what is answered has string keys, and memory takes every byte");
    json
}

/// Writes every character outside ASCII as `\uXXXX`, in UTF-16 as JSON has it (RFC 8259 §7).
struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: io::Write + ?Sized>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let mut rest = fragment;
        while let Some((at, character)) = rest.char_indices().find(|(_, character)| !character.is_ascii()) {
            let (plain, from) = rest.split_at(at);
            writer.write_all(plain.as_bytes())?;
            for unit in character.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = from.get(character.len_utf8()..).unwrap_or_default();
        }
        writer.write_all(rest.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(response: &Response, close: bool, head: bool) -> String {
        let mut out = Vec::new();
        response.write(&mut out, close, head);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn answers_have_the_bytes_that_the_shims_expect() {
        let ping = Response::json(200, &serde_json::json!({"pid": 1}));
        assert_eq!(
            bytes(&ping, false, false),
            "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n\
             Content-Length: 9\r\n\r\n{\"pid\":1}"
        );
        assert_eq!(
            bytes(&Response::done(), false, false),
            "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
        );
    }

    #[test]
    fn a_head_has_the_length_and_not_the_body() {
        let text = bytes(&Response::json(400, &["no"]), true, true);
        assert!(
            text.contains("Connection: close\r\n") && text.ends_with("Content-Length: 6\r\n\r\n"),
            "{text}"
        );
    }

    #[test]
    fn bodies_are_ascii_and_mean_what_they_meant() {
        let value = serde_json::json!({"schlüssel": ["naïve 中", "😀 \"\\\n\u{7f}", ""]});
        let body = to_ascii_json(&value);
        assert!(body.is_ascii());
        assert!(str::from_utf8(&body).unwrap().contains("\\ud83d\\ude00"));
        assert_eq!(serde_json::from_slice::<serde_json::Value>(&body).unwrap(), value);
    }
}
