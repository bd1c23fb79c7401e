//! A shared folder that is measured: in which parts, what lies in it before, and how its two sides
//! agree on when to look.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use crate::pattern;

/// The file that is read.
pub const DATA: &str = "data";
/// Its length.
pub const DATA_BYTES: u64 = 8 << 20;
/// A folder whose files are looked up by name.
pub const NAMED: &str = "named";
/// How many.
pub const NAMED_FILES: u32 = 500;
/// A folder that is listed with what its entries are.
pub const LISTED: &str = "listed";
/// How many.
pub const LISTED_FILES: u32 = 100_000;
/// Empty, for what is written.
pub const WRITTEN: &str = "written";

/// Made by the guest when it begins to rest with nothing done yet.
pub const RESTS_IDLE: &str = "rests-idle";
/// Made by the guest when it begins to rest and knows all of [`LISTED`].
pub const RESTS_LISTED: &str = "rests-listed";

crate::parts! {
    /// What one guest measures. Each has a guest of its own, since in counted time a guest breaks
    /// the sooner the more interrupts it has (`docs/adr/0015-one-thread-per-emulated-host.md`).
    Part {
        /// Look-ups, and files that come and go.
        Names = "names",
        /// A file that is read from its start to its end.
        Read = "read",
        /// Blocks of it in no order.
        Random = "random",
        /// Files that are written.
        Write = "write",
        /// Memory, idle and with many inodes, and the listing that makes them known.
        Inodes = "inodes",
    }
}

/// Fills the new folder `root` for `part`.
///
/// # Errors
///
/// As the file system's.
pub fn prepare(root: &Path, part: Part) -> io::Result<()> {
    match part {
        Part::Inodes => fill(&root.join(LISTED), LISTED_FILES),
        Part::Names => fill(&root.join(NAMED), NAMED_FILES).and_then(|()| fs::create_dir(root.join(WRITTEN))),
        Part::Read | Part::Random => pattern::write(&mut File::create(root.join(DATA))?, 1, DATA_BYTES).map(drop),
        Part::Write => fs::create_dir(root.join(WRITTEN)),
    }
}

/// Makes `folder` with so many empty files.
fn fill(folder: &Path, count: u32) -> io::Result<()> {
    fs::create_dir(folder)?;
    (0..count).try_for_each(|number| File::create(folder.join(name(number))).map(drop))
}

/// The name of one of many files.
pub fn name(number: u32) -> String {
    format!("file-{number:06}")
}
