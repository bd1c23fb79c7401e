use std::sync::mpsc::{Receiver, Sender};

use super::*;

/// A file whose every write waits to be told what becomes of it, and tells what it was.
struct Slow {
    answers: Sender<io::Result<usize>>,
    writes: Receiver<Vec<u8>>,
}

fn slow(content: Content) -> (Slow, WriterThread) {
    let (answers, answer) = channel();
    let (told, writes) = channel();
    let writer = WriterThread::start(content, Mode::Off, move |bytes: &[u8]| {
        // Nobody listens any more when a test has ended.
        let _ = told.send(bytes.to_vec());
        answer.recv().unwrap_or(Ok(bytes.len()))
    });
    (Slow { answers, writes }, writer.unwrap())
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn full() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

/// Writes until nothing is taken any more; what was.
fn fill(writer: &WriterThread) -> Vec<u8> {
    let mut taken = Vec::new();
    loop {
        let next = format!("{:07}\n", taken.len());
        match writer.write(next.as_bytes()) {
            Ok(count) => taken.extend(&next.as_bytes()[..count]),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                return taken;
            }
        }
    }
}

#[test]
fn nobody_waits_for_a_file_that_does_not_answer_and_all_of_it_comes_later() {
    let (slow, writer) = slow(Content::Bytes);
    let taken = fill(&writer);
    assert!(taken.len() >= 4096, "{}", taken.len());
    assert!(!writer.progress().wait(Instant::now()));
    assert!(!writer.progress().wait_unlocked(Duration::from_millis(5)));
    // From now on it answers.
    let Slow { answers, writes } = slow;
    drop(answers);
    assert!(writer.progress().wait(soon()));
    assert!(writer.progress().wait_unlocked(Duration::ZERO));
    let progress = writer.progress().clone();
    drop(writer);
    assert!(
        writes.iter().flatten().eq(taken),
        "all of it, in order, and nothing else"
    );
    while !progress.is_over() {
        thread::yield_now();
    }
}

#[test]
fn a_write_may_take_a_part_and_the_rest_follows() {
    let (slow, writer) = slow(Content::Bytes);
    writer.write(b"abcdef").unwrap();
    slow.answers.send(Ok(2)).unwrap();
    slow.answers.send(Err(io::ErrorKind::Interrupted.into())).unwrap();
    slow.answers.send(Ok(4)).unwrap();
    assert!(writer.progress().wait(soon()));
    let writes: Vec<Vec<u8>> = slow.writes.try_iter().collect();
    assert_eq!(writes, [b"abcdef".to_vec(), b"cdef".to_vec(), b"cdef".to_vec()]);
}

#[test]
fn what_a_guest_printed_and_the_file_does_not_take_is_counted_and_the_next_goes_on() {
    let (slow, writer) = slow(Content::Bytes);
    let lost = Arc::<Counter>::default();
    writer.progress().count_lost_in(lost.clone());
    writer.write(b"abcdef").unwrap();
    slow.answers.send(Ok(2)).unwrap();
    slow.answers.send(Ok(0)).unwrap();
    assert!(writer.progress().wait(soon()));
    assert_eq!(lost.get(), 4, "a file that takes nothing and says nothing is full");
    writer.write(b"more").unwrap();
    slow.answers.send(Ok(4)).unwrap();
    assert!(writer.progress().wait(soon()));
    assert_eq!((lost.get(), slow.writes.iter().nth(2).unwrap()), (4, b"more".to_vec()));
}

#[test]
fn lines_that_a_file_does_not_take_are_counted_and_a_torn_one_is_ended() {
    let (slow, writer) = slow(Content::Lines);
    // Of the first a part, of the second nothing.
    writer.write(b"first\nsecond\n").unwrap();
    slow.answers.send(Ok(3)).unwrap();
    slow.answers.send(Err(full())).unwrap();
    assert!(writer.progress().wait(soon()));
    assert_eq!(writer.progress().take_unwritten().lines, 2);
    assert_eq!(writer.progress().take_unwritten().lines, 0, "once");
    assert_eq!(writer.progress().error().unwrap().raw_os_error(), Some(libc::ENOSPC));
    // The end of the torn one is lost, and what comes with it.
    writer.write(b"third\n").unwrap();
    slow.answers.send(Err(full())).unwrap();
    assert!(writer.progress().wait(soon()));
    // Half a line, whose head is lost.
    writer.write(b"fou").unwrap();
    slow.answers.send(Err(full())).unwrap();
    assert!(writer.progress().wait(soon()));
    assert_eq!(writer.progress().take_unwritten().lines, 2);
    writer.write(b"rth\nfifth\n").unwrap();
    slow.answers.send(Ok(1)).unwrap();
    slow.answers.send(Ok(6)).unwrap();
    assert!(writer.progress().wait(soon()));
    assert_eq!(writer.progress().take_unwritten().lines, 0);
    let writes: Vec<Vec<u8>> = slow.writes.try_iter().collect();
    let expected: [&[u8]; 6] = [b"first\nsecond\n", b"st\nsecond\n", b"\n", b"\n", b"\n", b"fifth\n"];
    assert_eq!(writes, expected);
}

#[test]
fn a_notice_that_is_lost_is_to_be_told_again_and_is_no_lost_line() {
    let (slow, writer) = slow(Content::Lines);
    let progress = writer.progress();
    let lost = |lines: &[u8]| {
        writer.write(lines).unwrap();
        slow.answers.send(Err(full())).unwrap();
        assert!(progress.wait(soon()));
    };
    lost(b"a\nb\n");
    assert_eq!(progress.take_unwritten(), UnwrittenLines { lines: 2, untold: 0 });
    lost(b"2 were lost\nc\n");
    progress.record_reported(2, 1);
    assert_eq!(progress.take_unwritten(), UnwrittenLines { lines: 1, untold: 2 });
    writer.write(b"3 were lost\nd\n").unwrap();
    progress.record_reported(3, 1);
    slow.answers.send(Ok(14)).unwrap();
    assert!(progress.wait(soon()));
    assert_eq!(progress.take_unwritten(), UnwrittenLines::default());
    lost(b"e\n");
    assert_eq!(progress.take_unwritten(), UnwrittenLines { lines: 1, untold: 0 });
}
