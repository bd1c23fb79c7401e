//! The line with which a program of the host asks for a port of the guest: `connect PORT\n`, in any letter case.

use std::io;

use super::socket::Socket;

/// Longest line, with its end: `connect 4294967295\n` and some blanks.
const LINE_MAX: usize = 32;

/// How far the line has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The rest is to come.
    More,
    /// Complete: the guest's port.
    Port(u32),
    /// No such command.
    Malformed,
    /// The client has gone.
    Gone,
}

/// A line that arrives in pieces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Command {
    line: [u8; LINE_MAX],
    len: usize,
}

impl Command {
    /// Takes what has arrived, and nothing beyond the end of the line.
    pub fn read(&mut self, socket: &Socket) -> Progress {
        loop {
            let room = self.line.get_mut(self.len..).unwrap_or_default();
            if room.is_empty() {
                return Progress::Malformed;
            }
            let arrived = match socket.peek(room) {
                Ok(0) => return Progress::Gone,
                Ok(arrived) => arrived,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Progress::More,
                Err(_) => return Progress::Gone,
            };
            let new = room.get_mut(..arrived).unwrap_or_default();
            let end = new.iter().position(|byte| *byte == b'\n');
            let len = end.map_or(arrived, |end| end.saturating_add(1));
            // What was looked at is there, and nobody else reads from this socket.
            let Ok(taken) = socket.receive(new.get_mut(..len).unwrap_or_default()) else {
                return Progress::Gone;
            };
            self.len = self.len.saturating_add(taken);
            if end.is_some() {
                return parse(self.line.get(..self.len).unwrap_or_default())
                    .map_or(Progress::Malformed, Progress::Port);
            }
        }
    }
}

fn parse(line: &[u8]) -> Option<u32> {
    let mut words = str::from_utf8(line).ok()?.split_ascii_whitespace();
    let (verb, port) = (words.next()?, words.next()?);
    let digits = port.bytes().all(|byte| byte.is_ascii_digit());
    if !verb.eq_ignore_ascii_case("connect") || words.next().is_some() || !digits {
        return None;
    }
    port.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (UnixStream, Socket) {
        let (client, ours) = UnixStream::pair().unwrap();
        (client, ours.into())
    }

    #[test]
    fn line_is_read_in_any_case_and_split_anywhere() {
        for line in [&b"connect 1024\n"[..], b"CONNECT 1024\n", b"CoNNect 1024\r\n"] {
            for split in 0..line.len() {
                let (mut client, socket) = pair();
                let mut command = Command::default();
                client.write_all(&line[..split]).unwrap();
                assert_eq!(command.read(&socket), Progress::More);
                client.write_all(&line[split..]).unwrap();
                assert_eq!(command.read(&socket), Progress::Port(1024));
            }
        }
    }

    #[test]
    fn nothing_after_the_line_is_read() {
        let (mut client, socket) = pair();
        client.write_all(b"connect 7\nconnect 8\n").unwrap();
        assert_eq!(Command::default().read(&socket), Progress::Port(7));
        let mut rest = [0; 10];
        UnixStream::from(socket).read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"connect 8\n");
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for line in [
            "\n",
            "connect\n",
            "connect \n",
            "connect -1\n",
            "connect +1\n",
            "connect 4294967296\n",
            "connect 1 2\n",
            "connect1\n",
            "listen 1\n",
            "GET / HTTP/1.1\r\n",
            "0123456789012345678901234567890123456789",
            "connect \u{661}\n",
        ] {
            let (mut client, socket) = pair();
            client.write_all(line.as_bytes()).unwrap();
            assert_eq!(Command::default().read(&socket), Progress::Malformed, "{line:?}");
        }
        let (mut client, socket) = pair();
        client.write_all(b"connect \xff\n").unwrap();
        assert_eq!(Command::default().read(&socket), Progress::Malformed);
    }

    #[test]
    fn every_port_can_be_asked_for() {
        for port in [0, 1, u32::MAX] {
            let (mut client, socket) = pair();
            client.write_all(format!("connect {port}\n").as_bytes()).unwrap();
            assert_eq!(Command::default().read(&socket), Progress::Port(port));
        }
    }

    #[test]
    fn client_that_leaves_is_gone() {
        let (mut client, socket) = pair();
        client.write_all(b"conn").unwrap();
        drop(client);
        assert_eq!(Command::default().read(&socket), Progress::Gone);
    }
}
