//! The kernel for those who named none: the host's own.

use std::cmp::Ordering;
use std::fs;
use std::path::{Path, PathBuf};

/// Where a kernel was looked for in vain.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no --kernel given, and no vmlinuz-* in {}", .0.display())]
pub struct NoHostKernel(pub PathBuf);

/// The running kernel's file under `root`, else the newest in `root/boot`.
pub fn host_kernel(root: &Path) -> Result<PathBuf, NoHostKernel> {
    let boot = root.join("boot");
    if let Ok(release) = fs::read_to_string(root.join("proc/sys/kernel/osrelease")) {
        let running = boot.join(format!("vmlinuz-{}", release.trim_end()));
        if running.is_file() {
            return Ok(running);
        }
    }
    let entries = fs::read_dir(&boot)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path());
    let newest = entries
        .filter(|path| path.is_file())
        .filter_map(|path| Some((path.file_name()?.to_str()?.strip_prefix("vmlinuz-")?.to_string(), path)))
        .max_by(|(a, _), (b, _)| compare_versions(a, b));
    newest.map(|(_, path)| path).ok_or(NoHostKernel(boot))
}

/// Orders versions as people count: numbers by value, the rest by its letters.
fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a, b);
    loop {
        let ((number_a, text_a, rest_a), (number_b, text_b, rest_b)) = (next_part(a), next_part(b));
        let ordering = (number_a, text_a).cmp(&(number_b, text_b));
        if ordering.is_ne() || (rest_a.is_empty() && rest_b.is_empty()) {
            return ordering;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// A leading number (0 if there is none), the text up to the next number, and what follows.
fn next_part(version: &str) -> (u64, &str, &str) {
    let digits = version.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = version.split_at(digits);
    let text = rest.bytes().take_while(|byte| !byte.is_ascii_digit()).count();
    let (text, rest) = rest.split_at(text);
    (number.parse().unwrap_or(0), text, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(release: &str, kernels: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/sys/kernel")).unwrap();
        fs::create_dir(root.path().join("boot")).unwrap();
        fs::write(root.path().join("proc/sys/kernel/osrelease"), format!("{release}\n")).unwrap();
        for kernel in kernels {
            fs::write(root.path().join("boot").join(kernel), b"").unwrap();
        }
        root
    }

    fn found(release: &str, kernels: &[&str]) -> Option<String> {
        let path = host_kernel(host(release, kernels).path()).ok()?;
        Some(path.file_name().unwrap().to_str().unwrap().to_string())
    }

    #[test]
    fn the_running_kernel_comes_first() {
        let kernels = ["vmlinuz-6.1.0-18-amd64", "vmlinuz-6.1.0-20-amd64"];
        assert_eq!(found("6.1.0-18-amd64", &kernels).unwrap(), "vmlinuz-6.1.0-18-amd64");
    }

    #[test]
    fn otherwise_the_newest_by_version() {
        let kernels = [
            "vmlinuz-6.1.0-9-amd64",
            "vmlinuz-6.1.0-18-amd64",
            "vmlinuz-5.10.0-30-amd64",
            "vmlinuz-0-rescue-f00d",
        ];
        assert_eq!(found("6.18.44", &kernels).unwrap(), "vmlinuz-6.1.0-18-amd64");
        assert_eq!(
            found("x", &["vmlinuz-6.9.1", "vmlinuz-6.12", "vmlinuz-6.12.1"]).unwrap(),
            "vmlinuz-6.12.1"
        );
    }

    #[test]
    fn nothing_that_is_no_kernel_file_is_taken() {
        let root = host("6.1", &["vmlinuz", "initrd.img-6.1", "config-6.1"]);
        fs::create_dir(root.path().join("boot/vmlinuz-6.1")).unwrap();
        let error = host_kernel(root.path()).unwrap_err();
        assert_eq!(error.0, root.path().join("boot"));
        let nowhere = tempfile::tempdir().unwrap();
        assert!(
            host_kernel(nowhere.path())
                .unwrap_err()
                .to_string()
                .starts_with("no --kernel given, and no vmlinuz-* in ")
        );
    }
}
