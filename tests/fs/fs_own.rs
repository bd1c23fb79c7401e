//! Folders that husk serves itself: without shared memory, several at once, read-only, coming and going while the guest runs.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::Call;
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::info::{PciDevice, State};
use husk_tests::pod::{Launch, PATIENCE, Pod};
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
    let start = Instant::now();
    while holds(pod.pid(), folder) {
        assert!(start.elapsed() < PATIENCE, "{} is held", folder.display());
        thread::sleep(Duration::from_millis(10));
    }
}

/// Mounts a share once the guest's driver has found it.
fn mount_when_there(agent: &mut Agent, tag: &str) {
    let start = Instant::now();
    let call = Call::Mount {
        source: tag.into(),
        target: format!("/{tag}"),
        kind: "virtiofs".into(),
    };
    while let Err(error) = agent.must(&call) {
        assert!(start.elapsed() < PATIENCE, "{error:#}");
        thread::sleep(Duration::from_millis(50));
    }
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
    let refused = pod
        .api()
        .put("vm.create", Some(&body))
        .unwrap()
        .failure(400)
        .unwrap()
        .join(": ");
    assert!(
        refused.contains(&format!("fs boot: dir {} does not exist", missing.display())),
        "{refused}"
    );
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

/// Who has a file on the host.
fn owner(path: impl AsRef<Path>) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

/// What a guest's user makes is another's on the host, and the other way round; nothing can be given to who has no number there.
#[test]
fn users_of_the_guest_are_others_on_the_host() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(100_000), Some(200_000)).unwrap();
    for (name, user, group) in [("known", 101_000, 200_000), ("strange", 7, 8)] {
        fs::write(shared.join(name), name).unwrap();
        chown(shared.join(name), Some(user), Some(group)).unwrap();
    }
    let mut pod = Pod::launch(shape(Shim::Rust, "6.12"), folder.path()).unwrap();
    let mut body = pod.shape().create(&pod.vsock());
    let share = |users: Value| json!([{"tag": "own", "dir": shared, "translate_uid": users, "translate_gid": [{"guest": 0, "host": 200_000, "count": 3000}]}]);
    for (users, expected) in [
        (
            json!([{"guest": 0, "host": 5, "count": 2}, {"guest": 1, "host": 9, "count": 1}]),
            "fs own: translate_uid map:1:9:1 meets map:0:5:2: a number may be mapped once on either side",
        ),
        (
            json!([{"guest": 0, "host": 5, "count": 0}]),
            "fs own: translate_uid map:0:5:0 maps no number",
        ),
    ] {
        body["fs"] = share(users);
        let refused = pod.api().put("vm.create", Some(&body)).unwrap().failure(400).unwrap();
        assert!(refused.join(": ").contains(expected), "{refused:?}");
    }
    body["fs"] = share(json!([{"guest": 0, "host": 100_000, "count": 2000}]));
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    let mut agent = pod.agent().unwrap().0;
    sh(&mut agent, "mkdir /own; mount -t virtiofs own /own");
    assert_eq!(
        sh(&mut agent, "cd /own; stat -c '%n %u %g' . known strange"),
        ". 0 0\nknown 1000 0\nstrange 65534 65534\n"
    );
    sh(
        &mut agent,
        "cd /own; echo root > root; mkdir d; ln -s root link; : > given; chown 1999:2999 given; chgrp 5 d",
    );
    assert_eq!(owner(shared.join("root")), (100_000, 200_000));
    assert_eq!(owner(shared.join("link")), (100_000, 200_000));
    assert_eq!(owner(shared.join("d")), (100_000, 200_005));
    assert_eq!(owner(shared.join("given")), (101_999, 202_999));
    assert_eq!(sh(&mut agent, "stat -c '%u %g' /own/given"), "1999 2999\n");
    let said = sh(
        &mut agent,
        "cd /own; chown 2000 root 2>&1 && exit 8; chown 0:3000 root 2>&1 && exit 8; chown root strange; stat -c %u strange",
    );
    assert_eq!(said.matches("Operation not permitted").count(), 2, "{said}");
    assert!(said.ends_with("\n0\n"), "{said}");
    assert_eq!(
        (owner(shared.join("root")), owner(shared.join("strange")).0),
        ((100_000, 200_000), 100_000)
    );
    pod.expect_state(State::Running).unwrap();
    assert!(pod.stop().unwrap().status.success());
}

/// A VMM of a user who may nothing but use KVM: his files are root's in the guest, who can give them to nobody.
#[test]
fn an_ordinary_users_files_are_roots_in_the_guest() {
    const USER: u32 = 54_321;
    const KVM_GROUP: u32 = 54_322;
    // As distributions do; root's tests beside this one do not mind.
    chown("/dev/kvm", Some(0), Some(KVM_GROUP)).unwrap();
    fs::set_permissions("/dev/kvm", fs::Permissions::from_mode(0o660)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("his"), "his\n").unwrap();
    fs::write(shared.join("roots"), "secret\n").unwrap();
    fs::set_permissions(shared.join("roots"), fs::Permissions::from_mode(0o600)).unwrap();
    for path in [folder.path(), &shared, &shared.join("his")] {
        chown(path, Some(USER), Some(KVM_GROUP)).unwrap();
    }
    let launch = Launch {
        user: Some((USER, KVM_GROUP)),
        ..Launch::default()
    };
    let mut pod = Pod::launch_with(shape(Shim::Rust, "6.12"), folder.path(), launch).unwrap();
    let mut body = pod.shape().create(&pod.vsock());
    let one = |host: u32| json!([{"guest": 0, "host": host, "count": 1}]);
    body["fs"] = json!([{"tag": "own", "dir": shared, "translate_uid": one(USER), "translate_gid": one(KVM_GROUP)}]);
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    pod.boot().unwrap();
    let mut agent = pod.agent().unwrap().0;
    let said = sh(
        &mut agent,
        "mkdir /own; mount -t virtiofs own /own; cd /own; stat -c '%n %u %g' . his roots
         echo more >> his; mkdir d; echo new > d/new; chown 0:0 d/new; stat -c '%u %g' d/new",
    );
    assert_eq!(said, ". 0 0\nhis 0 0\nroots 65534 65534\n0 0\n");
    let said = sh(
        &mut agent,
        "cd /own; (cat roots && exit 8) 2>&1; (chown 1 his && exit 8) 2>&1; true",
    );
    assert!(
        said.contains("Permission denied") && said.contains("not permitted"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(shared.join("his")).unwrap(), "his\nmore\n");
    assert_eq!(owner(shared.join("d/new")), (USER, KVM_GROUP));
    assert_eq!(owner(shared.join("roots")), (0, 0));
    assert!(pod.stop().unwrap().status.success());
}
