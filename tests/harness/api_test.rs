#![allow(unsafe_code, reason = "the test server receives descriptors as a server does")]
use std::io::Write;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixListener;
use std::thread;

use serde_json::json;

use super::*;

const DONE: &str = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n";

/// What the client makes of these bytes.
fn understood(bytes: &str) -> Result<Response> {
    let (ours, mut theirs) = UnixStream::pair().unwrap();
    theirs.write_all(bytes.as_bytes()).unwrap();
    drop(theirs);
    read(&ours)
}

#[test]
fn answers_that_a_shim_would_misread_are_refused() {
    assert_eq!(
        understood(DONE).unwrap(),
        Response {
            status: 204,
            body: None
        }
    );
    let ping = "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    assert_eq!(understood(ping).unwrap().body.as_deref(), Some("{}"));
    let wrong = [
        "HTTP/1.1 204 No Content\r\n\r\n",
        "HTTP/1.1 204\r\n\r\n",
        "HTTP/1.1 204 \r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 204 \r\nConnection: close\r\n\r\n",
        "HTTP/1.1 200 \r\n\r\n",
        "HTTP/1.1 200 \r\nContent-Length: 2\r\n\r\n{}",
        "HTTP/1.1 200 \r\nContent-Type: application/json\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 3\r\n\r\n{}",
        "HTTP/1.1 200 \r\nContent-Type: application/json\r\nContent-Length: 4\r\n\r\n\"\u{fc}\"",
    ];
    for bytes in wrong {
        understood(bytes).expect_err(bytes);
    }
}

/// What a client sends, by the pieces in which it arrives, and the number of descriptors with each.
fn pieces(shim: Shim, fds: usize) -> Vec<(String, usize)> {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let server = thread::spawn(move || {
        let mut streams = vec![listener.accept().unwrap().0];
        if shim == Shim::Go && fds > 0 {
            streams.push(listener.accept().unwrap().0);
        }
        let mut stream = streams.pop().unwrap();
        let mut pieces: Vec<(String, usize)> = Vec::new();
        while !pieces.iter().any(|(piece, _)| piece.ends_with('}')) {
            let mut buffer = [0; 1024];
            let mut received = [-1; 4];
            let mut iovec = [libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            }];
            // SAFETY: the iovec describes `buffer`, which lives as long.
            let (length, count) = unsafe { stream.recv_with_fds(&mut iovec, &mut received) }.unwrap();
            for fd in &received[..count] {
                // SAFETY: just received, and nobody else has it.
                drop(unsafe { std::os::fd::OwnedFd::from_raw_fd(*fd) });
            }
            pieces.push((String::from_utf8_lossy(&buffer[..length]).into_owned(), count));
        }
        stream.write_all(DONE.as_bytes()).unwrap();
        pieces
    });
    let file = tempfile::tempfile().unwrap();
    let mut api = Api::connect(&socket, shim).unwrap();
    let response = api.put_with_fds("vm.add-net", &json!({"a": 1}), &vec![file.as_raw_fd(); fds]);
    response.unwrap().done().unwrap();
    server.join().unwrap()
}

#[test]
fn the_rust_shims_descriptors_come_with_the_request_line() {
    let pieces = pieces(Shim::Rust, 2);
    let (first, count) = &pieces[0];
    assert!(
        first.starts_with("PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n"),
        "{pieces:?}"
    );
    assert_eq!(*count, 2);
    let all: String = pieces.iter().map(|(piece, _)| piece.as_str()).collect();
    assert!(all.ends_with("Content-Length: 12\r\n\r\n{\n  \"a\": 1\n}"), "{all:?}");
}

#[test]
fn the_go_shim_sends_everything_at_once_on_a_connection_of_its_own() {
    let pieces = pieces(Shim::Go, 1);
    let [(request, 1)] = pieces.as_slice() else {
        panic!("{pieces:?}")
    };
    assert!(
        request.contains("Content-Length: 7\r\nContent-Type: application/json\r\n"),
        "{request}"
    );
    assert!(request.ends_with("\r\n\r\n{\"a\":1}"), "{request}");
}
