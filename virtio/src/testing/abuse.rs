//! What a hostile driver puts into a ring (virtio 1.2 §2.7.4, §2.7.5, §2.7.13): each is against the
//! rules by itself, whatever the device.

use virtio_queue::desc::split::Descriptor;

use super::{Driver, END, F_INDIRECT, F_NEXT, F_WRITE};

/// Where a table or buffer of an abuse is.
const SCRATCH: u64 = 0x6_0000;

/// One abuse: what it is, and the driver doing it on a ring that nothing was offered on.
pub(crate) type Abuse = (&'static str, fn(&Driver));

/// All of them.
pub(crate) const ABUSES: [Abuse; 12] = [
    ("a chain that is its own continuation", |driver| {
        one(driver, SCRATCH, 32, F_NEXT, 0);
    }),
    ("a chain that goes round", |driver| {
        driver.put(driver.desc, 1, Descriptor::new(SCRATCH, 4, F_NEXT, 0));
        one(driver, SCRATCH, 4, F_NEXT, 1);
    }),
    ("a chain that leaves the table", |driver| {
        one(driver, SCRATCH, 4, F_NEXT, driver.size)
    }),
    ("a buffer to read that begins in RAM and ends in a hole", |driver| {
        one(driver, END - 16, 32, 0, 0);
    }),
    ("a buffer to write in a hole", |driver| one(driver, END, 32, F_WRITE, 0)),
    ("a buffer that ends beyond all addresses", |driver| {
        one(driver, u64::MAX - 8, 32, F_WRITE, 0);
    }),
    ("a chain of more than 4 GiB", |driver| {
        driver.put(driver.desc, 1, Descriptor::new(SCRATCH, u32::MAX, F_WRITE, 0));
        one(driver, SCRATCH, u32::MAX, F_WRITE | F_NEXT, 1);
    }),
    ("a buffer to read after one to write", |driver| {
        driver.put(driver.desc, 1, Descriptor::new(SCRATCH, 32, 0, 0));
        one(driver, SCRATCH, 32, F_WRITE | F_NEXT, 1);
    }),
    ("an indirect table in an indirect table", |driver| {
        driver.put(SCRATCH, 0, Descriptor::new(SCRATCH + 64, 16, F_INDIRECT, 0));
        one(driver, SCRATCH, 16, F_INDIRECT, 0);
    }),
    ("an indirect table of one and a half entries", |driver| {
        one(driver, SCRATCH, 24, F_INDIRECT, 0);
    }),
    ("a head outside the table", |driver| driver.offer(driver.size)),
    ("more chains than there are entries", |driver| {
        driver.store(driver.avail + 2, driver.size + 1);
    }),
];

/// Offers a chain that begins with this descriptor, the first of the table.
fn one(driver: &Driver, address: u64, len: u32, flags: u16, next: u16) {
    driver.put(driver.desc, 0, Descriptor::new(address, len, flags, next));
    driver.offer(0);
}
