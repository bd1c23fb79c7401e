//! The host's end of the profile `net`.
//!
//! It talks on a thread of its own: a guest that falls silent, or whose VMM dies, must cost one
//! subject and not the whole run.

use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::traffic::{self, Content, Traffic};

use super::measure::end;
use super::net::{DATAGRAM, FLOOD_MS, GUEST, HOST, STREAM_MIB, TAP};

/// When an interface, or a guest's first word, is taken not to come, in virtual time.
const PATIENCE: Duration = Duration::from_secs(10);
/// When the talk is taken to hang, in virtual time: several times what the slowest takes.
pub const LIMIT: Duration = Duration::from_secs(40);
/// How often to look whether the VMM lives, and how long to listen on after it has ended.
const PACE: Duration = Duration::from_millis(100);
const GRACE: Duration = Duration::from_secs(1);

/// What the host has seen: the stream that it sent, datagrams that it got, and the time in which they came.
pub struct HostSide {
    pub sent: Traffic,
    pub datagrams: u64,
    pub flood: Traffic,
}

/// Everything that the guest may talk to, there before it asks.
struct Ends {
    stream: TcpListener,
    echo: UdpSocket,
    flood: UdpSocket,
}

/// The host's part of the guest's script, in the same order.
///
/// # Errors
///
/// The VMM ended too early, or nobody talked.
pub fn host_side(child: &mut Child) -> Result<HostSide> {
    set_up(child)?;
    let ends = Ends {
        stream: TcpListener::bind((Ipv4Addr::UNSPECIFIED, 5001))?,
        echo: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5003))?,
        flood: UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5004))?,
    };
    let (done, result) = mpsc::channel();
    let talker = thread::spawn(move || done.send(talk(&ends)));
    let seen = watch(child, &result);
    if seen.is_err() {
        // Whoever talks holds the ports. Without a VMM it comes to its own end, soon in counted time.
        end(child);
        let _ = talker.join();
    }
    seen
}

/// Waits for what the talk comes to, as long as the VMM lives.
fn watch(child: &mut Child, result: &Receiver<Result<HostSide>>) -> Result<HostSide> {
    let start = Instant::now();
    loop {
        match result.recv_timeout(PACE) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => bail!("the host's end panicked"),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if child.try_wait()?.is_some() {
            return result
                .recv_timeout(GRACE)
                .context("it has ended before its guest was done")?;
        }
        ensure!(start.elapsed() < LIMIT, "its guest was not done in time");
    }
}

/// Waits for the tap, and gives it the host's address.
fn set_up(child: &mut Child) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !Path::new("/sys/class/net").join(TAP).exists() {
        ensure!(child.try_wait()?.is_none(), "it has ended");
        ensure!(Instant::now() < deadline, "there is no {TAP}");
        thread::sleep(Duration::from_millis(2));
    }
    // Some subjects have done the one or the other already.
    let _ = ip(&["addr", "add", &format!("{HOST}/24"), "dev", TAP]);
    ip(&["link", "set", TAP, "up"])
}

fn talk(ends: &Ends) -> Result<HostSide> {
    traffic::receive_on(first_dial(&ends.stream)?, false)?;
    let bytes = u64::from(STREAM_MIB) << 20;
    let sent = traffic::send((GUEST, 5002), bytes, Content::Plain)?;
    traffic::answer_on(&ends.echo).context("no exchange of datagrams")?;
    let (datagrams, flood) = traffic::count_on(&ends.flood).context("no datagrams of the guest")?;
    traffic::flood((GUEST, 5005), DATAGRAM, Duration::from_millis(FLOOD_MS.into()))?;
    Ok(HostSide { sent, datagrams, flood })
}

/// Accepts one connection, but does not wait for it for ever: whoever waits holds the port.
fn first_dial(listener: &TcpListener) -> Result<TcpStream> {
    listener.set_nonblocking(true)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                return Ok(stream);
            }
            Err(error) if error.kind() != std::io::ErrorKind::WouldBlock => return Err(error.into()),
            Err(_) => ensure!(Instant::now() < deadline, "the guest does not dial"),
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn ip(words: &[&str]) -> Result<()> {
    let ran = Command::new("ip").args(words).output().context("cannot start ip")?;
    ensure!(
        ran.status.success(),
        "ip {words:?}: {}",
        String::from_utf8_lossy(&ran.stderr)
    );
    Ok(())
}
