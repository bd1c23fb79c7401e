use std::sync::Arc;

use husk_devices::memory::GuestRegionMmap;
use vm_memory::{FileOffset, GuestAddress, GuestAddressSpace};

use super::super::channel::REPLY_TIMEOUT;
use super::super::testing::{BackendAction, FEATURES, Heard, IMPATIENT, PROTOCOL, regions_of, serve, shared_memory};
use super::*;
use crate::testing::memory;

fn negotiated(action: Option<(Request, BackendAction)>) -> (Result<Frontend, BackendError>, Arc<Heard>) {
    let (here, there) = UnixStream::pair().unwrap();
    let is_slow = action.as_ref().is_some_and(|(_, action)| action.is_slow());
    let limit = if is_slow { IMPATIENT } else { REPLY_TIMEOUT };
    let heard = serve(there, action);
    (Frontend::negotiate(here.into(), Deadline::after(limit), 3), heard)
}

fn frontend() -> (Frontend, Arc<Heard>) {
    let (frontend, heard) = negotiated(None);
    heard.take();
    (frontend.unwrap(), heard)
}

fn state(ring: u64) -> QueueState {
    QueueState {
        max_size: 64,
        size: 32,
        ready: true,
        next_avail: 9,
        desc_table: ring,
        avail_ring: ring + 0x1000,
        used_ring: ring + 0x2000,
        ..QueueState::default()
    }
}

fn vring(state: &QueueState) -> Vring<'_> {
    Vring {
        index: 2,
        state,
        kick: 0,
        call: 0,
    }
}

fn number(payload: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(payload[at..at + 8].try_into().unwrap())
}

#[test]
fn a_back_end_is_taken_as_it_should_be() {
    let (frontend, heard) = negotiated(None);
    assert!(frontend.unwrap().slots);
    use Request::*;
    let asked = [
        SetOwner,
        GetFeatures,
        GetProtocolFeatures,
        SetProtocolFeatures,
        GetQueueNum,
        GetMaxMemSlots,
    ];
    assert_eq!(heard.requests(), asked.map(|request| request as u32));
    assert_eq!(number(&heard.take()[3].payload, 0), PROTOCOL, "no channel of its own");
}

#[test]
fn what_a_back_end_lacks_is_named() {
    let refused = |request, number| {
        negotiated(Some((request, BackendAction::Number(number))))
            .0
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        refused(Request::GetFeatures, FEATURES & !(1 << 30)),
        "it lacks virtio features 0x40000000"
    );
    assert_eq!(
        refused(Request::GetProtocolFeatures, PROTOCOL & !8),
        "it lacks vhost-user protocol features 0x8 (MQ is 0x1, REPLY_ACK is 0x8)"
    );
    assert_eq!(
        refused(Request::GetQueueNum, 2),
        "it serves 2 virtqueues, the device has 3"
    );
}

#[test]
fn every_step_of_the_negotiation_may_go_wrong() {
    use Request::*;
    for request in [GetFeatures, GetProtocolFeatures, GetQueueNum, GetMaxMemSlots] {
        for action in [
            BackendAction::Close,
            BackendAction::KeepSilent,
            BackendAction::Drip,
            BackendAction::Say(vec![0xa5; 1000]),
        ] {
            assert!(negotiated(Some((request, action))).0.is_err());
        }
    }
}

#[test]
fn memory_is_told_once_and_then_by_its_changes() {
    let (mut frontend, heard) = frontend();
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(64 << 20).unwrap();
    let before = regions_of(&file, &[8 << 20]);
    assert!(frontend.set_memory(&before).unwrap());
    assert!(!frontend.set_memory(&before).unwrap());
    let told = heard.take();
    assert_eq!(told.len(), 2);
    for (message, gpa) in told.iter().zip([0, 8 << 20]) {
        assert_eq!((message.request, message.fds), (Request::AddMemReg as u32, 1));
        assert_eq!((number(&message.payload, 0), number(&message.payload, 8)), (0, gpa));
        assert_eq!(number(&message.payload, 32), gpa, "offset in the file");
    }
    // One region goes, one comes; the first is mapped anew, which is another region.
    let after = regions_of(&file, &[16 << 20]);
    assert!(frontend.set_memory(&after).unwrap());
    let (add, remove) = (Request::AddMemReg as u32, Request::RemMemReg as u32);
    assert_eq!(heard.requests(), [remove, remove, add, add]);
    assert_eq!(heard.take()[0].fds, 0);
}

#[test]
fn without_memory_slots_the_whole_table_is_told() {
    let (here, there) = UnixStream::pair().unwrap();
    let few = Some((Request::GetProtocolFeatures, BackendAction::Number(PROTOCOL & 9)));
    let heard = serve(there, few);
    let mut frontend = Frontend::negotiate(here.into(), Deadline::after(REPLY_TIMEOUT), 3).unwrap();
    heard.take();
    frontend.set_memory(&shared_memory(&[8 << 20]).memory()).unwrap();
    let told = heard.take();
    assert_eq!((told[0].request, told[0].fds), (Request::SetMemTable as u32, 2));
    assert_eq!((told[0].payload.len(), number(&told[0].payload, 0)), (8 + 2 * 32, 2));
    let many: Vec<u64> = (1..=8).map(|n| n << 22).collect();
    let error = frontend.set_memory(&shared_memory(&many).memory()).unwrap_err();
    assert_eq!(error.to_string(), "it takes 8 memory regions, guest RAM has 9");
}

/// Memory tables in one file.
struct Tables(Arc<std::fs::File>);

impl Tables {
    fn new() -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        Self(Arc::new(file))
    }

    /// `base` with a region of 1 MiB more at `gpa`.
    fn grown(&self, base: &GuestMemoryMmap, gpa: u64) -> GuestMemoryMmap {
        let at = Some(FileOffset::from_arc(self.0.clone(), gpa));
        let region = GuestRegionMmap::from_range(GuestAddress(gpa), 1 << 20, at).unwrap();
        base.insert_region(Arc::new(region)).unwrap()
    }
}

#[test]
fn memory_that_is_refused_costs_the_back_end_nothing_that_it_had() {
    let (frontend, heard) = negotiated(Some((Request::AddMemReg, BackendAction::RefuseLater(7))));
    let mut frontend = frontend.unwrap();
    let tables = Tables::new();
    let before = regions_of(&tables.0, &[]);
    frontend.set_memory(&before).unwrap();
    heard.take();
    let after = tables.grown(&before, 8 << 20);
    let error = frontend.set_memory(&after).unwrap_err();
    assert_eq!(error.to_string(), "it refused AddMemReg with code 7");
    assert!(!frontend.is_lost());
    frontend.set_memory(&before).unwrap();
    assert_eq!(heard.requests(), [Request::AddMemReg as u32], "it has what it had");
}

#[test]
fn of_several_new_regions_all_are_taken_or_none() {
    let (frontend, heard) = negotiated(Some((Request::AddMemReg, BackendAction::RefuseLater(1))));
    let mut frontend = frontend.unwrap();
    let tables = Tables::new();
    // The first is taken, the second is not.
    let error = frontend.set_memory(&regions_of(&tables.0, &[8 << 20])).unwrap_err();
    assert!(matches!(error, BackendError::Refused { .. }), "{error}");
    let told = heard.take();
    let last = told.last().unwrap();
    assert_eq!(last.request, Request::RemMemReg as u32);
    assert_eq!(number(&last.payload, 8), 0, "the one that was taken");
    assert_eq!(frontend.regions, []);
}

#[test]
fn a_region_that_is_not_given_back_is_asked_for_again_and_hampers_no_other() {
    let (frontend, heard) = negotiated(Some((Request::RemMemReg, BackendAction::Refuse(1))));
    let mut frontend = frontend.unwrap();
    let tables = Tables::new();
    let base = regions_of(&tables.0, &[]);
    frontend.set_memory(&tables.grown(&base, 8 << 20)).unwrap();
    heard.take();
    assert!(frontend.set_memory(&base).is_err(), "it keeps what is gone");
    assert!(frontend.set_memory(&tables.grown(&base, 16 << 20)).unwrap());
    let (add, remove) = (Request::AddMemReg as u32, Request::RemMemReg as u32);
    assert_eq!(heard.requests(), [remove, remove, add]);
    assert!(!frontend.is_lost());
}

#[test]
fn a_table_that_is_refused_is_followed_by_the_one_before() {
    let (here, there) = UnixStream::pair().unwrap();
    let heard = serve(there, Some((Request::SetMemTable, BackendAction::RefuseLater(1))));
    let mut frontend = Frontend::negotiate(here.into(), Deadline::after(REPLY_TIMEOUT), 3).unwrap();
    frontend.slots = false;
    let tables = Tables::new();
    let base = regions_of(&tables.0, &[]);
    frontend.set_memory(&base).unwrap();
    heard.take();
    assert!(frontend.set_memory(&tables.grown(&base, 8 << 20)).is_err());
    let told = heard.take();
    assert_eq!(told.iter().map(|message| message.fds).collect::<Vec<_>>(), [2, 1]);
    // This one refuses the old one, too: what it has now is unknown.
    assert!(frontend.is_lost());
}

#[test]
fn memory_that_is_gone_is_told_to_a_back_end_that_does_not_answer() {
    let (frontend, heard) = negotiated(Some((Request::RemMemReg, BackendAction::KeepSilent)));
    let mut frontend = frontend.unwrap();
    let tables = Tables::new();
    let base = regions_of(&tables.0, &[]);
    frontend.set_memory(&tables.grown(&base, 8 << 20)).unwrap();
    heard.take();
    assert!(frontend.give_up_memory(&base).unwrap());
    assert!(!frontend.give_up_memory(&base).unwrap(), "once");
    assert!(
        !frontend.give_up_memory(&tables.grown(&base, 16 << 20)).unwrap(),
        "and nothing that is new"
    );
    // It follows in order: what is asked next is answered after that.
    assert!(frontend.set_memory(&tables.grown(&base, 8 << 20)).unwrap());
    let (add, remove) = (Request::AddMemReg as u32, Request::RemMemReg as u32);
    assert_eq!(heard.requests(), [remove, add]);
}

#[test]
fn without_memory_slots_the_table_of_what_stays_is_told() {
    let (mut frontend, heard) = frontend();
    frontend.slots = false;
    let tables = Tables::new();
    let base = regions_of(&tables.0, &[]);
    frontend.set_memory(&tables.grown(&base, 8 << 20)).unwrap();
    heard.take();
    assert!(frontend.give_up_memory(&base).unwrap());
    // An answer to what wants none would be taken for one to this.
    assert!(frontend.set_memory(&tables.grown(&base, 16 << 20)).unwrap());
    let told: Vec<(u32, u64, usize)> = heard
        .take()
        .iter()
        .map(|message| (message.request, number(&message.payload, 0), message.fds))
        .collect();
    let table = Request::SetMemTable as u32;
    assert_eq!(told, [(table, 1, 1), (table, 2, 2)]);
}

#[test]
fn private_memory_is_refused_before_anything_is_said() {
    let (mut frontend, heard) = frontend();
    let error = frontend.set_memory(&memory().memory()).unwrap_err();
    assert!(matches!(error, BackendError::PrivateMemory));
    assert_eq!(heard.take(), []);
}

#[test]
fn a_ring_is_handed_over_with_its_position_and_taken_back_with_another() {
    let (mut frontend, heard) = frontend();
    let memory = shared_memory(&[]).memory();
    frontend.set_memory(&memory).unwrap();
    heard.take();
    frontend.start_ring(&vring(&state(0x4000))).unwrap();
    let told = heard.take();
    use Request::*;
    let steps = [
        SetVringNum,
        SetVringAddr,
        SetVringBase,
        SetVringCall,
        SetVringKick,
        SetVringEnable,
    ];
    let requests: Vec<u32> = told.iter().map(|message| message.request).collect();
    assert_eq!(requests, steps.map(|step| step as u32));
    let (_, base) = regions(&memory)
        .map(|regions| (0, translate(&regions, 0).unwrap()))
        .unwrap();
    let addresses = [8, 16, 24].map(|at| number(&told[1].payload, at) - base);
    assert_eq!(addresses, [0x4000, 0x6000, 0x5000], "descriptors, used, available");
    let of_queue = |value: u64| 2 | value << 32;
    let states = [0, 2, 5].map(|n| number(&told[n].payload, 0));
    assert_eq!(states, [of_queue(32), of_queue(9), of_queue(1)]);
    assert_eq!((told[3].fds, told[4].fds), (1, 1));
    heard.take_requests(2, 16);
    assert_eq!(stop(&mut frontend, 2).unwrap(), 16);
}

/// Takes a ring back, however long that takes.
fn stop(frontend: &mut Frontend, index: u16) -> Result<u16, BackendError> {
    frontend.stop_ring(index)?;
    frontend.stopped_ring(index)
}

#[test]
fn a_ring_outside_shared_memory_is_not_handed_over() {
    let (mut frontend, heard) = frontend();
    frontend.set_memory(&shared_memory(&[]).memory()).unwrap();
    heard.take();
    for ring in [2 << 20, u64::MAX - 0x3000] {
        let error = frontend.start_ring(&vring(&state(ring))).unwrap_err();
        assert!(matches!(error, BackendError::RingMemory { queue: 2, gpa } if gpa == ring));
    }
    assert_eq!(heard.take(), []);
}

#[test]
fn an_impossible_position_is_an_error() {
    let answer = BackendAction::Number(2 | 65536 << 32);
    let (frontend, _heard) = negotiated(Some((Request::GetVringBase, answer)));
    let error = stop(&mut frontend.unwrap(), 2).unwrap_err();
    assert_eq!(
        error.to_string(),
        "queue 2: it says that it stopped at position 65536, positions are below 65536"
    );
}
