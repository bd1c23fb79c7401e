//! Guest-physical addresses of a VM that may have fewer bits of them than its host
//! (`cpus.max_phys_bits`). Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};

use process::{Client, Husk, has_kvm};
use serde_json::{Value, json};

/// What becomes of the creation and the boot of a guest of a few instructions with so many bits,
/// and persistent memory of so many bytes.
fn boots(husk: &Husk, client: &mut Client, bits: u8, pmem: u64) -> (u16, Value) {
    let path = |name: &str| husk.folder.path().join(name);
    let code = husk_benches::code(husk_benches::GuestAction::Halt);
    fs::write(path("vmlinux"), husk_benches::elf_of(&code)).unwrap();
    File::create(path("pmem")).unwrap().set_len(pmem).unwrap();
    let vm = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 1, "max_phys_bits": bits},
        "memory": {"size": 64 << 20},
        "payload": {"kernel": path("vmlinux")},
        "pmem": [{"file": path("pmem")}],
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    let answer = match client.put("vm.create", Some(vm)) {
        (204, _) => client.put("vm.boot", None),
        refused => refused,
    };
    assert_eq!(client.put("vm.delete", None).0, 204);
    answer
}

#[test]
fn nothing_lies_beyond_the_addresses_that_a_vm_is_given() {
    if !has_kvm() {
        return;
    }
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    // Of 8 GiB of addresses, persistent memory has the last two.
    assert_eq!(boots(&husk, &mut client, 33, 1 << 30).0, 204);
    let (status, why) = boots(&husk, &mut client, 33, 4 << 30);
    assert_eq!(status, 400, "{why}");
    assert!(
        why.to_string()
            .contains("no 4 GiB of addresses are free for persistent memory"),
        "{why}"
    );
    let (status, why) = boots(&husk, &mut client, 32, 2 << 20);
    assert_eq!(status, 400, "{why}");
    assert!(why.to_string().contains("cpus.max_phys_bits"), "{why}");
    drop(client);
    assert_eq!(husk.shut_down().code(), Some(0));
}
