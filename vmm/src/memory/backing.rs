//! What guest memory is made of: anonymous pages, a sealed memfd that other processes can map, or a file of the host.

#![expect(
    unsafe_code,
    reason = "memfd_create(2) and seals have no safe wrapper in the standard library"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::Arc;

use super::mapping::huge_flag;
use crate::config::{MemoryConfig, PAGE_BYTES};

/// Where the bytes are.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// In pages of this process alone.
    Anonymous,
    /// In a memfd: offsets in the mapping are offsets in the file.
    Shared(Arc<File>),
    /// In a file of the host.
    File {
        /// The file; offsets in the mapping are offsets in it.
        file: Arc<File>,
        /// Whether what is written reaches the file.
        kept: bool,
    },
}

/// Which pages of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pages {
    /// Those that everybody has.
    Usual,
    /// Those that the administrator has set aside (hugetlbfs).
    Huge {
        /// Bytes of one.
        bytes: u64,
    },
}

impl Pages {
    /// The size of pages that `config` asks for with `hugepages` and `hugepage_size`.
    pub fn of(config: &MemoryConfig) -> Self {
        match config.hugepages {
            true => Self::Huge {
                bytes: config.page_bytes(),
            },
            false => Self::Usual,
        }
    }
}

/// What a mapping is made of, and what the kernel is advised of it.
#[derive(Clone, Debug)]
pub(super) struct Backing {
    pub source: Source,
    pub pages: Pages,
    /// Transparent huge pages.
    pub thp: bool,
    /// Merging of equal pages (KSM).
    pub mergeable: bool,
    /// In `/proc/<pid>/smaps`.
    pub name: &'static CStr,
}

impl Backing {
    /// Memory as `config` wants it. `bytes` is the size of all of it, which for shared memory is fixed for ever.
    pub fn new(config: &MemoryConfig, bytes: u64, name: &'static CStr) -> io::Result<Self> {
        let pages = Pages::of(config);
        let source = match config.shared {
            true => Source::Shared(Arc::new(sealed_memfd(bytes, pages, name)?)),
            false => Source::Anonymous,
        };
        Ok(Self {
            source,
            pages,
            thp: config.thp,
            mergeable: config.mergeable,
            name,
        })
    }

    /// A file of the host: what is written reaches it if it is `kept`.
    pub fn file(file: File, kept: bool, name: &'static CStr) -> Self {
        Self {
            source: Source::File {
                file: Arc::new(file),
                kept,
            },
            pages: Pages::Usual,
            thp: false,
            mergeable: false,
            name,
        }
    }

    /// Bytes of a page.
    pub fn page_bytes(&self) -> u64 {
        match self.pages {
            Pages::Usual => PAGE_BYTES,
            Pages::Huge { bytes } => bytes,
        }
    }

    /// Where the file ends now; `None` for what is no file, or a device, whose size is fixed. Waits for the file
    /// system.
    pub fn file_end(&self) -> Option<u64> {
        let Source::File { file, .. } = &self.source else {
            return None;
        };
        let metadata = file.metadata().ok().filter(std::fs::Metadata::is_file)?;
        Some(metadata.len())
    }

    /// Whether other processes can map it.
    pub fn is_shared(&self) -> bool {
        matches!(self.source, Source::Shared(_) | Source::File { kept: true, .. })
    }
}

/// Pages laid over the blocks of virtio-mem that are not plugged, the same over all of them: so there are never more
/// than these.
#[derive(Debug)]
pub(super) struct PlaceholderPages {
    pub file: File,
    pub bytes: u64,
}

impl PlaceholderPages {
    /// `bytes` bytes, of which each takes a page when it is touched for the first time.
    pub fn new(bytes: u64) -> io::Result<Self> {
        let file = sealed_memfd(bytes, Pages::Usual, c"guest-ram-unplugged")?;
        Ok(Self { file, bytes })
    }
}

/// A memfd of `bytes` bytes whose size nobody changes any more: whoever it is passed to could make
/// every access of ours a SIGBUS.
fn sealed_memfd(bytes: u64, pages: Pages, name: &CStr) -> io::Result<File> {
    let huge = match pages {
        Pages::Usual => 0,
        Pages::Huge { bytes } => libc::MFD_HUGETLB | huge_flag(bytes).cast_unsigned(),
    };
    let flags = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING | huge;
    // SAFETY: a name that ends with NUL.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a descriptor that nobody else owns yet.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(bytes)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: numbers, and a descriptor that `file` keeps open.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared(bytes: u64) -> File {
        sealed_memfd(bytes, Pages::Usual, c"guest-ram").unwrap()
    }

    #[test]
    fn nobody_changes_the_size_of_shared_memory() {
        let file = shared(4 << 20);
        let theirs = file.try_clone().unwrap();
        for bytes in [0, 4096, 8 << 20] {
            let error = theirs.set_len(bytes).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{bytes}");
        }
        assert_eq!(file.metadata().unwrap().len(), 4 << 20);
    }

    #[test]
    fn nobody_adds_a_seal_that_keeps_memory_from_being_given_back() {
        let file = shared(4 << 20);
        // SAFETY: numbers, and a descriptor that `file` keeps open.
        let sealed = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_WRITE) };
        assert_eq!(
            (sealed, io::Error::last_os_error().raw_os_error()),
            (-1, Some(libc::EPERM))
        );
    }

    #[test]
    fn shared_memory_of_huge_pages_is_sealed_as_well() {
        let pages = Pages::Huge { bytes: 2 << 20 };
        let file = sealed_memfd(4 << 20, pages, c"guest-ram").unwrap();
        assert!(file.set_len(2 << 20).is_err() && file.set_len(6 << 20).is_err());
    }
}
