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
    let ((command_sender, commands), (answer_sender, _answers)) =
        (command_queue(Vec::new()).unwrap(), answer_queue().unwrap());
    assert!(!readable(&commands));
    command_sender.send(Command::Boot, 1, &Presence::default(), &answer_sender);
    command_sender.send(Command::Pause, 2, &Presence::default(), &answer_sender);
    assert!(readable(&commands));
    assert!(matches!(commands.next().unwrap().command, Command::Boot));
    assert!(matches!(commands.next().unwrap().command, Command::Pause));
    assert!(commands.next().is_none());
    assert!(!readable(&commands));
}

#[test]
fn an_answer_finds_its_connection() {
    let ((command_sender, commands), (answer_sender, answers)) =
        (command_queue(Vec::new()).unwrap(), answer_queue().unwrap());
    command_sender.send(Command::Boot, 7, &Presence::default(), &answer_sender);
    commands.next().unwrap().respond.send(Ok(Reply::Done));
    assert!(readable(&answers));
    let answer = answers.next().unwrap();
    assert_eq!((answer.connection, answer.outcome), (7, Ok(Reply::Done)));
    assert_eq!(answers.next(), None);
    assert!(!readable(&answers));
}

#[test]
fn a_command_that_is_dropped_is_answered_all_the_same() {
    let ((command_sender, commands), (answer_sender, answers)) =
        (command_queue(Vec::new()).unwrap(), answer_queue().unwrap());
    command_sender.send(Command::Boot, 1, &Presence::default(), &answer_sender);
    drop(commands.next());
    command_sender.send(Command::Boot, 2, &Presence::default(), &answer_sender);
    drop(commands);
    command_sender.send(Command::Boot, 3, &Presence::default(), &answer_sender);
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
    let ((command_sender, commands), (answer_sender, answers)) =
        (command_queue(Vec::new()).unwrap(), answer_queue().unwrap());
    command_sender.send(Command::Boot, 1, &Presence::default(), &answer_sender);
    drop((answers, answer_sender));
    commands.next().unwrap().respond.send(Ok(Reply::Done));
}

#[test]
fn a_responder_knows_whether_its_client_is_there() {
    let ((command_sender, commands), (answer_sender, _answers)) =
        (command_queue(Vec::new()).unwrap(), answer_queue().unwrap());
    let presence = Presence::default();
    command_sender.send(Command::Boot, 1, &presence, &answer_sender);
    let respond = commands.next().unwrap().respond;
    assert!(respond.is_awaited() && commands.next().is_none() && !readable(&commands));
    drop(presence);
    command_sender.wake();
    assert!(!respond.is_awaited() && readable(&commands));
}
