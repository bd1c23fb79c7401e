//! Where the lab keeps its state: one folder below cargo's target folder.
//!
//! | path                        | content                                                                  |
//! |-----------------------------|--------------------------------------------------------------------------|
//! | `packages/*.deb`            | distribution packages as fetched                                         |
//! | `unpacked/KERNEL/`          | `vmlinuz`, `vmlinux`, `modules/` of one kernel package                   |
//! | `unpacked/busybox`          | a static shell                                                           |
//! | `guest/KERNEL/`             | what guests boot from: kernels and initramfs images                      |
//! | `host/`                     | the emulated host's initramfs, its disk made of `guest/`, and the        |
//! |                             | console of the last one that died                                        |
//! | `runs/PID/`                 | disks of a running emulated host                                         |
//! | `out/`                      | what the last `cargo lab shell` or `run` left in `/work/out`             |
//! | `fuzz/`                     | what fuzzing builds, keeps and finds                                     |
//! | `tools/`                    | programs that continuous integration installs                            |
//!
//! Whatever is complete has its final name: files and folders are made under a temporary name and renamed.

use std::env;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

/// Makes the folder, and sees to it that this user can make files there: it may be another's.
fn claim(state: &Path) -> Result<()> {
    let what = || {
        let folder = state.display();
        format!("cannot make files in {folder}, the folder of the lab: CARGO_TARGET_DIR may name another")
    };
    fs::create_dir_all(state).with_context(what)?;
    tempfile::tempfile_in(state).map(drop).with_context(what)
}

/// What the names of things in the making begin with.
pub const PART: &str = ".part-";

/// The lab's folders.
#[derive(Clone, Debug)]
pub struct Lab {
    /// The checkout.
    pub workspace: PathBuf,
    /// The lab's own folder.
    pub state: PathBuf,
}

impl Lab {
    /// The lab of the checkout that this program was built from.
    ///
    /// # Errors
    ///
    /// The state folder cannot be created or written to.
    pub fn open() -> Result<Self> {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = manifest
            .ancestors()
            .nth(2)
            .context("the lab's source is not two folders deep")?
            .to_path_buf();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(folder) => workspace.join(folder),
            None => workspace.join("target"),
        };
        let lab = Self {
            workspace,
            state: target.join("lab"),
        };
        claim(&lab.state)?;
        lab.remove_stale_runs();
        lab.remove_stale_parts();
        Ok(lab)
    }

    /// A path in the state folder.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.state.join(name)
    }

    /// What guests boot from; `HUSK_LAB_DIR` of the tests.
    pub fn guest(&self) -> PathBuf {
        self.path("guest")
    }

    /// A new folder for one run of the emulated host. It disappears with the returned value.
    ///
    /// # Errors
    ///
    /// It cannot be created.
    pub fn new_run(&self) -> Result<tempfile::TempDir> {
        let parent = self.path("runs");
        fs::create_dir_all(&parent)?;
        let prefix = format!("{}-", std::process::id());
        tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&parent)
            .context("cannot create a folder for this run")
    }

    /// Removes what killed runs left.
    fn remove_stale_runs(&self) {
        for entry in fs::read_dir(self.path("runs")).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let owner = name.split('-').next().unwrap_or_default().to_string();
            if !Path::new("/proc").join(owner).exists() {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Removes half-made files and folders of killed runs, which nobody has touched for an hour.
    fn remove_stale_parts(&self) {
        let guests = fs::read_dir(self.guest()).into_iter().flatten().flatten();
        let mut folders: Vec<PathBuf> = guests.map(|entry| entry.path()).collect();
        folders.extend(["", "packages", "unpacked", "host", "tools"].map(|folder| self.path(folder)));
        for entry in folders.iter().flat_map(fs::read_dir).flatten().flatten() {
            let part = entry.file_name().to_string_lossy().starts_with(PART);
            let age = entry
                .metadata()
                .and_then(|data| data.modified())
                .ok()
                .and_then(|time| time.elapsed().ok());
            if part && age.is_some_and(|age| age > Duration::from_secs(3600)) {
                let _ = fs::remove_dir_all(entry.path()).or_else(|_| fs::remove_file(entry.path()));
            }
        }
    }
}

/// Writes `content` to `path` so that the path only ever names a complete file; leaves an equal file alone.
///
/// # Errors
///
/// The file cannot be written.
pub fn write(path: &Path, content: &[u8]) -> Result<()> {
    if fs::read(path).is_ok_and(|old| old == content) {
        return Ok(());
    }
    let parent = path.parent().context("a file needs a folder")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let readable = fs::Permissions::from_mode(0o644);
    let temporary = tempfile::Builder::new()
        .permissions(readable)
        .prefix(PART)
        .tempfile_in(parent)?;
    fs::write(&temporary, content).with_context(|| format!("cannot write {}", path.display()))?;
    temporary
        .persist(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Fills a folder by `fill` and gives it its name only when that succeeded, replacing what had the name before.
///
/// # Errors
///
/// What `fill` returned, or the folder cannot be renamed.
pub fn fill_folder(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let parent = path.parent().context("a folder needs a parent")?;
    fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
    let temporary = tempfile::Builder::new().prefix(PART).tempdir_in(parent)?;
    fill(temporary.path())?;
    if path.exists() {
        fs::remove_dir_all(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let complete = temporary.keep();
    fs::rename(&complete, path).with_context(|| format!("cannot name {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_fill_leaves_the_old_folder_and_nothing_else() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("kernel");
        fill_folder(&folder, |part| Ok(fs::write(part.join("a"), "old")?)).unwrap();
        fill_folder(&folder, |part| {
            fs::write(part.join("a"), "half")?;
            anyhow::bail!("interrupted")
        })
        .unwrap_err();
        assert_eq!(fs::read_to_string(folder.join("a")).unwrap(), "old");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_folder_that_takes_no_files_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        claim(&folder.path().join("target/lab")).unwrap();
        // Nobody may make files there, not even root: one that is there, and one that is not.
        for state in ["/proc/self", "/proc/lab"] {
            let said = claim(Path::new(state)).unwrap_err().to_string();
            assert!(said.contains(state) && said.contains("CARGO_TARGET_DIR"), "{said}");
        }
        assert_eq!(fs::read_dir(folder.path().join("target/lab")).unwrap().count(), 0);
    }

    #[test]
    fn an_equal_file_keeps_its_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/file");
        write(&path, b"same").unwrap();
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        write(&path, b"same").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().modified().unwrap(), before);
        write(&path, b"other").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"other");
    }
}
