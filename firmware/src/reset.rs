//! The code at the reset vector: a guest that jumps there in real mode resets the machine.
//!
//! Linux does so when nothing else has reset it (`arch/x86/kernel/reboot.c`, `BOOT_BIOS`), and on a machine with
//! hardware-reduced ACPI tries nothing before it but the services of EFI, which are not there: a guest without
//! `reboot=` on its command line gets here.

use vm_memory::{Bytes, GuestAddress};

use crate::layout::RESET_VECTOR;
use crate::{GuestMemoryMmap, LoadError, PowerRegisters};

/// Writes to the reset register, and halts should that return (Intel SDM 2A, 2B).
fn code(power: &PowerRegisters) -> [u8; 9] {
    let [low, high] = power.reset.to_le_bytes();
    [
        0xb0,
        power.reset_value, // mov al, reset_value
        0xba,
        low,
        high, // mov dx, reset
        0xee, // out dx, al
        0xf4, // hlt
        0xeb,
        0xfd, // jmp to the hlt
    ]
}

/// Writes the code.
///
/// # Errors
/// [`LoadError::Write`].
pub(crate) fn write(mem: &GuestMemoryMmap, power: &PowerRegisters) -> Result<(), LoadError> {
    mem.write_slice(&code(power), GuestAddress(RESET_VECTOR))
        .map_err(|source| LoadError::Write {
            what: "code at the reset vector",
            address: RESET_VECTOR,
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::KERNEL_MIN;
    use crate::testing::{platform, ram, read};

    #[test]
    fn what_is_at_the_reset_vector_writes_to_the_reset_register() {
        let mem = ram(1 << 20);
        write(&mem, &platform(&[]).power).unwrap();
        assert_eq!(
            read(&mem, 0xf_fff0, 16),
            [0xb0, 1, 0xba, 0x02, 0x06, 0xee, 0xf4, 0xeb, 0xfd, 0, 0, 0, 0, 0, 0, 0]
        );
        assert_eq!(RESET_VECTOR + 16, KERNEL_MIN);
    }

    #[test]
    fn too_little_ram_is_an_error_that_names_the_code() {
        let error = write(&ram(0x4000), &platform(&[]).power).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write the code at the reset vector at 0xffff0"
        );
    }
}
