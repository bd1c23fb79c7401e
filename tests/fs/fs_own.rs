//! Folders that husk serves itself: without shared memory, several at once, read-only, coming and
//! going while the guest runs.

use std::fs;
use std::path::Path;

use husk_guest::Call;
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::info::{PciDevice, State};
use husk_tests::pod::Pod;
use husk_tests::{found, until};
use serde_json::{Value, json};

use crate::{a_tree_from_each_processor, sh, shape};

/// Whether the VMM has a descriptor of something in `folder`.
fn holds(pid: u32, folder: &Path) -> bool {
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let mut links = descriptors.filter_map(|entry| fs::read_link(entry.unwrap().path()).ok());
    links.any(|link| link.starts_with(folder))
}

/// Waits until the VMM has let go of a folder that it served.
fn wait_until_let_go(pod: &mut Pod, folder: &Path) {
    until(|| !holds(pod.pid(), folder));
}

/// Mounts a share once the guest's driver has found it.
fn mount_when_there(agent: &mut Agent, tag: &str) {
    let call = Call::Mount {
        source: tag.into(),
        target: format!("/{tag}"),
        kind: "virtiofs".into(),
    };
    found(|| agent.must(&call));
}

#[test]
fn folders_come_and_go_in_a_vm_whose_memory_nobody_shares() {
    let folder = tempfile::tempdir().unwrap();
    let [boot, late, fixed] = ["boot", "late", "fixed"].map(|name| folder.path().join(name));
    for path in [&boot, &late, &fixed] {
        fs::create_dir(path).unwrap();
        fs::write(path.join("hello"), path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    let mut shape = shape(Shim::Rust, "6.12");
    shape.vcpus = 2;
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let mut body = pod.shape().create(&pod.vsock());
    body["memory"]["shared"] = json!(false);
    let missing = folder.path().join("missing");
    body["fs"] = json!([{"tag": "boot", "dir": missing}]);
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    let refused = pod.api().put("vm.boot", None).unwrap().failure(400).unwrap().join(": ");
    let says = format!("fs boot: cannot open the directory {}", missing.display());
    assert!(refused.contains(&says), "{refused}");
    pod.api().put("vm.delete", None).unwrap().done().unwrap();
    body["fs"] = json!([{"tag": "boot", "dir": boot, "num_queues": 2}]);
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    let mut agent = pod.agent().unwrap().0;
    sh(&mut agent, "mkdir /boot /late /fixed; mount -t virtiofs boot /boot");
    // Both processors at once: each has a queue where the kernel has one for each.
    a_tree_from_each_processor(&mut agent, "/boot", &boot, 24);
    // Two more come.
    let add = |pod: &mut Pod, tag: &str, dir: &Path, readonly: bool| -> PciDevice {
        let body = json!({"tag": tag, "dir": dir, "readonly": readonly});
        pod.api().put("vm.add-fs", Some(&body)).unwrap().json().unwrap()
    };
    let first = add(&mut pod, "late", &late, false);
    add(&mut pod, "fixed", &fixed, true);
    let mount =
        "for n in late fixed; do until mount -t virtiofs $n /$n 2> /dev/null; do sleep 0.05; done; cat /$n/hello; done";
    assert_eq!(sh(&mut agent, mount), "latefixed");
    let script = "for n in late fixed; do echo new > /$n/new && echo yes || echo no; rm /$n/hello && echo yes || echo no; done 2>&1";
    let said = sh(&mut agent, script);
    let (written, refused) = said.split_at(8);
    assert_eq!(written, "yes\nyes\n");
    assert_eq!(refused.matches("Read-only file system").count(), 2, "{refused}");
    let names = |path: &Path| {
        let mut names: Vec<_> = fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        names.sort();
        names
    };
    assert_eq!(
        (names(&late), names(&fixed)),
        (vec!["new".into()], vec!["hello".into()])
    );
    // One goes, while the others serve, and comes again under the same tag.
    assert!(holds(pod.pid(), &late));
    sh(&mut agent, "umount /late");
    pod.remove(&first).unwrap();
    wait_until_let_go(&mut pod, &late);
    add(&mut pod, "late", &late, true);
    mount_when_there(&mut agent, "late");
    let said = sh(&mut agent, "cat /late/new /fixed/hello /boot/hello");
    assert_eq!(said, "new\nfixedboot");
    pod.expect_state(State::Running).unwrap();
    let counters: Value = pod.api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["failures"], 0, "{counters}");
    assert_eq!(counters["_fs0"]["malformed_chains"], 0, "{counters}");
    assert!(pod.stop().unwrap().status.success());
}
