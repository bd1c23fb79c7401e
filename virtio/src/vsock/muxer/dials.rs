//! Dials of the host: from the listening socket to the request that goes to the guest.

use std::io;
use std::os::fd::AsRawFd;

use vmm_sys_util::epoll::ControlOperation;

use super::{COMMANDS_MAX, CONNECTIONS_MAX, FIRST_PORT, Muxer, REQUESTS_MAX};
use crate::vsock::command::{Command, Progress};
use crate::vsock::connection::{Connection, State};
use crate::vsock::listener::is_shortage;
use crate::vsock::packet::Op;
use crate::vsock::socket::Socket;
use crate::vsock::table::{Name, Token};

/// Dials taken before other events are looked at again.
const DIALS_PER_TURN: usize = 64;

impl Muxer {
    /// Takes dials of the host.
    pub fn accept(&mut self) -> io::Result<()> {
        self.starved = false;
        for _ in 0..DIALS_PER_TURN {
            match self.host.listener.accept() {
                Ok(socket) => {
                    self.reserve.renew(&self.host.listener);
                    self.admit(socket);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if is_shortage(&error) => {
                    if !self.host.listener.has_dial() {
                        return Ok(());
                    }
                    if !self.shed() {
                        self.starved = true;
                        return Ok(());
                    }
                }
                // The client has gone already.
                Err(_) => {}
            }
        }
        // There may be more: ask to be told again.
        self.watch_listener(ControlOperation::Modify)
    }

    /// Makes room for the next dial, or closes it. `false` if neither can be done.
    fn shed(&mut self) -> bool {
        self.host.metrics.dials_dropped.inc();
        if let Some(oldest) = self.commands.front().copied() {
            self.end(oldest);
            return true;
        }
        self.reserve.shed(&self.host.listener)
    }

    fn admit(&mut self, socket: Socket) {
        if self.table.len() >= CONNECTIONS_MAX {
            return self.host.metrics.dials_dropped.inc();
        }
        if self.commands.len() >= COMMANDS_MAX
            && let Some(oldest) = self.commands.front().copied()
        {
            self.host.metrics.dials_dropped.inc();
            self.end(oldest);
        }
        if let Some(token) = self.insert(socket) {
            self.commands.push_back(token);
            self.read_command(token);
        }
    }

    /// Puts a socket into the table and under watch.
    pub(super) fn insert(&mut self, socket: Socket) -> Option<Token> {
        let fd = socket.as_raw_fd();
        let token = self.table.insert(Connection::new(socket, self.pool.clone()));
        if self.watch(ControlOperation::Add, fd, token, false).is_err() {
            self.host.metrics.dials_dropped.inc();
            self.table.remove(token);
            return None;
        }
        Some(token)
    }

    pub(super) fn read_command(&mut self, token: Token) {
        let Some(connection) = self.table.get_mut(token) else {
            return;
        };
        let State::Command(command) = &mut connection.state else {
            return;
        };
        match Command::read(command, &connection.socket) {
            Progress::More => {}
            Progress::Gone => self.end(token),
            Progress::Malformed => {
                self.host.metrics.dials_malformed.inc();
                self.end(token);
            }
            Progress::Port(port) => self.request(token, port),
        }
    }

    /// Has the guest be asked for a stream to `port`.
    fn request(&mut self, token: Token, port: u32) {
        if self.requested >= REQUESTS_MAX {
            self.host.metrics.dials_dropped.inc();
            return self.end(token);
        }
        self.commands.retain(|waiting| *waiting != token);
        let host = self.free_port(port);
        self.table.name(token, Name { host, guest: port });
        self.requested = self.requested.saturating_add(1);
        if let Some(connection) = self.table.get_mut(token) {
            connection.state = State::Requested { asked: false };
            connection.opening = Some(Op::Request);
        }
        self.enqueue(token);
    }

    /// A port of the host that no stream to the guest's port `guest` has: there are more ports than streams.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The last one means "any" (`VMADDR_PORT_ANY`).
            self.next_port = match host.wrapping_add(1) {
                u32::MAX => FIRST_PORT,
                next => next,
            };
            if self.table.find(Name { host, guest }).is_none() {
                return host;
            }
        }
    }
}
