//! Where the VMM and the guests' kernels are.

use std::env;
use std::path::PathBuf;
use std::process::Command;

/// What a kernel that is booted for a test leaves out, being none of the test's: words for its command line.
///
/// | word | leaves out | of an emulated boot |
/// |---|---|---|
/// | `cryptomgr.notests` | the tests of its own cryptography | a quarter |
/// | `jent_mod_init` | those of the processor's jitter as a source of random numbers | 11 % of the rest |
/// | `load_system_certificate_list` | certificates for signatures of modules, which have none here | 2 % |
/// | `8250.nr_uarts=1` | looking for four serial ports, where there is at most one | 2 % |
pub const SHORT_BOOT: &str =
    "cryptomgr.notests initcall_blacklist=jent_mod_init,load_system_certificate_list 8250.nr_uarts=1";

fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set: guest-driven tests run by `cargo lab test [FILTER]`"),
    }
}

/// The VMM under test.
pub fn husk() -> Command {
    Command::new(variable("HUSK_BIN"))
}

/// A file of `kernel`, for example `vmlinuz` of `6.12`.
pub fn kernel_file(kernel: &str, name: &str) -> PathBuf {
    lab_file(&format!("{kernel}/{name}"))
}

/// A file that the lab has made.
pub(crate) fn lab_file(name: &str) -> PathBuf {
    let path = variable("HUSK_LAB_DIR").join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo lab test` makes it",
        path.display()
    );
    path
}
