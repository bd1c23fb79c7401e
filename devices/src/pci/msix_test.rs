#![expect(unsafe_code, reason = "doing to a descriptor what another process could")]

use std::collections::BTreeMap;
use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::host::fake::{FIRST_MSI, FakeHost};
use crate::pci::Identity;

const ENABLE: u16 = 1 << 15;
const FUNCTION_MASK: u16 = 1 << 14;
const MESSAGE: MsiMessage = MsiMessage {
    address: 0xfee0_1000,
    data: 0x41,
};
const OTHER: MsiMessage = MsiMessage {
    address: 0xfee0_2000,
    data: 0x42,
};

/// A function with MSI-X and nothing else.
struct Bench {
    host: Arc<FakeHost>,
    config: ConfigSpace,
    msix: Msix,
    capability: u16,
}

fn bench(vectors: u16) -> Bench {
    let host = FakeHost::new();
    let mut config = ConfigSpace::new(&Identity::default());
    let mut msix = Msix::new(host.clone(), vectors);
    let (table, pba) = (BarPlace { bar: 2, offset: 0x1000 }, BarPlace { bar: 4, offset: 0x2000 });
    msix.add_capability(&mut config, table, pba).unwrap();
    let capability = config.u16_at(0x34);
    let mut bench = Bench {
        host,
        config,
        msix,
        capability,
    };
    bench.master(true);
    bench
}

impl Bench {
    fn master(&mut self, on: bool) {
        let _ = self.config.write(4, &[u8::from(on) << 2]);
        self.msix.config_written(&self.config);
    }

    fn control(&mut self, control: u16) {
        let _ = self.config.write(self.capability + 2, &control.to_le_bytes());
        self.msix.config_written(&self.config);
    }

    fn message(&mut self, vector: u64, message: MsiMessage) {
        self.msix.write_table(vector * 16, &message.address.to_le_bytes());
        self.msix.write_table(vector * 16 + 8, &message.data.to_le_bytes());
    }

    fn mask(&mut self, vector: u64, masked: bool) {
        self.msix
            .write_table(vector * 16 + 12, &u32::from(masked).to_le_bytes());
    }

    fn signal(&self, vector: u16) {
        self.msix.vector(vector).unwrap().signal();
    }

    fn pending(&self) -> u64 {
        let mut bits = [0; 8];
        self.msix.read_pba(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    /// MSI-X on, vector 0 set up and unmasked.
    fn live(mut self) -> Self {
        self.control(ENABLE);
        self.message(0, MESSAGE);
        self.mask(0, false);
        self
    }
}

#[test]
fn the_capability_says_how_many_vectors_there_are_and_where() {
    let bench = bench(3);
    let at = bench.capability;
    assert_eq!(bench.config.u16_at(at) & 0xff, 0x11);
    assert_eq!(bench.config.u16_at(at + 2), 2, "number of vectors less 1");
    assert_eq!(bench.config.u32_at(at + 4), 0x1002, "table: offset and BAR");
    assert_eq!(bench.config.u32_at(at + 8), 0x2004, "pending bits: offset and BAR");
}

#[test]
fn of_message_control_only_mask_and_enable_are_writable() {
    let mut bench = bench(3);
    bench.control(0xffff);
    assert_eq!(bench.config.u16_at(bench.capability + 2), ENABLE | FUNCTION_MASK | 2);
    assert_eq!(bench.config.u32_at(bench.capability + 4), 0x1002);
}

#[test]
fn vectors_are_masked_after_reset_and_reserved_bits_stay_zero() {
    let mut bench = bench(2);
    let mut entry = [0; 16];
    bench.msix.read_table(16, &mut entry);
    assert_eq!(entry, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    bench.msix.write_table(16, &[0xff; 8]);
    bench.msix.write_table(24, &[0xff; 8]);
    bench.msix.read_table(16, &mut entry);
    assert_eq!(
        entry,
        [
            0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0
        ]
    );
}

#[test]
fn the_host_is_asked_for_nothing_until_a_vector_may_send() {
    let mut bench = bench(64);
    bench.control(ENABLE | FUNCTION_MASK);
    bench.message(5, MESSAGE);
    bench.mask(5, false);
    bench.mask(6, false);
    assert_eq!((bench.host.gsis(), bench.host.route_calls()), (vec![], 0));
    bench.control(ENABLE);
    assert_eq!(
        bench.host.routes(),
        BTreeMap::from([(FIRST_MSI, MESSAGE)]),
        "vector 6 has no message yet"
    );
}

#[test]
fn a_live_vector_sends() {
    let bench = bench(1).live();
    bench.signal(0);
    bench.signal(0);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (2, 0));
}

#[test]
fn a_masked_vector_remembers_one_signal_and_sends_it_when_unmasked() {
    let mut bench = bench(2).live();
    bench.mask(0, true);
    bench.signal(0);
    bench.signal(0);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (0, 1));
    bench.mask(0, false);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (1, 0));
}

#[test]
fn function_mask_and_enable_hold_signals_back_too() {
    for held in [ENABLE | FUNCTION_MASK, FUNCTION_MASK, 0] {
        let mut bench = bench(1).live();
        bench.control(held);
        bench.signal(0);
        assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (0, 1));
        bench.control(ENABLE);
        assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (1, 0));
    }
}

#[test]
fn a_pending_signal_is_sent_with_the_message_of_the_unmask() {
    let mut bench = bench(1).live();
    bench.mask(0, true);
    bench.signal(0);
    bench.message(0, OTHER);
    assert_eq!(bench.host.routes()[&FIRST_MSI], MESSAGE, "unchanged while masked");
    bench.mask(0, false);
    assert_eq!(bench.host.take_sent(OTHER), 1);
}

#[test]
fn masking_and_unmasking_changes_no_route() {
    let mut bench = bench(1).live();
    let calls = bench.host.route_calls();
    for masked in [true, false, true, false] {
        bench.mask(0, masked);
    }
    bench.control(FUNCTION_MASK);
    bench.control(ENABLE);
    assert_eq!(bench.host.route_calls(), calls);
}

#[test]
fn a_vector_that_the_host_refuses_waits_and_is_tried_again() {
    let mut bench = bench(1);
    bench.host.refuse(true);
    bench = bench.live();
    bench.signal(0);
    assert_eq!((bench.pending(), bench.msix.refused()), (1, 1));
    bench.host.refuse(false);
    bench.mask(0, false);
    assert_eq!(
        (bench.host.take_sent(MESSAGE), bench.pending(), bench.msix.refused()),
        (1, 0, 1)
    );
}

#[test]
fn a_route_that_failed_is_set_again_even_to_what_it_was() {
    let mut bench = bench(1).live();
    bench.mask(0, true);
    bench.message(0, OTHER);
    bench.host.refuse(true);
    bench.mask(0, false);
    bench.host.refuse(false);
    let calls = bench.host.route_calls();
    bench.mask(0, true);
    bench.message(0, MESSAGE);
    bench.mask(0, false);
    assert_eq!(
        (bench.host.route_calls(), bench.host.routes()[&FIRST_MSI]),
        (calls + 1, MESSAGE)
    );
}

#[test]
fn gsis_are_given_back() {
    let bench = bench(1).live();
    let (host, vector) = (bench.host.clone(), bench.msix.vector(0).unwrap());
    drop(bench);
    assert_eq!((host.gsis(), host.routes().len()), (vec![], 0));
    vector.signal();
    assert!(vector.is_pending(), "a device that lives on signals into the void");
}

#[test]
fn vector_numbers_are_checked_and_counts_brought_into_range() {
    assert!(bench(2).msix.vector(2).is_none());
    assert!(bench(2).msix.vector(0xffff).is_none());
    assert_eq!(bench(0).msix.table_len(), 16);
    let most = bench(0xffff).msix;
    assert_eq!((most.table_len(), most.pba_len()), (2048 * 16, 2048 / 8));
    assert_eq!(bench(65).msix.pba_len(), 16);
}

#[test]
fn pending_bits_are_read_at_any_width_and_never_written() {
    let bench = bench(70);
    [0, 9, 64, 69].iter().for_each(|vector| bench.signal(*vector));
    let mut bytes = [0; 17];
    bench.msix.read_pba(0, &mut bytes);
    assert_eq!(bytes, [1, 2, 0, 0, 0, 0, 0, 0, 0x21, 0, 0, 0, 0, 0, 0, 0, 0xff]);
    let mut cut = [0; 2];
    bench.msix.read_pba(8, &mut cut);
    assert_eq!(cut, [0x21, 0]);
    bench.msix.read_pba(u64::MAX, &mut cut);
    assert_eq!(cut, [0xff; 2]);
}

/// Round by round, one thread signals while another unmasks: whoever comes second sends.
#[test]
fn no_signal_is_lost_between_mask_and_unmask() {
    const ROUNDS: u64 = 2000;
    let mut bench = bench(1).live();
    let vector = bench.msix.vector(0).unwrap();
    let step = Arc::new(Barrier::new(2));
    let steps = step.clone();
    let signaller = thread::spawn(move || {
        for _ in 0..ROUNDS {
            steps.wait();
            vector.signal();
            steps.wait();
        }
    });
    for round in 0..ROUNDS {
        bench.mask(0, true);
        step.wait();
        bench.mask(0, false);
        step.wait();
        assert_eq!(
            (bench.host.take_sent(MESSAGE), bench.pending()),
            (1, 0),
            "round {round}"
        );
    }
    signaller.join().unwrap();
}

#[test]
fn a_shared_vector_is_masked_in_the_kernel() {
    let mut bench = bench(1).live();
    let shared = bench.msix.vector(0).unwrap().share().unwrap();
    shared.raise();
    assert_eq!(bench.host.take_sent(MESSAGE), 1);
    bench.mask(0, true);
    assert_eq!(
        bench.host.routes(),
        BTreeMap::from([(FIRST_MSI, MESSAGE)]),
        "nothing that is written to it now is sent"
    );
    assert_eq!(bench.pending(), 0);
    shared.raise();
    shared.raise();
    bench.mask(0, false);
    // The kernel looks at the eventfd when it is connected again.
    let both = [FIRST_MSI, FIRST_MSI + 1].map(|gsi| (gsi, MESSAGE));
    assert_eq!(bench.host.routes(), BTreeMap::from(both));
    assert_eq!(bench.host.take_sent(MESSAGE), 2);
}

/// The other process has the same open file description: it can make it blocking, and fill or empty the counter.
#[test]
fn an_eventfd_that_another_process_has_spoiled_holds_nobody_up() {
    let mut bench = bench(1).live();
    let vector = bench.msix.vector(0).unwrap();
    let shared = vector.share().unwrap();
    let spoil = |counter: u64| {
        // What is in it was not taken by anybody here.
        shared.raise();
        shared.event().read().unwrap();
        // SAFETY: takes no memory.
        let cleared = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(shared.event()), libc::F_SETFL, 0) };
        assert_eq!(cleared, 0);
        if counter > 0 {
            shared.event().write(counter).unwrap();
        }
    };
    for (counter, pending) in [(0, 0), (u64::MAX - 1, 1)] {
        spoil(counter);
        bench.mask(0, true);
        assert_eq!(bench.pending(), pending);
        vector.signal();
        assert_eq!(bench.pending(), 1, "what this process signals has a bit of its own");
        bench.mask(0, false);
        vector.signal();
        assert_eq!(bench.host.take_raised(FIRST_MSI), 2, "and goes its own way");
    }
    assert!(vector.share().is_some(), "again the same");
    assert_eq!(bench.host.gsis(), [FIRST_MSI, FIRST_MSI + 1]);
    drop(bench.msix);
    assert_eq!(bench.host.gsis(), [] as [u32; 0], "both are given back");
}

#[test]
fn the_pending_bit_of_a_shared_vector_is_what_was_written_while_it_was_masked() {
    let mut bench = bench(1).live();
    let shared = bench.msix.vector(0).unwrap().share().unwrap();
    for mask in [true, false] {
        if mask {
            bench.mask(0, true);
        } else {
            bench.control(ENABLE | FUNCTION_MASK);
        }
        shared.raise();
        assert_eq!((bench.pending(), bench.pending()), (1, 1));
        bench.mask(0, false);
        bench.control(ENABLE);
        assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (1, 0));
    }
}

#[test]
fn a_shared_vector_moves_with_its_message() {
    let mut bench = bench(1).live();
    let shared = bench.msix.vector(0).unwrap().share().unwrap();
    bench.mask(0, true);
    bench.message(0, OTHER);
    shared.raise();
    bench.mask(0, false);
    assert_eq!(bench.host.take_sent(OTHER), 1);
    // What this process signals itself goes the same way.
    bench.signal(0);
    assert_eq!(bench.host.take_sent(OTHER), 1);
}

#[test]
fn a_vector_that_may_not_send_is_not_shared() {
    let mut bench = bench(2);
    assert!(bench.msix.vector(0).unwrap().share().is_none(), "no message yet");
    bench = bench.live();
    bench.mask(0, true);
    let calls = bench.host.route_calls();
    assert!(bench.msix.vector(0).unwrap().share().is_none(), "masked");
    bench.mask(0, false);
    bench.mask(0, true);
    assert_eq!(bench.host.route_calls(), calls, "and masks cost no route");
}

#[test]
fn a_host_that_does_not_disconnect_a_shared_vector_is_counted() {
    let mut bench = bench(1).live();
    bench.msix.vector(0).unwrap().share().unwrap();
    bench.host.refuse(true);
    bench.mask(0, true);
    assert_eq!(bench.msix.refused(), 1);
    bench.host.refuse(false);
    bench.mask(0, false);
    bench.signal(0);
    assert_eq!(bench.host.take_sent(MESSAGE), 1);
}

proptest! {
    #[test]
    fn any_access_to_table_and_pending_bits_is_harmless(
        accesses in prop::collection::vec((prop_oneof![0_u64..80, any::<u64>()], prop::collection::vec(any::<u8>(), 0..9)), 1..60),
    ) {
        let mut bench = bench(4);
        bench.control(ENABLE);
        for (offset, mut data) in accesses {
            bench.msix.write_table(offset, &data);
            bench.msix.read_table(offset, &mut data);
            prop_assert!(offset < 64 || data.iter().all(|byte| *byte == 0xff));
            bench.msix.read_pba(offset, &mut data);
            prop_assert!(offset < 8 || data.iter().all(|byte| *byte == 0xff));
        }
    }
}

#[path = "msix_model_test.rs"]
mod model;

#[test]
fn without_bus_mastering_a_signal_waits() {
    let mut bench = bench(2).live();
    bench.master(false);
    bench.signal(0);
    bench.signal(0);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (0, 1));
    // Neither the mask nor MSI-X decides now.
    bench.mask(0, true);
    bench.mask(0, false);
    bench.control(0);
    bench.control(ENABLE);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (0, 1));
    let routes = bench.host.route_calls();
    bench.master(true);
    assert_eq!((bench.host.take_sent(MESSAGE), bench.pending()), (1, 0));
    assert_eq!(bench.host.route_calls(), routes, "its route had stayed");
}

#[test]
fn what_others_write_to_a_shared_vector_waits_for_bus_mastering() {
    let mut bench = bench(1).live();
    let irq = bench.msix.vector(0).unwrap().share().unwrap();
    bench.master(false);
    let own = BTreeMap::from([(FIRST_MSI, MESSAGE)]);
    assert_eq!(bench.host.routes(), own, "theirs is disconnected");
    irq.raise();
    assert_eq!(bench.pending(), 1);
    bench.master(true);
    assert_eq!(bench.host.take_sent(MESSAGE), 1);
}
