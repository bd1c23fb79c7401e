use proptest::prelude::*;

use super::*;
use crate::host::fake::FakeHost;

fn ioapic() -> (Ioapic, Arc<FakeHost>) {
    let host = FakeHost::new();
    (Ioapic::new(host.clone()), host)
}

fn write(ioapic: &mut Ioapic, register: u8, value: u32) {
    assert_eq!(ioapic.write(IOREGSEL, &[register, 0, 0, 0]), Effect::None);
    assert_eq!(ioapic.write(IOWIN, &value.to_le_bytes()), Effect::None);
}

fn read(ioapic: &mut Ioapic, register: u8) -> u32 {
    assert_eq!(ioapic.write(IOREGSEL, &[register, 0, 0, 0]), Effect::None);
    let mut value = [0; 4];
    ioapic.read(IOWIN, &mut value);
    u32::from_le_bytes(value)
}

#[test]
fn it_introduces_itself_with_24_masked_pins() {
    let (mut ioapic, _host) = ioapic();
    assert_eq!(read(&mut ioapic, REG_VERSION), 0x0017_0020);
    for pin in 0..PINS {
        assert_eq!(read(&mut ioapic, REG_REDIRECTION + 2 * pin), 0x0001_0000);
    }
    write(&mut ioapic, REG_ID, u32::MAX);
    assert_eq!(read(&mut ioapic, REG_ID), 0x0f00_0000);
}

#[test]
fn an_unmasked_pin_is_a_message_and_a_masked_one_is_not() {
    let (mut ioapic, host) = ioapic();
    let _line = ioapic.line(4).unwrap();
    assert!(host.routes().is_empty());
    write(&mut ioapic, 0x19, 0x0300_0000);
    write(&mut ioapic, 0x18, 0x0000_0931);
    let message = MsiMessage {
        address: 0xfee0_3004,
        data: 0x0131,
    };
    assert_eq!(
        host.routes().values().copied().collect::<Vec<_>>(),
        [message],
        "vector 0x31 to logical destination 3"
    );
    write(&mut ioapic, 0x18, 0x0001_0931);
    assert!(host.routes().is_empty());
}

#[test]
fn an_entry_written_again_is_not_routed_again() {
    let (mut ioapic, host) = ioapic();
    let _line = ioapic.line(4).unwrap();
    write(&mut ioapic, 0x18, 0x31);
    let calls = host.route_calls();
    write(&mut ioapic, 0x18, 0x31);
    assert_eq!(host.route_calls(), calls);
}

#[test]
fn pins_without_a_device_ask_nothing_of_the_host() {
    let (mut ioapic, host) = ioapic();
    write(&mut ioapic, 0x10, 0x31);
    assert_eq!(host.route_calls(), 0);
    assert!(ioapic.line(PINS).is_err());
}

#[test]
fn a_refused_route_is_counted() {
    let (mut ioapic, host) = ioapic();
    let _line = ioapic.line(4).unwrap();
    host.refuse(true);
    write(&mut ioapic, 0x18, 0x31);
    assert_eq!(ioapic.metrics().metrics(), [("refused_routes", 1)]);
    host.refuse(false);
    write(&mut ioapic, 0x18, 0x31);
    assert_eq!(host.routes().len(), 1, "the next write tries again");
}

#[test]
fn callers_of_one_pin_share_its_line() {
    let (mut ioapic, host) = ioapic();
    let (_a, _b) = (ioapic.line(9).unwrap(), ioapic.line(9).unwrap());
    write(&mut ioapic, REG_REDIRECTION + 18, 0x40);
    assert_eq!(host.routes().len(), 1);
}

#[test]
fn the_end_of_an_interrupt_raises_nothing_again() {
    const EOI: u64 = 0x40;
    let (mut ioapic, host) = ioapic();
    let line = ioapic.line(4).unwrap();
    let message = MsiMessage {
        address: 0xfee0_0000,
        data: 0x31,
    };
    // Level-triggered, as a guest may program it: still one message for each edge.
    for entry in [0x31, 0x8031] {
        write(&mut ioapic, 0x18, entry);
        line.raise();
        assert_eq!(host.take_sent(message), 1);
        assert_eq!(ioapic.write(EOI, &0x31_u32.to_le_bytes()), Effect::None);
        assert_eq!(host.take_sent(message), 0);
        assert_eq!(read(&mut ioapic, 0x18) & (1 << 14), 0, "nothing waits for its end");
    }
}

proptest! {
    /// Edges are the device's alone: whatever the guest does to the registers, none is added and none is taken back.
    #[test]
    fn no_access_raises_a_pin_or_takes_its_edge_away(
        steps in prop::collection::vec((0..PINS, any::<bool>(), 0_u64..0x50, any::<u32>()), 1..120),
    ) {
        let (mut ioapic, host) = ioapic();
        let lines: Vec<_> = (0..PINS).map(|pin| ioapic.line(pin).unwrap()).collect();
        let mut raised = [0_u64; PINS as usize];
        for (pin, raises, offset, value) in steps {
            if raises {
                lines[usize::from(pin)].raise();
                raised[usize::from(pin)] += 1;
            }
            write(&mut ioapic, REG_REDIRECTION + 2 * pin, value);
            let _ = ioapic.write(offset, &value.to_le_bytes());
        }
        let seen: Vec<_> = host.gsis().into_iter().map(|gsi| host.take_raised(gsi)).collect();
        prop_assert_eq!(seen, raised);
    }

    #[test]
    fn any_access_is_harmless_and_read_only_bits_stay(
        accesses in prop::collection::vec((0_u64..0x50, prop::collection::vec(any::<u8>(), 1..9)), 1..60),
    ) {
        let (mut ioapic, host) = ioapic();
        let _lines: Vec<_> = (0..PINS).map(|pin| ioapic.line(pin).unwrap()).collect();
        for (offset, data) in accesses {
            let _ = ioapic.write(offset, &data);
            ioapic.read(offset, &mut data.clone());
        }
        let mut unmasked = 0;
        for pin in 0..PINS {
            let low = read(&mut ioapic, REG_REDIRECTION + 2 * pin);
            prop_assert_eq!(low & (1 << 12 | 1 << 14), 0);
            unmasked += usize::from(low & (1 << 16) == 0);
        }
        prop_assert_eq!(host.routes().len(), unmasked);
    }
}
