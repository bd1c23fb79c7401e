//! The profile `net`: a guest and its host talk over a tap, in the emulated host, where the clock counts instructions.
//!
//! One processor does everything there: guest, VMM, both kernels, and the programs at both ends. So a figure is the work of all of
//! them for one unit of traffic, and what differs between subjects is the VMM's part and what it makes the others do.

use std::fs;
use std::io::Read;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use husk_guest::traffic::Traffic;
use husk_guest::{Answer, PREFIX, Step, step};
use husk_tests::end_of;
use serde::{Deserialize, Serialize};

use super::Results;
use super::broken::Panicked;
use super::emulated::{Extent, Profile, Session};
use super::measure::{collected, end};
use super::net_host::{HostSide, LIMIT, host_side};
use super::rounds::Extract;
use super::subject::{Guest, Subject};
use crate::archive::Archive;
use crate::images;
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};

const MEMORY_MIB: u32 = 512;
/// The tap.
pub const TAP: &str = "bench0";
/// The host.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// The guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
/// Bytes of a stream.
pub const STREAM_MIB: u32 = 64;
/// Exchanges of one datagram and its answer.
const EXCHANGES: u32 = 2000;
/// For how long datagrams are sent as fast as they go.
pub const FLOOD_MS: u32 = 500;
/// Bytes of a datagram.
pub const DATAGRAM: usize = 64;

const IMAGE: &str = "net.cpio";

/// What one run of a subject cost.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Talk {
    to_host_us_per_mib: f64,
    to_guest_us_per_mib: f64,
    exchange_us: f64,
    to_host_us_per_datagram: f64,
    to_guest_us_per_datagram: f64,
}

const FIGURES: [Extract<Talk>; 5] = [
    ("to_host_us_per_mib", "virtual µs", |talk| talk.to_host_us_per_mib),
    ("to_guest_us_per_mib", "virtual µs", |talk| talk.to_guest_us_per_mib),
    ("exchange_us", "virtual µs", |talk| talk.exchange_us),
    ("to_host_us_per_datagram", "virtual µs", |talk| {
        talk.to_host_us_per_datagram
    }),
    ("to_guest_us_per_datagram", "virtual µs", |talk| {
        talk.to_guest_us_per_datagram
    }),
];

/// What the guest does, one command a line. The host does the counterparts in the same order: [`super::net_host`].
fn script() -> String {
    let stream = u64::from(STREAM_MIB) << 20;
    format!(
        "set -e\n\
         ip link set eth0 up\n\
         ip addr add {GUEST}/24 dev eth0\n\
         /init net send {HOST} 5001 {stream}\n\
         /init net receive 5002\n\
         /init net ping-pong {HOST} 5003 {DATAGRAM} {EXCHANGES}\n\
         /init net flood {HOST} 5004 {DATAGRAM} {FLOOD_MS}\n\
         /init net count 5005\n"
    )
}

/// Streams both ways, round trips and small datagrams.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent) -> Result<Results> {
    let guest_init = super::guest_init(lab)?;
    images::ensure_guests(lab, &guest_init)?;
    let mut image = fs::read(lab.guest().join(HOST_KERNEL.name).join("pod.cpio"))?;
    let mut more = Archive::default();
    more.file("script", script().as_bytes())?;
    image.extend(more.finish()?);
    let file = lab.path("bench").join(IMAGE);
    paths::write(&file, &image)?;
    let session = Session {
        profile: Profile::Net,
        subjects,
        extent,
        guest_init,
        files: vec![(file, IMAGE.into())],
        extracts: &FIGURES,
    };
    session.run(lab)
}

fn guest() -> Guest {
    let steps = step::join(&[Step::Script, Step::PowerOff]);
    Guest {
        kernel: Path::new("/lab").join(HOST_KERNEL.name).join("vmlinux"),
        initramfs: Some(Path::new("/work").join(IMAGE)),
        cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 husk.do={steps}"),
        memory_mib: MEMORY_MIB,
        disk: None,
        vsock: None,
        room: None,
        tap: Some(TAP.into()),
    }
}

/// One run of one subject.
pub fn sample(subject: &Subject, scratch: &Path) -> Result<Talk> {
    let mut start = subject.start(&guest(), scratch)?;
    let complaints = fs::File::create(&start.complaints)?;
    start
        .command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints);
    let mut child = Running(start.command.spawn().context("cannot start it")?);
    let output = child.0.stdout.take().context("no output")?;
    let reader = thread::spawn(move || {
        let (mut output, mut text) = (output, Vec::new());
        let _ = output.read_to_end(&mut text);
        text
    });
    let host = host_side(&mut child.0).and_then(|host| {
        end_of(&mut child.0, LIMIT)?.context("it does not end")?;
        Ok(host)
    });
    drop(child);
    let said = String::from_utf8_lossy(&collected(reader)).into_owned();
    if let Some(panicked) = Panicked::find(&said) {
        return Err(panicked.into());
    }
    let complained = fs::read_to_string(&start.complaints).unwrap_or_default();
    let host = host.with_context(|| format!("{}{complained}", tail(&said)))?;
    guest_side(&said)
        .and_then(|guest| figures(&host, &guest))
        .with_context(|| format!("{}{complained}", tail(&said)))
}

/// A child that does not outlive its run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn tail(said: &str) -> &str {
    let start = said.char_indices().rev().nth(600).map_or(0, |(index, _)| index);
    said.get(start..).unwrap_or_default()
}

/// What the guest's script has printed, a line a command.
fn guest_side(said: &str) -> Result<Vec<String>> {
    let answers = said.lines().filter_map(Answer::parse).filter_map(Result::ok);
    for answer in answers {
        if let Answer::Ran { code, output } = answer {
            ensure!(code == 0, "the guest's script failed: {output}");
            return Ok(output.lines().map(str::to_string).collect());
        }
    }
    bail!("no answer of the guest's script ({PREFIX})")
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
fn figures(host: &HostSide, guest: &[String]) -> Result<Talk> {
    let [up, down, exchange, _flood, count] = guest else {
        bail!("the guest has said {guest:?}");
    };
    let traffic = |text: &str| -> Result<Traffic> { Ok(serde_json::from_str(text)?) };
    let micros = |traffic: Traffic| traffic.nanos as f64 / 1e3;
    let (datagrams, counted) = count.split_once(' ').context("no count")?;
    let received: u64 = datagrams.parse()?;
    let mib = f64::from(STREAM_MIB);
    traffic(down)?;
    Ok(Talk {
        to_host_us_per_mib: micros(traffic(up)?) / mib,
        to_guest_us_per_mib: micros(host.sent) / mib,
        exchange_us: micros(traffic(exchange)?) / f64::from(EXCHANGES),
        to_host_us_per_datagram: micros(host.flood) / host.datagrams as f64,
        to_guest_us_per_datagram: micros(traffic(counted)?) / received as f64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(line: &str) -> String {
        let output = format!("{line}\n{line}\n{{\"bytes\":1,\"checksum\":0,\"nanos\":4000000}}\n9\n50 {line}");
        format!("noise\n{}\n", Answer::Ran { code: 0, output }.line())
    }

    #[test]
    fn figures_are_time_for_a_unit() {
        let traffic = Traffic {
            bytes: 1,
            checksum: 0,
            nanos: 64_000_000,
        };
        let line = serde_json::to_string(&traffic).unwrap();
        let host = HostSide {
            sent: traffic,
            datagrams: 640,
            flood: traffic,
        };
        let talk = figures(&host, &guest_side(&said(&line)).unwrap()).unwrap();
        let expected = Talk {
            to_host_us_per_mib: 1000.0,
            to_guest_us_per_mib: 1000.0,
            exchange_us: 2.0,
            to_host_us_per_datagram: 100.0,
            to_guest_us_per_datagram: 1280.0,
        };
        assert_eq!(talk, expected);
    }

    #[test]
    fn a_script_that_failed_is_an_error_with_its_words() {
        let failed = Answer::Ran {
            code: 1,
            output: "no route".into(),
        };
        let error = guest_side(&failed.line()).unwrap_err().to_string();
        assert!(error.contains("no route"), "{error}");
        assert!(guest_side("nothing").is_err());
    }
}
