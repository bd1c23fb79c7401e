use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::AsRawFd;
use std::sync::mpsc;

use serde_json::{Value, json};

use super::super::command::{Command, NewDevice, Reply};
use super::super::error::{ApiError, Kind};
use super::super::event_loop::CONNECTIONS;
use super::super::passed::PassedFd;
use super::super::queue::Request;
use super::super::testing::{BOOT, Bench, Client, PAUSE, PING, closer, put};
use super::*;

#[test]
fn ping_and_info_are_answered_while_a_command_runs() {
    let bench = Bench::new();
    let mut busy = bench.client();
    busy.send(BOOT);
    let boot = bench.command();
    let mut other = bench.client();
    let (status, pong) = other.ask(PING);
    assert_eq!((status, pong["pid"].as_u64()), (200, Some(std::process::id().into())));
    assert_eq!(pong["features"], json!([]));
    assert!(pong["version"].is_string() && pong["build_version"].is_string());
    let info = b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n";
    assert_eq!(other.ask(info), (404, json!(["there is no VM: vm.create one first"])));
    bench.create_vm();
    let (status, body) = other.ask(info);
    assert_eq!(
        (status, &body["state"], &body["memory_actual_size"]),
        (200, &json!("Created"), &json!(512 << 20))
    );
    boot.respond.send(Ok(Reply::Done));
    assert_eq!(busy.answer(), (204, Value::Null));
}

#[test]
fn commands_come_one_after_another_in_the_order_of_their_arrival() {
    let bench = Bench::new();
    let (mut first, mut second) = (bench.client(), bench.client());
    first.send(BOOT);
    let boot = bench.command();
    second.send(PAUSE);
    let pause = bench.command();
    assert!(matches!(
        (&boot.command, &pause.command),
        (Command::Boot, Command::Pause)
    ));
    pause
        .respond
        .send(Err(ApiError::new(Kind::Conflict, "ünpausable").context("pause")));
    boot.respond.send(Ok(Reply::Json(json!({"a": 1}))));
    assert_eq!(first.answer(), (200, json!({"a": 1})));
    assert_eq!(second.answer(), (409, json!(["pause", "ünpausable"])));
}

#[test]
fn pipelined_requests_are_answered_in_order_one_at_a_time() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.send(&[BOOT, PING, PAUSE, PING].concat());
    let boot = bench.command();
    assert!(bench.commands.as_ref().unwrap().next().is_none());
    boot.respond.send(Ok(Reply::Done));
    assert_eq!(client.answer().0, 204);
    assert_eq!(client.answer().0, 200);
    bench.command().respond.send(Err(ApiError::new(Kind::Internal, "no")));
    assert_eq!(client.answer().0, 500);
    assert_eq!(client.answer().0, 200);
}

/// The descriptors of an `vm.add-net` command.
fn fds_of(request: &Request) -> &[PassedFd] {
    match &request.command {
        Command::Add(device, fds) if matches!(**device, NewDevice::Net(_)) => fds,
        other => panic!("{other:?}"),
    }
}

/// Whether all copies of the writing end are closed.
fn is_closed(reader: &mut io::PipeReader) -> bool {
    matches!(reader.read(&mut [0]), Ok(0))
}

#[test]
fn descriptors_reach_the_request_that_they_came_with_and_keep_their_order() {
    let bench = Bench::new();
    let mut client = bench.client();
    let ((mut r1, w1), (mut r2, w2)) = (io::pipe().unwrap(), io::pipe().unwrap());
    // As the Rust shim: with the head's first bytes; the rest comes in pieces.
    let request = put("vm.add-net", r#"{"fds":[77]}"#);
    client.send_with_fds(&request[..20], &[w1.as_raw_fd(), w2.as_raw_fd()]);
    drop((w1, w2));
    for byte in &request[20..] {
        client.send(&[*byte]);
    }
    let Request { command, respond } = bench.command();
    let Command::Add(_, fds) = command else {
        panic!("{command:?}")
    };
    let mut files: Vec<_> = fds.into_iter().map(|fd| std::fs::File::from(fd.into_owned())).collect();
    let [first, second] = &mut files[..] else {
        panic!("{files:?}")
    };
    first.write_all(b"1").unwrap();
    second.write_all(b"2").unwrap();
    let mut byte = [0];
    r1.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"1");
    r2.read_exact(&mut byte).unwrap();
    assert_eq!(byte, *b"2");
    drop(files);
    assert!(is_closed(&mut r1) && is_closed(&mut r2));
    respond.send(Ok(Reply::Done));
    assert_eq!(client.answer().0, 204);
}

#[test]
fn descriptors_of_a_pipelined_request_do_not_reach_the_one_before() {
    let bench = Bench::new();
    let mut client = bench.client();
    let (mut reader, writer) = io::pipe().unwrap();
    let request = put("vm.add-net", "{}");
    // Both are in the socket before the server reads the second: the first is being carried out.
    client.send(&[BOOT, &request[..9]].concat());
    let boot = bench.command();
    client.send_with_fds(&request[9..], &[writer.as_raw_fd()]);
    client.send(&request);
    drop(writer);
    boot.respond.send(Ok(Reply::Done));
    let add = bench.command();
    assert_eq!(fds_of(&add).len(), 1);
    drop(add);
    let add = bench.command();
    assert_eq!(fds_of(&add).len(), 0);
    drop(add);
    assert!(is_closed(&mut reader));
}

#[test]
fn descriptors_that_nobody_wants_are_closed() {
    let bench = Bench::new();
    // With a request that takes none, with one that is wrong, with one that never ends, and with no request at all.
    let requests = [
        PING.to_vec(),
        put("vm.add-net", "{"),
        b"PUT /api".to_vec(),
        b"\r\n".to_vec(),
        b"\0\r\n\r\n".to_vec(),
    ];
    for request in requests {
        let mut client = bench.client();
        let (mut reader, writer) = io::pipe().unwrap();
        client.send_with_fds(&request, &[writer.as_raw_fd()]);
        drop((client, writer));
        assert!(is_closed(&mut reader), "{}", String::from_utf8_lossy(&request));
    }
}

#[test]
fn more_descriptors_than_a_request_can_carry_end_the_connection() {
    let bench = Bench::new();
    let mut client = bench.client();
    let (mut reader, writer) = io::pipe().unwrap();
    let many = [writer.as_raw_fd(); 200];
    client.send_with_fds(b"P", &many);
    client.send_with_fds(b"U", &many);
    drop(writer);
    assert_eq!(client.answer().0, 400);
    assert!(client.is_at_end());
    assert!(is_closed(&mut reader));
}

#[test]
fn too_long_a_body_is_refused_and_the_client_can_read_why() {
    let bench = Bench::new();
    let mut client = bench.client();
    let body = vec![b' '; 5 << 20];
    client.send(
        format!(
            "PUT /api/v1/vm.create HTTP/1.1\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .as_bytes(),
    );
    // Blocks for longer than the socket's buffer, were it not read.
    let _ = client.0.get_mut().write_all(&body);
    assert_eq!(client.answer().0, 413);
    assert!(client.is_at_end());
}

#[test]
fn a_body_as_long_as_may_be_is_understood() {
    let bench = Bench::new();
    let mut client = bench.client();
    let body = format!("{{\"id\":\"{}\"}}", "x".repeat((4 << 10) - 9));
    assert_eq!(body.len(), 4 << 10);
    client.send(&put("vm.remove-device", &body));
    let remove = bench.command();
    assert!(matches!(&remove.command, Command::Remove(id) if id.len() == (4 << 10) - 9));
    remove.respond.send(Ok(Reply::Done));
    assert_eq!(client.answer().0, 204);
}

#[test]
fn slow_idle_and_dead_clients_delay_nobody() {
    let bench = Bench::new();
    let mut slow = bench.client();
    slow.send(&BOOT[..10]);
    let idle = bench.client();
    drop(bench.client());
    // One that never reads what it is owed.
    let mut deaf = bench.client();
    deaf.0.get_ref().set_nonblocking(true).unwrap();
    bench.create_vm();
    let info = b"GET /api/v1/vm.info HTTP/1.1\r\n\r\n".repeat(64);
    while deaf.0.get_mut().write(&info).is_ok() {}
    let mut other = bench.client();
    for _ in 0..100 {
        assert_eq!(other.ask(PING).0, 200);
    }
    slow.send(&BOOT[10..]);
    bench.command().respond.send(Ok(Reply::Done));
    assert_eq!(slow.answer().0, 204);
    drop((idle, deaf));
    assert_eq!(other.ask(PING).0, 200);
}

#[test]
fn one_client_too_many_is_told_so_and_room_is_made_when_one_leaves() {
    let bench = Bench::new();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| bench.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(PING).0, 200);
    }
    let mut other = bench.client();
    assert_eq!(other.answer().0, 503);
    assert!(other.is_at_end());
    drop(clients.pop());
    // The server hears of the one that left before it hears of the one that comes, or turns it away once more.
    let again = (0..100).find_map(|_| {
        let mut client = bench.client();
        client.0.get_mut().write_all(PING).ok()?;
        (client.answer().0 == 200).then_some(client)
    });
    assert!(again.is_some());
}

#[test]
fn a_client_that_sends_no_more_still_gets_its_answers() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.send(&[BOOT, PING].concat());
    client.0.get_ref().shutdown(Shutdown::Write).unwrap();
    bench.command().respond.send(Ok(Reply::Done));
    assert_eq!((client.answer().0, client.answer().0), (204, 200));
    assert!(client.is_at_end());
}

#[test]
fn whoever_asks_and_goes_is_heard_and_its_answer_reaches_nobody_else() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.send(BOOT);
    drop(client);
    let boot = bench.command();
    let mut other = bench.client();
    other.send(PAUSE);
    boot.respond.send(Ok(Reply::Json(json!("not yours"))));
    bench.command().respond.send(Ok(Reply::Done));
    assert_eq!(other.answer().0, 204);
}

#[test]
fn connections_stay_open_unless_the_client_asks() {
    let bench = Bench::new();
    let mut client = bench.client();
    for request in [
        PING,
        b"GET /nowhere HTTP/1.1\r\n\r\n",
        b"PUT /api/v1/vmm.ping HTTP/1.1\r\n\r\n",
        PING,
    ] {
        client.ask(request);
    }
    assert_eq!(
        client
            .ask(b"GET /api/v1/vmm.ping HTTP/1.1\r\nConnection: close\r\n\r\n")
            .0,
        200
    );
    assert!(client.is_at_end());
}

#[test]
fn a_client_that_waits_for_leave_gets_it() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.send(b"PUT /api/v1/vm.remove-device HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 10\r\n\r\n");
    assert_eq!(client.answer().0, 100);
    client.send(b"{\"id\":\"a\"}");
    bench.command().respond.send(Ok(Reply::Done));
    assert_eq!(client.answer().0, 204);
}

#[test]
fn the_last_answer_goes_out_although_the_server_ends() {
    let mut bench = Bench::new();
    let (mut first, mut second) = (bench.client(), bench.client());
    first.send(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n");
    let shutdown = bench.command();
    second.send(BOOT);
    let boot = bench.command();
    shutdown.respond.send(Ok(Reply::Done));
    drop(boot);
    drop(bench.commands.take());
    drop(bench.running.take());
    assert_eq!(first.answer().0, 204);
    assert_eq!(second.answer().0, 500);
    assert!(first.is_at_end() && second.is_at_end());
    assert!(!bench.folder.path().join("api").exists());
}

#[test]
fn the_socket_can_go_before_the_last_answer() {
    let bench = Bench::new();
    let mut client = bench.client();
    client.send(b"PUT /api/v1/vmm.shutdown HTTP/1.1\r\n\r\n");
    let shutdown = bench.command();
    bench.commands.as_ref().unwrap().unlink_sockets();
    assert!(!bench.folder.path().join("api").exists());
    shutdown.respond.send(Ok(Reply::Done));
    assert_eq!(client.answer().0, 204);
    assert_eq!(client.ask(PING).0, 200);
}

#[test]
fn the_thread_is_confined_before_it_hears_anybody_and_ends_when_it_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("api");
    let server = Server::bind(&path).unwrap();
    let (tell, told) = mpsc::channel();
    let confine = move || {
        tell.send(thread::current().name().map(str::to_string)).unwrap();
        Err(io::Error::other("no"))
    };
    let (running, commands) = server.spawn(Info::new(), closer(), confine).unwrap();
    assert_eq!(told.recv().unwrap().as_deref(), Some("api"));
    drop((commands, running));
    assert!(!path.exists());
}
