//! The program that libFuzzer drives. `HUSK_FUZZ_TARGET` in the environment names the target; the
//! arguments are libFuzzer's.

#![no_main]
#![expect(unsafe_code, reason = "the leak checker asks a function by name")]

use std::ffi::{CStr, c_char};
use std::sync::OnceLock;

use husk_fuzz::{TARGETS, Target, find};

static CHOSEN: OnceLock<&'static Target> = OnceLock::new();

libfuzzer_sys::fuzz_target!(init: choose(), |input: &[u8]| {
    (CHOSEN.get_or_init(choose).run)(input);
});

/// What is not to be taken for a leak: the C library's list of what ends with a thread, which the
/// checker now and then does not find.
const NO_LEAKS: &CStr = c"leak:__cxa_thread_atexit_impl\n";

// SAFETY: nobody else defines this name; the checker's own is weak, and takes the same form.
#[unsafe(no_mangle)]
extern "C" fn __lsan_default_suppressions() -> *const c_char {
    NO_LEAKS.as_ptr()
}

fn choose() -> &'static Target {
    let name = std::env::var("HUSK_FUZZ_TARGET").unwrap_or_default();
    find(&name).unwrap_or_else(|| {
        let known: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("HUSK_FUZZ_TARGET is '{name}'; it must be one of {}", known.join(", "));
        std::process::exit(2);
    })
}
