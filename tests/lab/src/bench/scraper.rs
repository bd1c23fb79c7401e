//! A scraper that asks for all figures of a VMM far more often than any would.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Between two scrapes: a hundred a second.
const PAUSE: Duration = Duration::from_millis(10);
/// How long a VMM may take until its socket is there.
const LIMIT: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: husk\r\n\r\n";

/// Whoever scrapes a VMM.
pub struct Scraper {
    socket: PathBuf,
}

impl Scraper {
    /// Has `command`, which starts husk, serve its figures in `folder`.
    pub fn of(command: &mut Command, folder: &Path) -> Self {
        let socket = folder.join("metrics.sock");
        command.arg("--metrics").arg(&socket);
        Self { socket }
    }

    /// Scrapes until the VMM has ended, beside the caller.
    ///
    /// # Errors
    ///
    /// There is no thread.
    pub fn begin(&self) -> Result<()> {
        let socket = self.socket.clone();
        let scrape = move || match scrape_until_its_end(&socket) {
            Ok((times, bytes)) => println!("scraped {times} times, up to {bytes} bytes a time"),
            Err(error) => println!("not scraped: {error:#}"),
        };
        thread::Builder::new().spawn(scrape).context("no thread scrapes")?;
        Ok(())
    }
}

/// How often it was, and how many bytes came at most: a VMM at its end has little to say.
fn scrape_until_its_end(socket: &Path) -> Result<(u32, usize)> {
    let mut stream = BufReader::new(connected(socket)?);
    let (mut times, mut bytes) = (0, 0);
    loop {
        let begun = Instant::now();
        match scrape(&mut stream) {
            Ok(count) => (times, bytes) = (times + 1, count.max(bytes)),
            Err(error) if times == 0 => return Err(error).context("no answer"),
            Err(_) => return Ok((times, bytes)),
        }
        thread::sleep(PAUSE.saturating_sub(begun.elapsed()));
    }
}

fn connected(socket: &Path) -> Result<UnixStream> {
    let begun = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Err(_) if begun.elapsed() < LIMIT => thread::sleep(PAUSE),
            connected => return connected.with_context(|| format!("cannot connect to {}", socket.display())),
        }
    }
}

/// One scrape: how many bytes its answer has.
fn scrape(stream: &mut BufReader<UnixStream>) -> io::Result<usize> {
    stream.get_mut().write_all(REQUEST)?;
    let (mut length, mut line) = (0, String::new());
    while line != "\r\n" {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    Ok(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_one_after_the_other_until_the_end() {
        let (near, far) = UnixStream::pair().unwrap();
        let mut stream = BufReader::new(near);
        let mut far = BufReader::new(far);
        far.get_mut()
            .write_all(b"HTTP/1.1 200 \r\nContent-Length: 3\r\n\r\nabcHTTP/1.1 200 \r\ncontent-length: 1\r\n\r\nd")
            .unwrap();
        assert_eq!(scrape(&mut stream).unwrap(), 3);
        assert_eq!(scrape(&mut stream).unwrap(), 1);
        let mut asked = vec![0; 2 * REQUEST.len()];
        far.read_exact(&mut asked).unwrap();
        assert_eq!(asked, [REQUEST, REQUEST].concat());
        drop(far);
        scrape(&mut stream).unwrap_err();
    }
}
