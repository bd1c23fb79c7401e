//! A disk on a file in memory, by plain system calls.

use husk_virtio::block::{Block, BlockConfig};
use husk_virtio::device::VirtioDevice;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_T_DISCARD as DISCARD, VIRTIO_BLK_T_FLUSH as FLUSH, VIRTIO_BLK_T_GET_ID as GET_ID, VIRTIO_BLK_T_IN as IN,
    VIRTIO_BLK_T_OUT as OUT, VIRTIO_BLK_T_WRITE_ZEROES as WRITE_ZEROES,
};

use crate::Seeds;
use crate::file::{MemoryFile, with_file};
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::{Recorder, Script};

/// Bit of the first byte: the disk is read-only.
const READONLY: u8 = 1 << 0;
/// Bit of the first byte: what is discarded is given back.
const DISCARDS: u8 = 1 << 1;
/// Bit of the first byte: two queues.
const TWO_QUEUES: u8 = 1 << 2;

/// The first three bytes are flags and the image's size, at least one byte; then the driver's script.
pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let (Some(flags), Some(size)) = (script.u8(), script.u16()) else {
        return;
    };
    let image: Vec<u8> = (0..u32::from(size) + 1)
        .map(|at| at.to_le_bytes()[at as usize % 2])
        .collect();
    with_file(&image, |file| on_image(file, &image, flags, &mut script));
}

fn on_image(file: &MemoryFile, image: &[u8], flags: u8, script: &mut Script<'_>) {
    let config = BlockConfig {
        readonly: flags & READONLY != 0,
        discard: flags & DISCARDS != 0,
        queues: if flags & TWO_QUEUES != 0 { 2 } else { 1 },
        queue_size: 64,
        io_uring: false,
        serial: "fuzzed".into(),
        ..BlockConfig::new(file.path())
    };
    let mut block = Block::open(config).unwrap();
    let sectors = block.sectors();
    assert_eq!(sectors, (image.len() as u64).div_ceil(512));
    run_script(&mut block, script, |_, _| {});
    if flags & READONLY != 0 {
        assert!(file.content() == image, "a read-only image has changed");
    } else {
        let size = file.size();
        assert!(
            (image.len() as u64..=sectors * 512).contains(&size),
            "an image of {} bytes has become one of {size}",
            image.len()
        );
    }
    assert_eq!(
        block.profile().queue_sizes.len(),
        if flags & TWO_QUEUES != 0 { 2 } else { 1 }
    );
}

pub fn seeds() -> Seeds {
    let segment = |sector: u64, count: u32, flags: u32| {
        let mut bytes = sector.to_le_bytes().to_vec();
        bytes.extend(count.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes
    };
    let everything = [
        (IN, 0, vec![], 1024),
        (OUT, 1, vec![7; 200], 0),
        (FLUSH, 0, vec![], 0),
        (GET_ID, 0, vec![], 20),
        (DISCARD, 0, segment(2, 3, 0), 0),
        (WRITE_ZEROES, 0, segment(1, 2, 1), 0),
        (WRITE_ZEROES, 0, segment(0, 9, 0), 0),
        (0x55, 0, vec![], 0),
    ];
    let mut seeds = Vec::new();
    for (name, flags, size) in [
        ("writable", DISCARDS, 4095),
        ("odd-size", DISCARDS | TWO_QUEUES, 5000),
        ("read-only", READONLY, 8191),
    ] {
        let mut recorder = Recorder::default();
        recorder.u8(flags).u16(size);
        let mut ops = Vec::new();
        let headers: Vec<_> = everything
            .iter()
            .map(|(kind, sector, ..)| header(*kind, *sector))
            .collect();
        for ((_, _, data, room), header) in everything.iter().zip(&headers) {
            let mut chain = vec![readable(0, header)];
            if !data.is_empty() {
                chain.push(readable(1, data));
            }
            if *room > 0 {
                chain.push(writable(2, *room));
            }
            chain.push(writable(10, 1));
            ops.push(if chain.len() == 4 {
                Op::Indirect(0, chain)
            } else {
                Op::Chain(0, chain)
            });
            ops.push(Op::Kick(0));
        }
        ops.extend([Op::ReadConfig(0, 8), Op::WriteConfig(32, &[0])]);
        recorder.raw(&script(&ops).take());
        seeds.push((name, recorder.take()));
    }
    seeds
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}
