//! The REST API as Kata's two shims use it, byte for byte.
//!
//! The Rust shim keeps one connection for the life of the VM and writes a request in pieces: the
//! request line with the first headers (descriptors come with these), `Content-Length`, the blank
//! line, the body. The Go shim writes a request at once, on a pooled connection; requests with
//! descriptors have a connection of their own. Both are strict about answers: see [`Response`].

use std::io::{Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// How long an answer may take: a hundred times what the shims allow, since the host may be emulated.
const PATIENCE: Duration = Duration::from_secs(240);

/// The longest answer.
const MAX_BODY_BYTES: usize = 4 << 20;

/// Which shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// runtime-rs.
    Rust,
    /// The older one.
    Go,
}

/// A client of the API.
#[derive(Debug)]
pub struct Api {
    shim: Shim,
    socket: PathBuf,
    stream: UnixStream,
}

/// The type of figures for a client that names none.
const FIGURES: &str = "text/plain; version=0.0.4; charset=utf-8";

/// A valid answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body, if there is one.
    pub body: Option<String>,
}

impl Api {
    /// Connects.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn connect(socket: &Path, shim: Shim) -> Result<Self> {
        Ok(Self {
            shim,
            socket: socket.into(),
            stream: connect(socket)?,
        })
    }

    /// `GET /api/v1/NAME`.
    ///
    /// # Errors
    ///
    /// There is no answer, or one that the shim would not understand.
    pub fn get(&mut self, name: &str) -> Result<Response> {
        self.ask("GET", name, None, &[])
    }

    /// `PUT /api/v1/NAME`.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn put(&mut self, name: &str, body: Option<&Value>) -> Result<Response> {
        self.ask("PUT", name, body, &[])
    }

    /// `PUT /api/v1/NAME` with descriptors.
    ///
    /// # Errors
    ///
    /// As [`Api::get`].
    pub fn put_with_fds(&mut self, name: &str, body: &Value, fds: &[RawFd]) -> Result<Response> {
        self.ask("PUT", name, Some(body), fds)
    }

    /// Sends `PUT /api/v1/NAME` on a connection of its own and closes that without waiting for the
    /// answer, as the Go shim does when it has lost patience.
    ///
    /// # Errors
    ///
    /// Nobody listens there.
    pub fn give_up(&self, name: &str, body: &Value) -> Result<()> {
        write_as_go(&connect(&self.socket)?, "PUT", name, Some(body), &[])
    }

    fn ask(&mut self, method: &str, name: &str, body: Option<&Value>, fds: &[RawFd]) -> Result<Response> {
        let response = match self.shim {
            Shim::Rust => write_as_rust(&self.stream, method, name, body, fds).and_then(|()| read(&self.stream)),
            Shim::Go if fds.is_empty() => {
                write_as_go(&self.stream, method, name, body, fds).and_then(|()| read(&self.stream))
            }
            Shim::Go => connect(&self.socket).and_then(|own| {
                write_as_go(&own, method, name, body, fds)?;
                read(&own)
            }),
        };
        response.with_context(|| format!("{method} {name}"))
    }
}

impl Response {
    /// Asserts success without a body.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn done(&self) -> Result<()> {
        ensure!(self.status == 204 && self.body.is_none(), "expected 204, got {self:?}");
        Ok(())
    }

    /// The body of a success.
    ///
    /// # Errors
    ///
    /// It is no success, or not of this type.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        let body = self.body.as_deref().unwrap_or_default();
        ensure!(self.status == 200, "expected 200, got {self:?}");
        serde_json::from_str(body).with_context(|| format!("strange body {body}"))
    }

    /// The chain of errors of a failure with this status.
    ///
    /// # Errors
    ///
    /// It is something else.
    pub fn failure(&self, status: u16) -> Result<Vec<String>> {
        ensure!(self.status == status, "expected {status}, got {self:?}");
        let body = self.body.as_deref().context("a failure without a body")?;
        let chain: Vec<String> = serde_json::from_str(body).with_context(|| format!("strange body {body}"))?;
        ensure!(!chain.is_empty(), "a failure without words");
        Ok(chain)
    }
}

fn connect(socket: &Path) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).with_context(|| format!("cannot connect to {}", socket.display()))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn write_as_rust(mut stream: &UnixStream, method: &str, name: &str, body: Option<&Value>, fds: &[RawFd]) -> Result<()> {
    let head = format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
    send(stream, head.as_bytes(), fds)?;
    let body = body.map(serde_json::to_string_pretty).transpose()?;
    if let Some(body) = &body {
        stream.write_all(format!("Content-Length: {}\r\n", body.len()).as_bytes())?;
    }
    stream.write_all(b"\r\n")?;
    if let Some(body) = &body {
        stream.write_all(body.as_bytes())?;
    }
    Ok(())
}

fn write_as_go(stream: &UnixStream, method: &str, name: &str, body: Option<&Value>, fds: &[RawFd]) -> Result<()> {
    let body = body.map(Value::to_string);
    let mut request =
        format!("{method} /api/v1/{name} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: OpenAPI-Generator/1.0.0/go\r\n");
    if method == "PUT" {
        let length = body.as_ref().map_or(0, String::len);
        request += &format!("Content-Length: {length}\r\n");
    }
    request += if body.is_some() {
        "Content-Type: application/json\r\n"
    } else {
        "Accept: application/json\r\n"
    };
    request += "Accept-Encoding: gzip\r\n\r\n";
    request += body.as_deref().unwrap_or_default();
    send(stream, request.as_bytes(), fds)
}

/// Writes everything; the descriptors go with the first byte.
fn send(mut stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) -> Result<()> {
    let sent = if fds.is_empty() {
        0
    } else {
        stream.send_with_fds(&[bytes], fds)?
    };
    Ok(stream.write_all(bytes.get(sent..).unwrap_or_default())?)
}

/// Reads one answer, as strictly as the stricter of the shims in each respect.
fn read(mut stream: &UnixStream) -> Result<Response> {
    let mut head = Vec::new();
    // One byte at a time: what follows the blank line is not ours to take.
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        ensure!(
            stream.read(&mut byte)? == 1,
            "closed after {:?}",
            String::from_utf8_lossy(&head)
        );
        head.extend(byte);
    }
    let head = String::from_utf8(head).context("the head is not text")?;
    let (status, length) = parse_head(&head)?;
    let Some(length) = length else {
        return Ok(Response { status, body: None });
    };
    ensure!(length <= MAX_BODY_BYTES, "a body of {length} bytes");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("the body is cut off")?;
    ensure!(
        body.is_ascii(),
        "the body is not ASCII: {:?}",
        String::from_utf8_lossy(&body)
    );
    Ok(Response {
        status,
        body: Some(String::from_utf8(body)?),
    })
}

/// The status and the length of the body, if there is one.
fn parse_head(head: &str) -> Result<(u16, Option<usize>)> {
    ensure!(head.is_ascii(), "the head is not ASCII: {head:?}");
    let mut lines = head.split("\r\n");
    let line = lines.next().unwrap_or_default();
    // The Rust shim parses everything behind the version as a number: there must be no reason phrase.
    let status = line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.strip_suffix(' '));
    let status: u16 = status
        .and_then(|digits| digits.parse().ok())
        .with_context(|| format!("not a status line for the Rust shim: {line:?}"))?;
    let headers: Vec<&str> = lines.take_while(|line| !line.is_empty()).collect();
    let value = |name: &str| headers.iter().find_map(|header| header.strip_prefix(name));
    if value("Connection: ") == Some("close") && status < 400 {
        bail!("the connection is not kept: {head:?}");
    }
    // The spelling is the Rust shim's.
    let Some(length) = value("Content-Length: ") else {
        ensure!(status == 204, "an answer without a body is a 204: {head:?}");
        return Ok((status, None));
    };
    ensure!(status != 204, "a 204 has no length: {head:?}");
    // No shim asks for figures: those are for scrapers.
    ensure!(
        matches!(value("Content-Type: "), Some("application/json" | FIGURES)),
        "the Go shim needs the type of a body: {head:?}"
    );
    Ok((
        status,
        Some(length.parse().with_context(|| format!("strange length {length:?}"))?),
    ))
}

#[cfg(test)]
#[path = "api_test.rs"]
mod tests;
