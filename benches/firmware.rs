//! What putting a guest into RAM costs: ACPI tables, and a kernel of 32 MiB as vmlinux and as bzImage.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use husk_firmware::layout::{ECAM, RESET_PORT, SLEEP_CONTROL_PORT, SLEEP_STATUS_PORT};
use husk_firmware::{Ecam, GuestMemoryMmap, KernelImage, Platform, PowerRegisters, acpi};
use vm_memory::GuestAddress;

const KERNEL_BYTES: usize = 32 << 20;
const RAM_BYTES: usize = 128 << 20;

fn acpi_build(c: &mut Criterion) {
    let mut group = c.benchmark_group("acpi build");
    for vcpus in [1, 64] {
        let apic_ids: Vec<u32> = (0..vcpus).collect();
        let platform = Platform {
            ram: &[(0, 512 << 20)],
            apic_ids: &apic_ids,
            spare_apic_ids: &[],
            ecam: Some(Ecam { base: ECAM, end_bus: 0 }),
            power: PowerRegisters {
                sleep_control: SLEEP_CONTROL_PORT,
                sleep_status: SLEEP_STATUS_PORT,
                reset: RESET_PORT,
                reset_value: 1,
            },
            aml: &[],
        };
        group.bench_function(format!("{vcpus} vCPUs"), |b| {
            b.iter(|| acpi::build(black_box(&platform), |_| unreachable!("they fit below 1 MiB")));
        });
    }
    group.finish();
}

fn kernel_load(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let vmlinux = husk_benches::elf_of(&code(KERNEL_BYTES));
    let bzimage = bzimage(
        &zstd::encode_all(vmlinux.as_slice(), 3).expect("zstd in memory"),
        vmlinux.len(),
    );
    let mut group = c.benchmark_group("kernel load");
    group.throughput(Throughput::Bytes(KERNEL_BYTES as u64)).sample_size(10);
    for (name, file) in [("vmlinux", vmlinux), ("bzImage, zstd", bzimage)] {
        let path = save(folder.path(), name, &file);
        group.bench_function(name, |b| {
            b.iter_batched_ref(ram, |mem| load(&path, mem), BatchSize::PerIteration);
        });
    }
    group.finish();
}

/// RAM that nobody has touched yet: its page faults are part of the price.
fn ram() -> GuestMemoryMmap {
    GuestMemoryMmap::from_ranges(&[(GuestAddress(0), RAM_BYTES)]).expect("RAM")
}

fn load(path: &Path, mem: &GuestMemoryMmap) {
    let kernel = KernelImage::open(path).expect("a kernel");
    let loaded = kernel.load(mem, None).expect("a kernel that fits");
    assert_eq!(loaded.entry, u64::from(husk_benches::ENTRY));
}

fn save(folder: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, content).expect("a file");
    path
}

/// Bytes that compress about as well as machine code does: words of a small vocabulary, in no order.
fn code(len: usize) -> Vec<u8> {
    let mut state = 1_u64;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // Knuth's MMIX generator.
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let word = (state >> 48) % 0x1000;
        bytes.extend(word.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A bzImage with `payload` behind its setup header (Linux `Documentation/arch/x86/boot.rst`).
fn bzimage(payload: &[u8], image_len: usize) -> Vec<u8> {
    /// The boot sector, and `setup_sects` sectors more.
    const REAL_MODE: usize = 5 * 512;
    let mut file = vec![0; REAL_MODE];
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    let word = |value: usize| u32::try_from(value).expect("less than 4 GiB").to_le_bytes();
    put(0x1f1, &[4]); // setup_sects
    put(0x1fe, &[0x55, 0xaa]); // boot_flag
    put(0x202, b"HdrS"); // header
    put(0x206, &[0x0f, 0x02]); // version 2.15
    put(0x22c, &word(0x7fff_ffff)); // initrd_addr_max
    put(0x248, &word(0)); // payload_offset
    put(0x24c, &word(payload.len() + 4)); // payload_length, with the size behind it
    file.extend(payload);
    file.extend(word(image_len));
    file
}

criterion_group!(benches, acpi_build, kernel_load);
criterion_main!(benches);
