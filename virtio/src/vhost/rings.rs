//! What is asked of the kernel for rings that it serves: one trait, and a handle of each driver behind it.
//!
//! | ioctl | when |
//! |---|---|
//! | `VHOST_SET_OWNER`, `VHOST_GET_FEATURES` | when the device is made |
//! | `VHOST_VSOCK_SET_GUEST_CID` | the same, vsock |
//! | `VHOST_SET_FEATURES`, `VHOST_SET_MEM_TABLE` | at start; the table also when memory changes |
//! | `VHOST_SET_VRING_NUM`, `_BASE`, `_ADDR`, `_KICK`, `_CALL`, `_ERR` | at start, and after a pause |
//! | `VHOST_NET_SET_BACKEND`, `VHOST_VSOCK_SET_RUNNING` | the same, and to take the rings back |
//! | `VHOST_GET_VRING_BASE` | after that |

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use vhost::net::VhostNet;
use vhost::vhost_kern::VhostKernBackend;
use vhost::vhost_kern::net::Net;
use vhost::vhost_kern::vsock::Vsock;
use vhost::vsock::VhostVsock;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

use super::error::{VhostError, plain};

/// Features of rings, which the transport offers whatever serves them.
const RING_FEATURES: u64 = 1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A ring as the kernel is told of it.
pub(crate) struct Vring<'a> {
    /// Addresses and position.
    pub queue: &'a QueueState,
    /// What the driver's doorbell signals.
    pub kick: &'a EventFd,
    /// What interrupts the driver.
    pub call: &'a EventFd,
    /// What the kernel signals when it cannot go on.
    pub fault: &'a EventFd,
}

/// Rings of one handle, counted from 0. I/O threads ask; [`KernelRings::set_memory`] and, when
/// memory is gone, [`KernelRings::run`] are asked on a control thread as well.
pub(crate) trait KernelRings: Send + Sync {
    /// What the kernel can do: virtio features, among others.
    fn features(&self) -> u64;

    /// Which of [`KernelRings::features`] the guest's driver took.
    fn set_features(&self, features: u64) -> io::Result<()>;

    /// Where guest memory is in this process.
    fn set_memory(&self, memory: &GuestMemoryMmap) -> io::Result<()>;

    /// Describes a ring, which is not served.
    fn set_ring(&self, number: usize, ring: &Vring<'_>) -> io::Result<()>;

    /// Has all rings served, or left alone: once that returns, nothing of theirs is read or written.
    fn run(&self, on: bool) -> io::Result<()>;

    /// Where the kernel would go on in the available ring of one that is not served.
    fn position(&self, number: usize) -> io::Result<u16>;
}

/// What is known of a driver before it is open.
struct Origin {
    device: &'static str,
    module: &'static str,
}

const NET: Origin = Origin {
    device: "/dev/vhost-net",
    module: "vhost_net",
};
const VSOCK: Origin = Origin {
    device: "/dev/vhost-vsock",
    module: "vhost_vsock",
};

impl Origin {
    fn not_open(&self, source: io::Error) -> VhostError {
        let Self { device, module } = *self;
        match source.raw_os_error() {
            // The file may be there, and whatever is behind it not.
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => VhostError::Missing { device, module },
            Some(libc::EACCES | libc::EPERM) => VhostError::NotAllowed { device },
            _ => self.refused("open it", source),
        }
    }

    fn refused(&self, what: &'static str, source: io::Error) -> VhostError {
        let device = self.device;
        VhostError::Host { device, what, source }
    }

    /// Makes this process the owner of `handle`; what the kernel can do.
    fn own(&self, handle: &impl VhostBackend) -> Result<u64, VhostError> {
        let set = handle.set_owner();
        set.map_err(|error| self.refused("become its owner", plain(error)))?;
        let features = handle.get_features();
        let features = features.map_err(|error| self.refused("ask for its features", plain(error)))?;
        match RING_FEATURES & !features {
            0 => Ok(features),
            missing => Err(VhostError::Features {
                device: self.device,
                missing,
            }),
        }
    }
}

/// Rings 0 and 1 of a queue pair, between the driver and a queue of a tap.
pub(crate) struct NetRings<T> {
    handle: Net<GuestMemory>,
    features: u64,
    tap: Arc<T>,
}

impl<T: AsRef<File>> NetRings<T> {
    /// Opens a handle for rings in `memory`, on `tap`.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn open(memory: GuestMemory, tap: Arc<T>) -> Result<Self, VhostError> {
        let handle = Net::new(memory).map_err(|error| NET.not_open(plain(error)))?;
        let features = NET.own(&handle)?;
        Ok(Self { handle, features, tap })
    }
}

/// Rings 0 and 1, receive and transmit, of a vsock device.
pub(crate) struct VsockRings {
    handle: Vsock<GuestMemory>,
    features: u64,
}

impl VsockRings {
    /// Opens a handle for rings in `memory`, of the guest whose context is `cid` on this host.
    ///
    /// # Errors
    /// See [`VhostError`].
    pub fn open(memory: GuestMemory, cid: u32) -> Result<Self, VhostError> {
        let handle = Vsock::new(memory).map_err(|error| VSOCK.not_open(plain(error)))?;
        let features = VSOCK.own(&handle)?;
        let set = handle.set_guest_cid(cid.into()).map_err(plain);
        set.map_err(|source| match source.raw_os_error() {
            Some(libc::EADDRINUSE) => VhostError::CidInUse(cid),
            _ => VSOCK.refused("set the guest's context", source),
        })?;
        Ok(Self { handle, features })
    }
}

/// What differs between the drivers.
trait Driver: VhostKernBackend<AS = GuestMemory> + Send + Sync {
    /// As [`KernelRings::features`].
    fn known(&self) -> u64;
    /// As [`KernelRings::run`].
    fn switch(&self, on: bool) -> vhost::Result<()>;
}

impl<T: AsRef<File> + Send + Sync> Driver for NetRings<T> {
    fn known(&self) -> u64 {
        self.features
    }

    fn switch(&self, on: bool) -> vhost::Result<()> {
        let tap = on.then(|| (*self.tap).as_ref());
        let both = [0, 1].map(|number| self.handle.set_backend(number, tap));
        both.into_iter().collect()
    }
}

impl Driver for VsockRings {
    fn known(&self) -> u64 {
        self.features
    }

    fn switch(&self, on: bool) -> vhost::Result<()> {
        match on {
            true => self.handle.start(),
            false => self.handle.stop(),
        }
    }
}

/// A ring is checked as it is made ([`Ring::new`](crate::ring::Ring::new)). The crate's own check
/// would refuse one that ends where memory does.
impl<T> VhostKernBackend for NetRings<T> {
    type AS = GuestMemory;

    fn mem(&self) -> &GuestMemory {
        self.handle.mem()
    }

    fn is_valid(&self, _ring: &VringConfigData) -> bool {
        true
    }
}

impl<T> AsRawFd for NetRings<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.handle.as_raw_fd()
    }
}

/// As that of [`NetRings`].
impl VhostKernBackend for VsockRings {
    type AS = GuestMemory;

    fn mem(&self) -> &GuestMemory {
        self.handle.mem()
    }

    fn is_valid(&self, _ring: &VringConfigData) -> bool {
        true
    }
}

impl AsRawFd for VsockRings {
    fn as_raw_fd(&self) -> RawFd {
        self.handle.as_raw_fd()
    }
}

impl<D: Driver> KernelRings for D {
    fn features(&self) -> u64 {
        self.known()
    }

    fn set_features(&self, features: u64) -> io::Result<()> {
        VhostBackend::set_features(self, features).map_err(plain)
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) -> io::Result<()> {
        self.set_mem_table(&table(memory)).map(drop).map_err(plain)
    }

    fn set_ring(&self, number: usize, ring: &Vring<'_>) -> io::Result<()> {
        let set = || {
            self.set_vring_num(number, ring.queue.size)?;
            self.set_vring_base(number, ring.queue.next_avail)?;
            self.set_vring_addr(number, &addresses(ring.queue))?;
            self.set_vring_call(number, ring.call)?;
            self.set_vring_err(number, ring.fault)?;
            self.set_vring_kick(number, ring.kick)
        };
        set().map_err(plain)
    }

    fn run(&self, on: bool) -> io::Result<()> {
        self.switch(on).map_err(plain)
    }

    fn position(&self, number: usize) -> io::Result<u16> {
        let position = self.get_vring_base(number).map_err(plain)?;
        // The upper half is that of packed rings, which are not offered.
        u16::try_from(position).map_err(io::Error::other)
    }
}

/// All of `memory`, whatever is behind it: the kernel uses the addresses of this process.
fn table(memory: &GuestMemoryMmap) -> Vec<VhostUserMemoryRegionInfo> {
    let regions = memory.iter().map(|region| VhostUserMemoryRegionInfo {
        guest_phys_addr: region.start_addr().raw_value(),
        memory_size: region.len(),
        userspace_addr: region.as_ptr() as u64,
        ..VhostUserMemoryRegionInfo::default()
    });
    regions.collect()
}

fn addresses(queue: &QueueState) -> VringConfigData {
    VringConfigData {
        queue_max_size: queue.max_size,
        queue_size: queue.size,
        flags: 0,
        desc_table_addr: queue.desc_table,
        used_ring_addr: queue.used_ring,
        avail_ring_addr: queue.avail_ring,
        log_addr: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errno(number: i32) -> io::Error {
        io::Error::from_raw_os_error(number)
    }

    #[test]
    fn what_keeps_a_driver_closed_is_named() {
        let said = |number| NET.not_open(errno(number)).to_string();
        for number in [libc::ENOENT, libc::ENODEV, libc::ENXIO] {
            assert_eq!(
                said(number),
                "there is no /dev/vhost-net here (kernel module vhost_net)"
            );
        }
        assert_eq!(said(libc::EACCES), "not allowed to read and write /dev/vhost-net");
        let other = VSOCK.not_open(errno(libc::EMFILE));
        assert_eq!(
            husk_devices::error_chain(&other),
            "/dev/vhost-vsock: cannot open it: Too many open files (os error 24)"
        );
    }

    #[test]
    fn the_table_has_all_memory_by_its_addresses_in_this_process() {
        let memory = crate::testing::memory();
        let memory = vm_memory::GuestAddressSpace::memory(&memory);
        let table = table(&memory);
        let found: Vec<_> = table
            .iter()
            .map(|region| (region.guest_phys_addr, region.memory_size))
            .collect();
        assert_eq!(found, [(0, 0x10_0000), (0x10_0000, 0x10_0000)]);
        for region in &table {
            let here = memory
                .get_host_address(vm_memory::GuestAddress(region.guest_phys_addr))
                .unwrap();
            assert_eq!(region.userspace_addr, here as u64);
        }
    }
}
