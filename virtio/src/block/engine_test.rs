use std::fs;

use vm_memory::MmapRegion;

use super::*;
use crate::block::testing::{HERE, buffers, has_uring, image, pipe};

/// What became of a write of `buffers` at the start of `file`: `None` if it went to the ring.
fn write(engine: &mut Engine, file: &File, buffers: &Iovecs, others: bool) -> Option<io::Result<usize>> {
    let op = Op::Write {
        file,
        buffers,
        offset: 0,
    };
    // SAFETY: the tests keep file, buffers and memory until the engine is gone.
    unsafe { engine.run(0, op, others) }
}

fn reap(engine: &mut Engine) -> Vec<usize> {
    let mut ended = Vec::new();
    engine.wait().unwrap();
    engine.reap(&mut ended);
    ended.into_iter().map(|completion| completion.slot).collect()
}

/// Linux 5.9 and 5.10 answer 0 in the middle of a file, too.
#[test]
fn a_read_that_finds_nothing_is_made_again_by_one_that_waits() {
    if !has_uring() {
        return;
    }
    let memory = MmapRegion::new(4096).unwrap();
    let buffers = buffers(&memory);
    let file = image(&[7; 4096]);
    let mut engine = Engine::with_uring(4, true);
    for offset in [4096, 1 << 20] {
        let op = Op::Read {
            file: file.as_file(),
            buffers: &buffers,
            offset,
        };
        // SAFETY: file, buffers and memory stay until the engine is gone.
        let at_hand = unsafe { plain::read_at_hand(op) };
        assert!(
            matches!(at_hand, AtHand::Not | AtHand::Never),
            "{at_hand:?} at {offset}"
        );
        // SAFETY: as above.
        assert!(unsafe { engine.run(3, op, false) }.is_none());
        assert!(engine.submit().unwrap());
        let mut ended = Vec::new();
        engine.wait().unwrap();
        engine.reap(&mut ended);
        let ended: Vec<_> = ended.iter().map(|one| (one.slot, one.result.as_ref().ok())).collect();
        assert_eq!(ended, [(3, Some(&0))], "the end of the file");
    }
}

#[test]
fn a_write_beside_another_operation_goes_to_the_ring() {
    if !has_uring() {
        return;
    }
    let (reader, writer) = pipe();
    let (memory, read) = (MmapRegion::new(4096).unwrap(), MmapRegion::new(1).unwrap());
    let (buffers, read) = (buffers(&memory), buffers(&read));
    let file = image(&[7; 4096]);
    let mut engine = Engine::with_uring(4, true);
    let op = Op::Read {
        file: &reader,
        buffers: &read,
        offset: HERE,
    };
    // SAFETY: file, buffers and memory stay until the engine is gone.
    assert!(unsafe { engine.run(1, op, false) }.is_none(), "nothing is in the pipe");
    assert!(write(&mut engine, file.as_file(), &buffers, false).is_none());
    assert!(engine.submit().unwrap());
    assert_eq!(reap(&mut engine), [0]);
    assert!(engine.is_busy());
    rustix::io::write(&writer, b"x").unwrap();
    assert_eq!(reap(&mut engine), [1]);
    assert_eq!(fs::read(file.path()).unwrap(), [0; 4096]);

    assert_eq!(
        write(&mut engine, file.as_file(), &buffers, false).unwrap().unwrap(),
        4096
    );
    assert!(!engine.is_busy());
}

#[test]
fn a_long_write_before_others_and_one_past_the_page_cache_go_to_the_ring() {
    if !has_uring() {
        return;
    }
    let (long, short) = (MmapRegion::new(1 << 20).unwrap(), MmapRegion::new(4096).unwrap());
    let (long, short) = (buffers(&long), buffers(&short));
    let file = image(&[7; 4096]);
    for (cached, buffers, others) in [(true, &long, true), (false, &short, false)] {
        let mut engine = Engine::with_uring(4, cached);
        assert!(
            write(&mut engine, file.as_file(), buffers, others).is_none(),
            "cached: {cached}"
        );
        assert!(engine.submit().unwrap());
        assert_eq!(reap(&mut engine), [0]);
    }
    assert_eq!(fs::read(file.path()).unwrap(), vec![0; 1 << 20]);
    let mut engine = Engine::with_uring(4, true);
    let written = write(&mut engine, file.as_file(), &long, false);
    assert_eq!(written.unwrap().unwrap(), 1 << 20);
    assert!(!engine.is_busy());
}
