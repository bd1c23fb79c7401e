use super::*;

const MIB: u64 = 1 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// A guest with a policy of 8 seconds, so a look every other second, and 64 MiB, of which a client
/// wants 4 MiB in the balloon.
struct Bench {
    policy: Reclaim,
    size: BalloonSize,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        let now = Instant::now();
        let config = BalloonConfig {
            size: 4 * MIB,
            reclaim_idle: Some(8),
            ..BalloonConfig::default()
        };
        Self {
            policy: Reclaim::new(&config, now).unwrap(),
            size: BalloonSize {
                actual_bytes: 4 * MIB,
                target_bytes: 4 * MIB,
                driver: true,
            },
            now,
        }
    }

    /// After two seconds the guest is asked, and says that it has so many MiB free and available.
    /// What the balloon is to have then, in MiB, which the guest sees to.
    fn look(&mut self, free: u64, available: u64) -> u64 {
        self.now += 2 * SECOND;
        assert_eq!(self.policy.decide(self.size, None, self.now), Some(Action::Ask));
        assert_eq!(self.policy.decide(self.size, None, self.now), None, "once");
        let said = FreeMemory {
            at: self.now,
            free: free * MIB,
            available: available * MIB,
        };
        match self.policy.decide(self.size, Some(said), self.now) {
            Some(Action::Fill(bytes)) => (self.size.actual_bytes, self.size.target_bytes) = (bytes, bytes),
            other => assert_eq!(other, None),
        }
        self.size.target_bytes / MIB
    }

    /// The guest is idle for long enough.
    fn grow(&mut self) {
        while self.look(200, 300) == 4 {}
        assert_eq!(self.size.target_bytes, 140 * MIB);
    }
}

#[test]
fn what_has_been_too_much_for_long_enough_goes_and_the_rest_stays() {
    let mut bench = Bench::new();
    assert_eq!([0; 4].map(|_| bench.look(200, 300)), [4; 4], "for less than 8 seconds");
    assert_eq!(bench.look(200, 300), 4 + 136);
    assert_eq!([0; 5].map(|_| bench.look(64, 164)), [140; 5]);
}

#[test]
fn a_guest_that_works_now_and_then_is_not_idle() {
    let mut bench = Bench::new();
    for _ in 0..5 {
        assert_eq!([200, 200, 200, 10].map(|free| bench.look(free, 300)), [4; 4]);
    }
}

#[test]
fn a_guest_without_much_left_has_it_back_at_the_next_look() {
    let mut bench = Bench::new();
    bench.grow();
    assert_eq!([bench.look(5, 40), bench.look(5, 32)], [140; 2], "page cache will do");
    assert_eq!(bench.look(5, 20), 140 - 44);
    assert_eq!(bench.look(0, 0), 96 - 64);
    assert_eq!([bench.look(0, 0), bench.look(0, 0)], [4, 4], "a client wants that");
}

#[test]
fn what_the_guest_takes_out_it_is_not_asked_for_again() {
    let mut bench = Bench::new();
    bench.grow();
    bench.size.actual_bytes = 100 * MIB;
    assert_eq!([bench.look(50, 50), bench.look(50, 50)], [100, 100]);
    bench.size.actual_bytes = 1 << 50;
    assert_eq!(bench.look(50, 50), 100, "its word for more is no wish for more");
}

#[test]
fn a_resize_empties_the_balloon_and_idleness_begins_anew() {
    let mut bench = Bench::new();
    bench.grow();
    assert_eq!(bench.policy.begin(None), 4 * MIB);
    (bench.size.actual_bytes, bench.size.target_bytes) = (4 * MIB, 4 * MIB);
    assert_eq!([0; 4].map(|_| bench.look(200, 300)), [4; 4]);
    assert_eq!(bench.policy.begin(Some(8 * MIB)), 8 * MIB);
    assert_eq!(bench.look(0, 0), 8);
}

#[test]
fn a_guest_that_does_not_answer_or_has_no_driver_is_left_alone() {
    let mut bench = Bench::new();
    let old = FreeMemory {
        at: bench.now,
        free: 300 * MIB,
        available: 300 * MIB,
    };
    for _ in 0..9 {
        bench.now += 2 * SECOND;
        assert_eq!(bench.policy.decide(bench.size, Some(old), bench.now), Some(Action::Ask));
        assert_eq!(bench.policy.decide(bench.size, Some(old), bench.now), None);
    }
    bench.size.driver = false;
    bench.now += 2 * SECOND;
    assert_eq!(bench.policy.decide(bench.size, None, bench.now), None);
    assert_eq!(bench.policy.due(), bench.now + 2 * SECOND);
}

#[test]
fn the_guest_is_asked_neither_all_the_time_nor_once_a_day() {
    let paces = [1, 4, 20, 60, 86400].map(|idle| pace(Duration::from_secs(idle)).as_secs());
    assert_eq!(paces, [1, 1, 5, 15, 15]);
}
