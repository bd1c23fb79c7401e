//! A shared folder that is measured: what lies in it before, and how its two sides agree on when to look.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::pattern;

/// The file that is read.
pub const DATA: &str = "data";
/// Its length.
pub const DATA_BYTES: u64 = 16 << 20;
/// A folder whose files are looked up by name.
pub const NAMED: &str = "named";
/// How many.
pub const NAMED_FILES: u32 = 1000;
/// A folder that is listed with what its entries are.
pub const LISTED: &str = "listed";
/// How many.
pub const LISTED_FILES: u32 = 2000;
/// Empty, for what is written.
pub const WRITTEN: &str = "written";

/// Made by the guest when it begins to rest with nothing done yet.
pub const RESTS_IDLE: &str = "rests-idle";
/// Made by the guest when it begins to rest and knows all of [`LISTED`].
pub const RESTS_LISTED: &str = "rests-listed";

/// Fills the new folder `root`.
///
/// # Errors
///
/// As the file system's.
pub fn prepare(root: &Path) -> io::Result<()> {
    pattern::write(&mut File::create(root.join(DATA))?, 1, DATA_BYTES)?;
    fs::create_dir(root.join(WRITTEN))?;
    for (folder, count) in [(NAMED, NAMED_FILES), (LISTED, LISTED_FILES)] {
        fs::create_dir(root.join(folder))?;
        for number in 0..count {
            File::create(root.join(folder).join(name(number)))?;
        }
    }
    Ok(())
}

/// The name of one of many files.
pub fn name(number: u32) -> String {
    format!("file-{number:05}")
}
