use std::time::{Duration, Instant};

use super::testing::{DATA, Guest, HEADER, STATUS, activation, image, pattern};
use super::*;
use crate::ring::RingState;
use crate::testing::{Buf, Driver, memory};
use crate::worker::Worker;

fn has(features: u64, bit: u32) -> bool {
    features & (1 << bit) != 0
}

fn read(block: &Block, offset: u64, len: usize) -> u64 {
    let mut bytes = vec![0xff; len];
    block.config().lock().unwrap().read(offset, &mut bytes);
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte))
}

#[test]
fn configuration_out_of_range_is_refused_before_the_file_is_touched() {
    let bad = |change: fn(&mut BlockConfig)| {
        let mut config = BlockConfig::new("/nonexistent");
        change(&mut config);
        Block::open(config).err().unwrap().to_string()
    };
    assert_eq!(bad(|config| config.queues = 0), "0 queues: a disk has 1 to 255");
    assert_eq!(bad(|config| config.queues = 256), "256 queues: a disk has 1 to 255");
    for size in [0, 1, 2, 3, 100, 65535] {
        let mut config = BlockConfig::new("/nonexistent");
        config.queue_size = size;
        assert!(matches!(Block::open(config), Err(BlockError::QueueSize(found)) if found == size));
    }
    assert!(bad(|config| config.serial = "x".repeat(21)).contains("serial number"));
    assert!(bad(|config| config.serial = "a\nb".into()).contains("serial number"));
    assert!(bad(|_| ()).contains("cannot open it"));
}

#[test]
fn features_follow_the_configuration() {
    let file = image(&[0; 4096]);
    let features = |change: fn(&mut BlockConfig)| {
        let mut config = BlockConfig::new(file.path());
        change(&mut config);
        Block::open(config).unwrap().profile().features
    };
    let plain = features(|_| ());
    assert!(has(plain, VIRTIO_BLK_F_FLUSH) && has(plain, VIRTIO_BLK_F_SEG_MAX));
    assert!(has(plain, VIRTIO_BLK_F_DISCARD) && has(plain, VIRTIO_BLK_F_WRITE_ZEROES));
    assert!(!has(plain, VIRTIO_BLK_F_RO) && !has(plain, VIRTIO_BLK_F_MQ));
    let fixed = features(|config| config.discard = false);
    assert!(!has(fixed, VIRTIO_BLK_F_DISCARD) && has(fixed, VIRTIO_BLK_F_WRITE_ZEROES));
    let readonly = features(|config| config.readonly = true);
    assert!(has(readonly, VIRTIO_BLK_F_RO));
    assert!(!has(readonly, VIRTIO_BLK_F_DISCARD) && !has(readonly, VIRTIO_BLK_F_WRITE_ZEROES));
    assert!(has(features(|config| config.queues = 2), VIRTIO_BLK_F_MQ));
}

#[test]
fn configuration_space_says_what_the_disk_is() {
    let file = image(&[0; 100 * 512 + 1]);
    let mut block = Block::open(BlockConfig {
        queues: 3,
        queue_size: 256,
        ..BlockConfig::new(file.path())
    })
    .unwrap();
    assert_eq!((block.sectors(), read(&block, 0, 8)), (101, 101));
    assert_eq!(read(&block, 12, 4), 254, "seg_max");
    assert_eq!(read(&block, 20, 4), 512, "blk_size");
    assert_eq!(
        512 << read(&block, 24, 1),
        read(&block, 26, 2) * 512,
        "a file's least request is its block"
    );
    assert_eq!(read(&block, 34, 2), 3, "num_queues");
    assert_eq!(
        (read(&block, 36, 4), read(&block, 40, 4), read(&block, 44, 4)),
        (1 << 31, 32, 1)
    );
    assert_eq!(
        (read(&block, 48, 4), read(&block, 52, 4), read(&block, 56, 1)),
        (1 << 16, 1, 1)
    );
    assert_eq!(read(&block, 57, 8), 0, "unused and beyond the end");
    assert_eq!((read(&block, u64::MAX, 8), read(&block, 60, 1)), (0, 0));
    assert_eq!(block.profile().queue_sizes, [256; 3]);
    assert!(block.start(activation(&memory(), 0, &[])).is_err(), "no queue at all");
}

#[test]
fn driver_switches_the_cache_and_nothing_else() {
    let file = image(&[0; 4096]);
    let block = Block::open(BlockConfig::new(file.path())).unwrap();
    let before: Vec<_> = (0..60).map(|at| read(&block, at, 1)).collect();
    assert_eq!(before[32], 1);
    let space = block.config();
    for offset in (0..64).chain([u64::MAX]) {
        space.lock().unwrap().write(offset, &[0; 8]);
    }
    let mut after: Vec<_> = (0..60).map(|at| read(&block, at, 1)).collect();
    assert_eq!(std::mem::replace(&mut after[32], 1), 0);
    assert_eq!(after, before);
    space.lock().unwrap().write(32, &[1]);
    assert_eq!(read(&block, 32, 1), 1);
}

#[test]
fn driver_without_flush_gets_a_write_through_disk() {
    let file = image(&[0; 4096]);
    let block = Block::open(BlockConfig::new(file.path())).unwrap();
    let bit = |bit: u32| 1u64 << bit;
    assert!(!block.agree_on_cache(0).is_on());
    assert!(block.agree_on_cache(bit(VIRTIO_BLK_F_FLUSH)).is_on());
    let both = bit(VIRTIO_BLK_F_FLUSH) | bit(VIRTIO_BLK_F_CONFIG_WCE);
    assert!(block.agree_on_cache(both).is_on());
    assert!(!block.agree_on_cache(bit(VIRTIO_BLK_F_CONFIG_WCE)).is_on());
    assert_eq!(read(&block, 32, 1), 0, "the driver sees it");
    block.config().lock().unwrap().write(32, &[0]);
    assert!(!block.agree_on_cache(both).is_on(), "what the driver chose stays");
}

/// One queue's driver sends reads and checks what it gets.
fn use_queue(driver: &mut Driver, at: u64, first: u64, content: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(20);
    for sector in first..first + 8 {
        driver.write(HEADER + at, &Guest::header(0, sector));
        let head = driver.add(&[
            Buf::Out(HEADER + at, 16),
            Buf::In(DATA + at, 512),
            Buf::In(STATUS + at, 1),
        ]);
        driver.kick.write(1).unwrap();
        let used = loop {
            assert!(Instant::now() < deadline, "no answer");
            match driver.take_used() {
                Some(used) => break used,
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(used, (u32::from(head), 513));
        let offset = usize::try_from(sector).unwrap() * 512;
        assert_eq!(driver.read(DATA + at, 512), content[offset..][..512]);
    }
}

#[test]
fn queues_run_side_by_side_on_their_own_threads() {
    let content = pattern(64 << 10, 1);
    let file = image(&content);
    for io_uring in [false, true] {
        let mut block = Block::open(BlockConfig {
            queues: 4,
            io_uring,
            ..BlockConfig::new(file.path())
        })
        .unwrap();
        let mem = memory();
        let mut drivers: Vec<_> = (0..4).map(|n| Driver::new(&mem, 0x1000 + n * 0x2000, 16)).collect();
        let handlers = block
            .start(activation(
                &mem,
                block.profile().features,
                &drivers.iter().collect::<Vec<_>>(),
            ))
            .unwrap();
        let workers: Vec<_> = handlers
            .into_iter()
            .map(|handler| Worker::spawn("io-test", handler, Box::new(|error| panic!("{error}"))).unwrap())
            .collect();
        std::thread::scope(|scope| {
            for (n, driver) in (0..).zip(&mut drivers) {
                let content = &content;
                scope.spawn(move || use_queue(driver, 0x1000 * n, 16 * n, content));
            }
        });
        let states: Vec<RingState> = workers.into_iter().flat_map(Worker::join).collect();
        assert!(states.iter().all(|state| state.queue.next_used == 8) && states.len() == 4);
    }
}

#[test]
fn driver_that_kicks_only_when_asked_is_never_forgotten() {
    const ROUNDS: u64 = 5_000;
    let file = image(&pattern(64 << 10, 1));
    for io_uring in [false, true] {
        let mut block = Block::open(BlockConfig {
            io_uring,
            ..BlockConfig::new(file.path())
        })
        .unwrap();
        let mem = memory();
        let mut driver = Driver::new(&mem, 0x1000, 8);
        let mut handlers = block.start(activation(&mem, 0, &[&driver])).unwrap();
        let worker = Worker::spawn("io-test", handlers.remove(0), Box::new(|error| panic!("{error}"))).unwrap();
        driver.write(HEADER, &Guest::header(0, 0));
        let mut deadline = Instant::now() + Duration::from_secs(20);
        let (mut sent, mut received) = (0, 0);
        while received < ROUNDS {
            // Two at a time: the ring is hardly ever empty.
            while sent < ROUNDS && sent - received < 2 {
                let at = DATA + 0x200 * (sent % 2);
                driver.add(&[Buf::Out(HEADER, 16), Buf::In(at, 512), Buf::In(STATUS + sent % 2, 1)]);
                sent += 1;
                std::sync::atomic::fence(std::sync::atomic::Ordering::SeqCst);
                if driver.used_flags() & 1 == 0 {
                    driver.kick.write(1).unwrap();
                }
            }
            if driver.take_used().is_some() {
                received += 1;
                deadline = Instant::now() + Duration::from_secs(20);
            }
            assert!(Instant::now() < deadline, "forgotten after {received} requests");
        }
        worker.join();
    }
}
