//! Many files, small files, a large file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use husk_guest::tree::{self, Depth, Plan};
use husk_guest::{Call, Reply, pattern};
use husk_tests::api::Shim;

use crate::{Lab, amount, guest, sh, survey};

const GIB: u64 = 1 << 30;

/// Unpacks a tree of sources in the guest, builds something of it, and finds the same on the host.
fn a_tree_is_unpacked_and_built(shim: Shim, kernel: &str, files: u64) {
    let (lab, mut agent) = Lab::start_as(shim, kernel);
    let plan = Plan {
        seed: 1,
        files,
        per_folder: 50,
        empty: false,
    };
    // Sources come from the host as an archive, as a container's do.
    agent
        .must(&Call::Plant {
            path: "/tmp/src".into(),
            plan,
        })
        .unwrap();
    sh(&mut agent, "tar -cf /share/src.tar -C /tmp src");
    let planted = tree::survey(&lab.host(""), Depth::Names).unwrap();
    assert_eq!(planted.entries, 1, "the archive alone");
    sh(&mut agent, "mkdir /share/work && tar -xf /share/src.tar -C /share/work");
    let unpacked = survey(&lab, &mut agent, "work/src", Depth::Contents);
    assert!(unpacked.entries > files && unpacked.bytes > 0);
    let reply = agent
        .must(&Call::Survey {
            path: "/tmp/src".into(),
            depth: Depth::Contents,
        })
        .unwrap();
    assert_eq!(reply, Reply::Surveyed { survey: unpacked });
    // An object for each folder, made of its sources, and one image of all objects.
    sh(
        &mut agent,
        "cd /share/work/src
         for unit in */*; do cat $unit/*.c | gzip -1 > $unit/all.o; done
         cat */*/all.o > ../image
         find . -type f | sort | xargs sha256sum > ../sums",
    );
    survey(&lab, &mut agent, "work", Depth::Contents);
    assert_eq!(
        sh(
            &mut agent,
            "cd /share/work/src && sha256sum -c ../sums | grep -vc ': OK$' || true"
        ),
        "0\n"
    );
    sh(&mut agent, "rm -r /share/work /share/src.tar");
    assert_eq!(fs::read_dir(lab.host("")).unwrap().count(), 0);
    lab.end();
}

#[test]
fn a_source_tree_is_unpacked_built_and_the_same_on_both_sides() {
    a_tree_is_unpacked_and_built(Shim::Rust, "6.12", amount("HUSK_TEST_TREE_FILES", 500));
}

#[test]
fn the_older_kernel_and_the_go_shim_do_the_same() {
    a_tree_is_unpacked_and_built(Shim::Go, "6.1", 150);
}

#[test]
fn a_hundred_thousand_files_are_found() {
    let (lab, mut agent) = Lab::start();
    let plan = |files, per_folder| Plan {
        seed: 2,
        files,
        per_folder,
        empty: true,
    };
    let files = amount("HUSK_TEST_SMALL_FILES", 100_000);
    tree::plant(&lab.host("many"), &plan(files, 1000)).unwrap();
    let found = survey(&lab, &mut agent, "many", Depth::Names);
    assert!(found.entries > files, "{found:?}");
    let one_folder = survey(&lab, &mut agent, "many/part0/unit1", Depth::Contents);
    assert_eq!(one_folder.entries, 1000);
    // One folder of a thousand goes, from the guest, and some come.
    sh(&mut agent, "rm -r /share/many/part0/unit0");
    assert!(!lab.host("many/part0/unit0").exists());
    agent
        .must(&Call::Plant {
            path: guest("many/new"),
            plan: plan(300, 30),
        })
        .unwrap();
    assert_eq!(survey(&lab, &mut agent, "many/new", Depth::Contents).entries, 311);
    lab.end();
}

#[test]
fn a_file_goes_on_beyond_4_gib() {
    let (lab, mut agent) = Lab::start();
    let host = pattern::bytes(5, 1 << 20);
    sh(&mut agent, "truncate -s 6G /share/large");
    let file = File::options().read(true).write(true).open(lab.host("large")).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 6 * GIB);
    file.write_all_at(&host, 4 * GIB + GIB / 2).unwrap();
    // 4608 MiB is 4.5 GiB.
    sh(
        &mut agent,
        "dd if=/share/large of=/share/piece bs=1M skip=4608 count=1
         dd if=/share/piece of=/share/large bs=1M seek=5632 conv=notrunc,fsync",
    );
    let mut found = vec![0; host.len()];
    file.read_exact_at(&mut found, 5632 << 20).unwrap();
    assert!(found == host, "what the guest copied within the file");
    let sum = agent.must(&Call::Sum { path: guest("piece") }).unwrap();
    assert_eq!(
        sum,
        Reply::Data {
            bytes: 1 << 20,
            checksum: pattern::checksum(&host)
        }
    );
    lab.end();
}
