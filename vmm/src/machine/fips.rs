//! A guest's kernel is in FIPS mode where the host's is: `fips=1` (Linux admin-guide/kernel-parameters.txt).
//!
//! husk has no cryptography of its own. Whoever runs a node in FIPS mode wants that of its pods as
//! well, and the guest's kernel has to be told.

use std::borrow::Cow;
use std::fs;
use std::path::Path;

/// Where a kernel says whether it is in that mode; absent where it was built without.
const ENABLED: &str = "proc/sys/crypto/fips_enabled";
/// Parameters of the kernel end here.
const INIT: &str = "--";

/// Whether the kernel of the host whose files lie under `root` is in FIPS mode.
pub fn is_on(root: &Path) -> bool {
    fs::read(root.join(ENABLED)).is_ok_and(|found| found.trim_ascii() == b"1")
}

/// `cmdline`, with the host's mode unless it says one itself.
pub(super) fn as_host<'a>(cmdline: &'a str, root: &Path) -> Cow<'a, str> {
    let mut words = cmdline.split_ascii_whitespace().take_while(|word| *word != INIT);
    if words.any(|word| word.starts_with("fips=")) || !is_on(root) {
        return Cow::Borrowed(cmdline);
    }
    log::info!("the host is in FIPS mode, and so is the guest: fips=1");
    // In front of all: what follows `--` is not for the kernel.
    Cow::Owned(format!("fips=1 {cmdline}").trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(says: Option<&str>) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/crypto")).unwrap();
        if let Some(says) = says {
            fs::write(root.path().join(ENABLED), says).unwrap();
        }
        root
    }

    #[test]
    fn a_guest_is_in_the_mode_of_its_host_unless_it_is_told() {
        let host = host(Some("1\n"));
        for (given, booted) in [
            ("", "fips=1"),
            ("console=ttyS0", "fips=1 console=ttyS0"),
            ("quiet -- fips=0", "fips=1 quiet -- fips=0"),
            ("a fips=0 b", "a fips=0 b"),
            ("fips=1", "fips=1"),
            ("nofips=1", "fips=1 nofips=1"),
        ] {
            assert_eq!(as_host(given, host.path()), booted);
        }
    }

    #[test]
    fn on_any_other_host_nothing_is_added() {
        for says in [None, Some("0\n"), Some(""), Some("10")] {
            assert_eq!(as_host("quiet", host(says).path()), "quiet", "{says:?}");
        }
    }
}
