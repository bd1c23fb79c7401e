use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};

use super::*;
use crate::terminal::testing::fifo;

const MODE: u32 = 0o640;

fn fill(file: &NonBlockingFile) -> usize {
    let mut written = 0;
    loop {
        match file.write(&[b'x'; 1000]) {
            Ok(count) => written += count,
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return written;
            }
        }
    }
}

#[test]
fn a_file_is_emptied_or_not_and_made_with_its_permissions() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    NonBlockingFile::create(&path, MODE, &ProtectedFiles::default())
        .unwrap()
        .write(b"first")
        .unwrap();
    assert_eq!(
        fs::metadata(&path).unwrap().permissions().mode() & 0o777 & !0o040,
        0o600
    );
    NonBlockingFile::append(&path, MODE).unwrap().write(b" second").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"first second");
    NonBlockingFile::create(&path, MODE, &ProtectedFiles::default())
        .unwrap()
        .write(b"third")
        .unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"third");
}

#[test]
fn a_file_that_a_log_rotator_shortens_goes_on_without_a_hole() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let file = NonBlockingFile::create(&path, MODE, &ProtectedFiles::default()).unwrap();
    file.write(b"before").unwrap();
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    file.write(b"after").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"after");
}

#[test]
fn two_descriptors_of_one_file_do_not_overwrite_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    let (one, two) = (
        NonBlockingFile::create(&path, MODE, &ProtectedFiles::default()).unwrap(),
        NonBlockingFile::create(&path, MODE, &ProtectedFiles::default()).unwrap(),
    );
    for (file, text) in [(&one, "a1 "), (&two, "b1 "), (&one, "a2 "), (&two, "b2")] {
        file.write(text.as_bytes()).unwrap();
    }
    assert_eq!(fs::read(&path).unwrap(), b"a1 b1 a2 b2");
}

#[test]
fn a_fifo_without_a_reader_is_opened_and_filled_without_waiting_and_read_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let file = NonBlockingFile::create(&path, MODE, &ProtectedFiles::default()).unwrap();
    let written = fill(&file);
    let mut reader = File::open(&path).unwrap();
    let mut bytes = vec![0; written];
    reader.read_exact(&mut bytes).unwrap();
    assert!(bytes == vec![b'x'; written]);
    file.write(b"more").unwrap();
    drop(reader);
    file.write(b" and more").unwrap();
    let mut again = [0; 13];
    File::open(&path).unwrap().read_exact(&mut again).unwrap();
    assert_eq!(&again, b"more and more", "a reader may come again");
}

#[test]
fn what_is_not_written_byte_by_byte_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let refusal = |path: &Path| {
        NonBlockingFile::create(path, MODE, &ProtectedFiles::default())
            .unwrap_err()
            .to_string()
    };
    let allowed = "allowed: a regular file, a FIFO, a terminal or another character device";
    assert_eq!(refusal(folder.path()), format!("it is a directory, {allowed}"));
    assert_eq!(refusal(&socket), format!("it is a socket, {allowed}"));
    assert_eq!(refusal(&folder.path().join("no/file")), "cannot open it");
}

#[test]
fn character_devices_are_written_and_their_errors_told_each_time() {
    assert_eq!(
        NonBlockingFile::create(Path::new("/dev/null"), MODE, &ProtectedFiles::default())
            .unwrap()
            .write(b"abc")
            .unwrap(),
        3
    );
    let full = NonBlockingFile::create(Path::new("/dev/full"), MODE, &ProtectedFiles::default()).unwrap();
    for _ in 0..2 {
        assert_eq!(full.write(b"abc").unwrap_err().kind(), io::ErrorKind::StorageFull);
    }
}

#[test]
fn a_pipe_that_others_share_is_not_made_non_blocking_and_never_waited_for() {
    let (_reader, writer) = io::pipe().unwrap();
    let theirs = File::from(OwnedFd::from(writer));
    let file = NonBlockingFile::inherit(theirs.try_clone().unwrap());
    assert_eq!(file.room, Room::Own, "it has a file description of its own");
    fill(&file);
    assert!(!writable_within(theirs.as_fd(), 0));
    let link = fs::read_to_string(format!("/proc/self/fdinfo/{}", theirs.as_raw_fd())).unwrap();
    let flags = link
        .lines()
        .find_map(|line| line.strip_prefix("flags:"))
        .unwrap()
        .trim();
    assert_eq!(i32::from_str_radix(flags, 8).unwrap() & libc::O_NONBLOCK, 0);
}

/// They cannot be opened a second time, and whoever has them too decides about their flags.
#[test]
fn a_socket_that_others_share_is_filled_without_waiting_whatever_its_flags_are() {
    let (reader, writer) = UnixStream::pair().unwrap();
    reader.set_nonblocking(true).unwrap();
    let file = NonBlockingFile::inherit(File::from(OwnedFd::from(writer.try_clone().unwrap())));
    assert_eq!(file.room, Room::Told);
    for is_nonblocking in [true, false] {
        writer.set_nonblocking(is_nonblocking).unwrap();
        // To the last byte: that there is room for some bytes does not mean that there is room for these.
        fill(&file);
        assert!(!writable_within(file.as_fd(), 0));
        while (&reader).read(&mut [0; 4096]).is_ok_and(|count| count > 0) {}
    }
}

#[test]
fn the_last_words_wait_for_room_but_not_for_ever() {
    let (mut reader, writer) = io::pipe().unwrap();
    let file = NonBlockingFile::inherit(File::from(OwnedFd::from(writer)));
    let long = vec![b'x'; 300_000];
    let error = file.write_all_within(&long, Duration::from_millis(10)).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    let reading = std::thread::spawn(move || io::copy(&mut reader, &mut io::sink()).unwrap());
    file.write_all_within(&long, Duration::from_secs(60)).unwrap();
    drop(file);
    assert!(reading.join().unwrap() > 300_000);
}

/// What takes nothing and says nothing would be written to for ever. The memory of a process that has ended is such a
/// file.
#[test]
fn a_write_that_takes_nothing_is_an_error() {
    let mut child = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{}/mem", child.id()))
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let file = NonBlockingFile::inherit(memory);
    for _ in 0..2 {
        assert_eq!(file.write(b"abc").unwrap_err().kind(), io::ErrorKind::WriteZero);
        let error = file.write_all_within(b"abc", Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WriteZero);
    }
    assert_eq!(file.write(b"").unwrap(), 0);
}

/// Whoever has locked a file is a VM: this one, another husk, QEMU.
#[test]
fn what_is_locked_is_neither_emptied_nor_appended_to() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    fs::write(&path, "a disk").unwrap();
    let none = ProtectedFiles::default();
    for writes in [false, true] {
        let image = File::options().read(true).write(true).open(&path).unwrap();
        let lock = husk_virtio::block::FileLock::take(image, writes, "the image").unwrap();
        assert!(lock.is_some());
        let refused = [
            NonBlockingFile::create(&path, MODE, &none).err(),
            NonBlockingFile::append(&path, MODE).err(),
            crate::terminal::Files::open(&path, 4096, 0, MODE, &none).err(),
            crate::terminal::Files::open(&folder.path().join("log"), 4096, 0, MODE, &none).err(),
        ];
        assert!(
            matches!(
                refused[..3],
                [
                    Some(OpenOutputError::Locked),
                    Some(OpenOutputError::Locked),
                    Some(OpenOutputError::Locked)
                ]
            ),
            "{refused:?}"
        );
        assert!(refused[3].is_none(), "{refused:?}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "a disk");
    }
    NonBlockingFile::create(&path, MODE, &none).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), "");
}
