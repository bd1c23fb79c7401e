//! Network namespaces and taps of a test's own.
#![expect(unsafe_code, reason = "namespaces, the ioctls of a tap and descriptor flags")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::threads;

/// How long an interface may be in use by somebody who gives it back.
const FREE: Duration = Duration::from_secs(10);

/// Gives the calling thread, and whatever it starts from now on, a network of its own with nothing
/// but a loopback interface that is up.
///
/// # Errors
///
/// This user may not.
pub fn own_network() -> io::Result<()> {
    // SAFETY: no memory is involved; concerns this thread only.
    check(unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
    ip("link set lo up");
    Ok(())
}

/// Runs the host's `ip`; what it prints.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.unwrap_or_else(|error| panic!("cannot start ip: {error}"));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complained = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "`ip {arguments}` failed: {said}{complained}");
    said
}

/// A tap interface that stays when nobody has it open. Removed when dropped, or with its namespace.
#[derive(Debug)]
pub struct Tap {
    name: String,
    multi_queue: bool,
}

impl Tap {
    /// A tap in this thread's network, up and with `address`, such as `10.0.0.1/24`.
    pub fn new(name: &str, multi_queue: bool, address: &str) -> Self {
        let tap = Self {
            name: name.into(),
            multi_queue,
        };
        let file = tap.open();
        // SAFETY: the argument is a number.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETPERSIST, 1) })
            .unwrap_or_else(|error| panic!("{name}: cannot make it stay: {error}"));
        // Nobody has it open any more: neither this process nor one that another test began to start meanwhile.
        drop(file);
        threads::wait_for_exec();
        ip(&format!("addr add {address} dev {name}"));
        ip(&format!("link set {name} up"));
        tap
    }

    /// Another descriptor of it. No program inherits it: one that another test starts meanwhile
    /// would keep the interface busy.
    pub fn open(&self) -> OwnedFd {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap_or_else(|error| panic!("/dev/net/tun: {error}"));
        attach(&file, &self.name, self.multi_queue).unwrap_or_else(|error| panic!("{}: {error}", self.name));
        file.into()
    }

    /// Another descriptor of one of its queues, which programs inherit that are started while it is open.
    pub fn open_inherited(&self) -> OwnedFd {
        let fd = self.open();
        // SAFETY: the argument is a number.
        check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) })
            .unwrap_or_else(|error| panic!("cannot change a descriptor: {error}"));
        fd
    }

    /// What the host's `ip` says of it, as far as its owner decides it: state, address, MAC, MTU.
    pub fn settings(&self) -> String {
        let said = ip(&format!("addr show dev {}", self.name));
        // The kernel gives itself an address for the link, and two lines here, as soon as somebody has it open.
        let mut lines = said.lines();
        let mut decided = Vec::new();
        while let Some(line) = lines.next() {
            if line.trim_start().starts_with("inet6 fe80:") {
                lines.next();
            } else {
                decided.push(line);
            }
        }
        let said = decided.join("\n");
        // Whether somebody has it open shows as carrier, queue and state of operation.
        let words = said
            .split(['<', '>', ',', ' ', '\n'])
            .filter(|word| !["tentative", "LOWER_UP", "NO-CARRIER", "UNKNOWN", "DOWN", "UP", "UP8000"].contains(word));
        let up = said.contains(",UP") || said.contains("<UP");
        format!("up={up} {}", words.collect::<Vec<_>>().join(" "))
    }

    /// Takes the interface away, whoever has it open.
    pub fn remove(self) {
        ip(&format!("link delete {}", self.name));
        std::mem::forget(self);
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["link", "delete", &self.name]).status();
    }
}

/// Attaches a descriptor to the interface, once nobody else is: a program that another test starts
/// has each descriptor of this process until it is executed.
fn attach(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match try_to_attach(file, name, multi_queue) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && start.elapsed() < FREE => {
                thread::sleep(Duration::from_millis(5));
            }
            attached => return attached,
        }
    }
}

fn try_to_attach(file: &File, name: &str, multi_queue: bool) -> io::Result<()> {
    // SAFETY: integers and pointers, for which zero is a value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let single = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let flags = single | if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: the ioctl reads and fills an ifreq.
    check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_new_tap_is_nobodys_whatever_is_started_meanwhile() {
        if own_network().is_err() {
            println!("skipped: needs a network namespace");
            return;
        }
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
            for _ in 0..5 {
                let tap = Tap::new("t0", false, "10.0.0.1/24");
                let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
                let attached = try_to_attach(&file, "t0", false);
                done.store(attached.is_err(), Ordering::Relaxed);
                attached.unwrap();
                // Who gives it back is waited for.
                scope.spawn(move || {
                    thread::sleep(Duration::from_millis(50));
                    drop(file);
                });
                drop(tap.open());
            }
            done.store(true, Ordering::Relaxed);
        });
    }
}
