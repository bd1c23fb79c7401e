//! Networks: what one side sends the other receives, over a tap that stays its owner's.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod by_kernel;
mod session;

use std::fs;
use std::os::fd::AsRawFd;
use std::process::Command;
use std::thread;

use husk_guest::Answer;
use husk_guest::answer::Interrupt;
use husk_tests::tap::{Tap, ip, own_network};
use husk_tests::threads::sleeps;

use session::{PREFIX, SET_UP, Session, a_driver_comes_again, boot, network, stream_bytes};

/// Runs a tool of the host; whether it succeeded, and what it wrote.
fn tool(program: &str, arguments: &str) -> (bool, String) {
    let ran = Command::new(program).args(arguments.split(' ')).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout) + String::from_utf8_lossy(&ran.stderr);
    (ran.status.success(), said.into_owned())
}

fn ping(arguments: &str) {
    let (answered, said) = tool("ping", arguments);
    assert!(answered, "{said}");
}

#[test]
fn a_tap_by_name_carries_everything_both_ways_and_stays_as_it_was() {
    if !network() {
        return;
    }
    let tap = Tap::new("t0", false, PREFIX);
    let before = tap.settings();
    let mut guest = Session::start(boot("tap=t0,mac=02:00:00:00:00:07"));
    assert!(guest.sh("ip link show eth0").contains("02:00:00:00:00:07"));
    assert_eq!(guest.sh("cat /sys/class/net/eth0/carrier"), "1");

    ping("-c 3 -w 60 10.0.0.2");
    guest.sh("ping -c 3 -w 60 10.0.0.1");
    ping("-c 1 -w 60 -s 20000 10.0.0.2");
    let bytes = stream_bytes();
    guest.upload(5001, bytes);
    guest.download(5002, bytes);
    a_file_by_nc(&mut guest);

    let rows = guest.sh("cat /sys/class/net/eth0/statistics/rx_errors /sys/class/net/eth0/statistics/tx_errors");
    assert_eq!(rows, "0\n0");
    assert_eq!(tap.settings(), before, "while husk runs");
    guest.end();
    assert_eq!(tap.settings(), before, "after husk has ended");
}

/// A file goes to the guest and back, by the tools that people use.
fn a_file_by_nc(guest: &mut Session) {
    let folder = tempfile::tempdir().unwrap();
    let (there, back) = (folder.path().join("there"), folder.path().join("back"));
    fs::write(&there, husk_guest::pattern::bytes(9, 4 << 20)).unwrap();
    // A pipe that never ends is nc's input where it has nothing to say: at an end it would hang up.
    guest.sh("mkfifo /p && (nc -l -p 7001 <>/p >/f; nc 10.0.0.1 7002 </f) >/dev/null 2>&1 &");
    let script = format!(
        "mkfifo {0}/p; nc -l -p 7002 <>{0}/p >{0}/back & until nc 10.0.0.2 7001 <{0}/there 2>/dev/null; do sleep 0.1; done; wait",
        folder.path().display()
    );
    assert!(Command::new("sh").args(["-c", &script]).status().unwrap().success());
    assert!(
        fs::read(back).unwrap() == fs::read(there).unwrap(),
        "the file has changed"
    );
}

#[test]
fn descriptors_from_another_network_carry_several_queues() {
    if !network() {
        return;
    }
    let tap = Tap::new("t0", true, PREFIX);
    let fds = [tap.open_inherited(), tap.open_inherited()];
    let net = format!("fd={}:{},mac=02:00:00:00:00:07", fds[0].as_raw_fd(), fds[1].as_raw_fd());
    let before = tap.settings();
    // husk is started where there is no such interface.
    let boot = thread::spawn(move || {
        own_network().unwrap();
        boot(&net).cpus(2).start()
    });
    let mut guest = Session(boot.join().unwrap());
    drop(fds);
    assert_eq!(guest.0.answer(), Answer::Listening);
    guest.sh(SET_UP);
    assert_eq!(guest.sh("/init net queues eth0"), "2 of 2");

    let bytes = stream_bytes() / 8;
    for port in 5001..5005 {
        guest.upload(port, bytes);
        guest.download(port + 100, bytes);
    }
    many_flows(&mut guest);
    let busy = busy_queues(&mut guest);
    assert_eq!(
        busy,
        ["virtio0-input.0", "virtio0-input.1"],
        "both queues have received"
    );

    // The host must not use a queue that the guest does not.
    assert_eq!(guest.sh("/init net queues eth0 1"), "1 of 2");
    guest.download(5201, bytes);
    many_flows(&mut guest);
    assert_eq!(guest.sh("/init net queues eth0 2"), "2 of 2");
    many_flows(&mut guest);
    guest.download(5202, bytes);
    assert_eq!(tap.settings(), before);
    guest.end();
}

/// Many small streams, each a flow of its own, so that no queue is spared.
fn many_flows(guest: &mut Session) {
    for port in 6000..6012 {
        guest.download(port, 4096);
    }
}

/// Names of the receive interrupts that came.
fn busy_queues(guest: &mut Session) -> Vec<String> {
    let table = guest.sh("grep virtio0-input /proc/interrupts");
    let busy = table.lines().filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let counts: Vec<u64> = words.by_ref().map_while(|word| word.parse().ok()).collect();
        let row = Interrupt {
            counts,
            name: line.split_ascii_whitespace().last()?.into(),
        };
        (row.counts.iter().sum::<u64>() > 0).then_some(row.name)
    });
    busy.collect()
}

#[test]
fn the_older_kernel_and_a_driver_that_comes_again_are_served() {
    if !network() {
        return;
    }
    a_driver_comes_again("tap=t0");
}

#[test]
fn without_offloads_everything_still_arrives() {
    if !network() {
        return;
    }
    let _tap = Tap::new("t0", false, PREFIX);
    let mut guest = Session::start(boot("tap=t0,csum=off"));
    assert!(
        guest.run("/init net offload eth0 tx on").0 != 0,
        "there is nothing to turn on"
    );
    guest.upload(5001, stream_bytes() / 4);
    guest.download(5002, stream_bytes() / 4);
    guest.end();

    let mut guest = Session::start(boot("tap=t0"));
    for offload in ["tso", "gso", "gro", "tx", "sg"] {
        assert_eq!(guest.sh(&format!("/init net offload eth0 {offload} off")), "off");
    }
    guest.upload(5003, stream_bytes() / 4);
    guest.download(5004, stream_bytes() / 4);
    for offload in ["sg", "tx", "tso", "gso", "gro"] {
        assert_eq!(guest.sh(&format!("/init net offload eth0 {offload} on")), "on");
    }
    guest.upload(5005, stream_bytes() / 4);
    guest.download(5006, stream_bytes() / 4);
    guest.end();
}

#[test]
fn a_guest_knows_the_mtu_and_uses_it() {
    if !network() {
        return;
    }
    let tap = Tap::new("t0", false, PREFIX);
    ip("link set t0 mtu 9000");
    let before = tap.settings();
    let mut guest = Session::start(boot("tap=t0,mtu=9000"));
    assert_eq!(guest.sh("cat /sys/class/net/eth0/mtu"), "9000");
    ping("-c 2 -w 60 -s 8972 10.0.0.2");
    guest.upload(5001, stream_bytes() / 4);
    guest.download(5002, stream_bytes() / 4);
    assert_eq!(tap.settings(), before);
    guest.end();
}

#[test]
fn a_tap_that_goes_away_takes_the_link_down_and_nothing_else() {
    if !network() {
        return;
    }
    let tap = Tap::new("t0", false, PREFIX);
    let other = Tap::new("t1", false, "10.0.1.1/24");
    let mut guest = Session::start(boot("tap=t0").arguments(["--net", "tap=t1"]));
    guest.sh("ip link set eth1 up && ip addr add 10.0.1.2/24 dev eth1");
    guest.sh("ping -c 1 -w 60 10.0.0.1");

    // An interface that is down is no reason to give up.
    ip("link set t0 down");
    assert_ne!(guest.run("ping -c 2 -w 2 10.0.0.1").0, 0);
    ip("link set t0 up");
    guest.sh("ping -c 1 -w 60 10.0.0.1");

    tap.remove();
    guest.sh("until [ $(cat /sys/class/net/eth0/carrier) = 0 ]; do sleep 0.1; done");
    assert_ne!(guest.run("ping -c 2 -w 2 10.0.0.1").0, 0);
    guest.sh("ping -c 2 -w 60 10.0.1.1");
    assert!(
        sleeps(guest.0.pid(), "io-net0"),
        "the thread of a tap that is gone has nothing to do"
    );
    guest.end();
    drop(other);
}

#[test]
fn a_rate_limiter_bounds_both_directions() {
    if !network() {
        return;
    }
    let _tap = Tap::new("t0", false, PREFIX);
    const PER_SECOND: u64 = 2_000_000;
    let mut guest = Session::start(boot(&format!("tap=t0,bandwidth={PER_SECOND}")));
    // A bucket is there at once, everything else at the rate. Nothing makes it faster; how much
    // slower a busy machine is does not matter.
    let bytes = 4 * PER_SECOND;
    for traffic in [guest.upload(5001, bytes), guest.download(5002, bytes)] {
        assert!(traffic.nanos > 2_500_000_000, "{traffic:?}");
    }
    guest.end();
}

#[test]
fn taps_that_cannot_be_had_are_named() {
    if !network() {
        return;
    }
    let _single = Tap::new("t0", false, PREFIX);
    let taken = Tap::new("t1", false, "10.0.1.1/24");
    let _held = taken.open();
    // What no interface can be called is known before anything is opened.
    for (net, code, expected) in [
        (
            "tap=t0,queues=2",
            1,
            "net t0: tap 't0' exists and is not a tap with several queues (`multi_queue`)",
        ),
        ("tap=t1", 1, "net t1: tap 't1' is in use"),
        ("tap=lo", 1, "net lo: tap 'lo' exists and is not a tap"),
        ("tap=a/b", 2, "net: tap 'a/b' is no name of an interface"),
        ("fd=0", 1, "descriptor 1 of 1 is not a tap"),
        ("fd=99", 1, "net: descriptor 99: Bad file descriptor"),
    ] {
        let ended = boot(net).run();
        ended.assert_code(code);
        assert!(ended.errors.contains(expected), "{net}: {}", ended.errors);
        assert_eq!(ended.errors.lines().count(), 1, "{}", ended.errors);
    }
}
