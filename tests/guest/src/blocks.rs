//! A disk that is measured: in which parts, and how large it is.

/// Bytes of the disk.
pub const DISK_BYTES: u64 = 64 << 20;

crate::parts! {
    /// What one guest measures. Each has a guest of its own, as those of [`crate::folder::Part`].
    Part {
        /// Reads from the start to the end.
        Read = "read",
        /// Writes likewise.
        Write = "write",
        /// Reads and writes in no order.
        Random = "random",
        /// Small writes, each with a flush after it.
        Flush = "flush",
    }
}
