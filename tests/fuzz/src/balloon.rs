//! The balloon: a guest that gives pages away and takes them back as it likes, a host that wishes
//! for more and less, asks for statistics, and sometimes does not take pages.
//!
//! However that goes, what is given back to the host was named by the guest as a page or reported
//! as a buffer of its RAM, and the sizes are what host and driver said last.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use husk_virtio::balloon::{Balloon, BalloonConfig, BalloonTarget, Discard};
use husk_virtio::device::VirtioDevice;

use crate::Seeds;
use crate::guest::{RAM, run_script};
use crate::op::{Op, readable, script, writable};
use crate::script::{Recorder, Script};

const PAGE: u64 = 4096;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let Some(flags) = script.u8() else { return };
    let config = BalloonConfig {
        deflate_on_oom: flags & 1 != 0,
        free_page_reporting: flags & 2 != 0,
    };
    let pages = Arc::new(Pages {
        reporting: config.free_page_reporting,
        broken: AtomicBool::new(false),
        taken_bytes: AtomicU64::new(0),
        kept_bytes: AtomicU64::new(0),
        refused: AtomicU64::new(0),
    });
    let mut balloon = Balloon::new(config, pages.clone(), || ()).unwrap();
    let target = Mutex::new(0);
    run_script(&mut balloon, &mut script, |balloon, script| {
        let _ = host(balloon, &pages, &target, script);
        check(balloon, &target);
    });
    check(&balloon, &target);
    let size = balloon.handle().size();
    assert_eq!(
        (size.actual_bytes, size.driver),
        (0, false),
        "a driver that is gone has none"
    );
    let metrics = balloon.metrics();
    let named = metrics.inflated_pages.get() * PAGE + metrics.reported_bytes.get();
    let taken = pages.taken_bytes.load(Ordering::Relaxed);
    let kept = pages.kept_bytes.load(Ordering::Relaxed);
    // Of a request that is too long what was looked at is given back, and not counted; of what was
    // refused, reports are not.
    assert!(
        (taken - kept..=taken).contains(&named) || metrics.bad_requests.get() > 0,
        "{taken} of {named} bytes, {kept} refused"
    );
    assert_eq!(metrics.discard_failures.get(), pages.refused.load(Ordering::Relaxed));
}

struct Pages {
    reporting: bool,
    broken: AtomicBool,
    taken_bytes: AtomicU64,
    /// Of those, what was refused.
    kept_bytes: AtomicU64,
    refused: AtomicU64,
}

impl Discard for Pages {
    fn discard(&self, gpa: u64, bytes: u64) -> io::Result<()> {
        let end = gpa.checked_add(bytes).expect("it ends where addresses do");
        let numbered = gpa.is_multiple_of(PAGE) && bytes.is_multiple_of(PAGE) && end >> 32 <= PAGE;
        let shared = |(base, len): &(u64, u64)| end.min(base + len).saturating_sub(gpa.max(*base));
        let inside = RAM.iter().map(shared).sum::<u64>() == bytes;
        assert!(numbered || self.reporting && inside, "{bytes} bytes at {gpa:#x}");
        self.taken_bytes.fetch_add(bytes, Ordering::Relaxed);
        if self.broken.load(Ordering::Relaxed) {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.kept_bytes.fetch_add(bytes, Ordering::Relaxed);
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        Ok(())
    }
}

/// | first byte | then |
/// |---|---|
/// | 0, 4, … | pages that should be in the balloon |
/// | 1, 5, … | bytes that should be, whatever they are |
/// | 2, 6, … | an odd byte: from now on pages are not taken |
/// | 3, 7, … | statistics are asked for |
fn host(balloon: &Balloon, pages: &Pages, target: &Mutex<u64>, script: &mut Script<'_>) -> Option<()> {
    let handle = balloon.handle();
    let wish = |bytes: u64| {
        let can_be = bytes.is_multiple_of(PAGE) && bytes < 16 << 40;
        let wished = BalloonTarget::new(bytes);
        assert_eq!(wished.is_ok(), can_be, "{bytes} bytes");
        if let Ok(wished) = wished {
            handle.set_target(wished);
            *target.lock().unwrap() = bytes;
        }
    };
    match script.u8()? & 3 {
        0 => wish(u64::from(script.u32()?) * PAGE),
        1 => wish(script.u64()?),
        2 => pages.broken.store(script.u8()? & 1 != 0, Ordering::Relaxed),
        _ => {
            handle.refresh();
            assert!(handle.stats().named().count() <= 10);
        }
    }
    Some(())
}

/// What the driver reads is what the host wished for and what itself has said.
fn check(balloon: &Balloon, target: &Mutex<u64>) {
    let size = balloon.handle().size();
    assert_eq!(size.target_bytes, *target.lock().unwrap());
    let mut bytes = [0; 8];
    let config = balloon.config();
    config.lock().unwrap().read(0, &mut bytes);
    let [num_pages, actual] = [0, 4].map(|at| {
        bytes[at..]
            .first_chunk()
            .map(|bytes| u32::from_le_bytes(*bytes))
            .unwrap()
    });
    assert_eq!(u64::from(num_pages) * PAGE, size.target_bytes);
    let actual = if size.driver { actual } else { 0 };
    assert_eq!(u64::from(actual) * PAGE, size.actual_bytes);
}

pub fn seeds() -> Seeds {
    let numbers = |pages: &[u32]| -> Vec<u8> { pages.iter().flat_map(|page| page.to_le_bytes()).collect() };
    let up = numbers(&[16, 17, 18, 40, 9, 8, u32::MAX, 0]);
    let down = numbers(&[16, 17, 18]);
    let with = |flags: u8, ops: &[Op<'_>]| {
        let mut to = Recorder::default();
        to.u8(flags).raw(&script(ops).take());
        to
    };
    let mut sized = with(0, &[Op::Host]);
    sized.u8(0).u32(8);
    for op in [
        Op::ReadConfig(0, 8),
        Op::Chain(0, vec![readable(0, &up)]),
        Op::Kick(0),
        Op::WriteConfig(4, &[8, 0, 0, 0]),
        Op::Indirect(1, vec![readable(0, &down)]),
        Op::Kick(1),
        Op::WriteConfig(0, &[0xff; 8]),
        Op::Host,
    ] {
        op.write(&mut sized);
    }
    sized.u8(1).u64(1 << 44);
    let reported = with(
        3,
        &[
            Op::Chain(3, vec![writable(0, 0x8000), writable(31, 0x1000)]),
            Op::Chain(3, vec![readable(0, b"no report"), writable(2, 3)]),
            Op::Kick(3),
            Op::Chain(0, vec![readable(0, &up[..6])]),
            Op::Kick(0),
        ],
    );
    let stat = |tag: u8, value: u8| [tag, 0, value, 0, 0, 0, 0, 0, 0, 0];
    let said = [stat(4, 100), stat(5, 200), stat(99, 7), stat(6, 150)].concat();
    let mut asked = with(
        2,
        &[
            Op::Chain(2, vec![readable(0, &said)]),
            Op::Kick(2),
            Op::Chain(2, vec![readable(1, &said[..15])]),
            Op::Kick(2),
            Op::Host,
        ],
    );
    asked.u8(3);
    for op in [Op::Wake, Op::Host] {
        op.write(&mut asked);
    }
    asked.u8(2).u8(1);
    for op in [Op::Chain(0, vec![readable(0, &up)]), Op::Kick(0), Op::Restart] {
        op.write(&mut asked);
    }
    asked.u8(0).u64(1 << 5);
    for op in [Op::Chain(2, vec![writable(3, 0x1000)]), Op::Kick(2)] {
        op.write(&mut asked);
    }
    vec![
        ("sized", sized.take()),
        ("reported", reported.clone().take()),
        ("asked", asked.take()),
    ]
}
