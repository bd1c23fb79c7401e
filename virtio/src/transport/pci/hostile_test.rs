//! What a broken or malicious driver may write, and that it does no harm.

use proptest::prelude::*;

use super::common::VIRTIO_MSI_NO_VECTOR;
use super::guest::*;
use super::layout::BAR_BYTES;
use super::*;

#[test]
fn kicks_before_driver_ok_and_of_absent_queues_are_harmless() {
    let mut guest = guest();
    for offset in 0..0x1000 {
        guest.set(u64::from(NOTIFY) + offset, 4, 0);
    }
    guest.bring_up();
    guest.set(u64::from(NOTIFY) + 8, 4, 2);
    guest.set(u64::from(NOTIFY) + 0xffc, 4, 0xffff);
    guest.set(u64::from(NOTIFY) + 2, 4, 0);
    guest.echo(0);
}

#[test]
fn vectors_out_of_range_cannot_be_had() {
    let mut guest = guest();
    guest.negotiate();
    for vector in 0..=0xffff {
        let expected = if vector < 3 {
            vector
        } else {
            VIRTIO_MSI_NO_VECTOR.into()
        };
        for register in [CONFIG_VECTOR, QUEUE_VECTOR] {
            guest.set(register, 2, vector);
            assert_eq!(guest.get(register, 2), expected);
        }
    }
    guest.set(QUEUE_SELECT, 2, 7);
    guest.set(QUEUE_VECTOR, 2, 1);
    assert_eq!(
        guest.get(QUEUE_VECTOR, 2),
        u64::from(VIRTIO_MSI_NO_VECTOR),
        "no such queue"
    );
}

#[test]
fn queues_that_do_not_exist_read_as_nothing() {
    let mut guest = guest();
    for queue in 2..=0xffff {
        guest.set(QUEUE_SELECT, 2, queue);
        let vector = u64::from(VIRTIO_MSI_NO_VECTOR) << 16;
        assert_eq!(guest.get(QUEUE_SIZE, 8), vector, "queue {queue}");
        assert_eq!(guest.get(QUEUE_DESC, 8), 0);
    }
    guest.set(QUEUE_SELECT, 2, 1);
    assert_eq!((guest.get(QUEUE_SIZE, 2), guest.get(0x1e, 2)), (16, 1));
}

#[test]
fn nothing_changes_after_driver_ok_but_what_may() {
    let mut guest = guest();
    guest.bring_up();
    for queue in [0, 1, 2, 0xffff] {
        guest.set(QUEUE_SELECT, 2, queue);
        let image: Vec<_> = (0..0x3c).map(|at| guest.get(at, 1)).collect();
        for (at, width) in [
            (CONFIG_VECTOR, 2),
            (QUEUE_SIZE, 2),
            (QUEUE_VECTOR, 2),
            (QUEUE_ENABLE, 2),
            (DRIVER_FEATURE, 4),
        ] {
            for value in [0, 1, 2, 0xffff_ffff] {
                guest.set(at, width, value);
            }
        }
        for at in (QUEUE_DESC..0x38).step_by(4) {
            guest.set(at, 4, 0x1234_5000);
            guest.set(at, 8, 0x1234_5000);
        }
        assert_eq!(
            (0..0x3c).map(|at| guest.get(at, 1)).collect::<Vec<_>>(),
            image,
            "queue {queue}"
        );
    }
    guest.echo(0);
}

#[test]
fn writes_of_the_wrong_width_are_ignored() {
    let mut guest = guest();
    guest.set(STATUS, 2, 1);
    guest.set(STATUS, 4, 1);
    assert_eq!(guest.get(STATUS, 1), 0);
    guest.set(QUEUE_SELECT, 1, 1);
    assert_eq!(guest.get(QUEUE_SELECT, 2), 0);
    guest.negotiate();
    guest.set(QUEUE_DESC + 2, 4, 0xffff_ffff);
    guest.set(QUEUE_DESC + 4, 8, 0xffff_ffff_ffff_ffff);
    assert_eq!(
        guest.get(QUEUE_DESC + 4, 8),
        u64::MAX,
        "two aligned halves are as good as two writes"
    );
    assert_eq!(guest.get(QUEUE_DESC, 4), 0);
}

/// A state that a driver can bring the device into.
fn in_state(state: u8) -> Guest {
    let mut guest = guest();
    guest.function.bar_moved(BAR, Some(BASE)).unwrap();
    match state {
        0 => {}
        1 => guest.set(STATUS, 1, 1),
        2 => guest.negotiate(),
        3 => guest.bring_up(),
        4 => {
            guest.control.fail_start.store(true, Ordering::SeqCst);
            guest.negotiate();
            guest.set(STATUS, 1, 15);
        }
        _ => {
            guest.bring_up();
            guest.control.hold_stop.store(true, Ordering::SeqCst);
            guest.set(STATUS, 1, 0);
        }
    }
    guest
}

/// An access by the guest: `true` is to configuration space.
fn access() -> impl Strategy<Value = (bool, u64, usize, u64)> {
    let offset = prop_oneof![4 => 0u64..0x40, 1 => 0u64..BAR_BYTES + 16, 1 => any::<u64>()];
    let value = prop_oneof![
        any::<u64>(),
        0u64..16,
        Just(u64::MAX),
        (0u64..0x20_0000).prop_map(|gpa| gpa & !15)
    ];
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8), 0usize..9];
    (prop::bool::weighted(0.2), offset, width, value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn no_access_in_any_state_is_harmful(state in 0u8..6, accesses in prop::collection::vec(access(), 1..80)) {
        let mut guest = in_state(state);
        let control = guest.control.clone();
        for (config, offset, width, value) in accesses {
            let bytes = &value.to_le_bytes()[..width];
            let mut back = vec![0xaa; width];
            if config {
                let offset = u16::try_from(offset % 4096).unwrap();
                let _ = guest.function.write_config(offset, bytes);
                guest.function.read_config(offset, &mut back);
            } else {
                let _ = guest.function.write_bar(BAR, offset, bytes);
                guest.function.read_bar(BAR, offset, &mut back);
            }
            let status = guest.get(STATUS, 1);
            prop_assert!([0, 1, 3, 11, 15].contains(&(status & 0xf)), "{:#x}", status);
            prop_assert!(guest.get(0x12, 2) == 2);
        }
        control.hold_stop.store(false, Ordering::SeqCst);
        // Whatever happened, a driver that begins anew gets a working device.
        control.fail_start.store(false, Ordering::SeqCst);
        let _ = guest.function.write_config(4, &[4, 0]);
        guest.reset();
        guest.bring_up();
        guest.echo(0);
    }

    #[test]
    fn every_register_takes_every_width_in_every_state(state in 0u8..6, queue in any::<u16>(), value in any::<u64>()) {
        let mut guest = in_state(state);
        let control = guest.control.clone();
        for at in (0u64..0x3c).filter(|at| *at != STATUS) {
            for width in [1, 2, 4, 8] {
                guest.set(QUEUE_SELECT, 2, queue.into());
                guest.set(at, width, value);
                guest.get(at, width);
            }
        }
        control.hold_stop.store(false, Ordering::SeqCst);
        control.fail_start.store(false, Ordering::SeqCst);
        guest.reset();
        guest.bring_up();
        guest.echo(1);
    }
}
