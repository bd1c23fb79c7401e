use proptest::prelude::*;

use super::*;

/// What the Rust shim sends for a NIC: request line and first headers, then the length, then the
/// empty line, then the body.
const RUST_SHIM: &[u8] =
    b"PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 5\r\n\r\n{\"a\":";
/// What the Go shim sends for a request without a body.
const GO_SHIM: &[u8] = b"PUT /api/v1/vm.boot HTTP/1.1\r\nHost: localhost\r\nUser-Agent: OpenAPI-Generator/1.0.0/go\r\nContent-Length: 0\r\nAccept-Encoding: gzip\r\n\r\n";

/// Of a server that takes every body.
fn new_parser() -> Parser {
    Parser::new(|_, _| BODY_BYTES)
}

fn all(parser: &mut Parser) -> Vec<Message> {
    std::iter::from_fn(|| parser.next_message().unwrap()).collect()
}

fn refused(bytes: &[u8]) -> Malformed {
    let mut parser = new_parser();
    parser.push(bytes);
    parser.next_message().unwrap_err()
}

fn get(target: &str) -> Message {
    let mut parser = new_parser();
    parser.push(format!("GET {target} HTTP/1.1\r\n\r\n").as_bytes());
    parser.next_message().unwrap().unwrap()
}

#[test]
fn requests_are_the_same_wherever_the_stream_is_torn() {
    let stream = [RUST_SHIM, GO_SHIM, b"\r\n", b"GET /x?y HTTP/1.1\nHost: a\n\n"].concat();
    let mut parser = new_parser();
    parser.push(&stream);
    let whole = all(&mut parser);
    assert_eq!(whole.len(), 3);
    assert_eq!(
        (whole[0].method, whole[0].path.as_str()),
        (Method::Put, "/api/v1/vm.add-net")
    );
    assert_eq!(
        (whole[0].body.as_slice(), whole[0].end),
        (&b"{\"a\":"[..], RUST_SHIM.len() as u64)
    );
    assert_eq!((whole[1].path.as_str(), whole[1].body.len()), ("/api/v1/vm.boot", 0));
    assert_eq!((whole[2].method, whole[2].path.as_str()), (Method::Get, "/x"));
    assert_eq!(whole[2].end, stream.len() as u64);
    for at in 0..stream.len() {
        let (first, second) = stream.split_at(at);
        let mut parser = new_parser();
        let mut found = Vec::new();
        for part in [first, second] {
            parser.push(part);
            found.extend(all(&mut parser));
        }
        assert_eq!(found, whole, "torn at {at}");
        assert_eq!(parser.received(), stream.len() as u64);
    }
    let mut parser = new_parser();
    let mut found = Vec::new();
    for byte in &stream {
        parser.push(&[*byte]);
        found.extend(all(&mut parser));
    }
    assert_eq!(found, whole);
}

#[test]
fn a_request_is_not_there_before_its_last_byte() {
    let mut parser = new_parser();
    parser.push(&RUST_SHIM[..RUST_SHIM.len() - 1]);
    assert_eq!(parser.next_message(), Ok(None));
    parser.push(&RUST_SHIM[RUST_SHIM.len() - 1..]);
    assert!(parser.next_message().unwrap().is_some());
}

#[test]
fn a_body_may_be_as_long_as_allowed_and_not_a_byte_longer() {
    let head = format!("PUT / HTTP/1.1\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    let mut parser = new_parser();
    parser.push(head.as_bytes());
    assert_eq!(parser.next_message(), Ok(None));
    parser.push(&vec![b' '; BODY_BYTES]);
    assert_eq!(parser.next_message().unwrap().unwrap().body.len(), BODY_BYTES);
    // Refused by its head: nobody waits for the body.
    let length = BODY_BYTES as u64 + 1;
    let error = refused(format!("PUT / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n").as_bytes());
    let most = BODY_BYTES;
    assert_eq!((error, error.status()), (Malformed::Body { found: length, most }, 413));
    assert_eq!(error.to_string(), "body of 262145 bytes, at most 262144 allowed");
    let error = refused(b"PUT / HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n");
    assert_eq!(error.status(), 413);
}

#[test]
fn heads_that_are_too_long_are_refused_without_their_end() {
    let mut parser = new_parser();
    parser.push(&[b'a'; HEAD_BYTES]);
    assert_eq!(parser.next_message(), Ok(None));
    parser.push(b"a");
    assert_eq!(parser.next_message().map_err(Malformed::status), Err(431));
    let many = "A: b\r\n".repeat(HEADERS + 1);
    assert_eq!(
        refused(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes()).status(),
        431
    );
    let long = "a".repeat(HEAD_BYTES);
    assert_eq!(
        refused(format!("GET / HTTP/1.1\r\nA: {long}\r\n\r\n").as_bytes()).status(),
        431
    );
}

#[test]
fn what_is_no_request_is_refused() {
    for (bytes, status) in [
        (&b"\0\0\r\n\r\n"[..], 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nNo colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: +1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"PUT / HTTP/1.1\r\nExpect: wonders\r\n\r\n", 417),
        (b"GET / HTTP/2.0\r\n\r\n", 505),
    ] {
        assert_eq!(refused(bytes).status(), status, "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn two_equal_lengths_are_one() {
    let mut parser = new_parser();
    parser.push(b"PUT / HTTP/1.1\r\ncontent-length: 2\r\nCONTENT-LENGTH: 2\r\n\r\nab");
    assert_eq!(parser.next_message().unwrap().unwrap().body, b"ab");
}

#[test]
fn a_target_is_its_path() {
    for (target, path) in [
        ("/api/v1/vmm.ping", "/api/v1/vmm.ping"),
        ("/a?b=c", "/a"),
        ("/a#b", "/a"),
        ("http://localhost/a/b", "/a/b"),
        ("http://localhost", "/"),
        ("/a://b/c", "/a://b/c"),
        ("*", "*"),
    ] {
        assert_eq!(get(target).path, path, "{target}");
    }
}

#[test]
fn connections_stay_open_unless_the_client_wants_them_closed() {
    for (head, close) in [
        ("HTTP/1.1\r\n", false),
        ("HTTP/1.1\r\nConnection: Keep-Alive\r\n", false),
        ("HTTP/1.1\r\nConnection: x, Close\r\n", true),
        ("HTTP/1.0\r\n", true),
        ("HTTP/1.0\r\nConnection: keep-alive\r\n", false),
    ] {
        let mut parser = new_parser();
        parser.push(format!("GET / {head}\r\n").as_bytes());
        assert_eq!(parser.next_message().unwrap().unwrap().close, close, "{head}");
    }
}

#[test]
fn a_client_that_waits_is_told_once_and_only_while_its_body_is_missing() {
    let mut parser = new_parser();
    let head = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n";
    parser.push(head);
    assert_eq!(parser.next_message(), Ok(None));
    assert!(parser.take_wait());
    assert!(!parser.take_wait());
    parser.push(b"a");
    assert!(parser.next_message().unwrap().is_some());
    parser.push(head);
    parser.push(b"b");
    assert!(parser.next_message().unwrap().is_some());
    assert!(!parser.take_wait());
}

proptest! {
    #[test]
    fn no_stream_is_understood_in_two_ways(bytes in prop::collection::vec(any::<u8>(), 0..200), cuts in prop::collection::vec(0..200usize, 0..8)) {
        let stream = [b"GET / HTTP/1.1\r\n", bytes.as_slice(), b"\r\n\r\n", GO_SHIM].concat();
        let mut cuts: Vec<usize> = cuts.into_iter().filter(|cut| *cut < stream.len()).collect();
        cuts.push(stream.len());
        cuts.sort_unstable();
        let mut whole = new_parser();
        whole.push(&stream);
        let expected: Vec<_> = std::iter::from_fn(|| whole.next_message().transpose()).take(9).collect();
        let mut torn = new_parser();
        let (mut found, mut from) = (Vec::new(), 0);
        for to in cuts {
            torn.push(&stream[from..to]);
            from = to;
            while let Some(message) = torn.next_message().transpose() {
                let stop = message.is_err();
                found.push(message);
                if stop { break; }
            }
        }
        // What comes after a refusal has no meaning.
        let until_refused = |messages: Vec<Result<Message, Malformed>>| {
            let end = messages.iter().position(Result::is_err).map_or(messages.len(), |at| at + 1);
            messages.into_iter().take(end).collect::<Vec<_>>()
        };
        prop_assert_eq!(until_refused(found), until_refused(expected));
    }
}
