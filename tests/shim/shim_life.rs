//! Whole lives of pods in every shape that the shims start: initrd and image, debug on and off.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use husk_guest::call::LOG_PORT;
use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::{Agent, dial};
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::State;
use husk_tests::kernel_file;
use husk_tests::pod::{Launch, PATIENCE, Pod, events, vsock};
use husk_tests::share::FileServer;
use serde_json::json;

use crate::{folder, initrd, of_kernel};

/// What the Rust shim allows itself for its log, in every pod.
const LOG_DIALS: u32 = 1000;

/// Programs that run at once.
const EXECS: usize = 10;

/// Dials the agent's log as the Rust shim does in the background: every 10 ms until it answers. How
/// often it was refused, and the log if there is one. `served` says that there will be one, however
/// long the guest takes to boot; else a thousand times are enough.
fn dial_log(socket: &Path, shim: Shim, served: bool) -> (u32, Option<BufReader<UnixStream>>) {
    let dials = if served { u32::MAX } else { LOG_DIALS };
    let start = Instant::now();
    for refused in 0..dials {
        match dial(socket, LOG_PORT, shim) {
            Ok(Some(log)) => return (refused, Some(BufReader::new(log))),
            Ok(None) => thread::sleep(Duration::from_millis(10)),
            Err(error) => panic!("after {refused} refusals: {error:#}"),
        }
        assert!(!served || start.elapsed() < PATIENCE, "no log after {refused} refusals");
    }
    (dials, None)
}

/// The exchange that a shim has with a fresh agent before the first container.
fn create_sandbox(agent: &mut Agent, shape: &Shape) {
    let Reply::Answer {
        answer: Answer::Report(report),
    } = agent.must(&Call::step(&Step::Report)).unwrap()
    else {
        panic!("no report")
    };
    assert_eq!(
        report.online,
        if shape.vcpus == 1 {
            "0".to_string()
        } else {
            format!("0-{}", shape.vcpus - 1)
        }
    );
    assert_eq!(report.cmdline, shape.cmdline());
    assert!(
        (shape.memory_mib * 3 / 4..=shape.memory_mib).contains(&(report.memory_kib / 1024)),
        "{report:?}"
    );
    let block_size = agent
        .run(&["cat", "/sys/devices/system/memory/block_size_bytes"])
        .unwrap();
    assert_eq!(u64::from_str_radix(block_size.trim(), 16), Ok(128 << 20));
    let mounts = agent
        .must(&Call::Text {
            path: "/proc/mounts".into(),
        })
        .unwrap();
    assert!(matches!(mounts, Reply::Text { text } if text.contains(" /tmp tmpfs ")));
}

/// The root file system of an image pod, as the guest finds it: first disk, first partition, read-only.
fn assert_root_is_the_image(agent: &mut Agent) {
    let mount = Call::Run {
        command: ["mount", "-t", "ext4", "-o", "ro", "/dev/vda1", "/mnt"]
            .map(String::from)
            .into(),
        input: String::new(),
    };
    agent.run(&["mkdir", "/mnt"]).unwrap();
    let reply = agent.must(&mount).unwrap();
    assert!(matches!(reply, Reply::Ran { code: 0, .. }), "{reply:?}");
    assert_eq!(agent.run(&["cat", "/mnt/etc/image"]).unwrap(), "husk pod image\n");
    assert_eq!(agent.run(&["cat", "/sys/block/vda/ro"]).unwrap(), "1\n");
}

/// A container's disk: added while the guest runs, found where the answer says, and what is written
/// to it is in the file.
fn hot_plug(pod: &mut Pod, agent: &mut Agent, folder: &Path) {
    const BYTES: u64 = 1 << 20;
    let path = folder.join("container.img");
    File::create(&path).unwrap().set_len(BYTES).unwrap();
    let device = pod.add_disk(&path).unwrap();
    let found = agent
        .must(&Call::DiskAt {
            bdf: device.bdf.clone(),
        })
        .unwrap();
    let Reply::Device { name, path: place } = found else {
        panic!("{found:?}")
    };
    let expected = format!("/pci0000:00/{}/virtio", device.bdf);
    assert!(place.starts_with(&expected), "{place} is not below {expected}");
    agent.must(&Call::step(&Step::write(&name, 4096, 64 << 10, 9))).unwrap();
    let stored = fs::read(&path).unwrap();
    assert!(stored[4096..4096 + (64 << 10)] == pattern::bytes(9, 64 << 10));
    let disks = pod.info().unwrap().config.disks.unwrap_or_default();
    assert!(
        disks
            .iter()
            .any(|disk| disk.path.as_deref() == Some(&path) && disk.id.as_deref() == Some(&device.id))
    );
    pod.remove(&device).unwrap();
    agent.must(&Call::Gone { bdf: device.bdf }).unwrap();
}

/// Programs with their streams on ten connections at once.
fn exec_at_once(pod: &Pod) {
    thread::scope(|scope| {
        let programs: Vec<_> = (0..EXECS)
            .map(|number| {
                let agent = pod.one_more().unwrap();
                scope.spawn(move || {
                    let input = pattern::bytes(number as u64, 200_000);
                    let script = format!("cat; echo {number} >&2; exit {number}");
                    let ran = agent.exec(&["sh", "-c", &script], &input).unwrap();
                    assert!(ran.output == input, "program {number} lost some of its stream");
                    assert_eq!(ran.errors, format!("{number}\n").as_bytes());
                    assert_eq!(ran.code, i32::try_from(number).unwrap());
                })
            })
            .collect();
        for program in programs {
            program.join().unwrap();
        }
    });
}

fn open_files(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// The agent's share of container files, used both ways.
fn use_the_share(agent: &mut Agent, shared: &Path) {
    fs::write(shared.join("from-host"), "hello, guest\n").unwrap();
    agent.mount_share("/run/kata-containers/shared/containers").unwrap();
    let script = "cd /run/kata-containers/shared/containers && echo hello, host > from-guest && cat from-host";
    assert_eq!(agent.run(&["sh", "-c", script]).unwrap(), "hello, guest\n");
    assert_eq!(fs::read_to_string(shared.join("from-guest")).unwrap(), "hello, host\n");
}

/// How a shim starts the server of a pod's files.
type Start = fn(Shim, &Path, &Path, &[&str]) -> anyhow::Result<FileServer>;

/// A pod's life, with everything that a shim does in one.
fn live(shape: Shape) -> String {
    live_with(shape, FileServer::start_as)
}

/// The same, with the file server that `start` starts.
fn live_with(mut shape: Shape, start: Start) -> String {
    let folder = folder();
    let (shim, debug, image) = (shape.shim, shape.debug, shape.image.is_some());
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    let server = start(shim, &shared, &folder.path().join("virtiofsd.sock"), &[]).unwrap();
    shape.share = Some(server.socket().into());
    let mut pod = Pod::launch(shape, folder.path()).unwrap();
    pod.create().unwrap();
    pod.boot().unwrap();
    let socket = vsock(shim, folder.path());
    // The port of the log is served in the debug pods of the Rust shim only.
    let served = debug && shim == Shim::Rust;
    let log = thread::spawn(move || dial_log(&socket, shim, served));
    let (mut agent, refused) = pod.agent().unwrap();
    println!("the agent answered after {refused} refusals");
    let shape = pod.shape().clone();
    create_sandbox(&mut agent, &shape);
    if image {
        assert_root_is_the_image(&mut agent);
    }
    use_the_share(&mut agent, &shared);
    hot_plug(&mut pod, &mut agent, folder.path());
    pod.resize_to_the_same().unwrap();
    exec_at_once(&pod);
    let (refused, log) = log.join().unwrap();
    assert_eq!(log.is_some(), served, "the log, after {refused} refusals");
    if let Some(mut log) = log {
        agent.run(&["true"]).unwrap();
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        assert!(line.starts_with("agent: "), "{line:?}");
    }
    // A thousand refusals and ten streams later nothing of them is left.
    assert!(open_files(pod.pid()) < 100, "{} open files", open_files(pod.pid()));
    pod.expect_state(State::Running).unwrap();
    let stopped = pod.stop().unwrap();
    println!("stopped within {:?}", stopped.took);
    assert!(stopped.status.success(), "{stopped:?}");
    server.ended().unwrap();
    stopped.output
}

/// A pod with its root file system on a disk.
fn image(shim: Shim) -> Shape {
    Shape {
        image: Some(kernel_file("6.12", "pod.img")),
        ..initrd(shim)
    }
}

#[test]
fn an_initrd_pod_of_the_rust_shim() {
    let output = live(initrd(Shim::Rust));
    assert!(!output.contains("Linux version"), "there is no serial port: {output}");
}

#[test]
fn an_image_pod_of_the_rust_shim_with_debug() {
    let output = live(Shape {
        debug: true,
        vcpus: 2,
        ..image(Shim::Rust)
    });
    assert!(
        output.contains("Linux version"),
        "the serial port is on standard output: {output}"
    );
}

#[test]
fn an_initrd_pod_of_the_go_shim_with_debug() {
    // The line of the kernel's version is a notice.
    let output = live(Shape {
        debug: true,
        kernel_params: "loglevel=6".into(),
        ..initrd(Shim::Go)
    });
    assert!(
        output.contains("Linux version"),
        "the serial port is on the terminal: {output}"
    );
}

#[test]
fn an_image_pod_of_the_go_shim_whose_files_husk_serves() {
    live_with(image(Shim::Go), FileServer::start_husk);
}

#[test]
fn a_pod_with_the_older_kernel() {
    live(Shape {
        debug: true,
        kernel_params: "loglevel=6".into(),
        ..of_kernel(Shim::Rust, "6.1")
    });
}

#[test]
fn the_guests_own_end_is_the_vmms() {
    // A kernel that panics under the shims' command line resets; with a pvpanic device it says so before.
    for (step, pvpanic, code, event) in [
        (Step::PowerOff, false, 0, "power-off"),
        (Step::Reset, false, 3, "reset"),
        (Step::Panic, false, 3, "reset"),
        (Step::Panic, true, 4, "panic"),
    ] {
        let folder = folder();
        // With a console, on which the panic has its words, and the boot none: each byte leaves the guest.
        let shape = Shape {
            debug: true,
            kernel_params: "loglevel=4".into(),
            ..initrd(Shim::Rust)
        };
        let launch = Launch {
            with_events: true,
            ..Launch::default()
        };
        let mut pod = Pod::launch_with(shape, folder.path(), launch).unwrap();
        let mut body = pod.shape().create(&pod.vsock());
        body["pvpanic"] = pvpanic.into();
        pod.api().put("vm.create", Some(&body)).unwrap().done().unwrap();
        pod.boot().unwrap();
        let (mut agent, _) = pod.agent().unwrap();
        agent.send(&Call::step(&step)).unwrap();
        let _ = agent.reply();
        drop(agent);
        let stopped = pod.ended().unwrap();
        assert_eq!(
            stopped.status.code(),
            Some(code),
            "{step}, pvpanic {pvpanic}: {stopped:?}"
        );
        let told = events(folder.path()).unwrap();
        let [.., ended, last] = told.as_slice() else {
            panic!("{told:?}")
        };
        assert_eq!(
            (&ended["source"], &ended["event"]),
            (&json!("guest"), &json!(event)),
            "{told:?}"
        );
        assert_eq!(
            (&last["event"], &last["properties"]),
            (&json!("shutdown"), &json!({"reason": event}))
        );
        if event == "panic" {
            let text = ended["properties"]["text"].as_str().unwrap();
            assert!(text.starts_with("Kernel panic - not syncing: "), "{text}");
        }
    }
}
