//! Servers that are absent, that die, that talk nonsense, and one that comes while the guest runs.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use husk_guest::{Call, Reply};
use husk_tests::api::Shim;
use husk_tests::body::SHARE;
use husk_tests::info::{PciDevice, State};
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;
use serde_json::{Value, json};

use crate::served::{SERVERS, Served};
use crate::{Lab, mount, sh, shape};

/// When a late socket appears: well within the second that husk waits for one.
const LATE: Duration = Duration::from_millis(200);

/// What is left of a share when its server was killed: errors, and a VM that goes on.
#[test]
fn a_server_that_is_killed_takes_its_share_only() {
    let (lab, mut agent) = Lab::start();
    let Lab {
        mut pod,
        server,
        folder,
    } = lab;
    fs::write(folder.path().join("shared/before"), "before\n").unwrap();
    assert_eq!(sh(&mut agent, "cat /share/before"), "before\n");
    server.kill().unwrap();
    // Another connection asks the share, and might have to wait for ever.
    let mut asker = pod.one_more().unwrap();
    let asked = thread::spawn(move || asker.ask(&Call::run(&["cat", "/share/after"])));
    assert_eq!(sh(&mut agent, "echo alive"), "alive\n");
    pod.expect_state(State::Running).unwrap();
    let disk = folder.path().join("disk");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    let device = pod.add_disk(&disk).unwrap();
    agent.must(&Call::DiskAt { bdf: device.bdf }).unwrap();
    let reply = asked.join().unwrap().unwrap();
    assert!(matches!(reply, Reply::Ran { code: 1, .. }), "{reply:?}");
    let counters: Value = pod.api().get("vm.counters").unwrap().json().unwrap();
    assert_eq!(counters["_fs0"]["backend_failures"], 1, "{counters}");
    assert!(pod.stop().unwrap().status.success());
}

/// Lines that are written before anything happens.
const LINES: usize = 20;

/// Writers on three shares, two of which lose their servers in the middle of it: what was
/// acknowledged is there, what comes then is refused, and who starts the device anew has a share
/// again. The third one's writer notices nothing.
#[test]
fn servers_that_are_killed_under_load_lose_nothing_that_was_acknowledged_and_others_take_their_place() {
    let (mut served, mut agent) = Served::start("6.12", 1);
    let writers = SERVERS.map(|server| {
        let mut writer = served.one_more();
        let script = format!(
            "i=0; while [ ! -e /tmp/enough ] && echo $((i+1)) >> /{server}/lines; do i=$((i+1)); done; echo $i"
        );
        thread::spawn(move || writer.must(&Call::run(&["sh", "-c", &script])).unwrap())
    });
    let files = SERVERS.map(|server| served.host(server).join("lines"));
    let lines = |server: usize| fs::read_to_string(&files[server]).unwrap_or_default();
    let wait_for = |server: usize, count: usize| {
        let start = std::time::Instant::now();
        while lines(server).lines().count() < count {
            assert!(
                start.elapsed() < husk_tests::pod::PATIENCE,
                "{} does not go on",
                SERVERS[server]
            );
            thread::sleep(Duration::from_millis(10));
        }
    };
    (0..SERVERS.len()).for_each(|server| wait_for(server, LINES));
    served.kill_daemons();
    wait_for(0, lines(0).lines().count() + LINES);
    sh(&mut agent, "echo > /tmp/enough");
    for (server, writer) in writers.into_iter().enumerate() {
        let Reply::Ran {
            code: 0,
            stdout,
            stderr,
        } = writer.join().unwrap()
        else {
            panic!("{}", SERVERS[server])
        };
        assert_eq!(
            stderr.contains("not connected"),
            server != 0,
            "{}: {stderr}",
            SERVERS[server]
        );
        // The last one may have been written without anybody left to say so.
        let acknowledged: u64 = stdout.trim().parse().unwrap();
        let text = |last: u64| (1..=last).map(|line| format!("{line}\n")).collect::<String>();
        let found = lines(server);
        let also = if server == 0 { acknowledged } else { acknowledged + 1 };
        assert!(
            [acknowledged, also].iter().any(|last| found == text(*last)),
            "{}: {acknowledged} were acknowledged: {found}",
            SERVERS[server]
        );
    }
    served.serve_again();
    for server in &SERVERS[1..] {
        let reply = agent.ask(&Call::run(&["cat", &format!("/{server}/lines")])).unwrap();
        assert!(matches!(reply, Reply::Ran { code: 1, .. }), "{server}: {reply:?}");
        let said = sh(
            &mut agent,
            &format!(
                "umount /{server}
                 for share in /sys/fs/virtiofs/*; do
                   [ $(cat $share/tag) != {server} ] || device=$(basename $(realpath $share/device))
                 done
                 for what in unbind bind; do echo $device > /sys/bus/virtio/drivers/virtiofs/$what; done
                 mount -t virtiofs {server} /{server}
                 head -n 2 /{server}/lines; echo again > /{server}/again"
            ),
        );
        assert_eq!(said, "1\n2\n", "{server}");
        assert_eq!(
            fs::read_to_string(served.host(server).join("again")).unwrap(),
            "again\n"
        );
    }
    let counters: Value = served.pod().api().get("vm.counters").unwrap().json().unwrap();
    for device in ["_fs1", "_fs2"] {
        let found = ["connects", "starts", "backend_failures"].map(|what| counters[device][what].as_u64());
        assert_eq!(found, [Some(2), Some(2), Some(1)], "{device}: {counters}");
    }
    served.end();
}

/// A pod whose server is not what it should be: refused with words about the socket, and the VMM ends in order.
fn is_refused(folder: &tempfile::TempDir, words: &str) {
    let mut shape = shape(Shim::Rust, "6.12");
    let socket = folder.path().join("virtiofsd.sock");
    shape.share = Some(socket.clone());
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    let body = pod.shape().create(&pod.vsock());
    pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
    let causes = pod.api().put("vm.boot", None).unwrap().failure(400).unwrap().join(": ");
    let name = socket.display().to_string();
    assert!(causes.contains(&name) && causes.contains(words), "{causes}");
    assert!(pod.stop().unwrap().status.success());
}

#[test]
fn an_absent_server_is_named() {
    is_refused(&tempfile::tempdir().unwrap(), "No such file");
}

/// `vm.create` is answered before there is a socket, `vm.boot` waits until there is one.
#[test]
fn a_socket_that_appears_while_the_vm_is_built_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "here\n").unwrap();
    // A server that is ready costs no time when it appears, however slow this host is.
    let early = folder.path().join("early.sock");
    let server = FileServer::start(&shared, &early).unwrap();
    let socket = folder.path().join("virtiofsd.sock");
    let mut shape = shape(Shim::Rust, "6.12");
    shape.share = Some(socket.clone());
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    pod.create().unwrap();
    assert!(!socket.exists());
    let late = thread::spawn(move || {
        thread::sleep(LATE);
        fs::rename(early, socket).unwrap();
    });
    pod.boot().unwrap();
    late.join().unwrap();
    let mut agent = pod.agent().unwrap().0;
    mount(&mut agent).unwrap();
    assert_eq!(sh(&mut agent, "cat /share/file"), "here\n");
    assert!(pod.stop().unwrap().status.success());
    server.ended().unwrap();
}

#[test]
fn a_server_that_talks_nonsense_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("virtiofsd.sock")).unwrap();
    let nonsense = thread::spawn(move || {
        let (mut client, _) = listener.accept().unwrap();
        let mut question = [0; 12];
        client.read_exact(&mut question).unwrap();
        // Whoever hangs up first.
        let _ = client.write_all(&[0x5a; 4096]);
    });
    is_refused(&folder, "");
    nonsense.join().unwrap();
}

#[test]
fn a_share_comes_while_the_guest_runs() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let mut pod = Pod::launch(shape(Shim::Rust, "6.12"), folder.path()).unwrap();
    let mut agent = pod.start().unwrap();
    let server = FileServer::start(&shared, &folder.path().join("virtiofsd.sock")).unwrap();
    let body = json!({"tag": SHARE, "socket": server.socket(), "num_queues": 1, "queue_size": 1024, "id": "share"});
    let device: PciDevice = pod.api().put("vm.add-fs", Some(&body)).unwrap().json().unwrap();
    assert!(device.is_on_bus_0(), "{device:?}");
    // The driver binds when the guest has scanned the slot.
    let start = std::time::Instant::now();
    while let Err(error) = mount(&mut agent) {
        assert!(start.elapsed() < husk_tests::pod::PATIENCE, "{error:#}");
        thread::sleep(Duration::from_millis(50));
    }
    sh(&mut agent, "echo from the guest > /share/file");
    assert_eq!(fs::read_to_string(shared.join("file")).unwrap(), "from the guest\n");
    // And it goes again.
    sh(&mut agent, "umount /share");
    pod.remove(&device).unwrap();
    agent.must(&Call::Gone { bdf: device.bdf }).unwrap();
    server.ended().unwrap();
    assert!(pod.stop().unwrap().status.success());
}
