//! The program that libFuzzer drives. `HUSK_FUZZ_TARGET` in the environment names the target; the arguments are libFuzzer's.

#![no_main]

use std::sync::OnceLock;

use husk_fuzz::{TARGETS, Target, find};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |input: &[u8]| {
    (CHOSEN.get_or_init(choose).run)(input);
});

fn choose() -> &'static Target {
    let name = std::env::var("HUSK_FUZZ_TARGET").unwrap_or_default();
    find(&name).unwrap_or_else(|| {
        let known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("HUSK_FUZZ_TARGET is '{name}'; it must be one of {}", known.join(", "));
        std::process::exit(2);
    })
}
