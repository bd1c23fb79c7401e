//! What happens on the host to shares that are in use.

use std::fs;
use std::thread;

use husk_guest::{Call, Reply, pattern};
use husk_tests::agent::Agent;
use husk_tests::info::State;
use husk_tests::pod::Launch;
use serde_json::Value;

use crate::bad_disk::{BadDisk, forget};
use crate::quota::{Limited, Quota, used};
use crate::served::{Plan, SERVERS, Served};
use crate::{Mounted, make_users, run_as, sh};

/// Who unmounts it on the host takes it from nobody who has it: what is below is served until the guest lets go of it.
#[test]
fn a_file_system_that_is_unmounted_is_served_on_and_what_was_below_comes_to_light() {
    let mut mounts = Vec::new();
    let (served, mut agent) = Served::start_with(Plan::default(), |folder| {
        // Both the folder itself, and one in it.
        mounts.push(Mounted::new(&["-t", "tmpfs", "tmpfs"], folder));
        fs::create_dir(folder.join("below")).unwrap();
        fs::write(folder.join("below/under"), "under").unwrap();
        mounts.push(Mounted::new(&["-t", "tmpfs", "tmpfs"], &folder.join("below")));
        fs::write(folder.join("below/over"), "over").unwrap();
    });
    for server in &SERVERS[..2] {
        let said = sh(
            &mut agent,
            &format!("cd /{server}; echo kept > kept; cat below/over; ls below"),
        );
        assert_eq!(said, "overover\n", "{server}");
    }
    // The host's view of them goes at once; a busy one cannot go but so.
    drop(mounts);
    for server in &SERVERS[..2] {
        assert_eq!(fs::read_dir(served.host(server)).unwrap().count(), 0, "{server}");
        let said = sh(&mut agent, &format!("cd /{server}; cat kept; echo new > new; cat new"));
        assert_eq!(said, "kept\nnew\n", "{server}");
    }
    served.end();
}

/// What a script in the guest says when it fails.
#[track_caller]
fn refused(agent: &mut Agent, script: &str) -> String {
    match agent.must(&Call::run(&["sh", "-euc", script])).unwrap() {
        Reply::Ran { code: 1, stderr, .. } => stderr,
        other => panic!("{script}: {other:?}"),
    }
}

/// Writes a pattern through a shared mapping of a file of that length; the number of the error, 0 for none.
fn write_mapped(agent: &mut Agent, path: &str, bytes: u64) -> i32 {
    let call = Call::Map {
        path: path.into(),
        seed: 8,
        bytes,
        shared: true,
    };
    match agent.ask(&call).unwrap() {
        Reply::Failed { errno, error } => errno.unwrap_or_else(|| panic!("{error}")),
        _ => 0,
    }
}

/// Bytes of the file systems that fill up, and of a file in them that has no blocks.
const SMALL: u64 = 1 << 20;
const SPARSE: u64 = 100_000;

fn a_full_file_system_says_so_and_takes_more_when_there_is_room(served: &Served, agent: &mut Agent, server: &str) {
    let small = served.host(server).join("small");
    let at = format!("/{server}/small");
    sh(
        agent,
        &format!("cd {at}; echo before > before; truncate -s {SPARSE} sparse"),
    );
    let told = refused(agent, &format!("cd {at}; dd if=/dev/zero of=fill bs=20000"));
    assert!(told.contains("No space left on device"), "{server}: {told}");
    for script in ["echo more > more", "fallocate -l 200000 fallocated"] {
        let told = refused(agent, &format!("cd {at}; {script}"));
        assert!(told.contains("No space left on device"), "{server}: {script}: {told}");
    }
    assert_eq!(
        write_mapped(agent, &format!("{at}/sparse"), SPARSE),
        libc::ENOSPC,
        "{server}"
    );
    // Both sides agree that it is full, and of what.
    let room = rustix::fs::statvfs(&small).unwrap();
    assert_eq!(
        (room.f_bavail, sh(agent, &format!("stat -f -c %a {at}"))),
        (0, "0\n".into())
    );
    let fill = fs::metadata(small.join("fill")).unwrap().len();
    assert!(fill > SMALL / 2, "{fill} bytes");
    assert_eq!(
        sh(agent, &format!("cd {at}; stat -c %s fill; cat before")),
        format!("{fill}\nbefore\n")
    );
    // What the guest frees it may use.
    sh(
        agent,
        &format!("cd {at}; rm fill; echo more > more; fallocate -l 200000 fallocated"),
    );
    // Of several requests that fail, Linux tells of the first, and of the others to who syncs next.
    let tries = (0..4).find(|_| write_mapped(agent, &format!("{at}/sparse"), SPARSE) == 0);
    assert!(tries.is_some(), "{server}");
    assert_eq!(fs::read_to_string(small.join("more")).unwrap(), "more\n");
    let bytes = usize::try_from(SPARSE).unwrap();
    assert!(
        fs::read(small.join("sparse")).unwrap() == pattern::bytes(8, bytes),
        "{server}"
    );
}

/// Of what is written back to a host that has room for the half of it, nothing is lost without a
/// word. virtiofsd tells the guest how much it wrote, which the guest does not look at.
fn what_a_disk_takes_a_part_of_is_a_failure(served: &Served, agent: &mut Agent, server: &str) {
    let at = format!("/{server}/small");
    let script = format!(
        "cd {at}; rm *; fallocate -l {} half; truncate -s {SMALL} part",
        SMALL / 2
    );
    sh(agent, &script);
    assert_eq!(
        write_mapped(agent, &format!("{at}/part"), SMALL),
        libc::ENOSPC,
        "{server}"
    );
    let small = rustix::fs::statvfs(served.host(server).join("small")).unwrap();
    assert_eq!(small.f_bavail, 0, "{server}: a part of it was written");
}

/// The guest's user `kim`, and what he may have: of files the folder that is his, and five in it.
const KIM: u32 = 1000;
const KIMS: Quota = Quota { kib: 256, files: 6 };

fn a_user_at_his_quota_is_told_so_and_may_have_what_he_gives_back(served: &Served, agent: &mut Agent, server: &str) {
    let limited = served.host(server).join("limited");
    let at = format!("/{server}/limited");
    let of_kim = |agent: &mut Agent, script: &str| run_as(agent, "kim", &format!("cd {at} && {script}"));
    let told = |agent: &mut Agent, script: &str| {
        let (code, told) = of_kim(agent, script);
        assert!(
            code != 0 && told.contains("Disk quota exceeded"),
            "{server}: {script}: {code}: {told}"
        );
    };
    let begun = format!("echo before > before && truncate -s {SPARSE} sparse");
    assert_eq!(of_kim(agent, &begun), (0, String::new()), "{server}");
    told(agent, "dd if=/dev/zero of=fill bs=20000");
    // Of a page that does not fit the host writes nothing.
    told(agent, "dd if=/dev/zero bs=1000 >> fill");
    for script in ["echo more > more", "mkdir folder"] {
        told(agent, script);
    }
    assert_eq!(
        write_mapped(agent, &format!("{at}/sparse"), SPARSE),
        libc::EDQUOT,
        "{server}"
    );
    // There is room for others, and the host counts what the guest has.
    sh(
        agent,
        &format!("cd {at}; echo roots > roots; [ $(stat -f -c %a .) -gt 1000 ]"),
    );
    let fill = fs::metadata(limited.join("fill")).unwrap().len();
    assert!(fill > KIMS.kib * 1024 / 2, "{server}: {fill} bytes");
    let seen = sh(agent, &format!("cd {at}; stat -c %s fill; cat before"));
    assert_eq!(seen, format!("{fill}\nbefore\n"), "{server}");
    let full = used(&limited, KIM);
    assert!(full.kib <= KIMS.kib && full.kib > KIMS.kib - 20, "{server}: {full:?}");
    // Files are counted as well.
    told(agent, "for name in a b c d e f; do > $name || exit 1; done");
    assert_eq!(used(&limited, KIM).files, KIMS.files, "{server}");
    let again = "rm -f a b c d e fill && echo more > more && mkdir folder";
    assert_eq!(of_kim(agent, again), (0, String::new()), "{server}");
    let tries = (0..4).find(|_| write_mapped(agent, &format!("{at}/sparse"), SPARSE) == 0);
    assert!(tries.is_some(), "{server}");
    assert_eq!(fs::read_to_string(limited.join("more")).unwrap(), "more\n");
    assert!(
        fs::read_to_string(limited.join("before"))
            .unwrap()
            .starts_with("before\n")
    );
    let bytes = usize::try_from(SPARSE).unwrap();
    assert!(
        fs::read(limited.join("sparse")).unwrap() == pattern::bytes(8, bytes),
        "{server}"
    );
}

fn a_folder_that_is_replaced_is_served_on_and_the_new_one_is_not(served: &Served, agent: &mut Agent, server: &str) {
    let (folder, away) = (served.host(server), served.host(format!("{server}.old")));
    fs::write(folder.join("kept"), "old").unwrap();
    assert_eq!(sh(agent, &format!("cat /{server}/kept")), "old");
    fs::rename(&folder, &away).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("kept"), "new").unwrap();
    fs::write(folder.join("intruder"), "new").unwrap();
    let said = sh(
        agent,
        &format!(
            "echo 3 > /proc/sys/vm/drop_caches; cd /{server}; cat kept; [ ! -e intruder ]; echo written > written; ls -d kept written | tr '\\n' ' '"
        ),
    );
    assert_eq!(said, "oldkept written ", "{server}");
    assert_eq!(fs::read_to_string(away.join("written")).unwrap(), "written\n");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "{server}");
    fs::remove_dir_all(&folder).unwrap();
    fs::rename(&away, &folder).unwrap();
    // Nor did it have to be there meanwhile.
    assert_eq!(
        sh(agent, &format!("cat /{server}/kept /{server}/written")),
        "oldwritten\n"
    );
}

/// The signal of a process that touches what its file no longer has.
const KILLED_BY_SIGBUS: i32 = 128 + libc::SIGBUS;

fn a_file_cut_short_while_it_is_mapped_is_the_mappers_loss(served: &Served, agent: &mut Agent, server: &str) {
    // Far more than the guest reads ahead.
    const BYTES: usize = 4 << 20;
    let mapped = served.host(server).join("mapped");
    fs::write(&mapped, pattern::bytes(3, BYTES)).unwrap();
    let sign = format!("/tmp/{server}-is-mapped");
    let mut mapper = served.one_more();
    let command: Vec<String> = [
        "/init",
        "files",
        "hold",
        &format!("/{server}/mapped"),
        &BYTES.to_string(),
        &sign,
    ]
    .map(String::from)
    .into();
    let holding = thread::spawn(move || {
        let input = String::new();
        mapper.must(&Call::Run { command, input })
    });
    sh(agent, &format!("until [ -e {sign} ]; do sleep 0.05; done"));
    fs::File::options()
        .write(true)
        .open(&mapped)
        .unwrap()
        .set_len(4096)
        .unwrap();
    sh(agent, &format!("rm {sign}"));
    let held = holding.join().unwrap().unwrap();
    assert!(
        matches!(
            held,
            Reply::Ran {
                code: KILLED_BY_SIGBUS,
                ..
            }
        ),
        "{server}: {held:?}"
    );
    // The file is what it is on the host, and grows again.
    assert_eq!(sh(agent, &format!("wc -c < /{server}/mapped")), "4096\n", "{server}");
    fs::write(&mapped, pattern::bytes(4, BYTES)).unwrap();
    let path = format!("/{server}/mapped");
    let (bytes, checksum) = (BYTES as u64, pattern::checksum(&pattern::bytes(4, BYTES)));
    sh(
        agent,
        &format!("until [ $(stat -c %s {path}) = {bytes} ]; do sleep 0.1; done"),
    );
    assert_eq!(
        agent.must(&Call::Sum { path }).unwrap(),
        Reply::Data { bytes, checksum },
        "{server}"
    );
}

/// A file on the bad disk: aligned to any block, and without blocks of its own for where they are.
const ON_DISK: usize = 8192;

fn a_disk_that_cannot_be_read_is_an_error_until_it_can(
    disk: &BadDisk,
    served: &Served,
    agent: &mut Agent,
    server: &str,
) {
    let (file, path) = (
        served.host(server).join("bad").join(server),
        format!("/{server}/bad/{server}"),
    );
    let content = pattern::bytes(5, ON_DISK);
    fs::write(&file, &content).unwrap();
    let sum = |agent: &mut Agent| {
        sh(agent, "echo 3 > /proc/sys/vm/drop_caches");
        agent.ask(&Call::Sum { path: path.clone() }).unwrap()
    };
    let found = |content: &[u8]| Reply::Data {
        bytes: content.len() as u64,
        checksum: pattern::checksum(content),
    };
    assert_eq!(sum(agent), found(&content), "{server}");
    disk.spoil();
    let failed = sum(agent);
    assert!(
        matches!(
            failed,
            Reply::Failed {
                errno: Some(libc::EIO),
                ..
            }
        ),
        "{server}: {failed:?}"
    );
    let write = format!("dd if=/dev/zero of={path} bs={ON_DISK} count=1 conv=notrunc,fsync");
    let told = refused(agent, &write);
    assert!(told.contains("Input/output error"), "{server}: {told}");
    disk.mend();
    // That it was not written was said, and so it may be either.
    sh(agent, &write);
    forget();
    assert!(fs::read(&file).unwrap() == [0; ON_DISK], "{server}");
    assert_eq!(sum(agent), found(&[0; ON_DISK]), "{server}");
}

/// A file of which one request may read both what is there and what is not, and where that begins.
const LONG: usize = 1 << 20;
const BAD: usize = LONG / 2 + 65_536;

fn a_file_that_cannot_be_read_in_the_middle_is_an_error_and_no_shorter(
    disk: &BadDisk,
    served: &Served,
    agent: &mut Agent,
    server: &str,
) {
    let name = format!("bad/{server}-long");
    let (file, path) = (served.host(server).join(&name), format!("/{server}/{name}"));
    // Nothing of it is on the disk from another's.
    let seed = server.bytes().map(u64::from).sum();
    let content = pattern::bytes(seed, LONG);
    fs::write(&file, &content).unwrap();
    disk.spoil_where(&content[BAD..]);
    let drop_caches = "echo 3 > /proc/sys/vm/drop_caches";
    sh(agent, drop_caches);
    let failed = agent.ask(&Call::Sum { path: path.clone() }).unwrap();
    let errno = match &failed {
        Reply::Failed { errno, .. } => *errno,
        _ => None,
    };
    assert_eq!(errno, Some(libc::EIO), "{server}: {failed:?}");
    let look = format!("stat -c %s {path}; head -c 65536 {path} | wc -c; tail -c 65536 {path} | wc -c");
    assert_eq!(sh(agent, &look), format!("{LONG}\n65536\n65536\n"), "{server}");
    disk.mend();
    sh(agent, drop_caches);
    let found = Reply::Data {
        bytes: LONG as u64,
        checksum: pattern::checksum(&content),
    };
    assert_eq!(agent.ask(&Call::Sum { path }).unwrap(), found, "{server}");
    fs::remove_file(&file).unwrap();
}

#[test]
fn full_bad_replaced_and_cut_short_a_share_says_what_the_host_says_and_goes_on() {
    let (mut mounts, mut limited) = (Vec::new(), Vec::new());
    let disk = BadDisk::new();
    let (mut served, mut agent) = Served::start_with(Plan::default(), |folder| {
        let mut mount = |what: &[&str], name: &str| {
            fs::create_dir(folder.join(name)).unwrap();
            mounts.push(Mounted::new(what, &folder.join(name)));
        };
        mount(&["-t", "tmpfs", "-o", &format!("size={SMALL}"), "tmpfs"], "small");
        match &disk {
            Some(disk) => mount(&["-t", "ext4", "-o", "noatime", disk.path().to_str().unwrap()], "bad"),
            None => fs::create_dir(folder.join("bad")).unwrap(),
        }
        fs::create_dir(folder.join("limited")).unwrap();
        limited.extend(Limited::new(&folder.join("limited"), KIM, KIMS));
    });
    if limited.is_empty() {
        println!("skipped: needs quota_v2: the user at his quota");
    } else {
        make_users(&mut agent);
        for server in SERVERS {
            a_user_at_his_quota_is_told_so_and_may_have_what_he_gives_back(&served, &mut agent, server);
        }
    }
    for server in SERVERS {
        a_full_file_system_says_so_and_takes_more_when_there_is_room(&served, &mut agent, server);
        a_folder_that_is_replaced_is_served_on_and_the_new_one_is_not(&served, &mut agent, server);
        a_file_cut_short_while_it_is_mapped_is_the_mappers_loss(&served, &mut agent, server);
    }
    for server in &SERVERS[..2] {
        what_a_disk_takes_a_part_of_is_a_failure(&served, &mut agent, server);
    }
    match &disk {
        Some(disk) => SERVERS[..2].iter().for_each(|server| {
            a_disk_that_cannot_be_read_is_an_error_until_it_can(disk, &served, &mut agent, server);
            a_file_that_cannot_be_read_in_the_middle_is_an_error_and_no_shorter(disk, &served, &mut agent, server);
        }),
        None => println!("skipped: needs null_blk: the disk that goes bad"),
    }
    served.pod().expect_state(State::Running).unwrap();
    served.end();
}

/// Descriptors that a server may have, and more than it can have of files then. A guest's process
/// may have 1024, and virtiofsd starts with no fewer than 610.
const DESCRIPTORS: u64 = 256;
const CROWD: usize = 300;
const LATER: usize = 100;

#[test]
fn a_server_without_a_descriptor_left_refuses_more_and_serves_what_is_open_and_everything_later() {
    let plan = Plan {
        launch: Launch {
            nofile: Some(DESCRIPTORS),
            ..Launch::default()
        },
        daemon: &["--rlimit-nofile=256"],
        virtiofsd: &["--rlimit-nofile=700"],
        ..Plan::default()
    };
    let (mut served, mut agent) = Served::start_with(plan, |folder| fs::create_dir(folder.join("crowd")).unwrap());
    for server in SERVERS {
        let crowd = served.host(server).join("crowd");
        let said = agent.run(&[
            "/init",
            "files",
            "crowd",
            &format!("/{server}/crowd"),
            &CROWD.to_string(),
        ]);
        let said = said.unwrap();
        let (opened, refused) = said.trim().split_once(' ').unwrap();
        assert!(
            ["23", "24"].contains(&refused),
            "{server}: {said}: neither ENFILE nor EMFILE"
        );
        // Each has a descriptor for its name, and one for its contents, at most.
        let opened: u64 = opened.parse().unwrap();
        assert!((DESCRIPTORS / 8..CROWD as u64).contains(&opened), "{server}: {said}");
        for number in 0..opened {
            let name = number.to_string();
            assert_eq!(fs::read_to_string(crowd.join(&name)).unwrap(), name, "{server}");
        }
        // All of them are closed now, and there is room again.
        let said = sh(
            &mut agent,
            &format!(
                "echo 3 > /proc/sys/vm/drop_caches; cd /{server}/crowd; rm *
                 for n in $(seq {LATER}); do echo $n > $n; done; cat * | wc -l"
            ),
        );
        assert_eq!(said, format!("{LATER}\n"), "{server}");
        assert_eq!(fs::read_dir(&crowd).unwrap().count(), LATER, "{server}");
    }
    served.pod().expect_state(State::Running).unwrap();
    let counters: Value = served.pod().api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["failures"], 0, "{counters}");
    served.end();
}
