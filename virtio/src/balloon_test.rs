use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::handler::{DEFLATE, DISCARDS_PER_WAKE, INFLATE, REFRESH, REPORTING, STATS};
use super::*;
use crate::device::{HandlerError, Watch};
use crate::testing::{ABUSES, Buf, Driver, memory};

const PAGES: u64 = 0x8_0000;
const STAT: u64 = 0x9_0000;
const ALL: u64 = VIRTIO_BALLOON_F_STATS_VQ | VIRTIO_BALLOON_F_PAGE_REPORTING;

struct Unwatched;

impl Watch for Unwatched {
    fn readable(&mut self, _: RawFd, _: u32) -> io::Result<()> {
        unreachable!("nothing new to wait for")
    }

    fn forget(&mut self, _: RawFd) -> io::Result<()> {
        unreachable!("nothing is dropped")
    }
}

/// What was given back, and a host that can be told to refuse.
#[derive(Default)]
struct Host {
    log: Mutex<Vec<(u64, u64)>>,
    broken: AtomicBool,
}

impl Host {
    fn done(&self) -> Vec<(u64, u64)> {
        std::mem::take(&mut self.log.lock().unwrap())
    }
}

impl Discard for Host {
    fn discard(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        self.log.lock().unwrap().push((gpa, bytes));
        Ok(())
    }
}

/// A balloon, its driver with a queue for each feature, and what either was told.
struct Bench {
    device: Balloon,
    host: Arc<Host>,
    drivers: Vec<Driver>,
    handler: Option<Box<dyn Handler>>,
    changes: Arc<AtomicUsize>,
    interrupts: Arc<AtomicUsize>,
}

impl Bench {
    fn new() -> Self {
        let (host, changes) = (Arc::new(Host::default()), Arc::new(AtomicUsize::new(0)));
        let config = BalloonConfig {
            deflate_on_oom: true,
            free_page_reporting: true,
        };
        let seen = changes.clone();
        let device = Balloon::new(config, host.clone(), move || {
            seen.fetch_add(1, Ordering::Relaxed);
        });
        let mut bench = Self {
            device: device.unwrap(),
            host,
            drivers: Vec::new(),
            handler: None,
            changes,
            interrupts: Arc::default(),
        };
        bench.start(ALL);
        bench
    }

    fn start(&mut self, features: u64) {
        let mem = memory();
        let count = 2 + u64::from((features & ALL).count_ones());
        self.drivers = (0..count)
            .map(|number| Driver::new(&mem, 0x1000 * (1 + number), 64))
            .collect();
        let told = self.interrupts.clone();
        let activation = Activation {
            mem,
            features,
            rings: self.drivers.iter().map(|driver| Some(driver.ring())).collect(),
            config_changed: Notify::new(move || {
                told.fetch_add(1, Ordering::Relaxed);
            }),
        };
        self.handler = Some(self.device.start(activation).unwrap().remove(0));
    }

    fn reset(&mut self) {
        let rings = self.handler.take().unwrap().stop();
        assert_eq!(rings.len(), self.drivers.len());
    }

    fn wake(&mut self, token: u32) -> Result<(), HandlerError> {
        self.handler.as_mut().unwrap().wake(token, &mut Unwatched)
    }

    /// Sends page numbers through queue `token`.
    fn send(&mut self, token: u32, pages: &[u32]) {
        let bytes: Vec<u8> = pages.iter().flat_map(|page| page.to_le_bytes()).collect();
        let driver = &mut self.drivers[token as usize];
        driver.write(PAGES, &bytes);
        driver.add(&[Buf::Out(PAGES, u32::try_from(bytes.len()).unwrap())]);
        self.wake(token).unwrap();
        assert_eq!(self.drivers[token as usize].take_used().unwrap().1, 0);
    }

    fn counter(&self, name: &str) -> u64 {
        let counters = self.device.counters();
        counters.iter().find(|(known, _)| *known == name).unwrap().1
    }
}

#[test]
fn pages_in_the_balloon_are_given_back_neighbours_together() {
    let mut bench = Bench::new();
    bench.send(INFLATE, &[16, 17, 18, 40, 9, 8, 7, 7]);
    assert_eq!(
        bench.host.done(),
        [
            (16 << 12, 3 << 12),
            (40 << 12, 1 << 12),
            (7 << 12, 3 << 12),
            (7 << 12, 1 << 12)
        ]
    );
    bench.send(DEFLATE, &[16, 17]);
    assert_eq!(bench.host.done(), []);
    assert_eq!(
        (bench.counter("inflated_pages"), bench.counter("deflated_pages")),
        (8, 2)
    );
}

#[test]
fn page_numbers_of_any_size_are_taken_as_they_are() {
    let mut bench = Bench::new();
    bench.send(INFLATE, &[u32::MAX, 0]);
    assert_eq!(bench.host.done(), [(u64::from(u32::MAX) << 12, 1 << 12), (0, 1 << 12)]);
    // A number that is cut off is none.
    bench.drivers[0].add(&[Buf::Out(PAGES, 6)]);
    bench.wake(INFLATE).unwrap();
    assert_eq!(bench.counter("inflated_pages"), 3);
}

#[test]
fn a_request_of_too_many_pages_is_cut_short_and_counted() {
    let mut bench = Bench::new();
    let pages = u32::try_from(pages::PAGES_MAX).unwrap();
    bench.drivers[0].add(&[Buf::Out(0x4_0000, 4 * pages + 4)]);
    bench.wake(INFLATE).unwrap();
    assert_eq!(bench.counter("bad_requests"), 1);
    assert_eq!(
        bench.host.done().len(),
        pages::PAGES_MAX,
        "the same page again and again"
    );
}

#[test]
fn a_host_that_refuses_is_counted_and_the_guest_goes_on() {
    let mut bench = Bench::new();
    bench.host.broken.store(true, Ordering::Relaxed);
    bench.send(INFLATE, &[1, 3]);
    assert_eq!(
        (bench.counter("discard_failures"), bench.counter("inflated_pages")),
        (2, 2)
    );
}

#[test]
fn free_pages_are_given_back_as_they_are_reported() {
    let mut bench = Bench::new();
    bench.drivers[3].add(&[Buf::In(0x4_0000, 0x8000), Buf::In(0x6_0000, 0x4000)]);
    bench.wake(REPORTING).unwrap();
    assert_eq!(bench.drivers[3].take_used().unwrap().1, 0);
    assert_eq!(bench.host.done(), [(0x4_0000, 0x8000), (0x6_0000, 0x4000)]);
    assert_eq!(bench.counter("reported_bytes"), 0xc000);
}

#[test]
fn what_is_reported_free_and_not_given_back_is_in_no_sum_of_bytes() {
    let mut bench = Bench::new();
    bench.host.broken.store(true, Ordering::Relaxed);
    bench.drivers[3].add(&[Buf::In(0x4_0000, 0x8000)]);
    bench.wake(REPORTING).unwrap();
    assert_eq!(
        (bench.counter("reported_bytes"), bench.counter("discard_failures")),
        (0, 1)
    );
}

#[test]
fn queues_of_features_that_were_not_taken_are_left_out() {
    let mut bench = Bench::new();
    bench.reset();
    bench.start(VIRTIO_BALLOON_F_PAGE_REPORTING);
    bench.drivers[2].add(&[Buf::In(0x4_0000, 0x1000)]);
    bench.wake(REPORTING).unwrap();
    assert_eq!(bench.host.done(), [(0x4_0000, 0x1000)]);
    bench.reset();
    bench.start(0);
    for token in [STATS, REPORTING, REFRESH] {
        bench.wake(token).unwrap();
    }
}

#[test]
fn a_target_reaches_the_driver_and_its_word_the_host() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    bench.changes.store(0, Ordering::Relaxed);
    handle.set_target(BalloonTarget::new(3 << 20).unwrap());
    assert_eq!(bench.interrupts.load(Ordering::Relaxed), 1);
    let config = bench.device.config();
    let mut bytes = [0; 8];
    config.lock().unwrap().read(0, &mut bytes);
    assert_eq!(bytes, [0, 3, 0, 0, 0, 0, 0, 0]);
    config.lock().unwrap().write(4, &768_u32.to_le_bytes());
    assert_eq!(handle.size().actual_bytes, 3 << 20);
    assert_eq!(bench.changes.load(Ordering::Relaxed), 1);
    config.lock().unwrap().write(4, &768_u32.to_le_bytes());
    assert_eq!(bench.changes.load(Ordering::Relaxed), 1, "no news");
    bench.reset();
    let size = handle.size();
    assert_eq!((size.actual_bytes, size.target_bytes, size.driver), (0, 3 << 20, false));
}

#[test]
fn what_is_written_without_a_driver_is_no_balloon() {
    let mut bench = Bench::new();
    bench.reset();
    let config = bench.device.config();
    config.lock().unwrap().write(4, &[0xff; 4]);
    assert_eq!(
        (bench.device.handle().size().actual_bytes, bench.counter("actual_bytes")),
        (0, 0)
    );
}

#[test]
fn a_driver_writes_its_own_field_and_no_other() {
    let bench = Bench::new();
    let config = bench.device.config();
    config.lock().unwrap().write(0, &[0xff; 6]);
    config.lock().unwrap().write(7, &[1, 2, 3]);
    config.lock().unwrap().write(u64::MAX, &[9; 8]);
    let mut bytes = [0; 8];
    config.lock().unwrap().read(0, &mut bytes);
    assert_eq!(bytes, [0, 0, 0, 0, 0xff, 0xff, 0, 1]);
}

#[test]
fn a_target_that_no_balloon_can_have_is_none() {
    for bytes in [1, 4095, 16 << 40, u64::MAX] {
        let error = BalloonTarget::new(bytes).unwrap_err().to_string();
        assert_eq!(
            error,
            format!("a balloon of {bytes} bytes: whole pages of 4096 bytes, less than 16 TiB")
        );
    }
}

fn stat(tag: u16, value: u64) -> Vec<u8> {
    [&tag.to_le_bytes()[..], &value.to_le_bytes()].concat()
}

#[test]
fn statistics_come_when_they_are_asked_for() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    assert_eq!(handle.stats(), BalloonStats::default());
    let said = [stat(4, 100), stat(5, 1000), stat(99, 7), stat(6, 500)].concat();
    bench.drivers[2].write(STAT, &said);
    bench.drivers[2].add(&[Buf::Out(STAT, 40)]);
    bench.wake(STATS).unwrap();
    assert_eq!(bench.drivers[2].take_used(), None, "kept, to ask with");
    let stats = handle.stats();
    assert_eq!(
        (stats.free_bytes(), stats.total_bytes(), stats.available_bytes()),
        (Some(100), Some(1000), Some(500))
    );
    assert_eq!(stats.named().count(), 3);
    handle.refresh();
    bench.wake(REFRESH).unwrap();
    assert_eq!(bench.drivers[2].take_used(), Some((0, 0)));
    bench.wake(REFRESH).unwrap();
    assert_eq!(bench.drivers[2].take_used(), None, "nothing to ask with");
    bench.drivers[2].write(STAT, &stat(4, 90));
    bench.drivers[2].add(&[Buf::Out(STAT, 10)]);
    bench.wake(STATS).unwrap();
    assert_eq!(
        (handle.stats().free_bytes(), handle.stats().total_bytes()),
        (Some(90), Some(1000))
    );
}

/// The next driver may have no queue for them.
#[test]
fn what_a_driver_said_goes_with_it() {
    let mut bench = Bench::new();
    let handle = bench.device.handle();
    bench.drivers[2].write(STAT, &stat(6, 500));
    bench.drivers[2].add(&[Buf::Out(STAT, 10)]);
    bench.wake(STATS).unwrap();
    assert_eq!(handle.stats().available_bytes(), Some(500));
    bench.reset();
    assert_eq!(handle.stats(), BalloonStats::default());
    bench.start(VIRTIO_BALLOON_F_PAGE_REPORTING);
    assert_eq!(handle.stats(), BalloonStats::default());
}

#[test]
fn of_many_buffers_for_statistics_one_is_kept() {
    let mut bench = Bench::new();
    for _ in 0..3 {
        bench.drivers[2].add(&[Buf::Out(STAT, 10)]);
    }
    bench.wake(STATS).unwrap();
    let back: Vec<_> = std::iter::from_fn(|| bench.drivers[2].take_used()).collect();
    assert_eq!(back, [(0, 0), (1, 0)]);
    bench.reset();
    assert_eq!(bench.drivers[2].take_used(), Some((2, 0)));
}

#[test]
fn a_reset_without_the_right_to_memory_leaves_the_ring_alone() {
    let mut bench = Bench::new();
    let bus_master = Arc::new(AtomicBool::new(true));
    bench.handler.as_mut().unwrap().set_bus_master_flag(bus_master.clone());
    bench.drivers[2].add(&[Buf::Out(STAT, 10)]);
    bench.wake(STATS).unwrap();
    bus_master.store(false, Ordering::Relaxed);
    bench.reset();
    assert_eq!(bench.drivers[2].take_used(), None);
}

#[test]
fn a_buffer_full_of_statistics_is_read_in_part() {
    let mut bench = Bench::new();
    bench.drivers[2].write(0x4_0000, &stat(4, 1).repeat(1000));
    bench.drivers[2].write(0x4_0000 + 640, &stat(5, 2));
    bench.drivers[2].add(&[Buf::Out(0x4_0000, 10_000)]);
    bench.wake(STATS).unwrap();
    assert_eq!(bench.device.handle().stats().total_bytes(), None);
}

#[test]
fn an_abused_ring_ends_its_handler_and_the_next_driver_is_served() {
    let mut bench = Bench::new();
    for token in [INFLATE, DEFLATE, STATS, REPORTING] {
        for (name, abuse) in ABUSES {
            bench.reset();
            bench.start(ALL);
            abuse(&bench.drivers[token as usize]);
            let end = bench.wake(token);
            assert!(matches!(end, Err(HandlerError::Ring(_))), "{name}: {end:?}");
            bench.reset();
            bench.start(ALL);
            bench.host.done();
            bench.send(INFLATE, &[5]);
            assert_eq!(bench.host.done(), [(5 << 12, 1 << 12)], "after {name}");
        }
    }
}

#[test]
fn features_are_offered_as_configured() {
    let offered = |config| {
        let device = Balloon::new(config, Arc::new(Host::default()), || ()).unwrap();
        (device.profile().features, device.profile().queue_sizes.len())
    };
    assert_eq!(offered(BalloonConfig::default()), (VIRTIO_BALLOON_F_STATS_VQ, 3));
    let all = BalloonConfig {
        deflate_on_oom: true,
        free_page_reporting: true,
    };
    let features = ALL | VIRTIO_BALLOON_F_DEFLATE_ON_OOM | VIRTIO_BALLOON_F_PAGE_POISON;
    assert_eq!(offered(all), (features, 4));
}

#[test]
fn a_guest_that_fills_free_pages_finds_them_as_it_left_them() {
    let mut bench = Bench::new();
    let poison = |bench: &Bench, value: u32| {
        let config = bench.device.config();
        config.lock().unwrap().write(12, &value.to_le_bytes());
    };
    let report = |bench: &mut Bench| {
        bench.drivers[3].add(&[Buf::In(PAGES, 0x2000)]);
        bench.wake(REPORTING).unwrap();
        bench.drivers[3].take_used().unwrap();
        bench.host.done()
    };
    // Without the feature the field is nothing.
    poison(&bench, 0xaa);
    assert_eq!(report(&mut bench), [(PAGES, 0x2000)]);
    bench.reset();
    let all = ALL | VIRTIO_BALLOON_F_PAGE_POISON;
    assert_eq!(bench.device.profile().features & all, all);
    poison(&bench, 0xaaaa_aaaa);
    bench.start(all);
    assert_eq!(report(&mut bench), []);
    let mut field = [0; 4];
    bench.device.config().lock().unwrap().read(12, &mut field);
    assert_eq!(field, [0xaa; 4]);
    // Zeroes are what the host gives.
    poison(&bench, 0);
    assert_eq!(report(&mut bench), [(PAGES, 0x2000)]);
    // The next driver says for itself.
    poison(&bench, 1);
    bench.reset();
    bench.start(all);
    assert_eq!(report(&mut bench), [(PAGES, 0x2000)]);
}

/// Who pauses or stops the device waits for a wake to end.
#[test]
fn a_wake_gives_so_many_ranges_back_and_the_rest_comes_after_whatever_else_waits() {
    let mut bench = Bench::new();
    // Every other page: no two of them are one range.
    let pages: Vec<u8> = (0..1024_u32).flat_map(|page| (2 * page).to_le_bytes()).collect();
    bench.drivers[0].write(PAGES, &pages);
    for _ in 0..20 {
        bench.drivers[0].add(&[Buf::Out(PAGES, 4096)]);
    }
    let mut given = Vec::new();
    loop {
        bench.wake(INFLATE).unwrap();
        let done = bench.host.done().len();
        assert!(done <= DISCARDS_PER_WAKE + 1024, "{done}");
        if done == 0 {
            break;
        }
        given.push(done);
        // It has rung its own doorbell.
        assert!(bench.drivers[0].kick.read().is_ok());
        bench.drivers[0].kick.write(1).unwrap();
    }
    assert_eq!((given.len(), given.iter().sum::<usize>()), (5, 20 * 1024));
    assert_eq!(bench.counter("inflated_pages"), 20 * 1024);
}
