//! A file that a VM is made of, named a second time as one that is written: refused in one line, and not a byte of it
//! changes.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use husk_virtio::block::FileLock;
use process::{HUSK, Husk, complaints};
use serde_json::{Value, json};
use tempfile::TempDir;

/// As much as has no head that could be taken for another file's.
const BYTES: usize = 1 << 20;

/// A file of [`BYTES`] random bytes under three names, all of which a port's second file could have.
struct Source {
    folder: TempDir,
    content: Vec<u8>,
}

impl Source {
    const NAMES: [&str; 3] = ["image.1", "hard.1", "soft.1"];

    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut content = vec![0; BYTES];
        File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
        let path = |name| folder.path().join(name);
        fs::write(path("image.1"), &content).unwrap();
        fs::hard_link(path("image.1"), path("hard.1")).unwrap();
        symlink(path("image.1"), path("soft.1")).unwrap();
        fs::write(path("kernel"), "no kernel").unwrap();
        Self { folder, content }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.path("image.1")
    }

    /// `husk run` in the folder.
    fn run(&self, arguments: &[String]) -> Output {
        let mut command = Command::new(HUSK);
        command.arg("run").args(arguments).current_dir(self.folder.path());
        command.stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn is_whole(&self, after: &dyn std::fmt::Debug) {
        assert!(fs::read(self.image()).unwrap() == self.content, "changed by {after:?}");
    }
}

/// Options by which a VM is made of the file at a path, and what that is called.
fn uses(path: &str) -> [(Vec<String>, &'static str); 5] {
    let kernel = |path: &str| ["--kernel".into(), path.into()];
    let with = |option: &str, value: String| [&kernel("kernel")[..], &[option.into(), value]].concat();
    [
        (kernel(path).to_vec(), "the kernel"),
        (with("--initramfs", path.into()), "the initramfs"),
        (with("--disk", format!("path={path}")), "disk _disk0"),
        (with("--disk", format!("path={path},readonly=on")), "disk _disk0"),
        (with("--pmem", format!("file={path}")), "pmem _pmem0"),
    ]
}

/// Options by which the file at a path, which ends in `.1`, is written.
fn outputs(path: &str) -> Vec<[String; 2]> {
    let first = path.strip_suffix(".1").unwrap();
    let outputs = [
        ("--serial", format!("file={path}")),
        ("--serial", format!("file={path},limit=4K")),
        ("--serial", format!("file={first},limit=4K")),
        ("--console", format!("file={path}")),
        ("--boot-trace", path.into()),
        ("--log", format!("file={path}")),
        ("--log-file", path.into()),
    ];
    outputs.map(|(option, value)| [option.into(), value]).into()
}

#[test]
fn a_kernel_an_initramfs_a_disk_and_persistent_memory_are_not_written_over_by_any_output_under_any_name() {
    let source = Source::new();
    for (made_of, what) in uses("image.1") {
        for name in Source::NAMES {
            for output in outputs(&format!("./{name}")) {
                let all = [&made_of[..], &output[..]].concat();
                let ended = source.run(&all);
                source.is_whole(&all);
                let line = complaints(&ended).join("\n");
                assert_eq!(ended.status.code(), Some(2), "{all:?}: {line}");
                let told = format!(" would write over {what}: both have the file image.1");
                let writer = output[0].strip_prefix("--").unwrap();
                let writer = writer.replace("boot-trace", "trace");
                assert!(line.contains(&told) && line.contains(&writer), "{all:?}: {line}");
                assert!(!line.contains('\n'), "{all:?}: {line}");
            }
        }
    }
}

/// As `husk run … >> image` of a shell has it.
#[test]
fn standard_output_and_standard_error_that_lead_to_what_a_vm_is_made_of_get_not_a_byte() {
    let source = Source::new();
    let append = |name: &str| File::options().append(true).open(source.path(name)).unwrap();
    for (made_of, what) in uses("image.1") {
        for name in Source::NAMES {
            let run = || {
                let mut command = Command::new(HUSK);
                command.arg("run").args(&made_of).current_dir(source.folder.path());
                command
                    .stdin(Stdio::null())
                    .stdout(Stdio::piped())
                    .stderr(Stdio::piped());
                command
            };
            let line =
                |stream| format!("error: husk's standard {stream} would write over {what}: both have the file image.1");
            let ended = run().stdout(append(name)).output().unwrap();
            assert_eq!(ended.status.code(), Some(2), "{made_of:?}");
            let told = complaints(&ended);
            assert!(
                matches!(told[..], [told] if told.starts_with(&line("output"))),
                "{told:?}"
            );
            let ended = run().stderr(append(name)).output().unwrap();
            assert_eq!(ended.status.code(), Some(2), "{made_of:?}");
            assert_eq!(String::from_utf8(ended.stdout).unwrap(), line("error") + "\n");
            let ended = run().stdout(append(name)).stderr(append(name)).output().unwrap();
            assert_eq!(ended.status.code(), Some(2), "{made_of:?}");
            source.is_whole(&made_of);
        }
    }
}

#[test]
fn a_vm_that_is_described_is_not_built_of_what_standard_output_leads_to() {
    let source = Source::new();
    let image = File::options().append(true).open(source.path("hard.1")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut command = process::command(&folder.path().join("api.sock"), &[]);
    let child = command.stdout(image).spawn().unwrap();
    let mut husk = Husk { folder, child };
    husk.ready();
    let mut client = husk.client();
    assert_eq!(client.put("vm.create", Some(vm(&source, &[&source.image()]))).0, 204);
    let (status, why) = client.put("vm.boot", None);
    let line = format!(
        "husk's standard output would write over disk _disk0: both have the file {}",
        source.image().display()
    );
    assert_eq!((status, &why[1]), (400, &json!(line)), "{why}");
    husk.shut_down();
    source.is_whole(&"standard output");
}

/// Of which no husk knows what it is, but that a VM has it.
#[test]
fn the_disk_of_another_process_is_written_by_no_output() {
    let source = Source::new();
    let image = File::options().read(true).write(true).open(source.image()).unwrap();
    let _lock = FileLock::take(image, true, "the image").unwrap().unwrap();
    let kernel = ["--kernel".to_owned(), "kernel".to_owned()];
    for name in Source::NAMES {
        for output in outputs(&format!("./{name}")) {
            let ended = source.run(&[&kernel[..], &output[..]].concat());
            source.is_whole(&output);
            let line = complaints(&ended).join("\n");
            assert_eq!(ended.status.code(), Some(1), "{output:?}: {line}");
            let is_port = ["--serial", "--console"].contains(&output[0].as_str());
            // A port is opened when there is a machine.
            let why = "it is locked, as a VM locks the image of a disk";
            let why = if is_port { process::refusal(why) } else { why };
            assert!(
                line.contains(why) || is_port && line.contains("kernel"),
                "{output:?}: {line}"
            );
            assert!(!line.contains('\n'), "{output:?}: {line}");
        }
    }
    let monitor = format!("path={}", source.image().display());
    let mut husk = Command::new(HUSK);
    husk.arg("--api-socket")
        .arg(source.path("api.sock"))
        .args(["--event-monitor", &monitor]);
    let ended = husk.stdin(Stdio::null()).output().unwrap();
    source.is_whole(&monitor);
    assert_eq!(ended.status.code(), Some(1), "{ended:?}");
    assert!(complaints(&ended).join("\n").contains("it is locked"), "{ended:?}");
}

fn vm(source: &Source, disks: &[&Path]) -> Value {
    let disks: Vec<_> = disks.iter().map(|path| json!({"path": path})).collect();
    json!({
        "payload": {"kernel": source.path("kernel")},
        "console": {"mode": "Off"},
        "disks": disks,
    })
}

#[test]
fn of_a_vm_that_is_described_no_disk_is_what_a_port_or_husk_itself_writes() {
    let source = Source::new();
    let monitor = source.path("monitor");
    let mut husk = Husk::start(&["--event-monitor", &format!("path={}", monitor.display())]);
    let mut client = husk.client();
    let refused = |writer: &str, of: &str, path: &Path| {
        json!(format!(
            "{writer} would write over {of}: both have the file {}",
            path.display()
        ))
    };
    let told = |answer: (u16, Value)| (answer.0, answer.1.as_array().unwrap().last().unwrap().clone());

    let answer = client.put("vm.create", Some(vm(&source, &[&monitor])));
    assert_eq!(told(answer), (400, refused("--event-monitor", "disk _disk0", &monitor)));
    let mut with = vm(&source, &[&source.image()]);
    with["serial"] = json!({"mode": "File", "file": source.image()});
    let answer = client.put("vm.create", Some(with.clone()));
    assert_eq!(told(answer), (400, refused("serial", "disk _disk0", &source.image())));

    // Another name is found at the boot, before anything is opened.
    with["serial"]["file"] = json!(source.path("hard.1"));
    assert_eq!(client.put("vm.create", Some(with)).0, 204);
    let answer = client.put("vm.boot", None);
    assert_eq!(told(answer), (400, refused("serial", "disk _disk0", &source.image())));
    let added = client.put("vm.add-disk", Some(json!({"path": source.path("hard.1")})));
    let hard = source.path("hard.1");
    assert_eq!(told(added), (400, refused("serial", "disk _disk1", &hard)));
    assert_eq!(client.put("vm.delete", None).0, 204);
    source.is_whole(&"the serial port");

    let linked = source.path("linked");
    fs::hard_link(&monitor, &linked).unwrap();
    let beside = |path: &Path, events: &str| {
        let why = "what a guest prints there could be taken for an event";
        json!(format!(
            "serial and {events} both have the file {}: {why}",
            path.display()
        ))
    };
    let mut with = vm(&source, &[]);
    with["serial"] = json!({"mode": "File", "file": monitor});
    let answer = client.put("vm.create", Some(with.clone()));
    assert_eq!(told(answer), (400, beside(&monitor, "--event-monitor")));
    with["serial"]["file"] = json!(linked);
    assert_eq!(client.put("vm.create", Some(with)).0, 204);
    let answer = client.put("vm.boot", None);
    assert_eq!(told(answer), (400, beside(&linked, "the monitor of husk's events")));
    assert_eq!(client.put("vm.delete", None).0, 204);
    assert_eq!(client.put("vm.create", Some(vm(&source, &[&linked]))).0, 204);
    let answer = client.put("vm.boot", None);
    let writer = "the monitor of husk's events";
    assert_eq!(told(answer), (400, refused(writer, "disk _disk0", &linked)));
    husk.shut_down();
}

#[test]
fn two_disks_on_one_image_are_both_named_when_the_vm_is_described() {
    let source = Source::new();
    let image = source.image();
    let mut husk = Husk::start(&[]);
    let mut client = husk.client();
    let both = format!(
        "disk _disk0 and disk _disk1 both have the image {}: allowed: one device, or any number that only read it",
        image.display()
    );
    let (status, why) = client.put("vm.create", Some(vm(&source, &[&image, &image])));
    assert_eq!((status, why), (409, json!(["cannot create the VM", both])));
    assert_eq!(client.put("vm.create", Some(vm(&source, &[&image]))).0, 204);
    let (status, why) = client.put("vm.add-disk", Some(json!({"path": image})));
    assert_eq!((status, why), (409, json!([both])));
    husk.shut_down();
}

/// At the boot the lock decides, and two names of a file are one image. Needs `/dev/kvm`.
#[test]
fn two_disks_on_one_image_are_both_named_at_the_boot_by_whatever_name() {
    if !process::has_kvm() {
        return;
    }
    let source = Source::new();
    let code = [0xf4, 0xeb, 0xfd]; // hlt; jmp back to it
    fs::write(source.path("kernel"), husk_benches::elf_of(&code)).unwrap();
    let disks = ["image.1", "soft.1"].map(|name| ["--disk".to_owned(), format!("path={name}")]);
    let ended = source.run(&[&["--kernel".into(), "kernel".into()], &disks[0][..], &disks[1][..]].concat());
    let line = complaints(&ended).join("\n");
    assert_eq!(ended.status.code(), Some(2), "{line}");
    assert!(
        line.contains("disk _disk0 and disk _disk1 both have the image soft.1"),
        "{line}"
    );
    source.is_whole(&"two disks");
}

#[test]
fn a_run_that_fails_keeps_the_boot_trace_of_an_earlier_one_and_leaves_none() {
    let source = Source::new();
    let kernel = |name: &str| vec!["--kernel".to_owned(), name.to_owned()];
    let nowhere = "/nowhere/s".to_owned();
    let failing = [
        kernel("nothere"),
        kernel("kernel"),
        [kernel("kernel"), vec!["--disk".into(), "path=nothere".into()]].concat(),
        [kernel("kernel"), vec!["--api-socket".into(), nowhere]].concat(),
    ];
    let earlier = source.path("earlier");
    fs::write(&earlier, "of an earlier run").unwrap();
    for run in failing {
        for name in ["earlier", "new"] {
            let ended = source.run(&[&run[..], &["--boot-trace".into(), name.into()]].concat());
            assert_eq!(ended.status.code(), Some(1), "{run:?}: {ended:?}");
        }
        assert_eq!(fs::read_to_string(&earlier).unwrap(), "of an earlier run", "{run:?}");
        assert!(!source.path("new").exists(), "{run:?}");
    }
}
