use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::*;

fn readable(source: &impl AsRawFd) -> bool {
    let epoll = Epoll::new().unwrap();
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, source.as_raw_fd(), interest).unwrap();
    epoll.wait(0, &mut [EpollEvent::default()]).unwrap() == 1
}

#[test]
fn commands_come_in_order_and_the_bell_is_quiet_after_the_last() {
    let ((outbox, inbox), (mailbox, _answers)) = (commands(Vec::new()).unwrap(), answers().unwrap());
    assert!(!readable(&inbox));
    outbox.send(Command::Boot, 1, &mailbox);
    outbox.send(Command::Pause, 2, &mailbox);
    assert!(readable(&inbox));
    assert!(matches!(inbox.next().unwrap().command, Command::Boot));
    assert!(matches!(inbox.next().unwrap().command, Command::Pause));
    assert!(inbox.next().is_none());
    assert!(!readable(&inbox));
}

#[test]
fn an_answer_finds_its_connection() {
    let ((outbox, inbox), (mailbox, answers)) = (commands(Vec::new()).unwrap(), answers().unwrap());
    outbox.send(Command::Boot, 7, &mailbox);
    inbox.next().unwrap().respond.send(Ok(Reply::Done));
    assert!(readable(&answers));
    let answer = answers.next().unwrap();
    assert_eq!((answer.connection, answer.outcome), (7, Ok(Reply::Done)));
    assert_eq!(answers.next(), None);
    assert!(!readable(&answers));
}

#[test]
fn a_command_that_is_dropped_is_answered_all_the_same() {
    let ((outbox, inbox), (mailbox, answers)) = (commands(Vec::new()).unwrap(), answers().unwrap());
    outbox.send(Command::Boot, 1, &mailbox);
    drop(inbox.next());
    outbox.send(Command::Boot, 2, &mailbox);
    drop(inbox);
    outbox.send(Command::Boot, 3, &mailbox);
    for connection in 1..=3 {
        let answer = answers.next().unwrap();
        assert_eq!(answer.connection, connection);
        let error = answer.outcome.unwrap_err();
        assert_eq!(
            (error.kind, error.kind.status()),
            (Kind::Ending, 500),
            "no fault of husk's"
        );
    }
}

#[test]
fn an_answer_to_an_api_that_has_ended_is_no_error() {
    let ((outbox, inbox), (mailbox, answers)) = (commands(Vec::new()).unwrap(), answers().unwrap());
    outbox.send(Command::Boot, 1, &mailbox);
    drop((answers, mailbox));
    inbox.next().unwrap().respond.send(Ok(Reply::Done));
}
