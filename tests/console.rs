//! Consoles: what is typed reaches the guest, what it says comes back, and the terminal stays usable.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use husk_guest::{Answer, Step};
use husk_tests::pty::{self, Pty};
use husk_tests::{Boot, Guest, Image};

fn echo_steps() -> [Step; 2] {
    [Step::Echo, Step::PowerOff]
}

/// Types lines and gets each back.
fn converses(mut guest: Guest) {
    assert_eq!(guest.answer(), Answer::Listening);
    let long = "0123456789 ".repeat(20);
    for line in ["hello", r#"quotes " and \ and ünïcode"#, long.trim_end()] {
        guest.type_text(&format!("{line}\n"));
        assert_eq!(guest.answer(), Answer::Echo { line: line.into() });
    }
    guest.type_text("end\n");
    assert!(matches!(guest.answer(), Answer::Bye { .. }));
    guest.wait().assert_code(0);
}

#[test]
fn the_serial_port_carries_both_ways() {
    converses(Boot::new(echo_steps()).start());
}

#[test]
fn the_virtio_console_carries_both_ways() {
    converses(Boot::new(echo_steps()).on_hvc0().start());
}

#[test]
fn the_virtio_console_works_as_a_module_of_the_older_kernel() {
    converses(Boot::new(echo_steps()).kernel("6.1", Image::BzImage).on_hvc0().start());
}

#[test]
fn the_serial_port_can_be_a_file() {
    let ended = Boot::new([Step::Report, Step::PowerOff])
        .serial("file=serial.log")
        .run();
    ended.assert_code(0);
    assert_eq!(ended.transcript, "", "nothing of it is on standard output");
    let said = fs::read_to_string(ended.folder.path().join("serial.log")).unwrap();
    assert!(
        said.lines()
            .any(|line| matches!(Answer::parse(line), Some(Ok(Answer::Report(_))))),
        "{said}"
    );
}

/// A FIFO in the test's folder.
fn fifo(boot: &Boot) -> PathBuf {
    let path = boot.folder().join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    path
}

/// A FIFO that is full, and the end of it that keeps it so.
fn full_fifo(boot: &Boot) -> (String, File) {
    let path = fifo(boot);
    let mut options = File::options();
    options.read(true).write(true);
    let mut file = std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NONBLOCK)
        .open(&path)
        .unwrap();
    while file.write(&[b'x'; 4096]).is_ok() {}
    (format!("file={}", path.display()), file)
}

#[test]
fn a_port_whose_reader_stalls_does_not_hold_up_the_guest() {
    let boot = Boot::new([Step::Report, Step::PowerOff]).cmdline("ignore_loglevel");
    let (place, _reader) = full_fifo(&boot);
    boot.serial(&place).run().assert_code(0);
}

#[test]
fn a_virtio_console_whose_reader_stalls_does_not_hold_up_the_guest() {
    let boot = Boot::new([Step::Report, Step::PowerOff]).cmdline("ignore_loglevel console=hvc0 console=ttyS0");
    let (place, _reader) = full_fifo(&boot);
    let ended = boot.arguments(["--console", &place]).run();
    ended.assert_code(0).report();
}

#[test]
fn a_reader_that_comes_late_reads_what_there_was_from_the_beginning() {
    let boot = Boot::new([Step::Report, Step::PowerOff]);
    let path = fifo(&boot);
    // Kept open, so that what is said outlives the VMM.
    let mut reader = File::options().read(true).write(true).open(&path).unwrap();
    boot.serial(&format!("file={}", path.display())).run().assert_code(0);
    let mut said = vec![0; 64 << 10];
    let length = reader.read(&mut said).unwrap();
    let said = String::from_utf8_lossy(&said[..length]).into_owned();
    assert!(
        said.lines()
            .any(|line| matches!(Answer::parse(line), Some(Ok(Answer::Report(_))))),
        "{said}"
    );
}

#[test]
fn a_file_that_a_log_rotator_shortens_goes_on_without_a_hole() {
    // A panic, since a kernel that powers off may have given up its virtio devices before its last words.
    let boot = Boot::new([Step::Echo, Step::Panic]).cmdline("ignore_loglevel reboot=k console=hvc0 console=ttyS0");
    let mut guest = boot.arguments(["--console", "file=log"]).start();
    let log = guest.folder().join("log");
    assert_eq!(guest.answer(), Answer::Listening);
    assert!(
        fs::metadata(&log).unwrap().len() > 1000,
        "the kernel has said something"
    );
    File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
    guest.type_text("end\n");
    let ended = guest.wait();
    ended.assert_code(3);
    let said = fs::read(ended.folder.path().join("log")).unwrap();
    let text = String::from_utf8_lossy(&said);
    assert!(text.contains("Kernel panic"), "{text}");
    assert!(!said.contains(&0), "{text}");
}

#[test]
fn the_serial_port_can_lead_nowhere() {
    let ended = Boot::new([Step::Report, Step::PowerOff]).serial("null").run();
    ended.assert_code(0);
    assert_eq!(ended.transcript, "");
}

/// The next answer on `lines`.
fn answer(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Answer {
    let mut answers = lines.filter_map(|line| Answer::parse(&line.unwrap()));
    answers.next().unwrap().unwrap()
}

#[test]
fn the_virtio_console_has_a_client_at_its_socket() {
    let guest = Boot::new(echo_steps()).on_hvc0_at("socket=console").start();
    let path = guest.folder().join("console");
    let client = std::iter::repeat_with(|| UnixStream::connect(&path)).find_map(Result::ok);
    let mut client = client.unwrap();
    client.set_read_timeout(Some(Duration::from_secs(120))).unwrap();
    let mut lines = BufReader::new(client.try_clone().unwrap()).lines();
    assert_eq!(answer(&mut lines), Answer::Listening);
    client.write_all(b"hello\n").unwrap();
    assert_eq!(answer(&mut lines), Answer::Echo { line: "hello".into() });
    client.write_all(b"end\n").unwrap();
    assert!(matches!(answer(&mut lines), Answer::Bye { .. }));
    let ended = guest.wait();
    ended.assert_code(0);
    assert!(!ended.folder.path().join("console").exists());
}

#[test]
fn a_terminal_is_raw_during_the_run_and_as_before_afterwards() {
    let terminal = Pty::open(24, 80);
    let watch = terminal.watch();
    let before = pty::settings(&watch);
    assert!(before.is_cooked());
    let mut guest = Boot::new(echo_steps()).terminal(terminal).start();
    assert_eq!(guest.answer(), Answer::Listening);
    assert!(!pty::settings(&watch).is_cooked(), "keys go to the guest as they are");
    guest.type_text("hello\n");
    assert_eq!(guest.answer(), Answer::Echo { line: "hello".into() });
    guest.type_text("end\n");
    guest.wait().assert_code(0);
    assert_eq!(pty::settings(&watch), before);
}

#[test]
fn the_escape_sequence_quits_and_restores_the_terminal() {
    let terminal = Pty::open(24, 80);
    let watch = terminal.watch();
    let before = pty::settings(&watch);
    let mut guest = Boot::new(echo_steps()).terminal(terminal).start();
    assert_eq!(guest.answer(), Answer::Listening);
    // Ctrl-C is the guest's: it must not end the VM.
    guest.type_text("\x03");
    guest.type_text("\n");
    guest.type_text("still here\n");
    while guest.answer()
        != (Answer::Echo {
            line: "still here".into(),
        })
    {}
    guest.type_text("\x01x");
    let ended = guest.wait();
    assert_eq!(pty::settings(&watch), before);
    assert!(ended.code.is_some_and(|code| code != 3 && code != 4), "{ended:?}");
    assert!(
        ended.errors.contains("Ctrl-A"),
        "the sequence is announced: {}",
        ended.errors
    );
}

/// The guest is told the size that the window has, and each one that it gets.
fn learns_sizes(boot: Boot) {
    let boot = boot.on_hvc0().terminal(Pty::open(33, 101));
    let mut guest = boot.start();
    assert_eq!(guest.answer(), Answer::Window { rows: 33, columns: 101 });
    for (rows, columns) in [(40, 120), (10, 20)] {
        pty::resize(guest.terminal(), rows, columns);
        assert_eq!(guest.answer(), Answer::Window { rows, columns });
    }
    guest.wait().assert_code(0);
}

#[test]
fn the_guest_learns_the_size_of_the_window_and_its_changes() {
    learns_sizes(Boot::new([Step::Window(2), Step::PowerOff]));
}

#[test]
fn the_older_kernel_learns_sizes() {
    learns_sizes(Boot::new([Step::Window(2), Step::PowerOff]).kernel("6.1", Image::BzImage));
}
