use std::sync::{Arc, Mutex};
use std::time::Instant;

use husk_devices::Irq;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::*;
use crate::bank::{Bank, Extent};
use crate::ged::{Ged, GedAml, GedNotifier};
use crate::guest_test::{Guest, Value};
use crate::outcome::{Outcome, OutcomeReceiver};
use crate::slot::{Event, State};

const BANK: u64 = 0xfec0_1000;
const GED: u64 = 0xfec0_0000;

/// A PCI root for the fragment that needs one.
struct Root;

impl Aml for Root {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        aml::Device::new("\\_SB_.PCI0".into(), vec![]).to_aml_bytes(sink);
    }
}

fn aml_bytes(aml: &dyn Aml) -> usize {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes.len()
}

/// One bank, its GED, and the guest that has loaded the AML of both.
struct Machine {
    bank: Arc<Mutex<Bank>>,
    notifier: GedNotifier,
    event: GedEvent,
    guest: Guest,
}

fn machine(kind: SlotKind, slots: u32, pinned: u32) -> Machine {
    let notifier = GedNotifier::new(Irq::new(EventFd::new(EFD_NONBLOCK).unwrap()));
    let mut bank = Bank::new(kind, slots, notifier.clone(), || ()).unwrap();
    (0..pinned).for_each(|slot| bank.pin(slot).unwrap());
    let window_bytes = bank.window_bytes();
    let bank = Arc::new(Mutex::new(bank));
    let aml = BankAml {
        kind,
        address: BANK,
        slots,
        pinned,
    };
    let mut guest = Guest::default();
    guest.attach(BANK, window_bytes, Arc::clone(&bank) as _);
    guest.attach(GED, Ged::WINDOW_BYTES, Arc::new(Mutex::new(Ged::new(notifier.clone()))));
    guest.load(&Root);
    guest.load(&aml);
    guest.load(&GedAml {
        address: GED,
        gsi: 9,
        scans: vec![(aml.event(), aml.scan())],
    });
    Machine {
        bank,
        notifier,
        event: aml.event(),
        guest,
    }
}

impl Machine {
    fn apply(&mut self, slot: u32, event: Event) -> OutcomeReceiver {
        let (sender, receiver) = OutcomeReceiver::new();
        self.bank.lock().unwrap().apply(slot, event, Some(sender)).unwrap();
        self.notifier.notify(self.event);
        receiver
    }

    /// The interrupt: what the guest is notified of in consequence.
    fn interrupt(&mut self) -> Vec<(String, u64)> {
        self.guest.evaluate("\\_SB_.GED_._EVT", &[9]);
        std::mem::take(&mut self.guest.notified)
    }

    fn sta(&mut self, device: &str) -> u64 {
        self.guest.evaluate(&format!("{device}._STA"), &[]).int()
    }
}

#[test]
fn a_processor_comes_and_goes() {
    let mut machine = machine(SlotKind::Cpu, 4, 1);
    let add = machine.apply(2, Event::Offer);
    assert_eq!(machine.sta("\\_SB_.HCPU.C002"), 0);
    assert_eq!(machine.interrupt(), [("\\_SB_.HCPU.C002".to_owned(), 1)]);
    assert_eq!(machine.sta("\\_SB_.HCPU.C002"), 0xf);
    machine.guest.evaluate("\\_SB_.HCPU.C002._OST", &[1, 0, 0]);
    assert_eq!(add.wait(Instant::now()), Outcome::Accepted);

    let remove = machine.apply(2, Event::Ask);
    assert_eq!(machine.interrupt(), [("\\_SB_.HCPU.C002".to_owned(), 3)]);
    machine.guest.evaluate("\\_SB_.HCPU.C002._EJ0", &[1]);
    assert_eq!(machine.sta("\\_SB_.HCPU.C002"), 0);
    assert_eq!(remove.wait(Instant::now()), Outcome::Accepted);
    assert_eq!(machine.bank.lock().unwrap().ignored(), 0);
}

#[test]
fn a_refusal_reaches_its_own_slot() {
    let mut machine = machine(SlotKind::Memory, 8, 0);
    let receivers = [1, 7].map(|slot| machine.apply(slot, Event::Offer));
    machine.interrupt();
    machine.guest.evaluate("\\_SB_.HMEM.M007._OST", &[1, 0x81, 0]);
    assert_eq!(receivers[0].wait(Instant::now()), Outcome::TimedOut);
    assert_eq!(receivers[1].wait(Instant::now()), Outcome::Refused { ost: 0x81 });
}

#[test]
fn every_slot_of_every_kind_is_notified_itself() {
    for (kind, slots, pinned, name) in [
        (SlotKind::Cpu, 300, 1, "\\_SB_.HCPU.C"),
        (SlotKind::Cpu, 2, 1, "\\_SB_.HCPU.C"),
        (SlotKind::Memory, 64, 0, "\\_SB_.HMEM.M"),
        (SlotKind::Memory, 1, 0, "\\_SB_.HMEM.M"),
        (SlotKind::Pci, 32, 1, "\\_SB_.PCI0.S"),
        (SlotKind::Pci, 32, 5, "\\_SB_.PCI0.S"),
    ] {
        let mut machine = machine(kind, slots, pinned);
        let receivers: Vec<_> = (pinned..slots).map(|slot| machine.apply(slot, Event::Offer)).collect();
        let expected: Vec<_> = (pinned..slots).map(|slot| (format!("{name}{slot:03X}"), 1)).collect();
        assert_eq!(machine.interrupt(), expected);
        assert_eq!(receivers.len(), expected.len());
    }
}

#[test]
fn a_scan_costs_one_access_per_event_and_one() {
    let mut machine = machine(SlotKind::Cpu, 256, 1);
    machine.interrupt();
    machine.guest.accesses = 0;
    drop([100, 200].map(|slot| machine.apply(slot, Event::Offer)));
    machine.interrupt();
    assert_eq!(
        machine.guest.accesses,
        1 + 2 + 1,
        "the GED's status, two events, and the end"
    );
}

#[test]
fn an_event_of_another_bank_does_not_scan_this_one() {
    let mut machine = machine(SlotKind::Cpu, 2, 1);
    machine.apply(1, Event::Offer);
    machine.interrupt();
    machine.guest.accesses = 0;
    machine.notifier.notify(GedEvent::Memory);
    assert_eq!((machine.interrupt(), machine.guest.accesses), (vec![], 1));
}

#[test]
fn the_power_button_is_notified() {
    let mut machine = machine(SlotKind::Cpu, 2, 1);
    machine.notifier.notify(GedEvent::PowerButton);
    assert_eq!(machine.interrupt(), [("\\_SB_.PWRB".to_owned(), 0x80)]);
    assert_eq!(machine.interrupt(), []);
}

#[test]
fn a_pinned_processor_is_there_and_cannot_be_ejected() {
    let machine = machine(SlotKind::Cpu, 3, 2);
    for (slot, movable) in [(0, false), (1, false), (2, true)] {
        assert!(machine.guest.exists(&format!("\\_SB_.HCPU.C{slot:03X}._MAT")));
        for method in ["_STA", "_EJ0", "_OST"] {
            assert_eq!(
                machine.guest.exists(&format!("\\_SB_.HCPU.C{slot:03X}.{method}")),
                movable
            );
        }
    }
}

#[test]
fn a_processor_names_its_apic() {
    let mut small = machine(SlotKind::Cpu, 3, 1).guest;
    let mut large = machine(SlotKind::Cpu, 300, 1).guest;
    let local = |slot| Value::Bytes(vec![0, 8, slot, slot, 1, 0, 0, 0]);
    let x2apic = |low, high| Value::Bytes(vec![9, 16, 0, 0, low, high, 0, 0, 1, 0, 0, 0, low, high, 0, 0]);
    assert_eq!(small.evaluate("\\_SB_.HCPU.C002._MAT", &[]), local(2));
    assert_eq!(small.evaluate("\\_SB_.HCPU.C002._UID", &[]), Value::Int(2));
    for _ in 0..2 {
        assert_eq!(large.evaluate("\\_SB_.HCPU.C000._MAT", &[]), local(0));
        assert_eq!(large.evaluate("\\_SB_.HCPU.C0FE._MAT", &[]), local(0xfe));
        assert_eq!(
            large.evaluate("\\_SB_.HCPU.C0FF._MAT", &[]),
            x2apic(0xff, 0),
            "0xff is everybody"
        );
        assert_eq!(large.evaluate("\\_SB_.HCPU.C12B._MAT", &[]), x2apic(0x2b, 1));
    }
}

#[test]
fn only_a_bank_with_processors_that_need_it_has_the_longer_structure() {
    // Processor Local x2APIC (ACPI 6.5 §5.2.12.12): type 9, 16 bytes, enabled. APIC ID 0xfe is the
    // last that does without.
    const X2APIC: [u8; 16] = [9, 16, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
    for (slots, has_it) in [(1, false), (255, false), (256, true)] {
        let mut bytes = Vec::new();
        BankAml {
            kind: SlotKind::Cpu,
            address: BANK,
            slots,
            pinned: 1,
        }
        .to_aml_bytes(&mut bytes);
        assert_eq!(
            bytes.windows(16).any(|window| window == X2APIC),
            has_it,
            "{slots} slots"
        );
    }
}

#[test]
fn a_status_costs_one_access_and_no_method() {
    let mut machine = machine(SlotKind::Cpu, 256, 1);
    machine.bank.lock().unwrap().apply(77, Event::Boot, None).unwrap();
    let shown: Vec<u64> = (1..256)
        .map(|slot| machine.sta(&format!("\\_SB_.HCPU.C{slot:03X}")))
        .collect();
    assert_eq!((shown[76], shown.iter().sum::<u64>()), (0xf, 0xf));
    assert_eq!(machine.guest.accesses, 255);
}

#[test]
fn sun_reaches_the_bank() {
    let mut machine = machine(SlotKind::Cpu, 3, 1);
    machine.bank.lock().unwrap().apply(0, Event::Boot, None).unwrap();
    assert_eq!(machine.guest.evaluate("\\_SB_.HCPU.C000._SUN", &[]), Value::Int(0));
    let receivers = [1, 2].map(|slot| machine.apply(slot, Event::Offer));
    machine.interrupt();
    machine.guest.evaluate("\\_SB_.HCPU.C002._SUN", &[]);
    for slot in [1, 2] {
        machine
            .guest
            .evaluate(&format!("\\_SB_.HCPU.C00{slot}._OST"), &[1, 0, 0]);
    }
    assert_eq!(receivers[0].wait(Instant::now()), Outcome::Unproven);
    assert_eq!(receivers[1].wait(Instant::now()), Outcome::Accepted);
    assert_eq!(machine.sta("\\_SB_.HCPU.C001"), 0, "withdrawn at once");
}

#[test]
fn memory_is_asked_about_twice() {
    let mut machine = machine(SlotKind::Memory, 4, 0);
    let receiver = machine.apply(3, Event::Offer);
    let device = "\\_SB_.HMEM.M003";
    assert_eq!(machine.interrupt(), [(device.to_owned(), 1)]);
    machine.guest.evaluate(&format!("{device}._CRS"), &[]);
    machine.guest.evaluate(&format!("{device}._OST"), &[1, 0, 0]);
    assert_eq!(receiver.wait(Instant::now()), Outcome::TimedOut);
    assert_eq!(machine.interrupt(), [(device.to_owned(), 1)]);
    machine.guest.evaluate(&format!("{device}._OST"), &[1, 1, 0]);
    assert_eq!(receiver.wait(Instant::now()), Outcome::Accepted);
}

#[test]
fn a_report_of_any_size_reaches_one_slot_only() {
    let mut machine = machine(SlotKind::Pci, 32, 1);
    for args in [[u64::MAX; 3], [0x1_0001, 1 << 40, 0], [3, u64::MAX, 0]] {
        machine.guest.evaluate("\\_SB_.PCI0.S005._OST", &args);
    }
    let quiet = machine
        .bank
        .lock()
        .unwrap()
        .states()
        .all(|(_, state)| state == State::Empty);
    assert!(quiet);
}

/// What a slot costs each guest at its start.
#[test]
fn a_bank_is_small() {
    let size = |kind, slots| {
        let (address, pinned) = (BANK, 1);
        aml_bytes(&BankAml {
            kind,
            address,
            slots,
            pinned,
        })
    };
    let per_slot =
        |kind, few, many| (size(kind, many) - size(kind, few)).div_ceil(usize::try_from(many - few).unwrap());
    let costs = [
        per_slot(SlotKind::Cpu, 64, 128),
        per_slot(SlotKind::Memory, 16, 64),
        per_slot(SlotKind::Pci, 16, 32),
    ];
    assert_eq!(costs, [117, 128, 84]);
    let shared = [size(SlotKind::Cpu, 2), size(SlotKind::Pci, 2)];
    assert!(shared.iter().all(|bytes| *bytes <= 600), "{shared:?}");
}

#[test]
fn a_memory_device_tells_its_range() {
    let mut machine = machine(SlotKind::Memory, 64, 0);
    let extent = Extent {
        base: 0x1_4800_0000,
        size_bytes: 0x1_0800_0000,
    };
    machine.bank.lock().unwrap().describe(63, extent).unwrap();
    for _ in 0..2 {
        let template = machine.guest.evaluate("\\_SB_.HMEM.M03F._CRS", &[]);
        let bytes = template.bytes();
        assert_eq!(
            bytes[..6],
            [0x8a, 43, 0, 0, 0xc, 3],
            "QWordMemory, fixed, cacheable, read-write"
        );
        let qword = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        let [granularity, min, max, translation, length] = [6, 14, 22, 30, 38].map(qword);
        assert_eq!((granularity, translation), (0, 0));
        assert_eq!((min, max, length), (0x1_4800_0000, 0x2_4fff_ffff, 0x1_0800_0000));
        assert_eq!(bytes[46..], [0x79, 0]);
    }
}

#[test]
fn a_pci_slot_is_function_0_of_its_device() {
    let mut guest = machine(SlotKind::Pci, 32, 1).guest;
    assert!(!guest.exists("\\_SB_.PCI0.S000"));
    assert_eq!(guest.evaluate("\\_SB_.PCI0.S01F._ADR", &[]), Value::Int(0x1f_0000));
    assert_eq!(guest.evaluate("\\_SB_.PCI0.S01F._SUN", &[]), Value::Int(0x1f));
}

#[test]
fn the_ged_is_on_its_line() {
    let mut guest = machine(SlotKind::Cpu, 1, 1).guest;
    let interrupt = [0x89, 6, 0, 0b11, 1, 9, 0, 0, 0, 0x79, 0];
    assert_eq!(
        guest.evaluate("\\_SB_.GED_._CRS", &[]),
        Value::Bytes(interrupt.to_vec())
    );
    assert_eq!(
        guest.evaluate("\\_SB_.GED_._HID", &[]),
        Value::Bytes(b"ACPI0013\0".to_vec())
    );
}

/// Guests choose their drivers by these (ACPI 6.5 §5.6.7, table "ACPI device IDs"); names of EISA are packed (§19.3.4).
#[test]
fn devices_have_the_names_that_guests_know_them_by() {
    let eisa = |number: u64| Value::Int(number << 16 | 0xd041);
    let text = |name: &str| Value::Bytes([name.as_bytes(), b"\0"].concat());
    let mut cpus = machine(SlotKind::Cpu, 2, 1).guest;
    assert_eq!(cpus.evaluate("\\_SB_.PWRB._HID", &[]), eisa(0x0c0c));
    assert_eq!(cpus.evaluate("\\_SB_.HCPU._HID", &[]), text("ACPI0010"));
    for slot in ["C000", "C001"] {
        let name = format!("\\_SB_.HCPU.{slot}._HID");
        assert_eq!(cpus.evaluate(&name, &[]), text("ACPI0007"));
    }
    let mut memory = machine(SlotKind::Memory, 2, 0).guest;
    assert_eq!(memory.evaluate("\\_SB_.HMEM._HID", &[]), eisa(0x060a));
    assert_eq!(memory.evaluate("\\_SB_.HMEM.M001._HID", &[]), eisa(0x800c));
    assert_eq!(memory.evaluate("\\_SB_.HMEM.M001._UID", &[]), Value::Int(1));
}
