//! Disks: what the guest writes is in the file, what it must not write is not, and every queue works.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use husk_guest::answer::{Disk, Interrupt};
use husk_guest::step::Range;
use husk_guest::{Answer, Step, pattern};
use husk_tests::{Boot, Ended, Image};

const MIB: u64 = 1 << 20;

/// A disk image in the test's folder, filled with the pattern of `seed`.
fn image(boot: &Boot, name: &str, seed: u64) -> PathBuf {
    let path = boot.folder().join(name);
    let mut file = File::create(&path).unwrap();
    file.write_all(&pattern::bytes(seed, usize::try_from(MIB).unwrap()))
        .unwrap();
    path
}

fn range(disk: &str, offset: u64, length: u64) -> Range {
    Range {
        disk: disk.into(),
        offset,
        length,
    }
}

/// Checksums of the answers to `read`, `write` and the like.
fn checksums(ended: &Ended) -> Vec<u64> {
    let data = ended.answers.iter().filter_map(|answer| match answer {
        Answer::Data { checksum, .. } => Some(*checksum),
        _ => None,
    });
    data.collect()
}

fn disk(ended: &Ended) -> &Disk {
    let disk = ended.answers.iter().find_map(|answer| match answer {
        Answer::Disk(disk) => Some(disk),
        _ => None,
    });
    disk.unwrap_or_else(|| panic!("{:?}", ended.answers))
}

fn slice(content: &[u8], offset: u64, length: u64) -> &[u8] {
    let (start, end) = (
        usize::try_from(offset).unwrap(),
        usize::try_from(offset + length).unwrap(),
    );
    &content[start..end]
}

/// Writes in the middle of a disk, reads back there and before, and finds both in the file.
fn reads_and_writes(boot: Boot, options: &str) {
    let path = image(&boot, "disk", 1);
    let ended = boot.disk(&path, options).run();
    ended.assert_code(0).assert_nothing_refused();
    let content = fs::read(&path).unwrap();
    assert_eq!(content.len() as u64, MIB);
    let written = pattern::bytes(7, 65536);
    assert_eq!(
        slice(&content, 8192, 65536),
        written,
        "what the guest wrote is in the file"
    );
    let before = pattern::bytes(1, usize::try_from(MIB).unwrap());
    assert_eq!(
        slice(&content, 0, 8192),
        slice(&before, 0, 8192),
        "and nothing before it"
    );
    assert_eq!(
        slice(&content, 73728, MIB - 73728),
        slice(&before, 73728, MIB - 73728),
        "nor behind it"
    );
    let [first, written_sum, back] = checksums(&ended)[..] else {
        panic!("{:?}", ended.answers)
    };
    assert_eq!(
        first,
        pattern::checksum(slice(&before, 0, 8192)),
        "the guest reads the file's bytes"
    );
    assert_eq!(
        (written_sum, back),
        (pattern::checksum(&written), pattern::checksum(&written))
    );
    assert_eq!(disk(&ended).bytes, MIB);
    assert!(!disk(&ended).read_only);
    assert_eq!(
        disk(&ended).cache,
        "write back",
        "the guest must know that it has to flush"
    );
}

fn read_write_steps() -> Vec<Step> {
    let describe = Step::Disk("vda".into());
    let io = [
        Step::read("vda", 0, 8192),
        Step::write("vda", 8192, 65536, 7),
        Step::read("vda", 8192, 65536),
    ];
    [describe].into_iter().chain(io).chain([Step::PowerOff]).collect()
}

#[test]
fn a_file_is_read_and_written() {
    reads_and_writes(Boot::new(read_write_steps()), "");
}

#[test]
fn a_file_is_read_and_written_without_io_uring_by_the_older_kernel() {
    reads_and_writes(
        Boot::new(read_write_steps()).kernel("6.1", Image::BzImage),
        ",io_uring=off",
    );
}

#[test]
fn a_file_on_a_real_file_system_is_read_and_written_past_the_page_cache() {
    // Temporary folders are often in memory, where O_DIRECT does not work; the tests' own folder is not.
    let boot = Boot::new(read_write_steps());
    let place = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
    let path = place.path().join("disk");
    fs::write(&path, pattern::bytes(1, usize::try_from(MIB).unwrap())).unwrap();
    let ended = boot.disk(&path, ",direct=on").run();
    ended.assert_code(0).assert_nothing_refused();
    assert_eq!(slice(&fs::read(&path).unwrap(), 8192, 65536), pattern::bytes(7, 65536));
}

#[test]
fn a_read_only_disk_stays_as_it_is_on_both_sides() {
    let steps = [
        Step::Disk("vda".into()),
        Step::read("vda", 0, 8192),
        Step::write("vda", 0, 4096, 9),
        Step::Echo,
    ];
    let boot = Boot::new(steps.into_iter().chain([Step::PowerOff]));
    let path = image(&boot, "disk", 3);
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o444)).unwrap();
    let mut guest = boot.disk(&path, ",readonly=on").start();
    assert!(matches!(guest.answer(), Answer::Disk(Disk { read_only: true, .. })));
    let before = pattern::bytes(3, usize::try_from(MIB).unwrap());
    assert_eq!(
        guest.answer(),
        Answer::Data {
            bytes: 8192,
            checksum: pattern::checksum(&before[..8192])
        }
    );
    assert!(
        matches!(guest.answer(), Answer::Failed { .. }),
        "the guest's kernel refuses to write"
    );
    assert_eq!(guest.answer(), Answer::Listening);
    assert_eq!(
        access_modes(guest.pid(), &path),
        [libc::O_RDONLY],
        "husk itself could not write either"
    );
    guest.type_text("end\n");
    let ended = guest.wait();
    ended.assert_code(0);
    assert_eq!(fs::read(&path).unwrap(), before);
}

/// How a process has opened `path`, for each of its descriptors.
fn access_modes(pid: u32, path: &Path) -> Vec<i32> {
    let folder = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut modes = Vec::new();
    for entry in fs::read_dir(&folder).unwrap().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target == path) {
            let info =
                fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", entry.file_name().to_string_lossy())).unwrap();
            let flags = info
                .lines()
                .find_map(|line| line.strip_prefix("flags:"))
                .unwrap()
                .trim();
            modes.push(i32::from_str_radix(flags, 8).unwrap() & libc::O_ACCMODE);
        }
    }
    modes
}

#[test]
fn every_queue_serves_its_processor() {
    let boot = Boot::new([
        Step::Disk("vda".into()),
        Step::Parallel("vda".into(), 4),
        Step::Interrupts,
        Step::PowerOff,
    ])
    .cpus(4);
    let path = image(&boot, "disk", 1);
    let ended = boot.disk(&path, ",queues=4").run();
    ended.assert_code(0).assert_nothing_refused();
    assert_eq!(disk(&ended).queues, 4);
    let rows = ended.answers.iter().find_map(|answer| match answer {
        Answer::Interrupts { rows } => Some(rows),
        _ => None,
    });
    let busy: Vec<&Interrupt> = rows
        .unwrap()
        .iter()
        .filter(|row| row.name.contains("-req.") && row.counts.iter().sum::<u64>() > 0)
        .collect();
    assert_eq!(busy.len(), 4, "{rows:?}");
}

#[test]
fn discarded_and_zeroed_ranges_become_holes_that_read_as_zeroes() {
    let steps = [
        Step::Disk("vda".into()),
        Step::Discard(range("vda", 0, MIB / 2)),
        Step::Zero(range("vda", MIB / 2, MIB / 4)),
        Step::read("vda", 0, 8192),
        Step::read("vda", MIB / 2, 8192),
        Step::PowerOff,
    ];
    let boot = Boot::new(steps);
    let path = image(&boot, "disk", 5);
    let blocks = fs::metadata(&path).unwrap().blocks();
    let ended = boot.disk(&path, ",discard=on").run();
    ended.assert_code(0).assert_nothing_refused();
    assert!(
        disk(&ended).discard > 0 && disk(&ended).write_zeroes > 0,
        "{:?}",
        disk(&ended)
    );
    let zeroes = pattern::checksum(&[0; 8192]);
    assert_eq!(checksums(&ended)[2..], [zeroes, zeroes]);
    let content = fs::read(&path).unwrap();
    assert!(slice(&content, 0, MIB * 3 / 4).iter().all(|byte| *byte == 0));
    let kept = slice(&content, MIB * 3 / 4, MIB / 4);
    assert_eq!(
        kept,
        slice(&pattern::bytes(5, usize::try_from(MIB).unwrap()), MIB * 3 / 4, MIB / 4)
    );
    let now = fs::metadata(&path).unwrap().blocks();
    assert!(
        now <= blocks - (MIB / 2 / 512) / 2,
        "{blocks} blocks before, {now} after"
    );
}

#[test]
fn several_disks_keep_their_order() {
    let boot = Boot::new([Step::read("vda", 0, 4096), Step::read("vdb", 0, 4096), Step::PowerOff]);
    let (one, two) = (image(&boot, "one", 11), image(&boot, "two", 12));
    let ended = boot.disk(&one, ",id=first").disk(&two, ",id=second,readonly=on").run();
    ended.assert_code(0).assert_nothing_refused();
    let first = |seed| pattern::checksum(&pattern::bytes(seed, 4096));
    assert_eq!(checksums(&ended), [first(11), first(12)]);
}

#[test]
fn a_block_device_is_a_disk() {
    let boot = Boot::new([
        Step::Disk("vda".into()),
        Step::write("vda", 4096, 4096, 21),
        Step::PowerOff,
    ]);
    let path = image(&boot, "disk", 1);
    let Some(device) = Loop::attach(&path) else {
        println!("skipped: needs root, a loop device");
        return;
    };
    let ended = boot.disk(Path::new(&device.0), "").run();
    ended.assert_code(0).assert_nothing_refused();
    assert_eq!(disk(&ended).bytes, MIB);
    drop(device);
    assert_eq!(slice(&fs::read(&path).unwrap(), 4096, 4096), pattern::bytes(21, 4096));
}

#[test]
fn a_block_device_that_is_read_only_is_a_read_only_disk_or_none() {
    let boot = Boot::new([Step::Disk("vda".into()), Step::read("vda", 0, 8192), Step::PowerOff]);
    let path = image(&boot, "disk", 1);
    let Some(device) = Loop::attach_with(&path, &["-r"]) else {
        println!("skipped: needs root, a loop device");
        return;
    };
    let refused = Boot::new([Step::PowerOff]).disk(Path::new(&device.0), "").run();
    refused.assert_code(1);
    let why = format!(
        "disk {}: it cannot be written, with readonly=on it can be read",
        device.0
    );
    assert!(refused.errors.contains(&why), "{}", refused.errors);
    let ended = boot.disk(Path::new(&device.0), ",readonly=on").run();
    ended.assert_code(0).assert_nothing_refused();
    assert!(disk(&ended).read_only);
}

/// A loop device, detached when dropped.
struct Loop(String);

impl Loop {
    fn attach(path: &Path) -> Option<Self> {
        Self::attach_with(path, &[])
    }

    /// With more options, which busybox's `losetup` takes too: it is the one in emulated hosts.
    fn attach_with(path: &Path, options: &[&str]) -> Option<Self> {
        /// Between the question which device is free and its use, no other test may take it.
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let free = std::process::Command::new("losetup").arg("-f").output().ok()?;
        let device = String::from_utf8(free.stdout).ok()?.trim().to_string();
        let attached = std::process::Command::new("losetup")
            .args(options)
            .arg(&device)
            .arg(path)
            .status()
            .ok()?;
        // Not before it is known: whoever drops a `Loop` detaches the device.
        attached.success().then(|| Self(device))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["-d", &self.0]).status();
    }
}
