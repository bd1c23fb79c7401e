use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};

use proptest::prelude::*;

use super::super::buf_alloc::{POOL_BYTES, STREAM_INITIAL, STREAM_MAX, STREAM_MIN};
use super::super::muxer::{COMMANDS_MAX, REPLIES_MAX, REQUESTS_MAX};
use super::super::packet::{HEADER_BYTES, HOST_CID, Header, Op, SHUTDOWN_BOTH, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::super::rig::{CID, GUEST_BUFFER, PORT, ROOM, Rig, is_at_end, said};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::*;
use crate::testing::Buf;

/// What the device offers for the data of a stream that has not been used.
const BUFFER: usize = STREAM_INITIAL as usize;

fn ops(rig: &mut Rig) -> Vec<Op> {
    rig.received().iter().map(|packet| packet.op()).collect()
}

#[test]
fn a_dial_becomes_a_request_and_its_response_an_ok() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.dial();
    assert!(port >= 1 << 30);
    assert_eq!(said(&mut client), b"", "the guest has not answered yet");
    rig.send(Rig::header(port, PORT, Op::Response), &[]);
    assert_eq!(said(&mut client), format!("OK {port}\n").into_bytes());
    assert!(!is_at_end(&mut client), "and nothing after it");
    assert_eq!(rig.received(), [], "nor has the guest anything to hear");
    assert_eq!(rig.metrics().host_streams.get(), 1);
}

#[test]
fn a_guest_that_speaks_first_waits_until_the_ok_has_been_read() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.dial();
    let response = Rig::header(port, PORT, Op::Response);
    let data = Header {
        len: 4,
        ..Rig::header(port, PORT, Op::Data)
    };
    rig.queue(response, &[]);
    rig.queue(data, b"log:");
    rig.queue(data, b"line");
    rig.transmit.kick.write(1).unwrap();
    rig.run();
    let mut line = [0; 100];
    let count = client.read(&mut line).unwrap();
    assert_eq!(
        &line[..count],
        format!("OK {port}\n").as_bytes(),
        "in one piece, and alone"
    );
    rig.run();
    assert_eq!(said(&mut client), b"log:line");
    rig.data(port, b"more");
    assert_eq!(said(&mut client), b"more");
}

#[test]
fn request_tells_who_asks_and_what_room_there_is() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"CONNECT 7\nearly").unwrap();
    let packet = rig.one();
    let header = packet.header;
    assert_eq!((header.src_cid, header.dst_cid, header.dst_port), (HOST_CID, CID, 7));
    assert_eq!((header.buf_alloc as usize, header.fwd_cnt, header.len), (BUFFER, 0, 0));
    rig.send(Rig::header(header.src_port, 7, Op::Response), &[]);
    assert_eq!(rig.one().payload, b"early", "what follows the command is the stream's");
}

#[test]
fn a_refused_dial_ends_at_once() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.dial();
    client.write_all(b"too early").unwrap();
    rig.send(Rig::header(port, PORT, Op::Reset), &[]);
    assert!(is_at_end(&mut client), "an end, and no error");
    assert_eq!(rig.metrics().dials_refused.get(), 1);
    assert_eq!(rig.received(), []);
}

#[test]
fn a_malformed_command_ends_the_dial() {
    let mut rig = Rig::new();
    let mut client = rig.connect();
    client.write_all(b"listen 1\n").unwrap();
    assert_eq!(rig.received(), []);
    assert!(is_at_end(&mut client));
    assert_eq!(rig.metrics().dials_malformed.get(), 1);
}

#[test]
fn a_client_that_leaves_before_the_answer_is_told_on() {
    let mut rig = Rig::new();
    let (client, port) = rig.dial();
    drop(client);
    let reset = rig.one();
    assert_eq!((reset.op(), reset.header.src_port), (Op::Reset, port));
    rig.send(Rig::header(port, PORT, Op::Response), &[]);
    assert_eq!(ops(&mut rig), [Op::Reset], "there is no such stream any more");

    let mut rig = Rig::without_buffers();
    let mut client = rig.connect();
    client.write_all(b"connect 1\n").unwrap();
    rig.run();
    drop(client);
    rig.run();
    rig.offer(4);
    assert_eq!(rig.received(), [], "the guest has never heard of it");
}

#[test]
fn data_goes_both_ways() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    client.write_all(b"ping").unwrap();
    let packet = rig.one();
    assert_eq!((packet.op(), packet.payload.as_slice()), (Op::Data, b"ping".as_slice()));
    rig.data(port, b"pong");
    assert_eq!(said(&mut client), b"pong");
    assert_eq!((rig.metrics().rx_bytes.get(), rig.metrics().tx_bytes.get()), (4, 4));
    assert_eq!(rig.received(), [], "4 bytes are no reason for a credit update");
}

#[test]
fn one_read_fills_many_buffers() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open();
    let sent: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
    client.write_all(&sent).unwrap();
    let packets = rig.received();
    let lengths: Vec<usize> = packets.iter().map(|packet| packet.payload.len()).collect();
    assert_eq!(
        lengths.iter().filter(|len| **len == ROOM).count(),
        100_000 / ROOM,
        "{lengths:?}"
    );
    assert!(packets.into_iter().flat_map(|packet| packet.payload).eq(sent));
}

#[test]
fn what_comes_with_a_descriptor_does_not_hide_what_follows() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open();
    client.send_with_fd(&b"one"[..], client.as_raw_fd()).unwrap();
    client.write_all(b"two").unwrap();
    let payloads: Vec<_> = rig.received().into_iter().map(|packet| packet.payload).collect();
    assert_eq!(payloads, [b"one", b"two"]);
}

#[test]
fn what_comes_out_of_band_does_not_hide_what_follows() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open();
    client.write_all(b"one").unwrap();
    if rustix::net::send(&client, b"!", rustix::net::SendFlags::OOB).is_err() {
        println!("skipped: needs data out of band on Unix sockets");
        return;
    }
    client.write_all(b"two").unwrap();
    let payloads: Vec<_> = rig.received().into_iter().map(|packet| packet.payload).collect();
    assert_eq!(payloads, [b"one", b"two"], "what is out of band goes nowhere");
}

#[test]
fn buffers_may_be_cut_anywhere() {
    let mut rig = Rig::without_buffers();
    let at = 0x4_0000;
    let parts = [(0, 1), (1, 9), (10, 30), (40, 7), (47, 100)];
    let bufs = |base: u64| parts.map(|(from, len)| Buf::In(base + from, len)).to_vec();
    for n in 0..3 {
        rig.receive.add(&bufs(at + n * 0x1000));
    }
    rig.receive.kick.write(1).unwrap();
    let mut client = rig.connect();
    client.write_all(b"connect 1024\n").unwrap();
    rig.run();
    let (_, len) = rig.receive.take_used().unwrap();
    let request = rig.packet_at(at, len);
    assert_eq!((request.op(), len), (Op::Request, 44));

    let port = request.header.src_port;
    let response = Rig::header(port, PORT, Op::Response).bytes();
    let out = 0x10_0000;
    rig.transmit.write(out, &response);
    let chain: Vec<Buf> = (0..HEADER_BYTES as u64).map(|n| Buf::Out(out + n, 1)).collect();
    rig.transmit.add(&chain);
    rig.transmit.kick.write(1).unwrap();
    rig.run();
    assert_eq!(said(&mut client), format!("OK {port}\n").into_bytes());

    let sent: Vec<u8> = (0..150).collect();
    client.write_all(&sent).unwrap();
    rig.run();
    let mut got = Vec::new();
    for n in 1..3 {
        let (_, len) = rig.receive.take_used().unwrap();
        got.extend(rig.packet_at(at + n * 0x1000, len).payload);
    }
    assert_eq!(got, sent);
}

#[test]
fn buffers_too_small_for_a_header_are_given_back() {
    let mut rig = Rig::without_buffers();
    let small = rig.receive.add(&[Buf::In(0x4_0000, 43)]);
    let readable = rig.receive.add(&[Buf::Out(0x4_0000, 100)]);
    let mut client = rig.connect();
    client.write_all(b"connect 1\n").unwrap();
    rig.run();
    assert_eq!(rig.receive.take_used(), Some((small.into(), 0)));
    assert_eq!(rig.receive.take_used(), Some((readable.into(), 0)));
    assert_eq!(rig.metrics().malformed_chains.get(), 2);
    rig.offer(1);
    assert_eq!(ops(&mut rig), [Op::Request]);
}

#[test]
fn buffers_for_a_header_only_are_in_nobodys_way() {
    let mut rig = Rig::without_buffers();
    rig.offer(1);
    let (mut client, port) = rig.dial();
    // One buffer came back with the request.
    rig.send(Rig::header(port, PORT, Op::Response), &[]);
    said(&mut client);
    let bare: Vec<u16> = (0..3).map(|_| rig.receive.add(&[Buf::In(0x8_0000, 44)])).collect();
    client.write_all(b"one").unwrap();
    assert_eq!(rig.one().payload, b"one");
    client.write_all(b"two").unwrap();
    rig.run();
    for head in bare {
        assert_eq!(rig.receive.take_used(), Some((head.into(), 0)));
    }
    assert_eq!(rig.one().payload, b"two");
    assert_eq!(rig.metrics().malformed_chains.get(), 3);
}

#[test]
fn what_the_guest_has_no_room_for_stays_in_the_socket() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open_with(6000);
    client.write_all(&[1; 10_000]).unwrap();
    let packets = rig.received();
    let data: usize = packets.iter().map(|packet| packet.payload.len()).sum();
    assert_eq!(data, 6000);
    assert_eq!(packets.last().unwrap().op(), Op::CreditRequest);
    assert_eq!(rig.received(), [], "asked once is enough");

    let update = Header {
        buf_alloc: 6000,
        fwd_cnt: 1000,
        ..Rig::header(port, PORT, Op::CreditUpdate)
    };
    rig.send(update, &[]);
    let packets = rig.received();
    assert_eq!(packets.iter().map(|packet| packet.payload.len()).sum::<usize>(), 1000);
    assert_eq!(packets.last().unwrap().op(), Op::CreditRequest);
}

#[test]
fn credit_is_told_when_asked_for() {
    let mut rig = Rig::new();
    let (_client, port) = rig.open();
    rig.data(port, b"12345");
    rig.send(Rig::header(port, PORT, Op::CreditRequest), &[]);
    let update = rig.one();
    assert_eq!((update.op(), update.header.fwd_cnt), (Op::CreditUpdate, 5));
}

#[test]
fn a_program_that_does_not_read_is_buffered_for_up_to_its_credit() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let (mut sent, mut told, mut limit) = (0, 0, BUFFER);
    // The socket takes some of it, and its share is credited again.
    while sent < limit {
        let chunk = (limit - sent).min(32 << 10);
        rig.data(port, &vec![7; chunk]);
        sent += chunk;
        for packet in rig.received() {
            told = packet.header.fwd_cnt as usize;
            limit = told + packet.header.buf_alloc as usize;
        }
    }
    assert!(
        sent > STREAM_MAX as usize,
        "{sent}: more and more is offered to one that is read"
    );
    assert_eq!(rig.metrics().credit_lies.get(), 0);
    assert_eq!(rig.received(), [], "no more credit before the program reads");

    let mut read = 0;
    while read < sent {
        let now = said(&mut client);
        assert!(!now.is_empty() && now.iter().all(|byte| *byte == 7));
        read += now.len();
        for packet in rig.received() {
            assert_eq!(packet.op(), Op::CreditUpdate);
            told = packet.header.fwd_cnt as usize;
        }
    }
    assert_eq!(read, sent);
    assert!(sent - told < STREAM_MAX as usize / 2, "the guest knows of the room");
    rig.data(port, b"end");
    assert_eq!(said(&mut client), b"end");
}

#[test]
fn more_data_than_credit_is_the_end_of_the_stream() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let header = Header {
        len: STREAM_INITIAL,
        ..Rig::header(port, PORT, Op::Data)
    };
    rig.queue(header, &[0; BUFFER]);
    let header = Header {
        len: 1,
        ..Rig::header(port, PORT, Op::Data)
    };
    rig.queue(header, &[0]);
    rig.transmit.kick.write(1).unwrap();
    assert_eq!(rig.received().last().map(|packet| packet.op()), Some(Op::Reset));
    assert_eq!(rig.metrics().credit_lies.get(), 1);
    while !said(&mut client).is_empty() {}
    assert!(is_at_end(&mut client));
}

#[test]
fn credit_for_what_was_not_sent_is_the_end_of_the_stream() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let update = Header {
        fwd_cnt: 1,
        ..Rig::header(port, PORT, Op::CreditUpdate)
    };
    rig.send(update, &[]);
    assert_eq!(ops(&mut rig), [Op::Reset]);
    assert_eq!(rig.metrics().credit_lies.get(), 1);
    assert!(is_at_end(&mut client));
}

#[test]
fn a_half_close_of_the_host_is_passed_on_after_the_data() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    client.write_all(b"last words").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let packets = rig.received();
    assert_eq!(packets[0].payload, b"last words");
    assert_eq!(
        (packets[1].op(), packets[1].header.flags),
        (Op::Shutdown, SHUTDOWN_SEND)
    );
    assert_eq!(packets.len(), 2);
    rig.data(port, b"answer");
    assert_eq!(said(&mut client), b"answer", "the other half is open");
    rig.shut_down(port, SHUTDOWN_BOTH);
    assert_eq!(ops(&mut rig), [Op::Reset]);
    assert!(is_at_end(&mut client));
}

#[test]
fn a_half_close_of_the_guest_is_passed_on_after_the_data() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    rig.data(port, b"last words");
    rig.shut_down(port, SHUTDOWN_SEND);
    assert_eq!(said(&mut client), b"last words");
    assert!(is_at_end(&mut client));
    assert_eq!(rig.received(), [], "the other half is open");
    client.write_all(b"answer").unwrap();
    assert_eq!(rig.one().payload, b"answer");
    drop(client);
    let end = rig.one();
    assert_eq!((end.op(), end.header.flags), (Op::Shutdown, SHUTDOWN_BOTH));
    rig.send(Rig::header(port, PORT, Op::Reset), &[]);
    assert_eq!(rig.received(), []);
}

#[test]
fn a_guest_that_reads_no_more_is_sent_no_more() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    rig.shut_down(port, SHUTDOWN_RECEIVE);
    assert_eq!(client.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    rig.data(port, b"still here");
    assert_eq!(said(&mut client), b"still here");
    assert_eq!(rig.received(), []);
}

#[test]
fn a_closed_program_is_told_once_its_words_are_delivered() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open_with(10);
    client.write_all(&[1; 25]).unwrap();
    drop(client);
    let first = rig.received();
    assert_eq!(first.iter().map(|packet| packet.payload.len()).sum::<usize>(), 10);
    // What the guest sends now is read by nobody, and must not cost the guest what is under way to it.
    rig.data(port, b"too late");
    let mut delivered = 10;
    let mut last = Vec::new();
    for _ in 0..4 {
        let update = Header {
            buf_alloc: 10,
            fwd_cnt: delivered,
            ..Rig::header(port, PORT, Op::CreditUpdate)
        };
        rig.send(update, &[]);
        let packets = rig.received();
        delivered += packets.iter().map(|packet| packet.header.len).sum::<u32>();
        last.extend(packets);
    }
    assert_eq!(delivered, 25);
    let shutdowns: Vec<u32> = last
        .iter()
        .filter(|packet| packet.op() == Op::Shutdown)
        .map(|packet| packet.header.flags)
        .collect();
    assert_eq!(shutdowns, [SHUTDOWN_RECEIVE, SHUTDOWN_BOTH]);
}

#[test]
fn what_the_guest_sent_before_it_closed_is_delivered_in_its_absence() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let mut sent = 0;
    while said_nothing_of(&mut rig, port, &mut sent) {}
    rig.shut_down(port, SHUTDOWN_BOTH);
    assert_eq!(ops(&mut rig).last(), Some(&Op::Reset), "the guest need not wait");
    let mut read = 0;
    while read < sent {
        let now = said(&mut client).len();
        assert!(now > 0);
        read += now;
        rig.run();
    }
    assert!(is_at_end(&mut client));
}

#[test]
fn a_stream_that_ends_with_something_unread_ends_in_order() {
    type End = fn(&mut Rig, u32);
    let ends: [(&str, End); 4] = [
        ("both directions closed", |rig, port| rig.shut_down(port, SHUTDOWN_BOTH)),
        ("reset", |rig, port| rig.send(Rig::header(port, PORT, Op::Reset), &[])),
        ("one direction after the other", |rig, port| {
            rig.shut_down(port, SHUTDOWN_RECEIVE);
            rig.shut_down(port, SHUTDOWN_SEND);
        }),
        ("transport reset", |rig, _| {
            rig.host.reset_transport();
            rig.run();
        }),
    ];
    for (name, end) in ends {
        let mut rig = Rig::new();
        let (mut client, port) = rig.open_with(10);
        client.write_all(&[1; 25]).unwrap();
        assert_eq!(rig.received()[0].payload.len(), 10, "what the guest has room for");
        end(&mut rig, port);
        assert!(is_at_end(&mut client), "{name}");
    }
}

#[test]
fn dials_and_streams_end_in_order_when_the_driver_goes() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open_with(10);
    let mut dial = rig.connect();
    dial.write_all(b"conn").unwrap();
    client.write_all(&[1; 25]).unwrap();
    rig.run();
    rig.handler.stop();
    assert!(is_at_end(&mut client) && is_at_end(&mut dial));
}

#[test]
fn a_dial_without_a_descriptor_is_taken_once_there_is_one() {
    let mut rig = Rig::new();
    let exhausted = |rig: &Rig, now| rig.host.listener.exhausted.store(now, Ordering::Relaxed);
    exhausted(&rig, true);
    rig.handler.muxer.reserve.lose();
    let mut client = rig.connect();
    client.write_all(b"connect 1024\n").unwrap();
    assert_eq!(rig.received(), []);
    exhausted(&rig, false);
    // Nothing happens but that the timer rings.
    rig.run_once_more();
    assert_eq!(ops(&mut rig), [Op::Request]);
    assert!(rig.handler.muxer.reserve.is_there(), "and the next one is answered");
}

#[test]
fn without_descriptors_nobody_looks_for_dials_that_are_not_there() {
    let mut rig = Rig::new();
    rig.host.listener.exhausted.store(true, Ordering::Relaxed);
    rig.handler.muxer.reserve.lose();
    let client = rig.connect();
    rig.run();
    assert!(rig.handler.muxer.is_starved());
    drop(client);
    // One that has hung up is still there to be taken.
    rig.host.listener.accept_all();
    rig.run_once_more();
    assert!(!rig.handler.muxer.is_starved());
}

/// Sends until the socket is full, which shows in credit that does not come back. Whether there may be more.
fn said_nothing_of(rig: &mut Rig, port: u32, sent: &mut usize) -> bool {
    rig.data(port, &[5; BUFFER]);
    *sent += BUFFER;
    rig.send(Rig::header(port, PORT, Op::CreditRequest), &[]);
    let told = rig.received().last().unwrap().header.fwd_cnt as usize;
    told == *sent
}

#[test]
fn programs_of_the_guest_reach_those_of_the_host() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(rig.folder.path().join("v.sock_80")).unwrap();
    rig.send(Rig::header(80, 5000, Op::Request), &[]);
    let response = rig.one();
    assert_eq!(
        (response.op(), response.header.src_port, response.header.dst_port),
        (Op::Response, 80, 5000)
    );
    let (mut server, _) = listener.accept().unwrap();
    server.write_all(b"welcome").unwrap();
    assert_eq!(rig.one().payload, b"welcome");
    let header = Header {
        len: 5,
        ..Rig::header(80, 5000, Op::Data)
    };
    rig.send(header, b"hello");
    let mut heard = [0; 5];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"hello");
    assert_eq!(rig.metrics().guest_streams.get(), 1);
    rig.send(Rig::header(80, 5000, Op::Request), &[]);
    assert_eq!(ops(&mut rig), [Op::Reset], "it is open already");
    assert_eq!(rig.metrics().protocol_errors.get(), 1);
}

#[test]
fn ports_that_nobody_serves_are_refused() {
    let mut rig = Rig::new();
    rig.send(Rig::header(81, 5000, Op::Request), &[]);
    let reset = rig.one();
    assert_eq!(
        (reset.op(), reset.header.src_port, reset.header.dst_port),
        (Op::Reset, 81, 5000)
    );
    assert_eq!(rig.metrics().guest_dials_refused.get(), 1);
}

#[test]
fn strays_are_refused_or_ignored() {
    let mut rig = Rig::new();
    let plain = Rig::header(1, 2, Op::Data);
    rig.send(Header { dst_cid: 9, ..plain }, &[]);
    let reset = rig.one().header;
    assert_eq!((reset.src_cid, reset.dst_cid, reset.op), (9, CID, Op::Reset as u16));
    rig.send(Header { kind: 2, ..plain }, &[]);
    let reset = rig.one().header;
    assert_eq!((reset.kind, reset.op), (2, Op::Reset as u16));
    rig.send(plain, &[]);
    assert_eq!(ops(&mut rig), [Op::Reset], "there is no such stream");
    rig.send(Header { src_cid: 4, ..plain }, &[]);
    rig.send(Header { op: 0, ..plain }, &[]);
    rig.send(Header { op: 8, ..plain }, &[]);
    assert_eq!(rig.metrics().stray_packets.get(), 6);
    rig.send(Rig::header(1, 2, Op::Reset), &[]);
    assert_eq!(rig.received(), []);
    assert_eq!(
        rig.metrics().stray_packets.get(),
        6,
        "that one may have crossed our own"
    );
}

#[test]
fn packets_out_of_turn_end_their_stream() {
    for op in [Op::Response, Op::Request] {
        let mut rig = Rig::new();
        let (mut client, port) = rig.open();
        rig.send(Rig::header(port, PORT, op), &[]);
        assert_eq!(ops(&mut rig), [Op::Reset]);
        assert!(is_at_end(&mut client));
        assert_eq!(rig.metrics().protocol_errors.get(), 1);
    }
    let mut rig = Rig::new();
    let (_client, port) = rig.dial();
    rig.data(port, b"before the response");
    assert_eq!(ops(&mut rig), [Op::Reset]);
    let (_client, port) = rig.open();
    rig.shut_down(port, SHUTDOWN_SEND);
    rig.data(port, b"after the end");
    assert_eq!(ops(&mut rig), [Op::Reset]);
    assert_eq!(rig.metrics().protocol_errors.get(), 2);
}

#[test]
fn packets_shorter_than_they_say_end_their_stream() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let header = Header {
        len: 100,
        ..Rig::header(port, PORT, Op::Data)
    };
    rig.send(header, &[0; 99]);
    assert_eq!(ops(&mut rig), [Op::Reset]);
    assert!(is_at_end(&mut client));
    rig.transmit.add(&[Buf::Out(0x10_0000, 43)]);
    rig.transmit.add(&[Buf::In(0x10_0000, 100)]);
    rig.transmit.kick.write(1).unwrap();
    assert_eq!(rig.received(), []);
    assert_eq!(rig.metrics().malformed_chains.get(), 3);
}

#[test]
fn a_packet_may_be_longer_than_it_says() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    let header = Header {
        len: 3,
        ..Rig::header(port, PORT, Op::Data)
    };
    rig.send(header, b"abcdef");
    assert_eq!(said(&mut client), b"abc");
}

#[test]
fn a_broken_ring_ends_the_handler_and_nothing_else() {
    let mut rig = Rig::new();
    rig.transmit.offer(64);
    rig.transmit.kick.write(1).unwrap();
    assert!(matches!(
        rig.try_run(),
        Err(HandlerError::Ring(RingError::HeadOutside { .. }))
    ));
}

#[test]
fn without_buffers_everything_waits_and_nothing_is_lost() {
    let mut rig = Rig::without_buffers();
    let mut client = rig.connect();
    client.write_all(b"connect 1024\n").unwrap();
    rig.run();
    rig.send(Rig::header(5, 6, Op::Data), &[]);
    rig.offer(1);
    assert_eq!(ops(&mut rig), [Op::Reset]);
    // That gave the buffer back, which is enough for both, one after the other.
    assert_eq!(ops(&mut rig), [Op::Request]);
}

#[test]
fn answers_that_wait_hold_the_guests_packets_back() {
    let mut rig = Rig::without_buffers();
    let stray = Rig::header(5, 6, Op::Data);
    for _ in 0..REPLIES_MAX {
        rig.send(stray, &[]);
    }
    rig.queue(stray, &[]);
    rig.transmit.kick.write(1).unwrap();
    rig.run();
    assert_eq!(rig.transmit.take_used(), None, "left in the ring");
    rig.offer(32);
    let mut resets = 0;
    while resets <= REPLIES_MAX {
        let packets = rig.received();
        assert!(!packets.is_empty());
        resets += packets.len();
    }
    assert_eq!(resets, REPLIES_MAX + 1);
    assert!(rig.transmit.take_used().is_some());
}

#[test]
fn streams_take_turns() {
    let mut rig = Rig::new();
    let (mut one, first) = rig.open();
    let (mut two, second) = rig.open();
    one.set_nonblocking(true).unwrap();
    let _ = one.write(&[1; 200_000]);
    two.write_all(&[2; 100]).unwrap();
    let ports: Vec<u32> = rig.received().iter().map(|packet| packet.header.src_port).collect();
    let turn = ports.iter().position(|port| *port == second).unwrap();
    assert!(
        turn <= 32 && ports[turn..].contains(&first),
        "{turn} packets of the other came first"
    );
}

#[test]
fn silent_clients_give_way_to_new_ones() {
    let mut rig = Rig::new();
    let mut clients: Vec<_> = (0..COMMANDS_MAX + 2)
        .map(|_| {
            let client = rig.connect();
            rig.run();
            client
        })
        .collect();
    assert!(is_at_end(&mut clients[0]) && is_at_end(&mut clients[1]) && !is_at_end(&mut clients[2]));
    assert_eq!(rig.metrics().dials_dropped.get(), 2);
    clients[2].write_all(b"connect 1\n").unwrap();
    assert_eq!(ops(&mut rig), [Op::Request]);
}

#[test]
fn dials_that_the_guest_does_not_answer_are_limited() {
    let mut rig = Rig::without_buffers();
    let mut clients = Vec::new();
    for _ in 0..=REQUESTS_MAX {
        let mut client = rig.connect();
        client.write_all(b"connect 1\n").unwrap();
        rig.run();
        clients.push(client);
    }
    assert!(is_at_end(clients.last_mut().unwrap()));
    assert!(!is_at_end(&mut clients[0]));
    assert_eq!(rig.metrics().dials_dropped.get(), 1);
}

#[test]
fn a_reset_of_the_device_ends_streams_and_keeps_the_socket() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open();
    let mut silent = rig.connect();
    rig.run();
    let states = rig.handler.stop();
    assert_eq!(states.len(), 3);
    assert!(is_at_end(&mut client) && is_at_end(&mut silent));
    assert!(UnixStream::connect(rig.folder.path().join("v.sock")).is_ok());
}

#[test]
fn a_transport_reset_ends_streams_and_tells_the_driver_once() {
    let mut rig = Rig::new();
    let (mut client, _) = rig.open();
    rig.host.reset_transport();
    rig.run();
    assert!(is_at_end(&mut client));
    assert_eq!(rig.received(), [], "the event says it all");
    assert_eq!(rig.event.take_used(), None, "there is no buffer for the event yet");
    rig.event.write(0x3_0000, &[0xff; 8]);
    let head = rig.event.add(&[Buf::In(0x3_0000, 4)]);
    rig.event.add(&[Buf::In(0x3_0004, 4)]);
    rig.event.kick.write(1).unwrap();
    rig.run();
    assert_eq!(rig.event.take_used(), Some((head.into(), 4)));
    assert_eq!(rig.event.take_used(), None);
    assert_eq!(rig.event.read(0x3_0000, 4), [0; 4]);
    assert_eq!(rig.event.interrupts(), 1);
    rig.open();
}

#[test]
fn nothing_to_do_wakes_nobody_a_second_time() {
    let mut rig = Rig::new();
    let (mut client, port) = rig.open();
    rig.data(port, b"hello");
    assert_eq!(said(&mut client), b"hello");
    assert!(rig.turns.events().is_empty(), "an edge is taken once");
}

/// An open stream of a driver that has been told everything, and forgot how often.
fn open_and_told(rig: &mut Rig) -> (UnixStream, u32) {
    let opened = rig.open();
    while rig.handler.coalescer.as_ref().is_some_and(InterruptCoalescer::is_armed) {
        rig.run_once_more();
    }
    rig.transmit.interrupts();
    opened
}

#[test]
fn the_driver_hears_of_its_packets_with_the_next_that_it_gets() {
    let mut rig = Rig::new();
    let (mut client, port) = open_and_told(&mut rig);
    rig.queue(Rig::header(port, PORT, Op::CreditUpdate), &[]);
    rig.handler.wake(TRANSMIT, &mut rig.turns).unwrap();
    while rig.transmit.take_used().is_some() {}
    assert_eq!(rig.transmit.interrupts(), 0, "used, and not told");
    client.write_all(b"y").unwrap();
    rig.handler.wake(SOCKETS, &mut rig.turns).unwrap();
    assert_eq!(rig.transmit.interrupts(), 1);
}

#[test]
fn the_driver_hears_of_many_packets_at_once_and_of_few_soon() {
    let mut rig = Rig::new();
    let (_client, port) = open_and_told(&mut rig);
    for _ in 0..8 {
        rig.queue(Rig::header(port, PORT, Op::CreditUpdate), &[]);
    }
    rig.handler.wake(TRANSMIT, &mut rig.turns).unwrap();
    assert_eq!(rig.transmit.interrupts(), 1, "of eight at once");
    rig.queue(Rig::header(port, PORT, Op::CreditUpdate), &[]);
    rig.handler.wake(TRANSMIT, &mut rig.turns).unwrap();
    assert_eq!(rig.transmit.interrupts(), 0, "of one not yet");
    rig.run_once_more();
    assert_eq!(rig.transmit.interrupts(), 1, "but when the timer rings");
}

#[test]
fn a_device_that_stops_has_told_everything() {
    let mut rig = Rig::new();
    let (_client, port) = open_and_told(&mut rig);
    rig.queue(Rig::header(port, PORT, Op::CreditUpdate), &[]);
    rig.handler.wake(TRANSMIT, &mut rig.turns).unwrap();
    rig.handler.stop();
    assert_eq!(rig.transmit.interrupts(), 1);
}

/// Wakes the handler once for `token`, with drivers of both queues that are always at work.
fn wake_busy(rig: &mut Rig, token: u32) {
    rig.handler.receive.ring.busy_driver = Some(rig.receive.busy(1));
    rig.handler.transmit.busy_driver = Some(rig.transmit.busy(1));
    rig.handler.wake(token, &mut rig.turns).unwrap();
}

#[test]
fn buffers_that_are_too_small_do_not_keep_the_thread() {
    let mut rig = Rig::without_buffers();
    rig.run();
    // Something for the guest: a stray packet is answered by RST.
    rig.send(Rig::header(77, 77, Op::Data), &[]);
    rig.receive.add(&[Buf::In(0x4_0000, 4)]);
    for token in [RECEIVE, TRANSMIT, SOCKETS, COALESCE_TIMER, RESET] {
        let before = rig.metrics().malformed_chains.get();
        wake_busy(&mut rig, token);
        assert!(rig.metrics().malformed_chains.get() - before <= 64, "{token}");
        assert!(rig.handler.receive.ring.is_spent(), "{token}");
    }
    assert!(rig.turns.events().contains(&RECEIVE), "it comes back by itself");
}

#[test]
fn stray_packets_and_their_answers_do_not_keep_the_thread() {
    let mut rig = Rig::without_buffers();
    rig.run();
    let stray = Rig::header(77, 77, Op::Data);
    for _ in 0..REPLIES_MAX {
        rig.send(stray, &[]);
    }
    rig.queue(stray, &[]);
    rig.transmit.kick.write(1).unwrap();
    rig.run();
    assert!(rig.handler.held_up);
    rig.receive.add(&[Buf::In(0x4_0000, 4096)]);
    let before = rig.metrics().tx_packets.get();
    for wake in 1..5 {
        wake_busy(&mut rig, RECEIVE);
        assert!(rig.metrics().tx_packets.get() - before <= wake * 64);
    }
}

#[test]
fn programs_that_do_not_read_cost_little_together_and_stall_nobody_else() {
    let mut rig = Rig::new();
    let listener = UnixListener::bind(rig.folder.path().join("v.sock_80")).unwrap();
    let (mut deaf, mut kept) = (Vec::new(), 0);
    for guest in 5000..5030 {
        rig.send(Rig::header(80, guest, Op::Request), &[]);
        let mut told = rig.one().header;
        deaf.push(listener.accept().unwrap().0);
        let mut sent = 0;
        loop {
            let len = (told.fwd_cnt + told.buf_alloc - sent).min(32 << 10);
            if len == 0 {
                break;
            }
            sent += len;
            let data = Header {
                len,
                ..Rig::header(80, guest, Op::Data)
            };
            rig.send(data, &vec![1; len as usize]);
            told = rig.received().last().map_or(told, |packet| packet.header);
        }
        rig.send(Rig::header(80, guest, Op::CreditRequest), &[]);
        kept += sent - rig.received().last().unwrap().header.fwd_cnt;
    }
    assert!(kept <= POOL_BYTES + 30 * STREAM_MIN, "{kept}");
    assert!(kept > POOL_BYTES / 4, "{kept}: there was no need");
    assert_eq!(rig.metrics().credit_lies.get(), 0);

    // The next one begins with less, and goes on all the same.
    let (mut client, port) = rig.open();
    rig.send(Rig::header(port, PORT, Op::CreditRequest), &[]);
    let room = rig.one().header.buf_alloc;
    assert!((STREAM_MIN..STREAM_MAX).contains(&room), "{room}");
    let mut told = 0;
    for sent in 0..2000 {
        assert!(
            sent * 200 - told + 200 <= room,
            "no credit after {sent} packets that were read"
        );
        rig.data(port, &[9; 200]);
        assert_eq!(said(&mut client), [9; 200]);
        told = rig.received().last().map_or(told, |packet| packet.header.fwd_cnt);
    }
    // What is not read any more is the others' again when its stream ends.
    for guest in 5000..5030 {
        rig.send(Rig::header(80, guest, Op::Reset), &[]);
    }
    rig.send(Rig::header(port, PORT, Op::CreditRequest), &[]);
    assert!(rig.received().last().unwrap().header.buf_alloc > room);
}

#[test]
fn streams_that_come_and_go_without_buffers_leave_nothing_behind() {
    let mut rig = Rig::without_buffers();
    let _listener = UnixListener::bind(rig.folder.path().join("v.sock_80")).unwrap();
    for _ in 0..200 {
        rig.send(Rig::header(80, 5000, Op::Request), &[]);
        rig.send(Rig::header(80, 5000, Op::Reset), &[]);
        let _ = _listener.accept().unwrap();
    }
    assert!(rig.handler.muxer.ready().is_empty());
    assert_eq!(rig.metrics().guest_streams.get(), 200);
}

fn any_header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![8 => Just(CID), 1 => any::<u64>()];
    let host = prop_oneof![8 => Just(HOST_CID), 1 => any::<u64>()];
    let port = prop_oneof![6 => (0u32..3).prop_map(|n| (1 << 30) + n), 1 => any::<u32>()];
    let len = prop_oneof![6 => 0u32..200, 1 => any::<u32>()];
    let count = prop_oneof![4 => 0u32..300, 1 => any::<u32>()];
    let room = prop_oneof![4 => Just(GUEST_BUFFER), 1 => any::<u32>()];
    (cid, host, port, len, 0u16..3, 0u16..9, any::<u32>(), room, count).prop_map(
        |(src_cid, dst_cid, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt)| Header {
            src_cid,
            dst_cid,
            src_port: PORT,
            dst_port,
            len,
            kind,
            op,
            flags,
            buf_alloc,
            fwd_cnt,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_packet_of_the_guest_disturbs_the_device(packets in prop::collection::vec((any_header(), 0usize..300), 1..40)) {
        let mut rig = Rig::new();
        let mut clients: Vec<_> = (0..3).map(|_| {
            let mut client = rig.connect();
            client.write_all(b"connect 1024\nsome words").unwrap();
            client
        }).collect();
        rig.received();
        for (header, len) in packets {
            rig.send(header, &vec![3; len]);
            for client in &mut clients {
                said(client);
                let _ = client.write(b"more");
            }
            rig.received();
        }
        rig.open();
    }
}
