//! A file system device between a hostile driver and a hostile back-end. What the back-end does to
//! guest RAM the script does by [`Op::Write`]; its answers come first, one byte for each request
//! that it hears:
//!
//! | byte, modulo 32 | follows | the back-end |
//! |---|---|---|
//! | 28 | number | answers that |
//! | 29 | bytes | says that; leaves if it is too little for an answer |
//! | 30 | | answers as it should, and says one byte more |
//! | 31 | | leaves |
//! | other, or no more | | answers as it should |
//!
//! In a host step it leaves, whatever it was about to say.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use husk_virtio::fs::{Fs, FsConfig};
use husk_virtio::vhost_user::VhostUserMetrics;

use crate::Seeds;
use crate::guest::{run_script_lent, shared_memory};
use crate::op::{Buffer, Op, readable, script, writable};
use crate::script::{Recorder, Script};

/// Lengths of a message's header, and of an answer with it.
const HEADER_BYTES: usize = 12;
const ANSWER_BYTES: usize = 20;
const ANSWER_WANTED: u32 = 8;
/// Of all that a front-end says here the longest is a memory table.
const PAYLOAD_MAX: usize = 0x1000;

pub fn run(input: &[u8]) {
    live(input);
}

/// A device's life; what it counted, if there was a device.
fn live(input: &[u8]) -> Option<Arc<VhostUserMetrics>> {
    let mut script = Script::new(input);
    let answers = script.bytes().unwrap_or_default().to_vec();
    let (here, there) = UnixStream::pair().unwrap();
    let line = there.try_clone().unwrap();
    let back_end = serve(there, answers);
    let config = FsConfig {
        tag: "fuzz".into(),
        socket: "/nowhere/fs".into(),
        queues: 2,
        queue_size: 64,
        patience: Duration::ZERO,
    };
    let device = Fs::on_socket(&config, here).ok();
    let metrics = device.map(|mut fs| {
        run_script_lent(shared_memory(), &mut fs, &mut script, |_, _| {
            // Fails when it has left before.
            let _ = line.shutdown(Shutdown::Both);
        });
        fs.metrics()
    });
    let _ = line.shutdown(Shutdown::Both);
    back_end.join().unwrap();
    metrics
}

/// The back-end, until either side leaves.
fn serve(mut line: UnixStream, answers: Vec<u8>) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut answers = Script::new(&answers);
        while step(&mut line, &mut answers).is_some() {}
        let _ = line.shutdown(Shutdown::Both);
    })
}

/// Hears one request and answers it, or not. `None` to leave.
fn step(line: &mut UnixStream, answers: &mut Script<'_>) -> Option<()> {
    let mut header = [0; HEADER_BYTES];
    line.read_exact(&mut header).ok()?;
    let [request, flags, size] = [0, 4, 8].map(|at| u32::from_le_bytes(header[at..at + 4].try_into().unwrap()));
    let mut payload = vec![0; usize::try_from(size).unwrap()];
    assert!(payload.len() <= PAYLOAD_MAX, "a payload of {size} bytes");
    line.read_exact(&mut payload).ok()?;
    let usual = usual(request, &payload).or((flags & ANSWER_WANTED != 0).then_some(0));
    let said = match answers.u8().unwrap_or(0) & 0x1f {
        28 => answer(request, answers.u64()?),
        29 => answers.bytes()?.to_vec(),
        30 => [&answer(request, usual.unwrap_or(0))[..], &[0]].concat(),
        31 => return None,
        _ => usual.map(|number| answer(request, number)).unwrap_or_default(),
    };
    line.write_all(&said).ok()?;
    (said.is_empty() && usual.is_none() || said.len() >= ANSWER_BYTES).then_some(())
}

/// What a back-end answers to requests that ask for more than success.
fn usual(request: u32, payload: &[u8]) -> Option<u64> {
    match request {
        // Features; those of the protocol; queues; memory slots.
        1 => Some(1 << 32 | 1 << 30 | 1 << 29 | 1 << 28),
        15 => Some(1 << 15 | 1 << 3 | 1),
        17 => Some(3),
        36 => Some(32),
        // The ring's index, and position 0.
        11 => Some(u64::from_le_bytes(payload.try_into().unwrap())),
        _ => None,
    }
}

fn answer(request: u32, number: u64) -> Vec<u8> {
    let words = [request, 5, 8].map(u32::to_le_bytes).concat();
    [&words[..], &number.to_le_bytes()].concat()
}

pub fn seeds() -> Seeds {
    let lookup = [
        &48_u32.to_le_bytes()[..],
        &1_u32.to_le_bytes(),
        &2_u64.to_le_bytes(),
        &[0; 32],
    ]
    .concat();
    let forget = [
        &48_u32.to_le_bytes()[..],
        &2_u32.to_le_bytes(),
        &4_u64.to_le_bytes(),
        &[0; 32],
    ]
    .concat();
    let asked = |slot: u8| -> Vec<Buffer<'_>> { vec![readable(slot, &lookup), writable(slot + 1, 144)] };
    let ops = [
        Op::Chain(1, asked(0)),
        Op::Indirect(1, asked(2)),
        Op::Chain(0, vec![readable(4, &forget)]),
        // The first one was answered: entry 0, then the index of queue 1's used ring.
        Op::Write(0x2804, &[0, 0, 0, 0, 16, 0, 0, 0]),
        Op::Write(0x2802, &[1, 0]),
        Op::Host,
    ];
    let later = [Op::Wake, Op::Indirect(2, asked(6)), Op::Kick(2), Op::Kick(1)];
    let life = |answers: &[u8]| {
        let mut input = Recorder::default();
        input.bytes(answers).raw(&script(&ops).take());
        for op in &later {
            op.write(&mut input);
        }
        input.take()
    };
    // 5 or 6 requests agree, 5 more begin the start: SET_FEATURES, memory three times, the first ring.
    let refused = [&[0; 9][..], &[28, 1, 0, 0, 0, 0, 0, 0, 0]].concat();
    let babbled = [&[0; 12][..], &[29, 24], &[0x5a; 24]].concat();
    vec![
        ("left", life(&[])),
        ("refused", life(&refused)),
        ("babbled", life(&babbled)),
        ("talkative", life(&[&[0; 27][..], &[30]].concat())),
        ("features", life(&[0, 28, 0, 0, 0, 0, 0, 0, 0, 0])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seeds_end_where_their_names_say() {
        let counted = seeds().into_iter().map(|(name, seed)| {
            let metrics = live(&seed)?;
            let counts = [&metrics.starts, &metrics.backend_failures, &metrics.refused_requests];
            Some((name, counts.map(|counter| counter.get())))
        });
        let counted: Vec<_> = counted.collect();
        let expected = [
            // One of two was answered, then one more comes.
            Some(("left", [1, 1, 2])),
            Some(("refused", [0, 1, 3])),
            Some(("babbled", [0, 1, 3])),
            Some(("talkative", [1, 1, 2])),
            None,
        ];
        assert_eq!(counted, expected);
    }
}
