//! Where a serial port may print, on a guest of a few instructions: whatever is there, the guest
//! comes to its end. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod process;

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use process::{NO_HARDWARE, complaints, has_kvm, make_fifo};
use tempfile::TempDir;

/// What the guest prints: as much as a page, and not all in one piece.
const BYTES: u32 = 5000;
/// No run takes longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// A guest that prints [`BYTES`] times the letter x, and powers off.
fn kernel() -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03, 0xb9]; // mov dx, 0x3f8; mov ecx, BYTES
    code.extend(BYTES.to_le_bytes());
    code.extend([0xb0, b'x', 0xee, 0xe2, 0xfd]); // mov al, 'x'; out dx, al; loop to it
    code.extend([0xb0, 5 << 2 | 1 << 5, 0x66, 0xba, 0x00, 0x06, 0xee]); // SLP_TYP 5 | SLP_EN to port 0x600
    code.extend([0xf4, 0xeb, 0xfd]); // hlt; jmp back to it
    husk_benches::elf_of(&code)
}

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        let folder = Self(tempfile::tempdir().unwrap());
        fs::write(folder.path("kernel"), kernel()).unwrap();
        folder
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn fifo(&self) -> PathBuf {
        let path = self.path("fifo");
        make_fifo(&path);
        path
    }

    fn start(&self, serial: &Path) -> Child {
        self.start_with(serial, &[])
    }

    fn start_with(&self, serial: &Path, options: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_husk"));
        command.args(["run", "--no-rng", "--kernel"]).arg(self.path("kernel"));
        command
            .arg("--serial")
            .arg(format!("file={}", serial.display()))
            .args(options);
        let output = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        output.spawn().unwrap()
    }

    fn run(&self, serial: &Path) -> Output {
        self.run_with(serial, &[])
    }

    fn run_with(&self, serial: &Path, options: &[&str]) -> Output {
        let mut child = self.start_with(serial, options);
        let begun = Instant::now();
        while child.try_wait().unwrap().is_none() {
            if begun.elapsed() > PATIENCE {
                child.kill().unwrap();
                panic!("still running: {:?}", child.wait_with_output());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        child.wait_with_output().unwrap()
    }

    #[track_caller]
    fn comes_to_its_end(&self, serial: &Path) {
        let output = self.run(serial);
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(complaints(&output), [""; 0], "{output:?}");
    }
}

#[test]
fn a_kvm_without_hardware_behind_it_is_warned_of_in_one_line() {
    if !has_kvm() {
        return;
    }
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap();
    let hardware = cpuinfo
        .split_ascii_whitespace()
        .any(|flag| matches!(flag, "vmx" | "svm"));
    let output = Folder::new().run(Path::new("/dev/null"));
    let said = String::from_utf8(output.stderr).unwrap();
    let warnings = said.lines().filter(|line| line.starts_with(NO_HARDWARE)).count();
    assert_eq!(
        (warnings, said.lines().count()),
        if hardware { (0, 0) } else { (1, 1) },
        "{said}"
    );
}

/// What a device gives back at the end it gives back under the filter of the thread that takes machines apart.
#[test]
fn files_of_disks_and_of_persistent_memory_are_let_go_at_the_end() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    for name in ["disk", "pmem"] {
        File::create(folder.path(name)).unwrap().set_len(4 << 20).unwrap();
    }
    let disk = format!("path={}", folder.path("disk").display());
    let pmem = format!("file={}", folder.path("pmem").display());
    let output = folder.run_with(Path::new("/dev/null"), &["--disk", &disk, "--pmem", &pmem]);
    assert_eq!(
        (output.status.code(), complaints(&output)),
        (Some(0), Vec::new()),
        "{output:?}"
    );
}

#[test]
fn a_fifo_that_is_full_or_that_nobody_reads_or_a_full_device_holds_up_no_guest() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let fifo = folder.fifo();
    folder.comes_to_its_end(&fifo);
    let mut options = File::options();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK);
    let mut reader = options.open(&fifo).unwrap();
    while reader.write(&[b'-'; 4096]).is_ok() {}
    folder.comes_to_its_end(&fifo);
    folder.comes_to_its_end(Path::new("/dev/full"));
}

#[test]
fn a_reader_that_comes_after_the_port_was_opened_reads_all_of_it() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let fifo = folder.fifo();
    let mut child = folder.start(&fifo);
    let mut said = Vec::new();
    // Waits for husk to open the other end, and reads until it closes it.
    File::open(&fifo).unwrap().read_to_end(&mut said).unwrap();
    assert!(
        said == vec![b'x'; usize::try_from(BYTES).unwrap()],
        "{} bytes",
        said.len()
    );
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_file_of_an_earlier_run_starts_empty_and_a_directory_is_named() {
    if !has_kvm() {
        return;
    }
    let folder = Folder::new();
    let log = folder.path("log");
    fs::write(&log, "of an earlier run").unwrap();
    folder.comes_to_its_end(&log);
    assert!(fs::read(&log).unwrap() == vec![b'x'; usize::try_from(BYTES).unwrap()]);
    let refused = folder.run(folder.0.path());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!((refused.status.code(), said.lines().count()), (Some(1), 1), "{said}");
    assert!(said.contains("it is a directory, allowed: a regular file"), "{said}");
}
