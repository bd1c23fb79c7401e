//! A directory that is shared, and around it what must stay as it is and untold.
//!
//! | path | is |
//! |---|---|
//! | `share/f`, `share/d/g` | files |
//! | `share/out`, `share/absolute` | links to `canary` |
//! | `share/secret-link` | a link to `canary/secret` |
//! | `canary/secret`, `canary/link`, `canary/canary-directory` | a file, a link, a directory |

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

/// What is in the file outside.
pub const SECRET: &[u8] = b"husk-canary-51f0c2";

/// The directories; they go with this.
pub struct ShareFixture {
    base: TempDir,
    before: Vec<String>,
    share: Vec<String>,
}

impl ShareFixture {
    pub fn new() -> Self {
        let base = tempfile::tempdir().expect("there is room");
        make(base.path()).expect("there is room");
        let before = around(base.path());
        let share = look(&base.path().join("share"), true);
        Self { base, before, share }
    }

    /// The directory that is shared.
    pub fn share(&self) -> PathBuf {
        self.base.path().join("share")
    }

    /// Holds what is outside, and inside if that is `readonly`, against what it was.
    pub fn check(&self, readonly: bool) {
        assert_eq!(around(self.base.path()), self.before, "something outside has changed");
        if readonly {
            assert_eq!(look(&self.share(), true), self.share, "a read-only share has changed");
        }
    }
}

fn make(base: &Path) -> std::io::Result<()> {
    let (share, canary) = (base.join("share"), base.join("canary"));
    fs::create_dir_all(share.join("d"))?;
    fs::create_dir_all(canary.join("canary-directory"))?;
    // Whoever asks may look for a way out.
    fs::set_permissions(base, Permissions::from_mode(0o755))?;
    fs::set_permissions(&share, Permissions::from_mode(0o777))?;
    fs::set_permissions(&canary, Permissions::from_mode(0o777))?;
    fs::write(share.join("f"), "inside")?;
    fs::write(share.join("d/g"), "deep inside")?;
    symlink("../canary", share.join("out"))?;
    symlink(&canary, share.join("absolute"))?;
    symlink("../canary/secret", share.join("secret-link"))?;
    fs::write(canary.join("secret"), SECRET)?;
    fs::set_permissions(canary.join("secret"), Permissions::from_mode(0o666))?;
    symlink("secret", canary.join("link"))?;
    // Old enough for a read to leave a trace, where the host keeps such.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let times = fs::FileTimes::new().set_accessed(long_ago).set_modified(long_ago);
    fs::File::open(canary.join("secret"))?.set_times(times)
}

/// All there is beside the share.
fn around(base: &Path) -> Vec<String> {
    let mut all = look(&base.join("canary"), true);
    let here = fs::read_dir(base).expect("the test's own");
    all.extend(here.map(|entry| format!("{:?}", entry.expect("the test's own").file_name())));
    all.sort();
    all
}

/// What can be seen of `path` and what is in it; with the times of what is read if `times`.
fn look(path: &Path, times: bool) -> Vec<String> {
    let stat = fs::symlink_metadata(path).expect("the test's own");
    let mut seen = format!(
        "{path:?} {:o} {}:{} {} links {} bytes {}.{} {}.{}",
        stat.mode(),
        stat.uid(),
        stat.gid(),
        stat.nlink(),
        stat.size(),
        stat.mtime(),
        stat.mtime_nsec(),
        stat.ctime(),
        stat.ctime_nsec(),
    );
    // Not that of directories and links: a look changes it.
    if times && stat.is_file() {
        seen += &format!(" read {}", stat.atime());
    }
    let mut all = vec![seen];
    if stat.is_dir() {
        for entry in fs::read_dir(path).expect("the test's own") {
            all.extend(look(&entry.expect("the test's own").path(), times));
        }
    }
    all.sort();
    all
}
