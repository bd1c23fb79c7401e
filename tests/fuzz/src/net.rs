//! The network device on a pair of sockets that keep frames apart, in the place of a tap: what the
//! driver sends and receives, its commands, and what arrives.
//!
//! | byte of a host step | arguments | what happens |
//! |---|---|---|
//! | even | pair, length, bytes | a frame of so many bytes arrives, these repeated; its header is the first of them |
//! | odd | pair | what was sent is looked at |

use std::os::unix::net::UnixDatagram;

use husk_virtio::device::VirtioDevice;
use husk_virtio::net::header::{HEADER_BYTES, MAX_FRAME_BYTES, check};
use husk_virtio::net::{Net, NetConfig};

use crate::Seeds;
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::{Recorder, Script};

const PAIRS: u16 = 2;
/// Queues.
const RECEIVE: u8 = 0;
const TRANSMIT: u8 = 1;
const COMMANDS: u8 = 4;

pub fn run(input: &[u8]) {
    let (wires, taps): (Vec<_>, Vec<_>) = (0..PAIRS).map(|_| UnixDatagram::pair().unwrap()).unzip();
    for end in wires.iter().chain(&taps) {
        end.set_nonblocking(true).unwrap();
    }
    let config = NetConfig {
        pairs: PAIRS,
        queue_size: 64,
        mtu: Some(1500),
        ..NetConfig::new([2, 0, 0, 0, 0, 1])
    };
    let mut net = Net::on_sockets(config, taps.into_iter().map(Into::into).collect());
    run_script(&mut net, &mut Script::new(input), |net, script| {
        let _ = step(net, &wires, script);
    });
}

fn step(net: &Net, wires: &[UnixDatagram], script: &mut Script<'_>) -> Option<()> {
    let (what, pair) = (script.u8()?, usize::from(script.u8()?));
    let wire = &wires[pair % wires.len()];
    if what & 1 == 0 {
        let (len, bytes) = (script.u16()?, script.bytes()?);
        let frame: Vec<u8> = bytes.iter().copied().cycle().take(len.into()).collect();
        // Refused when too many wait: so does a tap.
        let _ = wire.send(&frame);
    } else {
        let mut frame = vec![0; HEADER_BYTES + MAX_FRAME_BYTES + 1];
        while let Ok(len) = wire.recv(&mut frame) {
            check_sent(&frame[..len], net.profile().features);
        }
    }
    Some(())
}

/// What goes out has a header that says what it needs and nothing else, whatever the driver wrote.
fn check_sent(sent: &[u8], features: u64) {
    let (header, frame) = sent.split_first_chunk::<HEADER_BYTES>().expect("a header");
    assert_eq!(
        check(*header, frame.len(), features),
        Ok(*header),
        "a frame of {} bytes",
        frame.len()
    );
}

pub fn seeds() -> Seeds {
    let frame = [&[0; HEADER_BYTES][..], &[0xaa; 60]].concat();
    let mut segments = frame.clone();
    // Complete the checksum at 34 + 16; TCP over IPv4 in segments of 1448 bytes.
    segments[..HEADER_BYTES].copy_from_slice(&[1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
    let mut sent = script(&[
        Op::Chain(TRANSMIT, vec![readable(0, &frame)]),
        Op::Indirect(
            TRANSMIT,
            vec![
                readable(1, &segments[..HEADER_BYTES]),
                readable(2, &segments[HEADER_BYTES..]),
            ],
        ),
        Op::Chain(TRANSMIT, vec![readable(3, &frame[..20])]),
        Op::Kick(TRANSMIT),
        Op::Host,
    ]);
    sent.u8(1).u8(0);
    let mut received = script(&[
        Op::Chain(RECEIVE, vec![writable(0, 1526)]),
        Op::Indirect(RECEIVE, vec![writable(1, 12), writable(2, 1000)]),
        Op::Chain(RECEIVE, vec![writable(3, 100)]),
        Op::Chain(RECEIVE, vec![writable(4, 4096)]),
        Op::Chain(RECEIVE, vec![writable(5, 4096)]),
        Op::Kick(RECEIVE),
    ]);
    for len in [100, 1500, 4000, 70] {
        arrive(&mut received, len);
    }
    let commands: [&[u8]; 4] = [
        &[1, 1, 2, 0, 0, 0, 0, 9],
        &[4, 0, 2, 0],
        &[5, 0, 0, 0, 0, 0, 0, 0, 0, 0],
        &[9, 9],
    ];
    let chains: Vec<_> = (0..)
        .step_by(2)
        .zip(commands)
        .map(|(slot, command)| Op::Chain(COMMANDS, vec![readable(slot, command), writable(slot + 1, 1)]))
        .collect();
    let commanded = script(&[&chains[..], &[Op::Kick(COMMANDS), Op::ReadConfig(0, 8)]].concat()).take();
    vec![
        ("sent", sent.take()),
        ("received", received.take()),
        ("commanded", commanded),
    ]
}

fn arrive(to: &mut Recorder, len: u16) {
    Op::Host.write(to);
    to.u8(0).u8(0).u16(len).bytes(&[0; 16]);
    Op::Wake.write(to);
}
