//! An MSI-X vector as a running guest has it.

use std::sync::Arc;

use husk_devices::MsiMessage;
use husk_devices::host::fake::FakeHost;
use husk_devices::pci::{BarPlace, ConfigSpace, Identity, Msix, Vector};

/// MSI-X vectors that are set up and unmasked, all with the same message.
pub(crate) struct Vectors {
    host: Arc<FakeHost>,
    msix: Msix,
}

const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_0000,
    data: 0x51,
};

impl Vectors {
    pub fn new() -> Self {
        let host = FakeHost::new();
        let (mut space, mut msix) = (ConfigSpace::new(&Identity::default()), Msix::new(host.clone(), 1));
        let place = BarPlace { bar: 0, offset: 0 };
        msix.add_capability(&mut space, place, place).unwrap();
        let _ = space.write(4, &[4]);
        let _ = space.write(space.u16_at(0x34) + 2, &0x8000_u16.to_le_bytes());
        msix.config_written(&space);
        msix.write_table(0, &MESSAGE.address.to_le_bytes());
        msix.write_table(8, &MESSAGE.data.to_le_bytes());
        msix.write_table(12, &[0; 4]);
        Self { host, msix }
    }

    pub fn vector(&self) -> Vector {
        self.msix.vector(0).unwrap()
    }

    /// How often one was raised since the last call, by whomever.
    pub fn take_sent(&self) -> u64 {
        self.host.take_sent(MESSAGE)
    }
}
