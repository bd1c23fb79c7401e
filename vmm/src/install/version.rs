//! The version of a program, as it tells it itself.

use std::path::Path;
use std::process::{Command, Stdio};

use super::behind;

/// The version of `program` of the system at `root`, as it tells itself: the first word that begins with a digit.
pub(crate) fn program_version(root: &Path, program: &str) -> Option<String> {
    let folders = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin"];
    let mut paths = folders
        .iter()
        .map(|folder| behind(root, &Path::new(folder).join(program)));
    let path = paths.find(|path| path.is_file())?;
    let told = Command::new(path)
        .arg("--version")
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    let mut words = told.split_whitespace().map(|word| word.trim_start_matches('v'));
    words
        .find(|word| word.starts_with(|first: char| first.is_ascii_digit()))
        .map(str::to_owned)
}
