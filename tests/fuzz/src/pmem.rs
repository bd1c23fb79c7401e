//! Persistent memory: flushes of a file in memory.

use husk_virtio::pmem::Pmem;

use crate::Seeds;
use crate::file::with_file;
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::Script;

pub fn run(input: &[u8]) {
    with_file(b"what was there before", |file| {
        let opened = std::fs::File::open(file.path()).unwrap();
        let mut pmem = Pmem::new(1 << 32, 4096, Some(opened), "a file", Box::new(()));
        run_script(&mut pmem, &mut Script::new(input), |_, _| {});
        let metrics = pmem.metrics();
        assert_eq!(metrics.flush_errors.get(), 0, "memory can always be flushed");
        assert_eq!(file.content(), b"what was there before");
    });
}

pub fn seeds() -> Seeds {
    let flush = |kind| vec![readable(0, kind), writable(1, 4)];
    let flushed = script(&[
        Op::Chain(0, flush(&[0; 4])),
        Op::Indirect(0, flush(&[1, 0, 0, 0])),
        Op::Chain(0, vec![readable(0, &[0; 4])]),
        Op::Kick(0),
        Op::ReadConfig(0, 8),
    ])
    .take();
    vec![("flushed", flushed)]
}
