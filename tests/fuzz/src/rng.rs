//! The entropy device. Its source gives zeros, so that an input does the same each time.

use std::path::Path;

use husk_virtio::rng::Rng;

use crate::Seeds;
use crate::guest::run_script;
use crate::op::{Op, script, writable};
use crate::script::Script;

pub fn run(input: &[u8]) {
    let mut rng = Rng::open(Path::new("/dev/zero")).unwrap();
    run_script(&mut rng, &mut Script::new(input), |_, _| {});
}

pub fn seeds() -> Seeds {
    let asked = script(&[
        Op::Chain(0, vec![writable(0, 64)]),
        Op::Indirect(0, vec![writable(1, 4096), writable(31, 8192)]),
        Op::Kick(0),
        Op::Chain(0, vec![]),
        Op::Kick(0),
    ]);
    vec![("asked", asked.clone().take())]
}
