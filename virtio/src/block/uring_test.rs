use std::fs::File;
use std::io::Write;

use vm_memory::{MmapRegion, VolatileMemory};

use super::*;
use crate::block::testing::{HERE, buffers, has_uring, image, pipe};

const LATER: Duration = Duration::from_millis(200);

/// Starts a read that ends only when something is written to the pipe.
fn start_read(uring: &mut Uring, slot: usize, file: &File, buffers: &Iovecs) {
    let op = Op::Read {
        file,
        buffers,
        offset: HERE,
    };
    // SAFETY: the tests keep file, buffers and memory until the ring is gone.
    unsafe { uring.push(slot, op) }.unwrap();
    assert!(uring.submit().unwrap());
}

fn content(memory: &MmapRegion<()>) -> Vec<u8> {
    let mut bytes = vec![0; 5];
    memory.as_volatile_slice().copy_to(&mut bytes);
    bytes
}

#[test]
fn drop_waits_for_what_the_kernel_was_given() {
    if !has_uring() {
        return;
    }
    let (reader, mut writer) = pipe();
    let memory = MmapRegion::<()>::new(4096).unwrap();
    let buffers = buffers(&memory);
    let mut uring = Uring::new(4).unwrap();
    start_read(&mut uring, 0, &reader, &buffers);

    let thread = thread::spawn(move || {
        thread::sleep(LATER);
        writer.write_all(b"later").unwrap();
    });
    drop(uring);

    assert_eq!(content(&memory), b"later", "the kernel had let go");
    thread.join().unwrap();
}

#[test]
fn wait_returns_when_something_ends_and_names_it() {
    if !has_uring() {
        return;
    }
    let (reader, mut writer) = pipe();
    let memory = MmapRegion::<()>::new(4096).unwrap();
    let buffers = buffers(&memory);
    let mut uring = Uring::new(4).unwrap();
    assert!(uring.wait().is_err(), "nothing would ever end");
    start_read(&mut uring, 3, &reader, &buffers);
    let mut ended = Vec::new();
    uring.reap(&mut ended);
    assert!(ended.is_empty());

    writer.write_all(b"now..").unwrap();
    uring.wait().unwrap();
    uring.reap(&mut ended);

    let [Completion { slot: 3, result: Ok(5) }] = ended[..] else {
        panic!("{} ended", ended.len())
    };
    assert_eq!(content(&memory), b"now..");
}

#[test]
fn full_queue_is_emptied_and_nothing_is_lost() {
    if !has_uring() {
        return;
    }
    let file = image(&[1; 4096]);
    let mut uring = Uring::new(2).unwrap();
    let mut ended = Vec::new();
    for slot in 0..7 {
        let op = Op::Sync { file: file.as_file() };
        // SAFETY: no memory is involved, and the file outlives the ring.
        unsafe { uring.push(slot, op) }.unwrap();
    }
    assert!(uring.submit().unwrap());
    while uring.wait().is_ok() {
        uring.reap(&mut ended);
    }
    let mut slots: Vec<_> = ended.iter().map(|end| end.slot).collect();
    slots.sort_unstable();
    assert_eq!(slots, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn a_ring_carries_out_nothing_that_a_disk_has_no_need_of() {
    if !has_uring() {
        return;
    }
    let mut uring = Uring::new(4).unwrap();
    let path = c"/dev/null";
    let open = opcode::OpenAt::new(Fd(libc::AT_FDCWD), path.as_ptr())
        .build()
        .user_data(3);
    // SAFETY: the path outlives the ring.
    unsafe { uring.ring.submission().push(&open) }.unwrap();
    uring.running += 1;
    uring.submit().unwrap();
    uring.wait().unwrap();
    let mut ended = Vec::new();
    uring.reap(&mut ended);
    let [
        Completion {
            slot: 3,
            result: Err(error),
        },
    ] = ended.as_slice()
    else {
        panic!("the file was opened")
    };
    assert_eq!(error.raw_os_error(), Some(libc::EACCES));
}

#[test]
fn a_ring_makes_no_sockets_and_starts_nothing_else_that_filters_forbid() {
    if !has_uring() {
        return;
    }
    let path = c"/dev/null".as_ptr();
    let mut byte = 0_u8;
    let forbidden = [
        opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build(),
        opcode::Connect::new(Fd(0), std::ptr::null(), 0).build(),
        opcode::OpenAt::new(Fd(libc::AT_FDCWD), path).build(),
        opcode::UnlinkAt::new(Fd(libc::AT_FDCWD), path).build(),
        opcode::Read::new(Fd(0), &raw mut byte, 1).build(),
        opcode::Write::new(Fd(0), &raw const byte, 1).build(),
        opcode::Close::new(Fd(libc::c_int::MAX)).build(),
        opcode::Nop::new().build(),
    ];
    let mut uring = Uring::new(forbidden.len()).unwrap();
    for entry in forbidden
        .iter()
        .cloned()
        .zip(0..)
        .map(|(entry, slot)| entry.user_data(slot))
    {
        // SAFETY: what the entries point to outlives the ring's work on them, which is waited for below.
        unsafe { uring.ring.submission().push(&entry) }.unwrap();
        uring.running += 1;
    }
    uring.submit().unwrap();
    let mut ended = Vec::new();
    while ended.len() < forbidden.len() {
        uring.wait().unwrap();
        uring.reap(&mut ended);
    }
    for Completion { slot, result } in ended {
        assert_eq!(
            result.unwrap_err().raw_os_error(),
            Some(libc::EACCES),
            "operation {slot}"
        );
    }
    let more = uring.ring.submitter().register_files(&[0]);
    assert!(more.is_err(), "a ring that is enabled stays as it is");
}
