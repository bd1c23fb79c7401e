//! Persistent memory on a file system that has no room left, on a guest of a few instructions.
//! Needs `/dev/kvm`, and a user namespace to mount a small file system in.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::process::{Command, Output};

use husk_benches::GuestAction;
use process::HUSK;

/// Fills 2 MiB of persistent memory, the first there is, page by page, and powers off. The window
/// is the last quarter of physical addresses, as many as CPUID says (Intel SDM vol. 2A, CPUID
/// 80000008H); four levels of paging reach it, also from 32-bit code (vol. 3A §4.5).
fn kernel() -> Vec<u8> {
    const LEVEL_4: u32 = 0x30_0000;
    const POINTERS: u32 = LEVEL_4 + 0x1000;
    const DIRECTORY: u32 = POINTERS + 0x1000;
    const TABLE: u32 = 3; // present, writable
    const LARGE_PAGE: u32 = 0x83; // the same, of 2 MiB
    let mut code = Vec::new();
    for (gpa, value) in [
        (LEVEL_4, POINTERS | TABLE),
        (POINTERS, DIRECTORY | TABLE),
        (DIRECTORY, LARGE_PAGE),
        (DIRECTORY + 8, LARGE_PAGE),
    ] {
        code.extend([0xc7, 0x05]); // mov dword [gpa], value
        code.extend(gpa.to_le_bytes());
        code.extend(value.to_le_bytes());
    }
    code.extend([0xb8, 0x08, 0, 0, 0x80, 0x0f, 0xa2]); // mov eax, 0x80000008; cpuid
    code.extend([0x0f, 0xb6, 0xc8, 0x83, 0xe9, 34]); // movzx ecx, al; sub ecx, 34
    code.extend([0xba, 3, 0, 0, 0, 0xd3, 0xe2]); // mov edx, 3; shl edx, cl
    code.extend([0x89, 0x15]); // mov [DIRECTORY + 12], edx: the upper half of 2 to 4 MiB
    code.extend((DIRECTORY + 12).to_le_bytes());
    code.extend([0x0f, 0x20, 0xe0, 0x83, 0xc8, 0x20, 0x0f, 0x22, 0xe0]); // cr4 |= PAE
    code.push(0xb8); // cr3 = LEVEL_4
    code.extend(LEVEL_4.to_le_bytes());
    code.extend([0x0f, 0x22, 0xd8]);
    code.extend([0xb9, 0x80, 0, 0, 0xc0, 0x0f, 0x32]); // mov ecx, IA32_EFER; rdmsr
    code.extend([0x0d, 0, 1, 0, 0, 0x0f, 0x30]); // or eax, LME; wrmsr
    code.extend([0x0f, 0x20, 0xc0, 0x0d, 0, 0, 0, 0x80, 0x0f, 0x22, 0xc0]); // cr0 |= PG
    code.extend([0xbf, 0, 0, 0x20, 0]); // mov edi, 2 MiB
    code.extend([0xc6, 0x07, 1]); // mov byte [edi], 1
    code.extend([0x81, 0xc7, 0, 0x10, 0, 0]); // add edi, 4096
    code.extend([0x81, 0xff, 0, 0, 0x40, 0]); // cmp edi, 4 MiB
    code.extend([0x75, 0xef]); // jne to the store
    code.extend(husk_benches::code(GuestAction::PowerOff));
    husk_benches::elf_of(&code)
}

/// How husk ends whose guest fills a file of 2 MiB without blocks, on a file system of `megabytes`;
/// `None` where there can be none.
fn fills(megabytes: u32, options: &str) -> Option<Output> {
    if !process::has_kvm() {
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let (kernel_file, small) = (folder.path().join("kernel"), folder.path().join("small"));
    fs::write(&kernel_file, kernel()).unwrap();
    fs::create_dir(&small).unwrap();
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]);
        command.arg(&small).arg(HUSK).arg(&kernel_file);
        command.output()
    };
    let mount = format!("mount -t tmpfs -o size={megabytes}m none $1");
    if !inside(&mount).is_ok_and(|output| output.status.success()) {
        println!("skipped: needs unshare, user namespaces");
        return None;
    }
    let run = format!(
        "{mount} && truncate -s 2M $1/store && \
         exec $2 run --no-rng --kernel $3 --serial off --pmem file=$1/store{options}"
    );
    Some(inside(&run).unwrap())
}

#[test]
fn a_guest_that_stores_where_the_file_system_has_no_room_ends_with_the_place() {
    let Some(output) = fills(1, "") else { return };
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    // The file system's last page is the file's.
    for word in [
        "/small/store: byte 1048576 ",
        "has nothing behind it",
        "its file system is full",
    ] {
        assert!(said.contains(word), "no {word:?} in {said}");
    }
}

#[test]
fn a_guest_that_stores_where_there_is_room_goes_on() {
    for options in ["", ",discard_writes=on"] {
        let Some(output) = fills(3, options) else { return };
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
    }
}
