//! The profile `net`: a guest and its host talk over a tap, in the emulated host, where the clock counts instructions.
//!
//! One processor does everything there: guest, VMM, both kernels, and the programs at both ends. So
//! a figure is the work of all of them for one unit of traffic, and what differs between subjects
//! is the VMM's part and what it makes the others do.

use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, bail};
use husk_guest::traffic::Traffic;
use serde::{Deserialize, Serialize};

use super::emulated::{Extent, Profile, Session};
use super::net_host::{HostSide, LIMIT, host_side};
use super::rounds::FigureDef;
use super::subject::{Guest, Subject};
use super::{Results, scripted};
use crate::paths::Lab;

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

const FIGURES: [FigureDef<Talk>; 5] = [
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
         /init rest >/dev/null\n\
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
    let session = Session {
        profile: Profile::Net,
        subjects,
        extent,
        files: vec![scripted::image(lab, &guest_init, IMAGE, &script())?],
        guest_init,
        parts: Vec::new(),
        figure_defs: &FIGURES,
    };
    session.run(lab)
}

/// One run of one subject.
pub fn sample(subject: &Subject, scratch: &Path) -> Result<Talk> {
    let guest = Guest {
        tap: Some(TAP.into()),
        ..scripted::guest(IMAGE)
    };
    let (host, guest) = scripted::run(subject.start(&guest, scratch)?, LIMIT, host_side)?;
    figures(&host, &guest)
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

    fn said(line: &str) -> Vec<String> {
        let count = format!("50 {line}");
        [line, line, r#"{"bytes":1,"checksum":0,"nanos":4000000}"#, "9", &count]
            .map(String::from)
            .to_vec()
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
        let talk = figures(&host, &said(&line)).unwrap();
        let expected = Talk {
            to_host_us_per_mib: 1000.0,
            to_guest_us_per_mib: 1000.0,
            exchange_us: 2.0,
            to_host_us_per_datagram: 100.0,
            to_guest_us_per_datagram: 1280.0,
        };
        assert_eq!(talk, expected);
    }
}
