//! The smallest guest there is: a PVH ELF of a few instructions, for measuring what a VMM costs by itself.
//!
//! Its first instructions write [`MARK`] to COM1, which every VMM passes on to its standard output:
//! that moment is "first guest instruction", seen from outside in the same way whatever the VMM.

/// The byte that the payload writes to COM1 first: STX, which no VMM writes in its own messages.
pub const MARK: u8 = 0x02;
/// Where the payload is loaded and entered.
pub const ENTRY: u32 = 0x0010_0000;

/// Where the code stands in the ELF file.
pub const CODE_OFFSET: usize = 0x1000;

/// What the payload does after its mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestAction {
    /// Powers off: ACPI S5 by a sleep control register at port 0x600, then i8042 reset, then S5 by
    /// a sleep control register at 0xfea0_0200 (QEMU's microvm), then a triple fault, whichever the
    /// VMM has.
    PowerOff,
    /// Halts for ever, so that the process can be looked at.
    Halt,
}

/// Machine code that means the same in 32-bit and 64-bit mode.
pub fn code(action: GuestAction) -> Vec<u8> {
    const COM1: [u8; 4] = [0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    const SLEEP: [u8; 4] = [0x66, 0xba, 0x00, 0x06]; // mov dx, 0x600
    const OUT_DX: u8 = 0xee; // out dx, al
    let mut code = Vec::new();
    code.extend([0xb0, 0x40, 0xe6, 0x80]); // mov al, 0x40; out 0x80, al: a mark for boot traces
    code.extend([0xb0, MARK]); // mov al, MARK
    code.extend(COM1);
    code.push(OUT_DX);
    if action == GuestAction::PowerOff {
        code.extend([0xb0, 5 << 2 | 1 << 5]); // mov al, SLP_TYP 5 | SLP_EN
        code.extend(SLEEP);
        code.push(OUT_DX);
        code.extend([0xb0, 0xfe, 0xe6, 0x64]); // mov al, 0xfe; out 0x64, al
        code.extend([0xbf, 0x00, 0x02, 0xa0, 0xfe]); // mov edi, 0xfea00200
        code.extend([0xc6, 0x07, 5 << 2 | 1 << 5]); // mov byte [edi], SLP_TYP 5 | SLP_EN
        code.extend([0x0f, 0x01, 0x1d, 0, 0, 0x20, 0, 0xcc]); // lidt [2 MiB], where RAM is zero; int3
    }
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    code
}

/// The payload as an ELF file.
pub fn elf(action: GuestAction) -> Vec<u8> {
    elf_of(&code(action))
}

/// An ELF file with `code` at [`ENTRY`], a PVH entry note (Xen `XEN_ELFNOTE_PHYS32_ENTRY`), and the same 64-bit entry.
pub fn elf_of(code: &[u8]) -> Vec<u8> {
    const HEADER: u64 = 64;
    const PROGRAM_HEADER: u64 = 56;
    const NOTE: u64 = HEADER + 2 * PROGRAM_HEADER;
    const CODE: u64 = CODE_OFFSET as u64;
    let entry = u64::from(ENTRY);
    let mut note = Vec::new();
    for word in [4_u32, 4, 18] {
        note.extend(word.to_le_bytes()); // name length, description length, XEN_ELFNOTE_PHYS32_ENTRY
    }
    note.extend(*b"Xen\0");
    note.extend(ENTRY.to_le_bytes());

    let mut elf = Vec::from(*b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // ET_EXEC, EM_X86_64, EV_CURRENT
    for word in [entry, HEADER, 0] {
        elf.extend(word.to_le_bytes()); // e_entry, e_phoff, e_shoff
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]); // flags, sizes, 2 program headers, no sections
    let len = code.len() as u64;
    program_header(&mut elf, 1, 5, [CODE, entry, entry, len, len, 0x1000]); // PT_LOAD, R+X
    let note_len = note.len() as u64;
    program_header(&mut elf, 4, 4, [NOTE, 0, 0, note_len, note_len, 4]); // PT_NOTE, R
    elf.extend(note);
    elf.resize(CODE_OFFSET, 0);
    elf.extend(code);
    elf
}

fn program_header(elf: &mut Vec<u8>, kind: u32, flags: u32, words: [u64; 6]) {
    elf.extend(kind.to_le_bytes());
    elf.extend(flags.to_le_bytes());
    for word in words {
        elf.extend(word.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_stands_where_the_program_header_says() {
        let elf = elf(GuestAction::Halt);
        assert!(elf.ends_with(&code(GuestAction::Halt)));
        assert_eq!(elf.len() - code(GuestAction::Halt).len(), CODE_OFFSET);
        assert_eq!(&elf[..4], b"\x7fELF");
    }
}
