//! Traffic whose content both ends know, for tests and measurements of networks: TCP streams and UDP datagrams.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::pattern;

/// How long to wait for the other side to be there, or to go on.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a receiver waits for the next datagram before it takes the last for the last.
const SILENCE: Duration = Duration::from_millis(500);
/// Bytes that a stream without a pattern moves at a time.
const CHUNK: usize = 128 << 10;

/// What went by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes of it.
    pub bytes: u64,
    /// Their [`pattern::checksum`], or 0 where nobody looked.
    pub checksum: u64,
    /// Time from the first byte to the last, on the clock of this side.
    pub nanos: u64,
}

/// What is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The pattern of a seed, with a checksum. Costs more than the network does.
    Pattern(u64),
    /// Zeroes.
    Plain,
}

/// Connects, as soon as somebody listens, and sends `bytes`. Ends when the other side has received them all.
///
/// # Errors
///
/// Nobody listens, or the connection broke.
pub fn send(to: (Ipv4Addr, u16), bytes: u64, content: Content) -> io::Result<Traffic> {
    let mut stream = connect(to)?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    let checksum = match content {
        Content::Pattern(seed) => pattern::write(&mut stream, seed, bytes)?,
        Content::Plain => plain(&mut stream, bytes)?,
    };
    stream.shutdown(Shutdown::Write)?;
    let left = stream.read(&mut [0])?;
    if left != 0 {
        return Err(io::Error::other("the other side talked back"));
    }
    Ok(Traffic {
        bytes,
        checksum,
        nanos: nanos(start),
    })
}

/// Receives one stream on `port`.
///
/// # Errors
///
/// The port is taken, or the connection broke.
pub fn receive(port: u16, look: bool) -> io::Result<Traffic> {
    receive_from(&TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))?, look)
}

/// Receives one stream that connects to `listener`; with a checksum if somebody will `look` at it.
///
/// # Errors
///
/// The connection broke.
pub fn receive_from(listener: &TcpListener, look: bool) -> io::Result<Traffic> {
    receive_on(listener.accept()?.0, look)
}

/// Receives what comes by `stream` until its end; with a checksum if somebody will `look` at it.
///
/// # Errors
///
/// The connection broke.
pub fn receive_on(mut stream: TcpStream, look: bool) -> io::Result<Traffic> {
    let start = Instant::now();
    let (bytes, checksum) = if look {
        pattern::read(&mut stream)?
    } else {
        (discard(&mut stream)?, 0)
    };
    let nanos = nanos(start);
    Ok(Traffic { bytes, checksum, nanos })
}

/// Sends datagrams of `size` bytes for `time`; how many.
///
/// # Errors
///
/// The kernel refuses for a reason other than a full queue.
pub fn flood(to: (Ipv4Addr, u16), size: usize, time: Duration) -> io::Result<u64> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    let (datagram, start) = (vec![0; size], Instant::now());
    let mut count: u64 = 0;
    // The clock costs about as much as a datagram.
    while !count.is_multiple_of(64) || start.elapsed() < time {
        match socket.send(&datagram) {
            Ok(_) => {}
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ECONNREFUSED)) => {}
            Err(error) => return Err(error),
        }
        count += 1;
    }
    Ok(count)
}

/// Counts datagrams that come to `port` until none comes any more: bytes, and the time from the first to the last.
///
/// # Errors
///
/// The port is taken, or nothing comes.
pub fn count(port: u16) -> io::Result<(u64, Traffic)> {
    count_on(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?)
}

/// As [`count`], by a socket that was there before.
///
/// # Errors
///
/// Nothing comes.
pub fn count_on(socket: &UdpSocket) -> io::Result<(u64, Traffic)> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 65536];
    let mut bytes = socket.recv(&mut buffer)? as u64;
    socket.set_read_timeout(Some(SILENCE))?;
    let start = Instant::now();
    let (mut datagrams, mut last) = (1u64, start);
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                (datagrams, bytes) = (datagrams + 1, bytes + length as u64);
                if datagrams.is_multiple_of(64) {
                    last = Instant::now();
                }
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let nanos = u64::try_from((last - start).as_nanos()).unwrap_or(u64::MAX);
                let traffic = Traffic {
                    bytes,
                    checksum: 0,
                    nanos,
                };
                return Ok((datagrams, traffic));
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends `count` datagrams of `size` bytes, each when the answer to the one before has come. Lost
/// ones are sent again. An empty one says that it was the last.
///
/// # Errors
///
/// Nobody answers.
pub fn ping_pong(to: (Ipv4Addr, u16), size: usize, count: u64) -> io::Result<Traffic> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(SILENCE))?;
    let (datagram, mut buffer) = (vec![0; size], vec![0; size]);
    let mut start = Instant::now();
    for number in 0..=count {
        let deadline = Instant::now() + PATIENCE;
        // A refusal of the one before is told here as well.
        while socket.send(&datagram).and_then(|_| socket.recv(&mut buffer)).is_err() {
            if Instant::now() > deadline {
                return Err(io::ErrorKind::TimedOut.into());
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The first one finds out who is where.
        if number == 0 {
            start = Instant::now();
        }
    }
    let nanos = nanos(start);
    socket.send(&[])?;
    Ok(Traffic {
        bytes: count * size as u64,
        checksum: 0,
        nanos,
    })
}

/// Answers datagrams until an empty one comes, or none for a while.
///
/// # Errors
///
/// The port is taken, or nothing comes.
pub fn answer(port: u16) -> io::Result<()> {
    answer_on(&UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?)
}

/// As [`answer`], by a socket that was there before.
///
/// # Errors
///
/// Nothing comes.
pub fn answer_on(socket: &UdpSocket) -> io::Result<()> {
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut buffer = vec![0; 65536];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((0, _)) => return Ok(()),
            Ok((length, from)) => {
                socket.send_to(buffer.get(..length).unwrap_or_default(), from)?;
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => return Ok(()),
            Err(error) => return Err(error),
        }
        socket.set_read_timeout(Some(4 * SILENCE))?;
    }
}

fn connect(to: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match TcpStream::connect(to) {
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => thread::sleep(Duration::from_millis(20)),
            stream => return stream,
        }
    }
}

fn plain(to: &mut impl Write, bytes: u64) -> io::Result<u64> {
    let (chunk, mut left) = (vec![0; CHUNK], bytes);
    while left > 0 {
        let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
        to.write_all(chunk.get(..length).unwrap_or_default())?;
        left -= length as u64;
    }
    Ok(0)
}

fn discard(from: &mut impl Read) -> io::Result<u64> {
    let (mut buffer, mut bytes) = (vec![0; CHUNK], 0);
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(length) => bytes += length as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn nanos(start: Instant) -> u64 {
    u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Ipv4Addr = Ipv4Addr::LOCALHOST;

    #[test]
    fn both_ends_agree_on_what_went_by() {
        let listener = TcpListener::bind((HERE, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let receiver = thread::spawn(move || receive_from(&listener, true).unwrap());
        let sent = send((HERE, port), 300_001, Content::Pattern(3)).unwrap();
        let received = receiver.join().unwrap();
        assert_eq!((sent.bytes, sent.checksum), (received.bytes, received.checksum));
        assert_eq!(sent.checksum, pattern::checksum(&pattern::bytes(3, 300_001)));
    }

    #[test]
    fn every_ping_has_its_pong() {
        let socket = UdpSocket::bind((HERE, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        drop(socket);
        let answers = thread::spawn(move || answer(port));
        assert_eq!(ping_pong((HERE, port), 64, 10).unwrap().bytes, 640);
        answers.join().unwrap().unwrap();
    }
}
