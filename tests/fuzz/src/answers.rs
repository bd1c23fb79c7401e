//! A client's side of HTTP/1.1: one answer after the other out of a stream (RFC 9112).

use serde_json::Value;

/// Answers out of what a client has received.
pub struct Answers<'a>(&'a [u8]);

impl<'a> Answers<'a> {
    /// All of them are in `received`.
    pub fn new(received: &'a [u8]) -> Self {
        Self(received)
    }

    /// The next final answer: its status and its body, if it may have one.
    pub fn next(&mut self, has_body: bool) -> Option<(u16, Value)> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            let end = self
                .0
                .windows(4)
                .position(|bytes| bytes == b"\r\n\r\n")
                .expect("an empty line");
            let (head, rest) = self.0.split_at(end + 4);
            let head = std::str::from_utf8(head).expect("ASCII").to_ascii_lowercase();
            let status = head
                .split(' ')
                .nth(1)
                .and_then(|status| status.parse().ok())
                .expect("a status");
            let length = head
                .split_once("content-length: ")
                .map_or("0", |(_, after)| after.split_once('\r').expect("a line").0);
            let length = if has_body { length.parse().expect("a number") } else { 0 };
            let (body, rest) = rest.split_at(length);
            self.0 = rest;
            if status != 100 {
                let body = if body.is_empty() {
                    Value::Null
                } else {
                    serde_json::from_slice(body).expect("a body is JSON")
                };
                return Some((status, body));
            }
        }
    }
}
