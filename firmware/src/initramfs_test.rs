#![expect(clippy::cast_possible_truncation, reason = "test data is small")]

use super::*;
use crate::KernelImage;
use crate::testing::{Elf, file, ram, read};

const RAM: usize = 16 << 20;

fn kernel(mem: &GuestMemoryMmap) -> LoadedKernel {
    let (_dir, path) = file(&Elf::kernel().build());
    KernelImage::open(path).unwrap().load(mem, None).unwrap()
}

#[test]
fn it_goes_to_the_highest_page_that_holds_it() {
    let mem = ram(RAM);
    let kernel = kernel(&mem);
    let (_dir, path) = file(&[0xab; 5000]);
    let (base, len) = Initramfs::open(path).unwrap().load(&mem, &kernel).unwrap();
    assert_eq!((base, len), (RAM as u64 - 0x2000, 5000));
    assert!(read(&mem, base, 5000).iter().all(|byte| *byte == 0xab));
    assert_eq!(read(&mem, base - 1, 1), [0]);
}

#[test]
fn it_stays_below_what_the_kernel_can_reach() {
    let mem = ram(RAM);
    let kernel = LoadedKernel {
        initrd_addr_max: 0x3f_ffff,
        ..kernel(&mem)
    };
    let (_dir, path) = file(&[1; 0x1000]);
    assert_eq!(
        Initramfs::open(path).unwrap().load(&mem, &kernel).unwrap(),
        (0x3f_f000, 0x1000)
    );
}

#[test]
fn one_that_fits_exactly_is_taken_and_one_byte_more_is_not() {
    let mem = ram(RAM);
    let kernel = kernel(&mem);
    let room = RAM - kernel.end as usize;
    let (_dir, path) = file(&vec![1; room]);
    assert_eq!(
        Initramfs::open(path).unwrap().load(&mem, &kernel).unwrap(),
        (kernel.end, room as u64)
    );

    let (_dir, path) = file(&vec![1; room + 1]);
    let error = Initramfs::open(&path).unwrap().load(&mem, &kernel).unwrap_err();
    assert_eq!(
        error.to_string().replace(path.to_str().unwrap(), "I"),
        "initramfs I has 0xdf3001 bytes; between the kernel's end 0x20d000 and 0x1000000 there is room for 0xdf3000"
    );
}

#[test]
fn one_larger_than_ram_is_refused() {
    let mem = ram(RAM);
    let kernel = kernel(&mem);
    let (_dir, path) = file(b"x");
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    let error = Initramfs::open(path).unwrap().load(&mem, &kernel).unwrap_err();
    assert!(matches!(
        error,
        InitramfsError::NoRoom {
            len: 0x100_0000_0000,
            ..
        }
    ));
}

#[test]
fn a_file_that_shrinks_after_it_was_opened_is_an_error() {
    let mem = ram(RAM);
    let kernel = kernel(&mem);
    let (_dir, path) = file(&[1; 0x2000]);
    let initramfs = Initramfs::open(&path).unwrap();
    std::fs::write(&path, [1; 0x1000]).unwrap();
    assert!(matches!(
        initramfs.load(&mem, &kernel),
        Err(InitramfsError::Load { len: 0x2000, .. })
    ));
}

#[test]
fn a_missing_file_is_named() {
    let error = Initramfs::open("/nonexistent/initrd").unwrap_err();
    assert_eq!(error.to_string(), "initramfs /nonexistent/initrd");
}
