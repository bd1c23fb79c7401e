//! Sequences of resizes to start from.

use super::{PLUG, UNPLUG_ALL};
use crate::Seeds;
use crate::script::Recorder;

pub fn seeds() -> Seeds {
    let numbers = |to: &mut Recorder, vcpus: u8, mib: u16| {
        to.u8(1).u8(3).u8(vcpus).u16(mib).u8(0);
    };
    // Up, down and up again, by a guest that answers.
    let mut sizes = Recorder::default();
    sizes.u8(0);
    for (vcpus, mib) in [
        (4, 576),
        (1, 64),
        (3, 320),
        (6, 1088),
        (2, 1),
        (0, 64),
        (7, 64),
        (1, 1200),
    ] {
        numbers(&mut sizes, vcpus, mib);
        sizes.u8(13).u8(2).u8(13).u8(2);
    }
    // Reversed before the guest has heard, after it has, and while the host fails.
    let mut reversed = Recorder::default();
    reversed.u8(0);
    numbers(&mut reversed, 4, 272);
    numbers(&mut reversed, 2, 144);
    numbers(&mut reversed, 1, 16);
    for broken in [4, 1] {
        reversed.u8(12).u8(broken);
        numbers(&mut reversed, 4, 272);
    }
    reversed.u8(12).u8(0);
    numbers(&mut reversed, 4, 272);
    reversed.u8(3).u8(0).u8(3).u8(1).u8(12).u8(2);
    numbers(&mut reversed, 1, 16);
    reversed
        .u8(5)
        .u8(0)
        .u8(3)
        .u8(2)
        .u8(4)
        .u8(1)
        .u8(0)
        .u16(1)
        .u8(0x81)
        .u8(2)
        .u8(12)
        .u8(0)
        .u8(2);
    // By virtio-mem: its driver comes, does less than it should, and goes.
    let mut blocks = Recorder::default();
    blocks.u8(1).u8(9);
    numbers(&mut blocks, 1, 272);
    blocks
        .u8(10)
        .u8(PLUG)
        .u16(0)
        .u16(64)
        .u8(2)
        .u8(10)
        .u8(PLUG)
        .u16(100)
        .u16(64)
        .u8(2)
        .u8(9);
    numbers(&mut blocks, 1, 400);
    blocks.u8(13).u8(2).u8(9);
    numbers(&mut blocks, 1, 16);
    blocks
        .u8(10)
        .u8(1)
        .u16(10)
        .u16(20)
        .u8(10)
        .u8(UNPLUG_ALL)
        .u16(0)
        .u16(0)
        .u8(2);
    let mut bodies = Recorder::default();
    bodies.u8(1);
    for body in [
        r#"{"desired_vcpus":2,"desired_ram":201326592}"#,
        r#"{"desired_balloon":33554432}"#,
        r#"{"desired_ram":18446744073709551615,"desired_balloon":1}"#,
        r#"{"desired_ram":1024,"desired_vcpus":null}"#,
        r#"{"desired_vcpus":4294967295}"#,
        "{}",
    ] {
        bodies.u8(0).bytes(body.as_bytes()).u8(2).u8(11).u32(8192);
    }
    vec![
        ("sizes", sizes.take()),
        ("reversed", reversed.take()),
        ("blocks", blocks.take()),
        ("bodies", bodies.take()),
    ]
}
