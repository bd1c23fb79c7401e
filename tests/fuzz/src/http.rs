//! The HTTP layer's parser: a stream means the same wherever it is torn.
//!
//! The first byte says at how many places, two bytes each say where; the rest is the stream.

use husk::api::http::{BODY_BYTES, Malformed, Message, Parser};

use crate::Seeds;
use crate::script::{Recorder, Script};

/// Places at most.
const CUTS: u8 = 15;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let Some(cuts) = cuts(&mut script) else { return };
    let stream = script.rest();
    let mut whole = Parser::new(|_, _| BODY_BYTES);
    whole.push(stream);
    let expected = messages(&mut whole);
    let mut torn = Parser::new(|_, _| BODY_BYTES);
    let (mut found, mut from) = (Vec::new(), 0);
    for to in cuts.into_iter().filter(|cut| *cut < stream.len()).chain([stream.len()]) {
        torn.push(&stream[from..to]);
        from = to;
        found.extend(messages(&mut torn));
        assert_eq!(torn.received(), to as u64);
        if found.last().is_some_and(Result::is_err) {
            break;
        }
    }
    assert_eq!(found, expected);
    let mut end = 0;
    for message in expected.iter().flatten() {
        assert!(end < message.end && message.end <= stream.len() as u64);
        assert!(message.body.len() <= BODY_BYTES);
        assert!(!message.path.contains(['?', '#']));
        end = message.end;
    }
    if let Some(Err(error)) = expected.last() {
        assert!((400..=505).contains(&error.status()) && !error.to_string().is_empty());
    }
}

fn cuts(script: &mut Script<'_>) -> Option<Vec<usize>> {
    let count = script.u8()? & CUTS;
    let cuts: Option<Vec<_>> = (0..count).map(|_| script.u16().map(usize::from)).collect();
    let mut cuts = cuts?;
    cuts.sort_unstable();
    Some(cuts)
}

/// All there are, up to and with the first refusal.
pub fn messages(parser: &mut Parser) -> Vec<Result<Message, Malformed>> {
    let mut messages = Vec::new();
    while let Some(message) = parser.next_message().transpose() {
        let refused = message.is_err();
        messages.push(message);
        if refused {
            break;
        }
        parser.take_wait();
    }
    messages
}

pub fn seeds() -> Seeds {
    let shims = b"PUT /api/v1/vm.add-net HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nContent-Length: 5\r\n\r\n{\"a\":\
\r\nPUT /api/v1/vm.boot HTTP/1.1\r\nUser-Agent: OpenAPI-Generator/1.0.0/go\r\nContent-Length: 0\r\nAccept-Encoding: gzip\r\n\r\n";
    let odd = b"GET http://localhost/a?b=c#d HTTP/1.0\nConnection: x, Keep-Alive\n\nHEAD * HTTP/1.1\r\nConnection: close\r\n\r\n";
    let waits = b"PUT / HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc";
    let refused = b"GET / HTTP/1.1\r\n\r\nPUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let torn = |cuts: &[u16], stream: &[u8]| {
        let mut to = Recorder::default();
        to.u8(u8::try_from(cuts.len()).unwrap());
        for cut in cuts {
            to.u16(*cut);
        }
        to.raw(stream).take()
    };
    vec![
        ("shims", torn(&[1, 33, 100, 108], shims)),
        ("odd", torn(&[38, 69, 70], odd)),
        ("waits", torn(&[60], waits)),
        ("refused", torn(&[], refused)),
    ]
}
