//! Streams while their VM is paused.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use husk_guest::Call;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::kernel_file;
use husk_tests::pod::Pod;

#[test]
fn streams_outlive_a_pause_and_what_was_said_meanwhile_arrives() {
    let folder = tempfile::tempdir().unwrap();
    let (kernel, initramfs) = (kernel_file("6.12", "vmlinux"), kernel_file("6.12", "pod.cpio"));
    let mut pod = Pod::launch(Shape::new(Shim::Rust, kernel, initramfs), folder.path()).unwrap();
    pod.start().unwrap();
    let mut stream = pod.one_more().unwrap().stream(&Call::Echo).unwrap();
    let mut back = [0; 5];
    stream.write_all(b"alive").unwrap();
    stream.read_exact(&mut back).unwrap();
    for _ in 0..3 {
        pod.api().put("vm.pause", None).unwrap().done().unwrap();
        stream.write_all(b"still").unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert_eq!(stream.read(&mut back).unwrap_err().kind(), ErrorKind::WouldBlock);
        stream.set_read_timeout(None).unwrap();
        pod.api().put("vm.resume", None).unwrap().done().unwrap();
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"still");
    }
    drop(stream);
    pod.one_more().unwrap();
    pod.stop().unwrap();
}
