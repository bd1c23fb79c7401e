use std::io::Write;

use super::super::testing::{BackendAction, IMPATIENT, answer, serve};
use super::*;

const NUMBER: Request = Request::GetQueueNum;

fn channel(action: Option<BackendAction>) -> Channel {
    channel_with(action, REPLY_TIMEOUT)
}

/// To a back-end that has `limit`.
fn channel_with(action: Option<BackendAction>, limit: Duration) -> Channel {
    let (here, there) = UnixStream::pair().unwrap();
    serve(there, action.map(|action| (NUMBER, action)));
    Channel::new(here.into(), Deadline::after(limit)).unwrap()
}

/// Asks a back-end that answers with `bytes`.
fn told(bytes: Vec<u8>) -> BackendError {
    let mut channel = channel(Some(BackendAction::Say(bytes)));
    let error = channel.ask(NUMBER, &[]).unwrap_err();
    // Whatever comes next would not be the answer to what is asked next.
    assert!(matches!(
        channel.ask(Request::GetFeatures, &[]),
        Err(BackendError::Gone(None))
    ));
    error
}

#[test]
fn a_question_is_answered() {
    assert_eq!(channel(None).ask(NUMBER, &[]).unwrap(), 4_u64.to_ne_bytes());
}

#[test]
fn what_is_not_the_answer_is_an_error() {
    let message = told(answer(Request::GetFeatures as u32, 4)).to_string();
    assert_eq!(
        message,
        "it answered GetQueueNum (17) with message 1, flags 0x5, 8 bytes, where 8 are due"
    );
    let with = |at: usize, value: u32| {
        let mut bytes = answer(NUMBER as u32, 4);
        bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        bytes
    };
    for bytes in [
        with(4, 1),
        with(4, 6),
        with(8, 0),
        with(8, 7),
        with(8, 4096),
        with(8, u32::MAX),
        vec![0xff; 4096],
    ] {
        assert!(matches!(told(bytes), BackendError::Answer { .. }));
    }
}

#[test]
fn silence_and_half_an_answer_end_at_the_limit() {
    for action in [
        BackendAction::KeepSilent,
        BackendAction::Drip,
        BackendAction::Say(answer(NUMBER as u32, 4)[..19].to_vec()),
    ] {
        let error = channel_with(Some(action.clone()), IMPATIENT)
            .ask(NUMBER, &[])
            .unwrap_err();
        assert!(matches!(error, BackendError::Silent { .. }), "{action:?}: {error}");
    }
}

#[test]
fn all_exchanges_together_have_one_limit() {
    let mut channel = channel_with(Some(BackendAction::Dawdle), IMPATIENT);
    let answers = (0..100).take_while(|_| channel.ask(NUMBER, &[]).is_ok()).count();
    assert!(answers < 2, "{answers} answers, each within the limit, were waited for");
    assert!(channel.is_lost());
}

#[test]
fn a_new_deadline_is_a_new_limit() {
    let mut channel = channel(None);
    channel.set_deadline(Deadline::at(std::time::Instant::now()));
    let (here, _there) = UnixStream::pair().unwrap();
    let mut deaf = Channel::new(here.into(), Deadline::at(std::time::Instant::now())).unwrap();
    let error = deaf.ask(NUMBER, &[]).unwrap_err();
    assert!(matches!(error, BackendError::Silent { .. }), "{error}");
    channel.set_deadline(Deadline::after(REPLY_TIMEOUT));
    assert_eq!(channel.ask(NUMBER, &[]).unwrap(), 4_u64.to_ne_bytes());
}

#[test]
fn whoever_waits_for_an_answer_returns_when_somebody_else_hangs_up() {
    let (here, there) = UnixStream::pair().unwrap();
    let socket = Arc::new(here);
    let mut channel = Channel::new(socket.clone(), Deadline::after(Duration::MAX)).unwrap();
    let asker = std::thread::spawn(move || channel.ask(NUMBER, &[]).unwrap_err());
    // It has asked, and so it waits, or is about to.
    (&there).read_exact(&mut [0; HEADER_BYTES]).unwrap();
    socket.shutdown(Shutdown::Both).unwrap();
    assert!(matches!(asker.join().unwrap(), BackendError::Gone(Some(NUMBER))));
}

#[test]
fn a_back_end_that_does_not_read_is_given_up() {
    let (here, _there) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(here.into(), Deadline::after(IMPATIENT)).unwrap();
    let error = (0..100_000).find_map(|_| channel.command(Request::SetOwner, &[0; 512], &[]).err());
    assert!(matches!(error, Some(BackendError::Silent { .. })), "{error:?}");
}

#[test]
fn a_back_end_that_leaves_is_gone() {
    let error = channel(Some(BackendAction::Close)).ask(NUMBER, &[]).unwrap_err();
    assert!(matches!(error, BackendError::Gone(Some(NUMBER))), "{error}");
}

#[test]
fn a_refusal_leaves_the_connection_usable() {
    let mut channel = channel(Some(BackendAction::Refuse(3)));
    channel.expect_acknowledgements();
    let error = channel.command(NUMBER, &[], &[]).unwrap_err();
    assert_eq!(error.to_string(), "it refused GetQueueNum with code 3");
    channel.command(Request::SetOwner, &[], &[]).unwrap();
}

#[test]
fn descriptors_that_come_with_an_answer_are_closed() {
    let (here, there) = UnixStream::pair().unwrap();
    let (mut probe, passed) = UnixStream::pair().unwrap();
    let fds = [passed.as_raw_fd(); 8];
    there.send_with_fds(&[&answer(NUMBER as u32, 4)[..]], &fds).unwrap();
    drop(passed);
    let mut channel = Channel::new(here.into(), Deadline::after(REPLY_TIMEOUT)).unwrap();
    channel.ask(NUMBER, &[]).unwrap();
    assert_eq!(probe.read(&mut [0]).unwrap(), 0, "nobody has the other end");
}

#[test]
fn what_nobody_asked_for_is_noticed() {
    let (here, mut there) = UnixStream::pair().unwrap();
    let mut channel = Channel::new(here.into(), Deadline::after(IMPATIENT)).unwrap();
    channel.check().unwrap();
    there.write_all(&[0]).unwrap();
    assert!(matches!(channel.check(), Err(BackendError::Unasked)));
    assert!(matches!(
        channel.check(),
        Err(BackendError::Unasked | BackendError::Gone(_))
    ));
}
