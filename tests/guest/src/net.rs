//! What the shell's tools in a guest cannot do with a network: `/init net WORD…`, for the step `shell`.
//!
//! | words                             | what it does, and prints                                              |
//! |-----------------------------------|-----------------------------------------------------------------------|
//! | `send ADDRESS PORT BYTES [SEED]`  | a TCP stream, of a pattern if there is a seed; [`Traffic`] as JSON     |
//! | `receive PORT [look]`             | the other end                                                         |
//! | `flood ADDRESS PORT SIZE MS`      | UDP datagrams as fast as they go; how many                            |
//! | `count PORT`                      | the other end; how many, and [`Traffic`]                              |
//! | `ping-pong ADDRESS PORT SIZE N`   | UDP datagrams one at a time; [`Traffic`]                              |
//! | `answer PORT`                     | the other end                                                         |
//! | `offload DEVICE NAME on\|off`     | as `ethtool -K`: `tx`, `rx`, `sg`, `tso`, `gso`, `gro`; the state then |
//! | `queues DEVICE [N]`               | as `ethtool -L DEVICE combined N`; how many there are, and can be     |
//! | `raw DEVICE HEX`                  | a frame as it is                                                      |

use std::time::Duration;

use anyhow::{Context, Result, bail};
use husk_guest::traffic::{self, Content, Traffic};

use crate::sys;

/// Carries out `words`; what there is to print.
///
/// # Errors
///
/// They make no sense, or the kernel refused.
pub fn perform(words: &[String]) -> Result<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    Ok(match words[..] {
        ["send", to, port, bytes] => json(traffic::send(
            (to.parse()?, port.parse()?),
            bytes.parse()?,
            Content::Plain,
        )?)?,
        ["send", to, port, bytes, seed] => {
            let content = Content::Pattern(seed.parse()?);
            json(traffic::send((to.parse()?, port.parse()?), bytes.parse()?, content)?)?
        }
        ["receive", port] => json(traffic::receive(port.parse()?, false)?)?,
        ["receive", port, "look"] => json(traffic::receive(port.parse()?, true)?)?,
        ["flood", to, port, size, ms] => {
            let time = Duration::from_millis(ms.parse()?);
            traffic::flood((to.parse()?, port.parse()?), size.parse()?, time)?.to_string()
        }
        ["count", port] => {
            let (datagrams, traffic) = traffic::count(port.parse()?)?;
            format!("{datagrams} {}", json(traffic)?)
        }
        ["ping-pong", to, port, size, count] => json(traffic::ping_pong(
            (to.parse()?, port.parse()?),
            size.parse()?,
            count.parse()?,
        )?)?,
        ["answer", port] => traffic::answer(port.parse()?).map(|()| String::new())?,
        ["offload", device, name, state] => offload(device, name, state)?,
        ["queues", device] => queues(device, None)?,
        ["queues", device, count] => queues(device, Some(count.parse()?))?,
        ["raw", device, hex] => sys::send_frame(device, &bytes(hex)?).map(|()| String::new())?,
        _ => bail!("cannot do {words:?}"),
    })
}

fn json(traffic: Traffic) -> Result<String> {
    Ok(serde_json::to_string(&traffic)?)
}

/// `ETHTOOL_GSET…` and its neighbour that sets, by the names that ethtool(8) has for them (linux/ethtool.h).
const OFFLOADS: [(&str, u32, u32); 6] = [
    ("rx", 0x14, 0x15),
    ("tx", 0x16, 0x17),
    ("sg", 0x18, 0x19),
    ("tso", 0x1e, 0x1f),
    ("gso", 0x23, 0x24),
    ("gro", 0x2b, 0x2c),
];

fn offload(device: &str, name: &str, state: &str) -> Result<String> {
    let (_, get, set) = OFFLOADS
        .into_iter()
        .find(|(known, ..)| *known == name)
        .context("unknown offload")?;
    sys::ethtool(device, &mut [set, u32::from(state == "on")]).with_context(|| format!("cannot set {name}"))?;
    let mut value = [get, 0];
    sys::ethtool(device, &mut value)?;
    let [_, now] = value;
    Ok(if now == 0 { "off" } else { "on" }.into())
}

/// `struct ethtool_channels`: the command, four maxima, four counts, each rx, tx, other, combined.
fn queues(device: &str, count: Option<u32>) -> Result<String> {
    const GET: u32 = 0x3c;
    const SET: u32 = 0x3d;
    if let Some(count) = count {
        sys::ethtool(device, &mut [SET, 0, 0, 0, 0, 0, 0, 0, count]).context("cannot set the number of queues")?;
    }
    let mut channels = [GET, 0, 0, 0, 0, 0, 0, 0, 0];
    sys::ethtool(device, &mut channels)?;
    let [_, _, _, _, most, _, _, _, now] = channels;
    Ok(format!("{now} of {most}"))
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let digits = hex.as_bytes().chunks(2);
    digits
        .map(|pair| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?))
        .collect()
}
