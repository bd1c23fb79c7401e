//! The setup header of a bzImage: where its compressed vmlinux is (Linux `Documentation/arch/x86/boot.rst`).
//!
//! | offset | width | field | used for |
//! |--------|-------|-------|----------|
//! | 0x1f1 | 1 | `setup_sects` | size of the real-mode part; 0 means 4 |
//! | 0x1fe | 2 | `boot_flag` | 0xaa55 |
//! | 0x202 | 4 | `header` | "HdrS" |
//! | 0x206 | 2 | `version` | 2.08 has the two last fields |
//! | 0x22c | 4 | `initrd_addr_max` | highest byte of an initramfs |
//! | 0x248 | 4 | `payload_offset` | from the end of the real-mode part |
//! | 0x24c | 4 | `payload_length` | with the four bytes that tell the decompressed size |

use linux_loader::bootparam::setup_header;

use super::elf::pod;
use crate::boot_params::{BOOT_FLAG, HEADER_MAGIC};

const SETUP_HEADER: usize = 0x1f1;
const VERSION_MIN: u16 = 0x0208;
const SECTOR: u64 = 512;
/// `setup_sects` of a kernel that says 0.
const SETUP_SECTS_DEFAULT: u64 = 4;
/// The shortest payload with a magic number and a size.
const PAYLOAD_MIN: u64 = 16;

/// Why a bzImage cannot be loaded.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BzImageError {
    /// A boot protocol from before 2008.
    #[error("boot protocol {}.{:02}; at least 2.08 is needed", .0 >> 8, .0 & 0xff)]
    Version(u16),
    /// A header that points out of the file.
    #[error("payload of {len:#x} bytes at offset {offset:#x}; the file has {file_len:#x} bytes")]
    PayloadOutside {
        /// Offset in the file.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Size of the file.
        file_len: u64,
    },
    /// A payload that can hold nothing.
    #[error("payload of {0} bytes; at least {PAYLOAD_MIN} are needed")]
    PayloadShort(u64),
}

/// A setup header and the part of the file that it points to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) header: setup_header,
    pub(super) payload_offset: u64,
    pub(super) payload_len: u64,
}

impl Setup {
    /// Reads the header in `head`, the first bytes of a file of `file_len` bytes. `None` if it is no bzImage.
    pub(super) fn parse(head: &[u8], file_len: u64) -> Option<Result<Self, BzImageError>> {
        let header: setup_header = pod(head, SETUP_HEADER)?;
        if (header.boot_flag, header.header) != (BOOT_FLAG, HEADER_MAGIC) {
            return None;
        }
        Some(Self::check(header, file_len))
    }

    fn check(header: setup_header, file_len: u64) -> Result<Self, BzImageError> {
        let version = header.version;
        if version < VERSION_MIN {
            return Err(BzImageError::Version(version));
        }
        let setup_sects = match header.setup_sects {
            0 => SETUP_SECTS_DEFAULT,
            sectors => sectors.into(),
        };
        let real_mode = setup_sects.saturating_add(1).saturating_mul(SECTOR);
        let offset = real_mode.saturating_add(header.payload_offset.into());
        let len = u64::from(header.payload_length);
        if len < PAYLOAD_MIN {
            return Err(BzImageError::PayloadShort(len));
        }
        if offset.saturating_add(len) > file_len {
            return Err(BzImageError::PayloadOutside { offset, len, file_len });
        }
        Ok(Self {
            header,
            payload_offset: offset,
            payload_len: len,
        })
    }
}

#[cfg(test)]
#[path = "bzimage_test.rs"]
mod tests;
