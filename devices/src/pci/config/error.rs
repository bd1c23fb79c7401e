//! Why a BAR or a capability was refused.

/// A configuration space that cannot be built as asked. Never the guest's doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// No such BAR register, or none left for the upper half.
    #[error("BAR {bar} does not exist or has no room for its width; a function has BARs 0 to 5")]
    NoBar {
        /// The number given.
        bar: u8,
    },
    /// The register is in use.
    #[error("BAR {bar} is taken already")]
    BarTaken {
        /// The number given.
        bar: u8,
    },
    /// A size that the sizing protocol cannot express.
    #[error("BAR {bar} has size {size:#x}, not a power of two from 0x10 to {max:#x}")]
    BarSize {
        /// The number given.
        bar: u8,
        /// The size given.
        size: u64,
        /// The largest size for its width.
        max: u64,
    },
    /// An address that the BAR cannot hold.
    #[error("BAR {bar} cannot be placed at {base:#x}: its address bits are {mask:#x}")]
    BarAddress {
        /// The number given.
        bar: u8,
        /// The address given.
        base: u64,
        /// The bits an address may have set.
        mask: u64,
    },
    /// The 192 bytes for capabilities are full.
    #[error("capability {id:#04x} of {len} bytes does not fit at offset {at:#x}; configuration space ends at 0x100")]
    NoRoom {
        /// Capability ID.
        id: u8,
        /// Its length with header.
        len: usize,
        /// First free offset.
        at: usize,
    },
}
