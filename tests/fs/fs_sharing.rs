//! Files that several look at: through mappings, with locks, from two guests, across mounts.

use std::fs;
use std::process::Command;

use husk_guest::{Call, Reply, pattern};
use husk_tests::api::Shim;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;

use crate::{Lab, guest, mount, sh, shape};

#[test]
fn a_shared_mapping_is_the_file_and_a_private_one_is_not() {
    let (lab, mut agent) = Lab::start();
    let bytes = 300_000_usize;
    let first = pattern::bytes(1, bytes);
    for share in lab.both() {
        let host = share.host.join("mapped");
        fs::write(&host, &first).unwrap();
        for (seed, shared) in [(2, false), (3, true)] {
            let call = Call::Map {
                path: format!("{}/mapped", share.guest),
                seed,
                bytes: bytes as u64,
                shared,
            };
            let expected = Reply::Data {
                bytes: bytes as u64,
                checksum: pattern::checksum(&first),
            };
            assert_eq!(agent.must(&call).unwrap(), expected, "shared: {shared}");
            let now = fs::read(&host).unwrap();
            assert!(
                now == if shared {
                    pattern::bytes(seed, bytes)
                } else {
                    first.clone()
                }
            );
        }
    }
    lab.end();
}

#[test]
fn names_and_locks_hold_in_a_storm() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 40;
    let (lab, mut agent) = Lab::start();
    for share in lab.both() {
        let call = Call::Storm {
            path: format!("{}/", share.guest),
            threads: THREADS,
            rounds: ROUNDS,
        };
        let text = (THREADS * ROUNDS).to_string();
        assert_eq!(agent.must(&call).unwrap(), Reply::Text { text: text.clone() });
        assert_eq!(fs::read_to_string(share.host.join("counter")).unwrap(), text);
        let mut names: Vec<_> = fs::read_dir(&share.host)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        assert_eq!(names, ["counter", "record"]);
    }
    lab.end();
}

#[test]
fn two_guests_share_a_folder() {
    let (lab, mut agent) = Lab::start();
    let folder = tempfile::tempdir().unwrap();
    let second = FileServer::start(&lab.host(""), &folder.path().join("virtiofsd.sock")).unwrap();
    let mut other = shape(Shim::Rust, "6.12");
    other.share = Some(second.socket().into());
    let mut other = Pod::launch(other, folder.path()).unwrap();
    let mut their_agent = other.start().unwrap();
    mount(&mut their_agent).unwrap();
    for seed in 1..=5 {
        let path = guest(&format!("file{seed}"));
        let (from, to) = if seed % 2 == 0 {
            (&mut agent, &mut their_agent)
        } else {
            (&mut their_agent, &mut agent)
        };
        let bytes = 40_000 * seed;
        let stored = from
            .must(&Call::Store {
                path: path.clone(),
                seed,
                bytes,
            })
            .unwrap();
        assert_eq!(to.must(&Call::Sum { path }).unwrap(), stored);
    }
    assert!(other.stop().unwrap().status.success());
    second.ended().unwrap();
    // The first guest has noticed nothing.
    assert_eq!(sh(&mut agent, "ls /share | wc -l"), "5\n");
    lab.end();
}

/// A file system that the host has mounted below the share, and takes away when dropped.
struct SubMount(std::path::PathBuf);

impl Drop for SubMount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
fn a_mount_below_the_share_is_a_mount_in_the_guest() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    let below = shared.join("below");
    fs::create_dir_all(&below).unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&below)
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        println!("skipped: needs mounts");
        return;
    }
    let _mount = SubMount(below.clone());
    fs::write(below.join("file"), "here\n").unwrap();
    let server = FileServer::start(&shared, &folder.path().join("virtiofsd.sock")).unwrap();
    let mut shape = shape(Shim::Rust, "6.12");
    shape.share = Some(server.socket().into());
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let mut agent = pod.start().unwrap();
    mount(&mut agent).unwrap();
    assert_eq!(sh(&mut agent, "cat /share/below/file"), "here\n");
    let devices = sh(&mut agent, "stat -c %d /share /share/below/file");
    let devices: Vec<_> = devices.lines().collect();
    assert!(devices.len() == 2 && devices[0] != devices[1], "{devices:?}");
    let mounts = sh(&mut agent, "grep -c ' /share' /proc/mounts");
    assert_eq!(mounts, "2\n");
    assert!(pod.stop().unwrap().status.success());
    server.ended().unwrap();
}
