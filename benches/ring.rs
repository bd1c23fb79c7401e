//! What a chain costs on its way through a ring, data included (virtio 1.2 §2.7).

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use husk_devices::memory::{GuestMemory, GuestMemoryMmap};
use husk_virtio::ring::{Notify, Ring, RingState, Step};
use virtio_queue::QueueState;
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: u16 = 256;
const DESC: u64 = 0x1000;
const AVAIL: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x10_0000;
/// Bytes of each of a chain's two buffers.
const BUFFER: u16 = 512;
/// Descriptors a chain: one that the device reads, one that it writes.
const CHAIN: u16 = 2;
const CHAINS: u16 = SIZE / CHAIN;
const F_NEXT: u16 = 1;
const F_WRITE: u16 = 2;

/// Descriptors and available ring with [`CHAINS`] chains, as a driver leaves them before it kicks.
fn filled() -> GuestMemory {
    let mem = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 4 << 20)]).expect("4 MiB of RAM");
    let put = |gpa: u64, bytes: &[u8]| mem.write_slice(bytes, GuestAddress(gpa)).expect("an address in RAM");
    for index in 0..SIZE {
        let reads = index % CHAIN == 0;
        let (flags, next) = if reads { (F_NEXT, index + 1) } else { (F_WRITE, 0) };
        let mut descriptor = (DATA + u64::from(index) * u64::from(BUFFER)).to_le_bytes().to_vec();
        descriptor.extend(u32::from(BUFFER).to_le_bytes());
        descriptor.extend([flags.to_le_bytes(), next.to_le_bytes()].concat());
        put(DESC + u64::from(index) * 16, &descriptor);
    }
    for chain in 0..CHAINS {
        put(AVAIL + 4 + u64::from(chain) * 2, &(chain * CHAIN).to_le_bytes());
    }
    put(AVAIL + 2, &CHAINS.to_le_bytes());
    GuestMemory::new(mem)
}

/// The ring at its start: everything that was made available is new to it.
fn ring(mem: &GuestMemory) -> Ring {
    let zero = [0; 4];
    mem.memory()
        .write_slice(&zero, GuestAddress(USED))
        .expect("an address in RAM");
    let queue = QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: DESC,
        avail_ring: AVAIL,
        used_ring: USED,
        ..QueueState::default()
    };
    let kick = Arc::new(EventFd::new(EFD_NONBLOCK).expect("an eventfd"));
    Ring::new(RingState { index: 0, queue }, kick, Notify::none(), mem.clone()).expect("a ring in RAM")
}

fn drain(c: &mut Criterion) {
    let mem = filled();
    let mut group = c.benchmark_group("ring");
    group.throughput(Throughput::Elements(CHAINS.into()));
    group.bench_function("drain", |b| {
        b.iter_batched_ref(
            || ring(&mem),
            |ring| {
                let mut chains = 0;
                ring.drain(|reader, writer| {
                    chains += 1;
                    black_box((reader.available_bytes(), writer.available_bytes()));
                    Ok(Step::Used(0))
                })
                .expect("an obedient driver");
                assert_eq!(chains, CHAINS);
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("drain and copy 512 bytes each way", |b| {
        let mut bytes = [0; BUFFER as usize];
        b.iter_batched_ref(
            || ring(&mem),
            |ring| {
                ring.drain(|reader, writer| {
                    reader.read_exact(&mut bytes).expect("512 bytes to read");
                    writer.write_all(&bytes).expect("512 bytes to fill");
                    Ok(Step::Used(BUFFER.into()))
                })
                .expect("an obedient driver");
            },
            BatchSize::SmallInput,
        );
    });
    group.bench_function("pop and push", |b| {
        b.iter_batched_ref(
            || ring(&mem),
            |ring| {
                while let Some(chain) = ring.pop().expect("an obedient driver") {
                    ring.push(chain.head(), 0).expect("a chain in flight");
                }
            },
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, drain);
criterion_main!(benches);
