//! Guest RAM as every husk crate names it.

/// One contiguous range of guest RAM.
pub type GuestRegionMmap = vm_memory::GuestRegionMmap<()>;

/// All guest RAM at one moment.
pub type GuestMemoryMmap = vm_memory::GuestMemoryMmap<()>;

/// Guest RAM that may grow while devices use it: `memory()` yields the present [`GuestMemoryMmap`].
pub type GuestMemory = vm_memory::GuestMemoryAtomic<GuestMemoryMmap>;
