use std::os::unix::net::UnixListener;
use std::thread;

use husk_virtio::unix;
use serde_json::json;

use super::super::testing::{PATIENCE, Reply, Server};
use super::*;

/// What a client that asks `vm.info` makes of `bytes`.
fn made_of(bytes: &[u8]) -> Result<Value, String> {
    let bytes = bytes.to_vec();
    let server = Server::new(move |_, _| Reply::Bytes(bytes.clone()));
    server.client().get("vm.info").map_err(|error| error.to_string())
}

#[test]
fn one_connection_serves_one_request_after_another() {
    let server = Server::new(|request, body| match request {
        "PUT vm.pause" => Reply::Answer(204, Value::Null),
        request => Reply::Answer(200, json!({"request": request, "body": body})),
    });
    let mut client = server.client();
    let body = json!({"desired_vcpus": 2});
    assert_eq!(
        client.put("vm.resize", Some(&body)).unwrap(),
        json!({"request": "PUT vm.resize", "body": body})
    );
    assert_eq!(client.put("vm.pause", None).unwrap(), Value::Null);
    assert_eq!(
        client.get("vm.info").unwrap(),
        json!({"request": "GET vm.info", "body": null})
    );
}

#[test]
fn an_answer_may_be_torn_anywhere_and_follow_an_interim_one() {
    let whole = "HTTP/1.1 100 \r\n\r\nHTTP/1.1 200 \r\ncontent-length:  7\r\n\r\n{\"a\":1}";
    for at in 0..whole.len() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let server = thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).unwrap();
            let (first, second) = whole.split_at(at);
            stream.write_all(first.as_bytes()).unwrap();
            thread::yield_now();
            stream.write_all(second.as_bytes()).unwrap();
        });
        let mut client = Client::connect(&socket, PATIENCE).unwrap();
        assert_eq!(client.get("vm.info").unwrap(), json!({"a": 1}), "{at}");
        server.join().unwrap();
    }
}

#[test]
fn a_refusal_is_its_chain_in_one_line() {
    for (status, body, says) in [
        (409, json!(["a", "b"]), "vm.info was refused (409): a: b"),
        (404, Value::Null, "vm.info was refused (404): no reason given"),
        (500, json!({"error": 1}), "vm.info was refused (500): {\"error\":1}"),
        (302, json!([]), "vm.info was refused (302): []"),
    ] {
        let server = Server::new(move |_, _| Reply::Answer(status, body.clone()));
        let error = server.client().get("vm.info").unwrap_err();
        assert_eq!((error.status(), error.to_string()), (Some(status), says.into()));
    }
}

#[test]
fn what_is_no_answer_of_this_api_is_named() {
    for (bytes, says) in [
        (&b"SSH-2.0-x\r\n"[..], "the answer to vm.info is no HTTP: "),
        (b"", "the connection ended before vm.info was answered"),
        (
            b"HTTP/1.1 200 \r\nContent-Le",
            "the connection ended before vm.info was answered",
        ),
        (
            b"HTTP/1.1 200 \r\nContent-Length: 9\r\n\r\n{",
            "the connection ended before vm.info was answered",
        ),
        (
            b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n{",
            "the answer to vm.info is no JSON: ",
        ),
        (
            b"HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\n",
            "the answer to vm.info is a body of more than 16777216 bytes",
        ),
        (
            b"HTTP/1.1 200 \r\nContent-Length: 99999999999999999999\r\n\r\n",
            "the answer to vm.info is a body of more than 16777216 bytes",
        ),
        // Without a length the body ends with the connection.
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", "the answer to vm.info is no JSON: "),
        (
            b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n",
            "the answer to vm.info is a body of unknown length",
        ),
    ] {
        let refusal = made_of(bytes).unwrap_err();
        assert!(refusal.starts_with(says), "{refusal}");
    }
    let endless = [b"HTTP/1.1 200 \r\nA: ".to_vec(), vec![b'a'; HEAD_BYTES]].concat();
    assert_eq!(
        made_of(&endless).unwrap_err(),
        "the answer to vm.info is a head of more than 16384 bytes"
    );
}

#[test]
fn a_body_without_a_length_ends_with_the_connection() {
    let server = Server::new(|_, _| Reply::Bytes(b"HTTP/1.1 200 \r\n\r\n{\"a\": 1}".to_vec()));
    assert_eq!(server.client().get("vm.info").unwrap(), json!({"a": 1}));
}

#[test]
fn a_socket_whose_path_is_too_long_is_reached_through_its_folder() {
    let server = Server::new(|_, _| Reply::Answer(200, json!(1)));
    let socket = server.socket();
    let long = PathBuf::from(format!(
        "/{}{}",
        "./".repeat(60),
        socket.strip_prefix("/").unwrap().display()
    ));
    assert!(long.as_os_str().len() > unix::PATH_MAX);
    assert_eq!(Client::connect(&long, PATIENCE).unwrap().get("vm.info").unwrap(), 1);
}

#[test]
fn nobody_there_is_an_error_that_names_the_socket() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let error = Client::connect(&socket, PATIENCE).unwrap_err();
    assert!(error.to_string().starts_with("cannot connect to /"), "{error}");
    drop(UnixListener::bind(&socket).unwrap());
    assert!(matches!(
        Client::connect(&socket, PATIENCE),
        Err(ClientError::Connect { .. })
    ));
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let brief = Duration::from_millis(50);
    let server = Server::new(|_, _| Reply::Silence);
    let error = Client::connect(&server.socket(), brief)
        .unwrap()
        .get("vmm.ping")
        .unwrap_err();
    assert_eq!(error.to_string(), "vmm.ping was not answered within 0.05 s");
    let client = Client::connect(&server.socket(), brief);
    let error = client.unwrap().put("vm.boot", None).unwrap_err().to_string();
    assert!(
        error.starts_with("vm.boot was not answered within 0.05 s; husk goes on"),
        "{error}"
    );
}

#[test]
fn a_server_that_does_not_read_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    let brief = Duration::from_millis(50);
    let body = Value::from("x".repeat(8 << 20));
    let error = Client::connect(&socket, brief)
        .unwrap()
        .put("vm.create", Some(&body))
        .unwrap_err();
    assert!(matches!(error, ClientError::Silent { .. }), "{error}");
}

#[test]
fn a_server_that_takes_no_connection_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    // Until its queue is full.
    let brief = Duration::from_millis(50);
    let mut clients = Vec::new();
    let error = loop {
        match Client::connect(&socket, brief) {
            Ok(client) => clients.push(client),
            Err(error) => break error,
        }
        assert!(clients.len() < 100_000);
    };
    assert!(matches!(error, ClientError::Busy { .. }), "{error}");
}
