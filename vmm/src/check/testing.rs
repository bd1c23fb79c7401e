//! A host whose files a test has written.

use std::fs;
use std::os::unix::fs::PermissionsExt;

/// A folder with these files, by their paths below it. All of them can be executed.
pub(crate) fn host(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    root
}
