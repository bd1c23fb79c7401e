//! Files and folders in memory, for what opens things by name.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where files live in memory on Linux.
const MEMORY: &str = "/dev/shm";

/// A folder that goes away with the value, in memory if it can be.
pub fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(MEMORY).or_else(|_| tempfile::tempdir()).unwrap()
}

/// A file without a name in any folder, in memory if it can be.
#[derive(Debug)]
pub struct MemoryFile {
    file: File,
    path: PathBuf,
}

impl MemoryFile {
    fn new() -> Self {
        let file = tempfile::tempfile_in(MEMORY).or_else(|_| tempfile::tempfile()).unwrap();
        let path = format!("/proc/self/fd/{}", file.as_raw_fd()).into();
        Self { file, path }
    }

    /// The path by which this process opens it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its present size in bytes.
    pub fn size(&self) -> u64 {
        self.file.metadata().unwrap().len()
    }

    /// What is in it.
    pub fn content(&self) -> Vec<u8> {
        let mut content = vec![0; usize::try_from(self.size()).unwrap()];
        self.file.read_exact_at(&mut content, 0).unwrap();
        content
    }
}

/// Calls `with` with a file of these bytes. There is one for each thread, so the call must not be nested.
pub fn with_file<T>(content: &[u8], with: impl FnOnce(&MemoryFile) -> T) -> T {
    thread_local! {
        static FILE: RefCell<MemoryFile> = RefCell::new(MemoryFile::new());
    }
    FILE.with_borrow_mut(|file| {
        file.file.set_len(0).unwrap();
        file.file.write_all_at(content, 0).unwrap();
        with(file)
    })
}
