//! A TCP port of this machine that leads to a Unix socket, for clients that know no Unix sockets.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

/// Starts it; the port's address. It lasts as long as this process.
///
/// # Errors
///
/// There is no port.
pub fn start(socket: &Path) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    let socket = socket.to_path_buf();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            // Whoever cannot be connected sees the connection closed.
            let _ = connect(client, &socket);
        }
    });
    Ok(address)
}

fn connect(client: TcpStream, socket: &Path) -> io::Result<()> {
    let server = UnixStream::connect(socket)?;
    client.set_nodelay(true)?;
    let (from_client, to_client) = (client.try_clone()?, client);
    let (from_server, to_server) = (server.try_clone()?, server);
    thread::spawn(move || {
        let _ = pass(from_client, &to_server);
        to_server.shutdown(Shutdown::Write)
    });
    thread::spawn(move || {
        let _ = pass(from_server, &to_client);
        to_client.shutdown(Shutdown::Write)
    });
    Ok(())
}

/// Passes on what comes, until the end.
fn pass<W>(mut from: impl Read, mut to: &W) -> io::Result<u64>
where
    for<'a> &'a W: Write,
{
    io::copy(&mut from, &mut to)
}
