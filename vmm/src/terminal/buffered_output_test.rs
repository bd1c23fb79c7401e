use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::time::Duration;

use super::*;
use crate::seccomp::Mode;
use crate::terminal::testing::pty;
use crate::terminal::{Content, Files, NonBlockingFile, ProtectedFiles, WriterThread};

fn pipe() -> (io::PipeReader, BufferedOutput) {
    let (reader, writer) = io::pipe().unwrap();
    (
        reader,
        BufferedOutput::new(Some(NonBlockingFile::inherit(File::from(OwnedFd::from(writer))).into())).unwrap(),
    )
}

fn read(reader: &mut io::PipeReader, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    reader.read_exact(&mut bytes).unwrap();
    bytes
}

fn wants_drain(output: &BufferedOutput) -> bool {
    let outer = Epoll::new().unwrap();
    outer
        .ctl(
            ControlOperation::Add,
            output.as_raw_fd(),
            EpollEvent::new(EventSet::IN, 0),
        )
        .unwrap();
    outer.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

/// Bytes that differ from their neighbours 256 and 65536 bytes away.
fn pattern(count: usize) -> Vec<u8> {
    (0..count)
        .map(|i| u8::try_from((i ^ (i >> 8) ^ (i >> 16)) & 0xff).unwrap())
        .collect()
}

#[test]
fn bytes_go_out_at_once_while_there_is_room() {
    let (mut reader, mut output) = pipe();
    output.write_all(b"ok").unwrap();
    assert_eq!(read(&mut reader, 2), b"ok");
    assert!(!wants_drain(&output));
}

#[test]
fn a_full_pipe_delays_bytes_without_blocking_or_reordering_them() {
    let (mut reader, mut output) = pipe();
    let sent = pattern(200_000);
    sent.chunks(1000).for_each(|chunk| output.write_all(chunk).unwrap());
    assert!(!wants_drain(&output), "nothing to do before the reader reads");
    let mut received = Vec::new();
    while received.len() < sent.len() {
        received.extend(read(&mut reader, 4096.min(sent.len() - received.len())));
        if wants_drain(&output) {
            output.drain();
        }
    }
    assert!(received == sent);
    assert!(!wants_drain(&output), "an empty backlog does not wake the main loop");
}

#[test]
fn a_reader_that_never_reads_costs_a_bounded_backlog() {
    let (mut reader, mut output) = pipe();
    let sent = pattern(BACKLOG_BYTES * 2);
    let kept = output.write(&sent).unwrap();
    assert!(kept > BACKLOG_BYTES && kept < sent.len(), "{kept}");
    let error = output.write(b"more").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "what is refused is told");
    let mut received = Vec::new();
    while received.len() < kept {
        received.extend(read(&mut reader, 4096.min(kept - received.len())));
        output.drain();
    }
    assert!(received == sent[..kept], "the oldest bytes are kept");
}

#[test]
fn a_reader_that_has_gone_loses_the_bytes_and_nothing_else() {
    let (reader, mut output) = pipe();
    drop(reader);
    for _ in 0..2 {
        let error = output.write(b"abc").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        output.drain();
        output.finish(Instant::now() + Duration::from_secs(60));
    }
}

#[test]
fn a_reader_that_goes_with_a_backlog_leaves_none_behind() {
    let (reader, mut output) = pipe();
    let lost = Arc::<Counter>::default();
    output.count_lost_in(lost.clone());
    output.write_all(&pattern(100_000)).unwrap();
    drop(reader);
    assert!(wants_drain(&output), "a broken pipe wakes the main loop");
    let waiting = output.locked().backlog.len() as u64;
    assert_eq!((waiting > 0, lost.get()), (true, 0));
    output.drain();
    assert!(!wants_drain(&output));
    assert!(output.locked().backlog.is_empty());
    assert_eq!(lost.get(), waiting, "what was taken is counted when it is lost");
    output.write(b"more").unwrap_err();
    assert_eq!(lost.get(), waiting, "what is refused is the writer's to count");
}

#[test]
fn the_end_waits_for_a_reader_that_reads_but_not_for_one_that_does_not() {
    let (mut reader, mut output) = pipe();
    output.write_all(&pattern(100_000)).unwrap();
    let begun = Instant::now();
    output.finish(begun + Duration::from_millis(20));
    assert!(begun.elapsed() >= Duration::from_millis(20));
    let reading = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        read(&mut reader, 100_000)
    });
    output.finish(Instant::now() + Duration::from_secs(60));
    assert!(output.locked().backlog.is_empty());
    assert!(reading.join().unwrap() == pattern(100_000));
}

#[test]
fn the_master_of_a_terminal_is_written_and_never_blocks() {
    let (master, slave) = pty();
    let mut output = BufferedOutput::new(Some(NonBlockingFile::inherit(master).into())).unwrap();
    output.write_all(b"to the other side\n").unwrap();
    let mut line = [0; 18];
    (&slave).read_exact(&mut line).unwrap();
    assert_eq!(&line, b"to the other side\n");
    // Far more than a terminal holds while nobody reads.
    output.write_all(&[b'x'; 200_000]).unwrap();
    assert!(!output.locked().backlog.is_empty());
}

#[test]
fn a_file_takes_everything_where_the_writer_stood() {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(b"before ").unwrap();
    let target = NonBlockingFile::inherit(file.try_clone().unwrap())
        .into_target(Mode::Off)
        .unwrap();
    let mut output = BufferedOutput::new(Some(target)).unwrap();
    output.write_all(b"after").unwrap();
    output.finish(Instant::now() + Duration::from_secs(60));
    let mut text = String::new();
    io::Seek::rewind(&mut file).unwrap();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before after");
}

#[test]
fn a_closed_standard_output_refuses_everything() {
    let mut output = BufferedOutput::new(None).unwrap();
    output.write(b"abc").unwrap_err();
}

/// A output whose file waits with every write until the sender is dropped, and tells of it.
fn stuck() -> (
    std::sync::mpsc::Sender<()>,
    std::sync::mpsc::Receiver<usize>,
    BufferedOutput,
) {
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let (told, writes) = std::sync::mpsc::channel();
    let writer = WriterThread::start(Content::Bytes, Mode::Off, move |bytes: &[u8]| {
        let _ = told.send(bytes.len());
        let _ = gate.recv();
        Ok(bytes.len())
    });
    let output = BufferedOutput::new(Some(OutputTarget::WriterThread(Arc::new(writer.unwrap())))).unwrap();
    (go, writes, output)
}

#[test]
fn a_file_that_does_not_answer_holds_up_neither_guest_nor_end_and_has_all_when_it_does() {
    let (go, writes, mut output) = stuck();
    output.write_all(b"x").unwrap();
    assert_eq!(writes.recv().unwrap(), 1, "the thread is inside of a write");
    let sent = pattern(BACKLOG_BYTES * 3);
    let kept = output.write(&sent).unwrap();
    assert!(kept > BACKLOG_BYTES && kept < sent.len(), "{kept}");
    let error = output.write(b"more").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "what is refused is told");
    output.drain();
    output.finish(Instant::now() + Duration::from_millis(5));
    drop(go);
    output.finish(Instant::now() + Duration::from_secs(60));
    let written: usize = writes.try_iter().sum();
    assert_eq!(written, kept);
    assert!(!wants_drain(&output));
}

#[test]
fn the_end_does_not_wait_for_an_output_that_somebody_is_inside_of() {
    let (_reader, output) = pipe();
    let inside = output.locked();
    let other = output.clone();
    let end = thread::spawn(move || other.finish(Instant::now() + Duration::from_millis(5)));
    end.join().unwrap();
    drop(inside);
}

#[test]
fn files_of_limited_size_are_full_in_turn_with_every_byte_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut files = Files::open(&path, 10, 1, 0o600, &ProtectedFiles::default()).unwrap();
    let writer = WriterThread::start(Content::Bytes, Mode::Off, move |bytes: &[u8]| files.write(bytes));
    let mut output = BufferedOutput::new(Some(OutputTarget::WriterThread(Arc::new(writer.unwrap())))).unwrap();
    output.write_all(b"0123456").unwrap();
    output.write_all(b"789abcdefghijkl").unwrap();
    output.finish(Instant::now() + Duration::from_secs(60));
    let read = |name: &str| std::fs::read_to_string(folder.path().join(name)).unwrap();
    assert_eq!((read("log"), read("log.1")), ("kl".into(), "abcdefghij".into()));
}
