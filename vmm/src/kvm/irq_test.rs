use std::cell::RefCell;
use std::collections::BTreeSet;

use husk_devices::Irq;

use super::*;

const BAD: MsiMessage = message(0x1_fee0_0000, 0x40);

const fn message(address: u64, data: u32) -> MsiMessage {
    MsiMessage { address, data }
}

/// What KVM has been told. It refuses tables with the message [`BAD`], and one connection or disconnection on request.
#[derive(Default)]
struct Fake {
    table: RefCell<Vec<(u32, MsiMessage)>>,
    tables: RefCell<u32>,
    connected: RefCell<BTreeSet<u32>>,
    refuse_next: RefCell<bool>,
}

impl Fake {
    fn willing(&self) -> io::Result<()> {
        match self.refuse_next.take() {
            true => Err(io::ErrorKind::OutOfMemory.into()),
            false => Ok(()),
        }
    }

    /// The message that a signal on `gsi` sends.
    fn sends(&self, gsi: u32) -> Option<MsiMessage> {
        let table = self.table.borrow();
        let route = table.iter().find(|(routed, _)| *routed == gsi)?;
        self.connected.borrow().contains(&gsi).then_some(route.1)
    }
}

impl Wires for Fake {
    fn replace(&self, routes: &[(u32, MsiMessage)]) -> io::Result<()> {
        if routes.iter().any(|(_, message)| *message == BAD) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.willing()?;
        *self.tables.borrow_mut() += 1;
        *self.table.borrow_mut() = routes.to_vec();
        Ok(())
    }

    fn connect(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        self.willing()?;
        assert!(self.connected.borrow_mut().insert(gsi), "connected twice");
        Ok(())
    }

    fn disconnect(&self, _: &EventFd, gsi: u32) -> io::Result<()> {
        self.willing()?;
        assert!(self.connected.borrow_mut().remove(&gsi), "not connected");
        Ok(())
    }
}

fn vector(routes: &mut Routes) -> MsiVector {
    MsiVector {
        gsi: routes.reserve().unwrap(),
        irq: Irq::new(EventFd::new(libc::EFD_NONBLOCK).unwrap()),
    }
}

const GOOD: MsiMessage = message(0xfee0_1000, 0x41);
const OTHER: MsiMessage = message(0xfee0_2000, 0x42);

#[test]
fn gsis_are_used_again_after_release() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let first = vector(&mut routes);
    assert_eq!((first.gsi, routes.reserve()), (24, Some(25)));
    routes.route(&kvm, &first, Some(GOOD)).unwrap();
    routes.release(&kvm, &first).unwrap();
    assert_eq!(kvm.sends(24), None);
    let again = vector(&mut routes);
    assert_eq!(again.gsi, 24);
    routes.route(&kvm, &again, Some(OTHER)).unwrap();
    assert_eq!(kvm.sends(24), Some(OTHER));
}

#[test]
fn gsis_run_out_without_reaching_a_reserved_one() {
    let mut routes = Routes::default();
    assert_eq!(std::iter::from_fn(|| routes.reserve()).count(), 4072);
    assert_eq!(routes.reserve(), None);
}

#[test]
fn a_gsi_that_is_not_reserved_takes_no_message() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let vector = vector(&mut routes);
    routes.release(&kvm, &vector).unwrap();
    let error = routes.route(&kvm, &vector, Some(GOOD)).unwrap_err();
    assert_eq!(error.to_string(), "GSI 24 is not reserved");
}

#[test]
fn a_message_that_kvm_refuses_is_refused_again_and_touches_no_other() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let (bad, good) = (vector(&mut routes), vector(&mut routes));
    assert!(routes.route(&kvm, &bad, Some(BAD)).is_err());
    assert!(
        routes.route(&kvm, &bad, Some(BAD)).is_err(),
        "not taken for what is there"
    );
    routes.route(&kvm, &good, Some(GOOD)).unwrap();
    assert_eq!((kvm.sends(bad.gsi), kvm.sends(good.gsi)), (None, Some(GOOD)));
    routes.route(&kvm, &bad, Some(OTHER)).unwrap();
    assert_eq!((kvm.sends(bad.gsi), kvm.sends(good.gsi)), (Some(OTHER), Some(GOOD)));
}

#[test]
fn a_refused_change_leaves_the_message_that_was_there() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let vector = vector(&mut routes);
    routes.route(&kvm, &vector, Some(GOOD)).unwrap();
    assert!(routes.route(&kvm, &vector, Some(BAD)).is_err());
    assert_eq!(kvm.sends(vector.gsi), Some(GOOD));
    routes.route(&kvm, &vector, Some(GOOD)).unwrap();
    assert_eq!(*kvm.tables.borrow(), 1, "KVM has it already");
}

#[test]
fn a_connection_that_is_refused_is_made_by_the_next_attempt() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let vector = vector(&mut routes);
    routes.route(&kvm, &vector, Some(GOOD)).unwrap();
    routes.route(&kvm, &vector, None).unwrap();
    kvm.refuse_next.replace(true);
    assert!(routes.route(&kvm, &vector, Some(GOOD)).is_err());
    assert_eq!(kvm.sends(vector.gsi), None);
    routes.route(&kvm, &vector, Some(GOOD)).unwrap();
    assert_eq!(kvm.sends(vector.gsi), Some(GOOD));
}

#[test]
fn a_disconnection_that_is_refused_leaves_the_vector_connected() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let vector = vector(&mut routes);
    routes.route(&kvm, &vector, Some(GOOD)).unwrap();
    kvm.refuse_next.replace(true);
    assert!(routes.route(&kvm, &vector, None).is_err());
    assert_eq!(kvm.sends(vector.gsi), Some(GOOD));
    routes.route(&kvm, &vector, None).unwrap();
    assert_eq!(kvm.sends(vector.gsi), None);
}

#[test]
fn a_vector_that_comes_and_goes_costs_one_table() {
    let (kvm, mut routes) = (Fake::default(), Routes::default());
    let vector = vector(&mut routes);
    for _ in 0..3 {
        routes.route(&kvm, &vector, Some(GOOD)).unwrap();
        routes.route(&kvm, &vector, None).unwrap();
    }
    assert_eq!(*kvm.tables.borrow(), 1);
}

#[test]
fn a_table_has_an_entry_for_each_message() {
    let table = table(&[(24, GOOD), (30, OTHER)]).unwrap();
    let entries = table.as_slice().iter().map(|entry| (entry.gsi, entry.type_));
    assert!(entries.eq([(24, KVM_IRQ_ROUTING_MSI), (30, KVM_IRQ_ROUTING_MSI)]));
}

#[test]
fn an_extended_destination_is_in_the_upper_half() {
    // APIC IDs 300, 44 and 0x7fff; what has an upper half or the format of an IOMMU is nobody's to change.
    for (address, low, high) in [
        (0xfee2_c020, 0xfee2_c000, 0x100),
        (0xfee2_c000, 0xfee2_c000, 0),
        (0xfeef_ffec, 0xfeef_f00c, 0x7f00),
        (0x1_fee2_c020, 0xfee2_c020, 1),
        (0xfee2_c030, 0xfee2_c030, 0),
    ] {
        assert_eq!(halves(address), (low, high), "{address:#x}");
    }
}
