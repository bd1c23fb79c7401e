//! husk's own file server in virtiofsd's place.

use std::fs;
use std::process::Command;

use husk_guest::{Call, Reply};
use husk_tests::api::Shim;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;
use serde_json::{Value, json};

use crate::{MOUNT, Mounted, a_tree_from_each_processor, guest, mount, sh, shape};

const QUEUES: usize = 2;

/// One boot for all of it: what the others ask of virtiofsd is asked here of husk.
#[test]
fn husk_serves_what_virtiofsd_does_from_two_queues_and_over_a_pause() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    // As systemd and a shim have it: what is mounted later is passed on to namespaces that were there before.
    let _shared = Mounted::new(&["--bind", shared.to_str().unwrap()], &shared);
    let passed_on = Command::new("mount").arg("--make-shared").arg(&shared).status();
    assert!(passed_on.unwrap().success());
    let socket = folder.path().join("virtiofsd.sock");
    let server = FileServer::start_husk(Shim::Rust, &shared, &socket, &[]).unwrap();
    let mut shape = shape(Shim::Rust, "6.12");
    shape.share = Some(socket);
    shape.vcpus = 2;
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let mut body = pod.shape().create(&pod.vsock());
    body["fs"][0]["num_queues"] = json!(QUEUES);
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    let mut agent = pod.agent().unwrap().0;
    mount(&mut agent).unwrap();

    a_tree_from_each_processor(&mut agent, MOUNT, &shared, 100);
    sh(&mut agent, "rm -r /share/one /share/two");

    // Locks that are waited for, and renames, by several at once.
    let (threads, rounds) = (4, 25);
    let path = guest("");
    let stormed = agent.must(&Call::Storm { path, threads, rounds }).unwrap();
    let text = (threads * rounds).to_string();
    assert_eq!(stormed, Reply::Text { text: text.clone() });
    assert_eq!(fs::read_to_string(shared.join("counter")).unwrap(), text);

    // Locks are the guest's own: who waits for one can be killed.
    sh(
        &mut agent,
        "cd /share; touch locked; /init files lock locked /has & while [ ! -e /has ]; do sleep 0.05; done
         timeout -s KILL 1 /init files lock locked /had && exit 1
         [ ! -e /had ]; rm /has locked; wait",
    );

    // A mount that comes on the host while the share is in use, as a container's root does.
    let below = shared.join("below");
    fs::create_dir(&below).unwrap();
    let root = Mounted::new(&["-t", "tmpfs", "tmpfs"], &below);
    fs::write(below.join("file"), "here\n").unwrap();
    let seen = sh(
        &mut agent,
        "cat /share/below/file; grep -c ' /share' /proc/mounts; umount /share/below",
    );
    assert_eq!(seen, "here\n2\n");
    drop(root);

    pod.api().put("vm.pause", None).unwrap().done().unwrap();
    fs::write(shared.join("meanwhile"), "written\n").unwrap();
    pod.api().put("vm.resume", None).unwrap().done().unwrap();
    assert_eq!(sh(&mut agent, "cat /share/meanwhile"), "written\n");
    let counters: Value = pod.api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["backend_failures"], 0, "{counters}");
    assert!(pod.stop().unwrap().status.success());
    server.ended().unwrap();
}
