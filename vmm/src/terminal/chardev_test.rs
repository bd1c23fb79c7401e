use std::io::Write;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use super::*;

/// What an output holds.
const BACKLOG_BYTES: usize = 256 << 10;
/// More than a socket, a terminal and an output hold.
const MUCH: usize = 2 << 20;

struct Port {
    folder: tempfile::TempDir,
    outputs: ProcessOutputs,
    chardev: Chardev,
    output: PortOutput,
}

impl Port {
    fn socket() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outputs = ProcessOutputs::wrap(None).unwrap();
        let (chardev, output) = Chardev::listen(&folder.path().join("s"), &outputs).unwrap();
        Self {
            folder,
            outputs,
            chardev,
            output,
        }
    }

    fn terminal() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let outputs = ProcessOutputs::wrap(None).unwrap();
        let (chardev, output) = Chardev::open_pty(&outputs).unwrap();
        Self {
            folder,
            outputs,
            chardev,
            output,
        }
    }

    /// A client that the chardev has taken.
    fn client(&mut self) -> UnixStream {
        let client = UnixStream::connect(self.folder.path().join("s")).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        assert!(self.is_ready());
        self.rounds();
        client
    }

    /// The other side of the terminal, as a program opens it.
    fn slave(&self) -> File {
        let mut options = File::options();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        options.open(self.chardev.path().unwrap()).unwrap()
    }

    /// Whether the main loop would be woken.
    fn is_ready(&self) -> bool {
        ready(&self.chardev) || ready(&self.outputs)
    }

    /// Serves the chardev as the main loop does, until nothing is ready; what was typed. The guest has room for all.
    fn rounds(&mut self) -> Vec<u8> {
        let mut typed = Vec::new();
        for _ in 0..10_000 {
            if !self.is_ready() {
                return typed;
            }
            self.chardev.serve(|bytes| {
                typed.extend(bytes);
                bytes.len()
            });
            self.outputs.drain();
        }
        panic!("it is ready for ever");
    }

    /// As [`Port::rounds`], until `count` bytes are typed: a terminal passes them on when it has the time.
    fn typed(&mut self, count: usize) -> Vec<u8> {
        let mut typed = Vec::new();
        while typed.len() < count {
            typed.extend(self.rounds());
            thread::yield_now();
        }
        typed
    }

    /// Prints without end; how many bytes were taken.
    fn flood(&mut self) -> usize {
        let mut taken = 0;
        while let Ok(count) = self.output.write(&[b'x'; 1000]) {
            taken += count;
            assert!(taken < MUCH, "nothing is ever refused");
        }
        taken
    }
}

fn ready(fd: &impl AsRawFd) -> bool {
    let outer = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    outer.ctl(ControlOperation::Add, fd.as_raw_fd(), event).unwrap();
    outer.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

fn read(from: &mut impl Read, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    from.read_exact(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_client_reads_what_was_printed_before_it_came_and_types() {
    let mut port = Port::socket();
    port.output.write_all(b"boot ").unwrap();
    assert!(!port.is_ready(), "nobody has come");
    let mut client = port.client();
    port.output.write_all(b"login: ").unwrap();
    assert_eq!(read(&mut client, 12), b"boot login: ");
    client.write_all(b"root\x01x\n").unwrap();
    assert_eq!(port.rounds(), b"root\x01x\n");
}

#[test]
fn where_nobody_reads_the_guest_goes_on_and_a_bounded_rest_is_kept() {
    let mut port = Port::socket();
    let kept = port.flood();
    assert!(!port.is_ready());
    let mut client = port.client();
    let mut read_so_far = 0;
    while read_so_far < kept {
        read_so_far += read(&mut client, 1000.min(kept - read_so_far)).len();
        port.rounds();
    }
    // Now it stalls: as much waits again, and some in the socket.
    assert!(port.flood() >= kept && !port.is_ready());
    drop(client);
    assert_eq!(port.rounds(), b"");
    // The next one is told what was left.
    port.output.write_all(b"!").unwrap_err();
    let mut next = port.client();
    assert_eq!(read(&mut next, 1000), [b'x'; 1000]);
}

#[test]
fn a_client_that_goes_while_the_guest_prints_leaves_what_waited_to_the_next_one() {
    let mut port = Port::socket();
    let client = port.client();
    let kept = port.flood();
    // It has gone, and the main thread does not know yet.
    drop(client);
    assert_eq!(port.output.write(b"x").unwrap_err().kind(), io::ErrorKind::WouldBlock);
    assert!(
        ready(&port.chardev) && !ready(&port.outputs),
        "only the chardev has something to do"
    );
    port.rounds();
    let mut next = port.client();
    // A part of it is with the one that has gone.
    for _ in 0..BACKLOG_BYTES / 1024 {
        assert_eq!(read(&mut next, 1024), [b'x'; 1024]);
        port.rounds();
    }
    assert!(kept > BACKLOG_BYTES);

    // Likewise the first word to one that has gone.
    let mut port = Port::socket();
    drop(port.client());
    port.output.write_all(b"login: ").unwrap();
    port.rounds();
    assert_eq!(read(&mut port.client(), 7), b"login: ");
}

#[test]
fn a_client_that_comes_takes_the_line_over() {
    let mut port = Port::socket();
    let mut first = port.client();
    let mut second = port.client();
    port.output.write_all(b"who?").unwrap();
    assert_eq!(first.read(&mut [0; 4]).unwrap(), 0, "hung up on");
    assert_eq!(read(&mut second, 4), b"who?");
    second.write_all(b"me").unwrap();
    assert_eq!(port.rounds(), b"me");
}

#[test]
fn clients_come_and_go_and_none_is_told_of_for_ever() {
    let mut port = Port::socket();
    for round in 0..20 {
        let mut client = port.client();
        write!(client, "{round}").unwrap();
        drop(client);
        assert_eq!(port.rounds(), round.to_string().as_bytes());
        assert!(port.chardev.source.is_none());
    }
}

#[test]
fn a_client_that_types_no_more_reads_on() {
    let mut port = Port::socket();
    let mut client = port.client();
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(port.rounds(), b"");
    port.output.write_all(b"still here").unwrap();
    assert_eq!(read(&mut client, 10), b"still here");
    // One that reads no more may type.
    let mut client = port.client();
    client.shutdown(Shutdown::Read).unwrap();
    port.flood();
    client.write_all(b"typed").unwrap();
    assert_eq!(port.rounds(), b"typed");
}

#[test]
fn keys_for_a_guest_without_room_stay_with_whoever_types() {
    let mut port = Port::socket();
    let mut client = port.client();
    client.set_nonblocking(true).unwrap();
    while client.write(&[b'k'; 4096]).is_ok() {}
    for _ in 0..10_000 {
        if !port.is_ready() {
            break;
        }
        assert!(port.chardev.serve(|_| 0), "to be offered again");
    }
    assert!(!port.is_ready(), "the loop does not spin");
    assert_eq!(port.chardev.typed.len(), TYPED_BYTES);
    // It goes in the meantime: what it has typed comes, and its end is told once.
    drop(client);
    assert!(!port.is_ready());
    let mut typed = 0;
    while port.chardev.serve(|bytes| {
        typed += bytes.len().min(100);
        bytes.len().min(100)
    }) || port.is_ready()
    {}
    assert!(typed > TYPED_BYTES && port.chardev.source.is_none());
}

#[test]
fn a_socket_goes_with_its_line_and_the_last_words_reach_the_client() {
    let mut port = Port::socket();
    let path = port.folder.path().join("s");
    assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
    let mut client = port.client();
    let kept = port.flood();
    let Port {
        outputs,
        chardev,
        output,
        ..
    } = port;
    drop(chardev);
    assert!(!path.exists());
    drop(output);
    let reader = thread::spawn(move || read(&mut client, kept).len());
    outputs.finish(Instant::now() + Duration::from_secs(60));
    assert_eq!(reader.join().unwrap(), kept);
}

#[test]
fn the_end_does_not_wait_for_a_client_that_never_came() {
    let mut port = Port::socket();
    port.output.write_all(b"nobody hears this").unwrap();
    let Port {
        outputs,
        chardev,
        output,
        ..
    } = port;
    drop((chardev, output));
    assert!(!ready(&outputs));
    outputs.finish(Instant::now() + Duration::from_secs(600));
}

#[test]
fn a_terminal_carries_both_ways_without_an_echo() {
    let mut port = Port::terminal();
    let found = port.chardev.path().unwrap().metadata().unwrap();
    assert!(found.file_type().is_char_device());
    assert_eq!(found.mode() & 0o777, 0o600, "nobody else types");
    port.output.write_all(b"login: \n").unwrap();
    let mut slave = port.slave();
    assert_eq!(read(&mut slave, 8), b"login: \n");
    slave.write_all(b"root\r\x03").unwrap();
    assert_eq!(port.typed(6), b"root\r\x03");
}

#[test]
fn whoever_leaves_a_terminal_hangs_nothing_up() {
    let mut port = Port::terminal();
    for _ in 0..3 {
        drop(port.slave());
        assert!(!port.is_ready());
        port.output.write_all(b"x").unwrap();
    }
    assert_eq!(read(&mut port.slave(), 3), b"xxx");
    let kept = port.flood();
    assert!(kept > 100_000 && !port.is_ready());
    assert_eq!(port.rounds(), b"", "what is printed is not typed");
}

#[test]
fn the_end_waits_for_the_reader_of_a_terminal() {
    let mut port = Port::terminal();
    let mut slave = port.slave();
    port.output.write_all(b"last words").unwrap();
    let Port {
        outputs,
        chardev,
        output,
        ..
    } = port;
    drop((chardev, output));
    let reader = thread::spawn(move || read(&mut slave, 10));
    outputs.finish(Instant::now() + Duration::from_secs(60));
    drop(outputs);
    assert_eq!(reader.join().unwrap(), b"last words");
}

#[test]
fn what_is_at_the_path_already_is_named() {
    let port = Port::socket();
    let path = port.folder.path().join("s");
    let error = Chardev::listen(&path, &port.outputs).unwrap_err();
    assert!(matches!(error, BindError::InUse(_)), "{error}");
}

#[test]
fn a_client_that_could_not_be_taken_wakes_nobody_and_is_tried_again() {
    let mut port = Port::socket();
    let _client = UnixStream::connect(port.folder.path().join("s")).unwrap();
    assert!(port.is_ready());
    // As after accept(2) has failed, when this process has no descriptor left.
    port.chardev.refuse_clients();
    assert!(port.chardev.is_refusing_clients() && !port.is_ready());
    port.chardev.serve(|_| 0);
    assert!(!port.chardev.is_refusing_clients());
    port.rounds();
    assert!(port.chardev.source.is_some());
}
