//! The console: what it prints is thrown away, what is typed comes from the script.

use husk_virtio::console::Console;

use crate::Seeds;
use crate::guest::run_script;
use crate::op::{Op, readable, script, writable};
use crate::script::{Recorder, Script};

pub fn run(input: &[u8]) {
    let mut console = Console::new(80, 25, Box::new(std::io::sink())).unwrap();
    run_script(&mut console, &mut Script::new(input), |console, script| {
        let _ = typed(console, script);
    });
    let metrics = console.metrics();
    assert_eq!(metrics.tx_dropped_bytes.get(), 0, "the sink takes everything");
}

/// | first byte | then |
/// |---|---|
/// | even | bytes that are typed |
/// | odd | the window's new size |
fn typed(console: &Console, script: &mut Script<'_>) -> Option<()> {
    let handle = console.handle();
    if script.u8()? & 1 == 0 {
        let bytes = script.bytes()?;
        assert!(handle.input(bytes) <= bytes.len());
    } else {
        handle.resize(script.u16()?, script.u16()?);
    }
    Some(())
}

pub fn seeds() -> Seeds {
    let printed = script(&[
        Op::Chain(1, vec![readable(0, b"Linux version"), readable(1, b"\n")]),
        Op::Kick(1),
        Op::Indirect(1, vec![readable(2, b"more")]),
        Op::Kick(1),
    ])
    .take();
    let mut recorder: Recorder = script(&[Op::Chain(0, vec![writable(0, 4)]), Op::Kick(0), Op::Host]);
    recorder.u8(0).bytes(b"ls -l\n");
    for op in [Op::Wake, Op::Chain(0, vec![writable(1, 100)]), Op::Kick(0), Op::Host] {
        op.write(&mut recorder);
    }
    recorder.u8(1).u16(132).u16(43);
    Op::ReadConfig(0, 4).write(&mut recorder);
    vec![("printed", printed), ("typed", recorder.take())]
}
