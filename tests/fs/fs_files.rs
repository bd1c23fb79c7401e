//! Many files, small files, a large file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use husk_guest::tree::{self, Depth, Plan};
use husk_guest::{Call, Reply, pattern};
use husk_tests::api::Shim;

use crate::{Lab, amount, sh};

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
    let mut found = Vec::new();
    for share in lab.both() {
        let at = share.guest;
        sh(&mut agent, &format!("tar -cf {at}/src.tar -C /tmp src"));
        let planted = tree::survey(&share.host, Depth::Names).unwrap();
        assert_eq!(planted.entries, 1, "the archive alone");
        sh(
            &mut agent,
            &format!("mkdir {at}/work && tar -xf {at}/src.tar -C {at}/work"),
        );
        let unpacked = share.survey(&mut agent, "work/src", Depth::Contents);
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
            &format!(
                "cd {at}/work/src
                 for unit in */*; do cat $unit/*.c | gzip -n -1 > $unit/all.o; done
                 cat */*/all.o > ../image
                 find . -type f | sort | xargs sha256sum > ../sums"
            ),
        );
        found.push(share.survey(&mut agent, "work", Depth::Contents));
        assert_eq!(
            sh(
                &mut agent,
                &format!("cd {at}/work/src && sha256sum -c ../sums | grep -vc ': OK$' || true")
            ),
            "0\n"
        );
        sh(&mut agent, &format!("rm -r {at}/work {at}/src.tar"));
        assert_eq!(fs::read_dir(&share.host).unwrap().count(), 0);
    }
    assert_eq!(found[0], found[1], "whoever serves them");
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
    // A tenth of them where both are asked.
    for (share, files) in lab.both().into_iter().zip([files / 10, files]) {
        tree::plant(&share.host.join("many"), &plan(files, 1000)).unwrap();
        let found = share.survey(&mut agent, "many", Depth::Names);
        assert!(found.entries > files, "{found:?}");
        let one_folder = share.survey(&mut agent, "many/part0/unit1", Depth::Contents);
        assert_eq!(one_folder.entries, 1000);
        // One folder of a thousand goes, from the guest, and some come.
        sh(&mut agent, &format!("rm -r {}/many/part0/unit0", share.guest));
        assert!(!share.host.join("many/part0/unit0").exists());
        agent
            .must(&Call::Plant {
                path: format!("{}/many/new", share.guest),
                plan: plan(300, 30),
            })
            .unwrap();
        assert_eq!(share.survey(&mut agent, "many/new", Depth::Contents).entries, 311);
    }
    lab.end();
}

#[test]
fn a_file_goes_on_beyond_4_gib() {
    let (lab, mut agent) = Lab::start();
    let host = pattern::bytes(5, 1 << 20);
    for share in lab.both() {
        let at = share.guest;
        sh(&mut agent, &format!("truncate -s 6G {at}/large"));
        let large = share.host.join("large");
        let file = File::options().read(true).write(true).open(large).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 6 * GIB);
        file.write_all_at(&host, 4 * GIB + GIB / 2).unwrap();
        // 4608 MiB is 4.5 GiB.
        sh(
            &mut agent,
            &format!(
                "dd if={at}/large of={at}/piece bs=1M skip=4608 count=1
                 dd if={at}/piece of={at}/large bs=1M seek=5632 conv=notrunc,fsync"
            ),
        );
        let mut found = vec![0; host.len()];
        file.read_exact_at(&mut found, 5632 << 20).unwrap();
        assert!(found == host, "what the guest copied within the file");
        let path = format!("{at}/piece");
        let sum = agent.must(&Call::Sum { path }).unwrap();
        assert_eq!(
            sum,
            Reply::Data {
                bytes: 1 << 20,
                checksum: pattern::checksum(&host)
            }
        );
    }
    lab.end();
}
