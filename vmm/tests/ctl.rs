//! `husk ctl` against the process that it asks: what it prints, and its exit codes. Tests with a guest need `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use process::{HUSK, Husk};
use serde_json::{Value, json};

/// What `husk ctl SOCKET ARGS` ends with and prints: standard output, or the one line on standard error.
fn ctl(socket: &Path, args: &[&str]) -> (i32, String) {
    let mut command = Command::new(HUSK);
    command.arg("ctl").arg(socket).args(args).stdin(Stdio::null());
    let output = command.output().unwrap();
    let (out, err) = (output.stdout, String::from_utf8(output.stderr).unwrap());
    let code = output.status.code().unwrap();
    if code == 0 {
        assert_eq!(err, "", "{args:?}");
        return (code, String::from_utf8(out).unwrap());
    }
    assert_eq!((err.lines().count(), out.len()), (1, 0), "{args:?}: {err}");
    (code, err.trim_end().to_owned())
}

fn ok(husk: &Husk, args: &[&str]) -> String {
    let (code, text) = ctl(&husk.socket(), args);
    assert_eq!(code, 0, "{args:?}: {text}");
    text
}

fn refused(husk: &Husk, args: &[&str]) -> String {
    let (code, line) = ctl(&husk.socket(), args);
    assert_eq!(code, 1, "{args:?}: {line}");
    line
}

fn json_of(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// A husk with a VM; with a guest of a few instructions, where that can run.
fn husk(boots: bool) -> Option<Husk> {
    if boots && !process::has_kvm() {
        return None;
    }
    let husk = Husk::start(&[]);
    let kernel = husk.folder.path().join("vmlinux");
    fs::write(
        &kernel,
        husk_benches::elf_of(&husk_benches::code(husk_benches::GuestAction::Halt)),
    )
    .unwrap();
    let vm = json!({
        "cpus": {"boot_vcpus": 1, "max_vcpus": 4},
        "memory": {"size": 64 << 20},
        "payload": {"kernel": kernel},
        "serial": {"mode": "Off"},
        "console": {"mode": "Off"},
    });
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm)).0, 204);
    if boots {
        assert_eq!(client.put("vm.boot", None).0, 204);
    }
    Some(husk)
}

/// A `config.json` with these resources.
fn config(husk: &Husk, resources: &Value) -> String {
    let path = husk.folder.path().join("config.json");
    fs::write(&path, json!({"linux": {"resources": resources}}).to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_vm_is_shown_to_people_and_to_programs() {
    let husk = husk(false).unwrap();
    assert!(ok(&husk, &["ping"]).starts_with("version  husk v"));
    assert_eq!(json_of(&ok(&husk, &["ping", "--json"]))["pid"], husk.child.id());
    let info = ok(&husk, &["info"]);
    assert!(info.starts_with("state   Created\nvcpus   1 present, "), "{info}");
    assert!(info.contains("memory  64 MiB present"), "{info}");
    assert_eq!(json_of(&ok(&husk, &["--json", "info"]))["state"], "Created");
    assert_eq!(
        json_of(&ok(&husk, &["container", "list", "--json"]))["containers"],
        json!({})
    );
}

#[test]
fn a_vm_is_configured_and_forgotten() {
    let mut husk = Husk::start(&[]);
    let path = |name: &str| husk.folder.path().join(name).to_str().unwrap().to_owned();
    let (file, disk) = (path("vm.json"), path("disk"));
    fs::write(&file, r#"{"payload": {"kernel": "/nowhere/vmlinux"}}"#).unwrap();
    fs::write(&disk, [0; 4096]).unwrap();
    assert_eq!(ok(&husk, &["create", &file]), "");
    assert_eq!(
        ok(&husk, &["add-disk", &format!("path={disk},readonly=on,id=data")]),
        ""
    );
    let info = json_of(&ok(&husk, &["--json", "info"]));
    let found = &info["config"]["disks"][0];
    assert_eq!(
        (&found["id"], &found["path"], &found["readonly"]),
        (&json!("data"), &json!(disk), &json!(true))
    );
    assert_eq!(
        ok(&husk, &["add-vsock", &format!("cid=3,socket={}", path("vsock"))]),
        ""
    );
    assert_eq!(ok(&husk, &["remove", "data"]), "");
    assert!(refused(&husk, &["remove", "data"]).contains("vm.remove-device was refused (404)"));
    assert!(refused(&husk, &["create", &file]).contains("there is a VM already"));
    assert!(refused(&husk, &["boot"]).contains(process::refusal("kernel /nowhere/vmlinux")));
    for command in ["reboot", "power-button"] {
        assert!(refused(&husk, &[command]).starts_with(&format!("error: vm.{command} was refused (409)")));
    }
    assert_eq!(ok(&husk, &["delete"]), "");
    assert!(refused(&husk, &["info"]).contains("(404)"));
    assert_eq!(husk.shut_down().code(), Some(0));
}

/// One rule for all commands: what is wrong on the command line or in a file is exit code 2 and
/// names the command's own help, and a file that cannot be read is a failure, exit code 1.
#[test]
fn what_cannot_be_asked_is_refused_before_anybody_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (bad, gone, fifo, endless) = (path("bad.json"), path("gone.json"), path("fifo"), path("loop"));
    fs::write(&bad, "{").unwrap();
    process::make_fifo(Path::new(&fifo));
    std::os::unix::fs::symlink(&endless, &endless).unwrap();
    let here = path("");
    for (command, args, code, says) in [
        (
            "create",
            &["create", &gone][..],
            1,
            "gone.json: cannot be read: No such file",
        ),
        (
            "create",
            &["create", &endless],
            1,
            "loop: cannot be read: Too many levels",
        ),
        ("create", &["create", &here], 2, "is no regular file"),
        ("create", &["create", &fifo], 2, "fifo: is no regular file"),
        ("create", &["create", "/dev/zero"], 2, "/dev/zero: is no regular file"),
        ("create", &["create", &bad], 2, "bad.json: is no JSON: EOF"),
        ("create", &["create"], 2, "<FILE>"),
        (
            "container add",
            &["container", "add", "a", &gone],
            1,
            "gone.json: cannot be read: No such file",
        ),
        (
            "container add",
            &["container", "add", "a", &endless],
            1,
            "loop: cannot be read: Too many levels",
        ),
        (
            "container update",
            &["container", "update", "a", &fifo],
            2,
            "fifo: is no regular file",
        ),
        (
            "container update",
            &["container", "update", "a", &bad],
            2,
            "is no OCI configuration: EOF",
        ),
        (
            "container remove",
            &["container", "remove", "a/b"],
            2,
            "allowed: up to 255 letters",
        ),
        (
            "metrics",
            &["metrics", "--json"],
            2,
            "--json: there is nothing to print",
        ),
        ("pause", &["--json", "pause"], 2, "--json: there is nothing to print"),
        ("add-net", &["add-net", "fd=3"], 2, "allowed: tap=NAME"),
        ("add-disk", &["add-disk", "path=/d,colour=red"], 2, "colour"),
        ("remove", &["remove"], 2, "<ID>"),
        (
            "resize",
            &["resize", "--vcpus", "0"],
            2,
            "allowed: a whole number from 1",
        ),
        ("log-level", &["log-level", "loud"], 2, "possible values: error"),
        (
            "events",
            &["events", "--timeout", "0"],
            2,
            "allowed: a number of seconds above 0",
        ),
        ("ping", &["ping"], 1, "cannot connect to /nowhere.sock: No such file"),
        (
            "events",
            &["events"],
            1,
            "cannot connect to /nowhere.sock: No such file",
        ),
    ] {
        let (found, line) = ctl(Path::new("/nowhere.sock"), args);
        assert_eq!(found, code, "{args:?}: {line}");
        let help = format!(" (see husk ctl SOCKET {command} --help)");
        assert!(line.contains(says) && line.ends_with(&help) == (code == 2), "{line}");
    }
}

/// The log is read as the process goes on: what came before the change is not in it, what came after is.
#[test]
fn the_log_tells_more_when_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut husk = Husk::start(&["--log-file", log.to_str().unwrap()]);
    assert_eq!(ok(&husk, &["log-level"]), "level  warn\n");
    assert!(refused(&husk, &["info"]).contains("(404)"));
    assert_eq!(ok(&husk, &["log-level", "info"]), "");
    assert_eq!(json_of(&ok(&husk, &["--json", "log-level"])), json!({"level": "info"}));
    assert!(refused(&husk, &["pause"]).contains("(404)"));
    husk_devices::testing::until(|| fs::read_to_string(&log).unwrap().contains("there is no VM"));
    let logged = fs::read_to_string(&log).unwrap();
    assert!(
        logged.contains("there is no VM") && !logged.contains("vm.info"),
        "{logged}"
    );
    assert_eq!(ok(&husk, &["log-level", "error"]), "");
    assert!(refused(&husk, &["counters"]).contains("(404)"));
    assert_eq!(fs::read_to_string(&log).unwrap(), logged);
    let (code, line) = ctl(&husk.socket(), &["log-level", "loud"]);
    assert!(code == 2 && line.contains("error, warn, info, debug, trace"), "{line}");
    let (status, body) = husk.client().put("vmm.set-log-level", Some(json!({"level": "off"})));
    assert_eq!(status, 400);
    assert!(
        body[1]
            .as_str()
            .unwrap()
            .contains("'off' is none, allowed: error, warn"),
        "{body}"
    );
    assert_eq!(husk.shut_down().code(), Some(0));
}

#[test]
fn figures_are_a_text() {
    let husk = husk(false).unwrap();
    let text = ok(&husk, &["metrics"]);
    assert!(text.contains("\nhusk_vm_state{state=\"Created\"} 1\n"), "{text}");
}

#[test]
fn a_device_that_comes_is_shown_with_its_address() {
    let Some(husk) = husk(true) else { return };
    let disk = husk.folder.path().join("disk");
    fs::write(&disk, [0; 4096]).unwrap();
    let shown = ok(&husk, &["add-disk", &format!("path={}", disk.display())]);
    assert!(shown.starts_with("id       _disk0\naddress  0000:00:"), "{shown}");
    assert_eq!(ok(&husk, &["reboot"]), "");
    assert!(ok(&husk, &["info"]).starts_with("state   Running\n"));
}

#[test]
fn what_husk_refuses_is_its_chain_and_exit_code_1() {
    let husk = husk(false).unwrap();
    let line = refused(&husk, &["pause"]);
    assert_eq!(
        line,
        "error: vm.pause was refused (409): the VM does not run: vm.boot it first"
    );
    assert!(refused(&husk, &["counters"]).contains("vm.counters was refused (409)"));
    assert!(refused(&husk, &["queues"]).contains("vm.queues was refused (409)"));
    let line = refused(&husk, &["container", "add", "a", &config(&husk, &json!({}))]);
    assert_eq!(line, "error: the VM is Created, its guest has to run");
    husk.client().put("vm.delete", None);
    let line = refused(&husk, &["info"]);
    assert_eq!(
        line,
        "error: vm.info was refused (404): there is no VM: vm.create one first"
    );
}

#[test]
fn a_guest_is_held_let_go_and_ended() {
    let Some(mut husk) = husk(true) else { return };
    assert_eq!(ok(&husk, &["pause"]), "");
    assert!(ok(&husk, &["info"]).starts_with("state   Paused\n"));
    assert_eq!(ok(&husk, &["resume"]), "");
    assert!(json_of(&ok(&husk, &["counters", "--json"])).is_object());
    assert!(json_of(&ok(&husk, &["queues", "--json"])).is_object());
    assert!(ok(&husk, &["queues"]).starts_with("DEVICE  QUEUE"));
    assert_eq!(ok(&husk, &["shutdown", "--keep"]), "");
    assert!(ok(&husk, &["info"]).starts_with("state   Shutdown\n"));
    assert_eq!(ok(&husk, &["shutdown"]), "");
    assert_eq!(husk.child.wait().unwrap().code(), Some(0));
    let (code, line) = ctl(&husk.socket(), &["ping"]);
    assert_eq!(code, 1);
    assert!(line.starts_with("error: cannot connect to /"), "{line}");
}

#[test]
fn the_size_that_a_vm_has_is_there_at_once() {
    let Some(husk) = husk(true) else { return };
    let text = ok(&husk, &["resize", "--vcpus", "1", "--memory", "64M"]);
    assert!(
        text.contains("  1 present") && text.contains("64 MiB present"),
        "{text}"
    );
    // Without room nothing is added.
    let line = refused(&husk, &["resize", "--memory", "4G", "--wait", "0.1"]);
    assert!(
        line.starts_with(
            "error: vm.resize was refused (400): cannot resize the VM: desired_ram: 4294967296 bytes asked for"
        ),
        "{line}"
    );
}

#[test]
fn a_container_that_asks_for_nothing_comes_and_goes_and_one_that_asks_for_too_much_does_not() {
    let Some(husk) = husk(true) else { return };
    let small = config(&husk, &json!({}));
    ok(&husk, &["container", "add", "small", &small]);
    assert!(refused(&husk, &["container", "add", "small", &small]).contains("container small is there already"));
    let large = config(&husk, &json!({"memory": {"limit": 1 << 30}}));
    let line = refused(&husk, &["container", "add", "large", &large]);
    assert!(
        line.starts_with("error: the pod cannot be large enough: memory of "),
        "{line}"
    );
    assert!(refused(&husk, &["container", "update", "small", &large]).contains("cannot be large enough"));
    let list = ok(&husk, &["container", "list"]);
    assert_eq!(list, "container  vcpus  cpuset  memory\nsmall      -      -       -\n");
    ok(&husk, &["container", "remove", "small"]);
    assert_eq!(ok(&husk, &["container", "list"]).lines().count(), 1);
}

/// The guest of these tests never answers.
#[test]
fn what_a_guest_does_not_take_is_told_and_taken_back() {
    let Some(husk) = husk(true) else { return };
    let line = refused(&husk, &["resize", "--vcpus", "2", "--wait", "0.1"]);
    assert!(
        line.starts_with("error: not there within 0.1 s: 2 vCPUs asked for, "),
        "{line}"
    );
    let vcpus = |husk: &Husk| husk.client().get("vm.resize-status").1["vcpus"]["desired"].clone();
    assert_eq!(vcpus(&husk), 2, "it is still asked for");
    ok(&husk, &["resize", "--vcpus", "1", "--wait", "0"]);
    let one = config(&husk, &json!({"cpu": {"quota": 100_000, "period": 100_000}}));
    let line = refused(&husk, &["container", "add", "one", &one, "--wait", "0.1"]);
    assert!(
        line.starts_with("error: not there within 0.1 s: 2 vCPUs asked for, "),
        "{line}"
    );
    assert_eq!(vcpus(&husk), 1);
    assert_eq!(
        json_of(&ok(&husk, &["container", "list", "--json"]))["containers"],
        json!({})
    );
}

#[test]
fn a_wrong_file_is_wrong_usage_before_anything_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("config.json");
    let add = |options: &[&str]| {
        let args = ["container", "add", "a", file.to_str().unwrap()];
        // Nobody listens here.
        ctl(&folder.path().join("s"), &[&args, options].concat())
    };
    assert_eq!(add(&[]).0, 1, "there is none");
    let vcpus = "io.katacontainers.config.hypervisor.default_vcpus";
    for (text, options, says) in [
        ("{", &[][..], "is no OCI configuration: EOF"),
        (
            &format!(r#"{{"annotations": {{"{vcpus}": "-1"}}}}"#),
            &[],
            "default_vcpus is \"-1\", allowed: a decimal number from 0 to ",
        ),
        (
            &format!(r#"{{"annotations": {{"{vcpus}": "1"}}}}"#),
            &["--enable-annotations", "memory"],
            "default_vcpus is not enabled on this node",
        ),
    ] {
        fs::write(&file, text).unwrap();
        let (code, line) = add(options);
        assert_eq!(code, 2, "{line}");
        assert!(line.starts_with("error: container /") && line.contains(says), "{line}");
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let (code, line) = ctl(&socket, &["ping", "--timeout", "0.1"]);
    assert_eq!(
        (code, line.as_str()),
        (1, "error: vmm.ping was not answered within 0.1 s")
    );
}

#[test]
fn events_are_shown_and_followed_to_the_end() {
    let mut husk = husk(false).unwrap();
    let past = ok(&husk, &["events", "--past"]);
    assert!(past.contains("  vmm    starting            pid="), "{past}");
    let past = json_of(&ok(&husk, &["--json", "events", "--past"]));
    assert_eq!(past[0]["properties"]["pid"], husk.child.id());
    let mut follower = follow(&husk);
    let mut lines = BufReader::new(follower.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let mut next = || json_of(&lines.next().unwrap());
    assert_eq!(next()["event"], "starting");
    assert_eq!(next()["event"], "listening");
    assert_eq!(ok(&husk, &["delete"]), "");
    assert_eq!(next()["event"], "deleted");
    assert_eq!(husk.shut_down().code(), Some(0));
    let last = next();
    assert_eq!(
        (&last["event"], &last["properties"]["reason"]),
        (&json!("shutdown"), &json!("asked"))
    );
    assert_eq!(lines.next(), None);
    assert_eq!(follower.wait().unwrap().code(), Some(0));
}

#[test]
fn so_many_may_follow_and_a_husk_that_is_killed_ends_them_with_an_error() {
    let husk = husk(false).unwrap();
    let mut followers: Vec<_> = (0..8).map(|_| follow(&husk)).collect();
    for follower in &mut followers {
        let mut first = String::new();
        let mut out = BufReader::new(follower.stdout.as_mut().unwrap());
        out.read_line(&mut first).unwrap();
        assert_eq!(json_of(&first)["event"], "starting");
    }
    assert!(refused(&husk, &["events"]).contains("(409): 8 clients read events"));
    // What has happened is not read as they read.
    assert!(ok(&husk, &["events", "--past"]).contains("starting"));
    husk.signal(process::Signal::KILL);
    for follower in followers {
        let output = follower.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(error.contains("ended before vm.events was answered"), "{error}");
    }
}

fn follow(husk: &Husk) -> std::process::Child {
    let mut command = Command::new(HUSK);
    command.arg("ctl").arg(husk.socket()).args(["events", "--json"]);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command.spawn().unwrap()
}
