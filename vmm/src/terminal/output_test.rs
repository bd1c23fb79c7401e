use std::fs::OpenOptions;
use std::io::Read;

use std::time::Duration;

use super::*;
use crate::terminal::testing::fifo;

fn wants_drain(outputs: &ProcessOutputs) -> bool {
    let outer = Epoll::new().unwrap();
    let event = EpollEvent::new(EventSet::IN, 0);
    outer.ctl(ControlOperation::Add, outputs.as_raw_fd(), event).unwrap();
    outer.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn what_waits_for_the_reader_of_a_fifo_goes_out_with_standard_output() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let outputs = ProcessOutputs::wrap(None).unwrap();
    let mut output = outputs.open(&path).unwrap();
    let sent = vec![b'x'; 200_000];
    output.write_all(&sent).unwrap();
    assert!(!wants_drain(&outputs), "nobody reads");
    let mut reader = OpenOptions::new().read(true).open(&path).unwrap();
    let mut received = vec![0; sent.len()];
    let mut got = 0;
    while got < received.len() {
        got += reader.read(&mut received[got..]).unwrap();
        if wants_drain(&outputs) {
            outputs.drain();
        }
    }
    assert!(received == sent && !wants_drain(&outputs));
}

#[test]
fn the_end_waits_for_every_reader_also_of_a_port_that_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let path = fifo(&folder);
    let outputs = ProcessOutputs::wrap(None).unwrap();
    let mut output = outputs.open(&path).unwrap();
    output.write_all(&[b'x'; 200_000]).unwrap();
    drop(output);
    let reading = std::thread::spawn(move || {
        let mut received = vec![0; 200_000];
        let mut reader = OpenOptions::new().read(true).open(&path).unwrap();
        reader.read_exact(&mut received).map(|()| received)
    });
    outputs.finish(Instant::now() + Duration::from_secs(60));
    assert!(reading.join().unwrap().unwrap() == [b'x'; 200_000]);
}

#[test]
fn what_is_at_a_path_is_closed_with_its_port_unless_something_waits() {
    let folder = tempfile::tempdir().unwrap();
    let outputs = ProcessOutputs::wrap(None).unwrap();
    drop(outputs.open(&folder.path().join("log")).unwrap());
    assert_eq!(outputs.others.locked().len(), 0);
    let path = fifo(&folder);
    let mut output = outputs.open(&path).unwrap();
    output.write_all(&[b'x'; 100_000]).unwrap();
    drop(output);
    assert_eq!(outputs.others.locked().len(), 1);
    let mut reader = OpenOptions::new().read(true).open(&path).unwrap();
    let mut received: Vec<u8> = Vec::new();
    let mut piece = [0; 4096];
    while received.len() < 100_000 {
        let count = reader.read(&mut piece).unwrap();
        received.extend(&piece[..count]);
        outputs.drain();
    }
    assert_eq!(outputs.others.locked().len(), 0);
    assert_eq!(reader.read(&mut piece).unwrap(), 0, "nobody writes any more");
}
