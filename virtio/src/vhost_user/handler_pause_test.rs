//! Rings that come back for a pause, and go again; what ends in them after that.

use super::*;

#[test]
fn a_held_device_has_its_rings_back_and_goes_on_where_they_stopped() {
    let bench = bench(None);
    let (worker, _failures) = bench.started();
    bench.heard.take();
    bench.serve(0, 7, 7);
    bench.serve(1, 9, 9);
    bench.hold(&worker);
    assert_eq!(bench.heard.requests(), [Request::GetVringBase as u32; 2]);
    bench.heard.take();
    let doorbell = bench.link.doorbell(1).unwrap().event().clone();
    while doorbell.read().is_ok() {}
    worker.release();
    until(|| doorbell.read().is_ok());
    let told = bench.heard.take();
    let bases = told
        .iter()
        .filter(|message| message.request == Request::SetVringBase as u32);
    let bases: Vec<&[u8]> = bases.map(|message| &message.payload[..]).collect();
    assert_eq!(bases, [[0, 0, 0, 0, 7, 0, 0, 0], [1, 0, 0, 0, 9, 0, 0, 0]]);
    assert!(
        !told
            .iter()
            .any(|message| message.request == Request::SetFeatures as u32)
    );
    assert_eq!(worker.join().len(), 2);
}

#[test]
fn a_device_is_not_held_while_the_back_end_has_requests_whose_ring_came_back() {
    let bench = bench(None);
    bench.link.set_late_limit(PATIENCE);
    let mut handler = bench.handler();
    handler.lend().unwrap();
    bench.serve(0, 3, 3);
    bench.serve(1, 7, 5);
    until(|| {
        assert_eq!(handler.hold(&mut Blind).unwrap(), Hold::Pending);
        handler.lent == 0
    });
    bench.end(1, 6);
    assert_eq!(handler.hold(&mut Blind).unwrap(), Hold::Pending);
    bench.end(1, 7);
    assert_eq!(handler.hold(&mut Blind).unwrap(), Hold::Held);
    let states = handler.stop();
    assert_eq!((states[1].queue.next_avail, states[1].queue.next_used), (7, 7));
}

#[test]
fn what_ends_after_its_ring_came_back_is_noticed_and_told_to_the_driver_when_it_goes_on() {
    let bench = bench(None);
    bench.link.set_late_limit(PATIENCE);
    let (worker, _failures) = bench.started();
    bench.serve(1, 7, 5);
    worker.hold();
    until(|| bench.heard.requests().ends_with(&[Request::GetVringBase as u32; 2]));
    // Another thread of its ends them, without an eventfd to say so by.
    bench.end(1, 7);
    until(|| worker.is_held());
    bench.drivers.iter().for_each(|driver| {
        driver.interrupts();
    });
    worker.release();
    until(|| bench.drivers[1].interrupts() > 0);
    assert_eq!(bench.metrics().late_requests.get(), 0);
    assert_eq!(worker.join().len(), 2);
}

#[test]
fn a_request_that_never_ends_holds_a_pause_up_for_a_moment_and_is_counted() {
    let bench = bench(None);
    let (worker, failures) = bench.started();
    bench.serve(1, 7, 5);
    bench.link.set_late_limit(Duration::from_millis(1));
    for pause in 1..=2 {
        bench.hold(&worker);
        assert_eq!(bench.metrics().late_requests.get(), 2 * pause);
        bench.heard.take();
        worker.release();
        until(|| handed_over(&bench.heard.requests()) == 2);
    }
    assert!(bench.link.acquire().unwrap().present().is_ok(), "it is not left");
    // A device that is reset has memory that is used for something else.
    worker.join();
    assert_eq!(bench.metrics().late_requests.get(), 6);
    assert!(
        bench.link.acquire().unwrap().present().is_err(),
        "nobody speaks to it again"
    );
    assert!(failures.try_recv().is_err());
    assert_eq!(bench.metrics().backend_failures.get(), 0);
}

#[test]
fn a_request_of_the_back_ends_pool_ends_before_its_device_has_stopped() {
    let bench = bench(None);
    bench.link.set_late_limit(PATIENCE);
    let mut handler = bench.handler();
    handler.lend().unwrap();
    bench.serve(1, 7, 5);
    let stopping = std::thread::spawn(move || handler.stop());
    until(|| bench.heard.requests().ends_with(&[Request::GetVringBase as u32; 2]));
    bench.end(1, 6);
    assert!(!stopping.is_finished());
    bench.end(1, 7);
    let states = stopping.join().unwrap();
    assert_eq!((states[1].queue.next_avail, states[1].queue.next_used), (7, 7));
    assert!(bench.link.acquire().unwrap().present().is_ok(), "it is not left");
    assert_eq!(bench.metrics().late_requests.get(), 0);
}

#[test]
fn late_requests_keep_neither_a_device_that_goes_nor_one_whose_pause_is_called_off() {
    let bench = bench(None);
    bench.link.set_late_limit(PATIENCE);
    let (worker, failures) = bench.started();
    bench.serve(1, 7, 5);
    worker.hold();
    until(|| bench.heard.requests().ends_with(&[Request::GetVringBase as u32; 2]));
    bench.heard.take();
    worker.release();
    until(|| handed_over(&bench.heard.requests()) == 2);
    bench.heard.take();
    worker.hold();
    until(|| bench.heard.requests() == [Request::GetVringBase as u32; 2]);
    bench.link.retire();
    assert_eq!(worker.join().len(), 2);
    assert_eq!(bench.metrics().late_requests.get(), 0, "nobody waited until the end");
    assert!(failures.try_recv().is_err());
}

#[test]
fn a_back_end_that_dies_with_late_requests_is_a_failure_of_the_device_and_they_are_refused() {
    let mut bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    bench.link.set_late_limit(PATIENCE);
    let (worker, failures) = bench.started();
    let owed = ask(&mut bench.drivers[1], 0x8_0000);
    bench.serve(1, 1, 0);
    worker.hold();
    until(|| bench.heard.requests().ends_with(&[Request::GetVringBase as u32; 2]));
    bench.leave();
    failures.recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (owed, 1));
    assert_eq!(bench.metrics().backend_failures.get(), 1);
    worker.join();
}

/// Rings that were handed over.
fn handed_over(requests: &[u32]) -> usize {
    let enabled = requests
        .iter()
        .filter(|request| **request == Request::SetVringEnable as u32);
    enabled.count()
}

#[test]
fn a_pause_that_is_given_up_leaves_a_slow_back_end_at_work() {
    let (finish, finished) = channel();
    let bench = bench(Some((
        Request::GetVringBase,
        BackendAction::Finish(Arc::new(Mutex::new(finished))),
    )));
    let (worker, failures) = bench.started();
    for called_off in [true, true, false] {
        bench.heard.take();
        // Whatever a back-end has begun may last longer than all that it has for anything else.
        bench.lose_patience();
        worker.hold();
        until(|| bench.heard.requests() == [Request::GetVringBase as u32]);
        std::thread::sleep(IMPATIENT * 2);
        assert!(!worker.is_held());
        bench.link.set_limit(PATIENCE);
        if called_off {
            worker.release();
            finish.send(()).unwrap();
            // The other ring stayed where it was.
            until(|| handed_over(&bench.heard.requests()) == 1);
            assert_eq!(bench.heard.requests().len(), 1 + 6);
        } else {
            finish.send(()).unwrap();
            finish.send(()).unwrap();
            until(|| worker.is_held());
            worker.release();
            until(|| handed_over(&bench.heard.requests()) == 2);
        }
    }
    assert_eq!(bench.metrics().backend_failures.get(), 0);
    assert!(failures.try_recv().is_err(), "it has its time");
    finish.send(()).unwrap();
    finish.send(()).unwrap();
    assert_eq!(worker.join().len(), 2);
}

#[test]
fn the_position_in_the_used_ring_is_that_after_the_last_request() {
    let (finish, finished) = channel();
    let bench = bench(Some((
        Request::GetVringBase,
        BackendAction::Finish(Arc::new(Mutex::new(finished))),
    )));
    let mut handler = bench.handler();
    handler.lend().unwrap();
    bench.serve(1, 7, 0);
    let stopping = std::thread::spawn(move || handler.stop());
    until(|| bench.heard.requests().contains(&(Request::GetVringBase as u32)));
    bench.end(1, 7);
    finish.send(()).unwrap();
    finish.send(()).unwrap();
    let states = stopping.join().unwrap();
    assert_eq!((states[1].queue.next_avail, states[1].queue.next_used), (7, 7));
}

#[test]
fn a_device_ends_in_the_middle_of_a_pause_in_order_or_not() {
    for answers in [true, false] {
        let (finish, finished) = channel();
        let bench = bench(Some((
            Request::GetVringBase,
            BackendAction::Finish(Arc::new(Mutex::new(finished))),
        )));
        let mut handler = bench.handler();
        handler.lend().unwrap();
        (0..2).for_each(|queue| bench.heard.take_requests(queue, 7));
        assert_eq!(handler.hold(&mut Blind).unwrap(), Hold::Pending);
        if answers {
            (0..2).for_each(|queue| bench.end(queue, 7));
            finish.send(()).unwrap();
            finish.send(()).unwrap();
        } else {
            bench.lose_patience();
        }
        let states = handler.stop();
        let positions: Vec<u16> = states.iter().map(|state| state.queue.next_avail).collect();
        assert_eq!(positions, if answers { [7, 7] } else { [0, 0] });
        assert_eq!(bench.link.acquire().unwrap().present().is_ok(), answers);
    }
}

#[test]
fn a_back_end_that_does_not_let_go_is_not_held_and_refuses_what_it_owes() {
    let mut bench = bench(Some((Request::GetVringBase, BackendAction::Close)));
    let (worker, failures) = bench.started();
    let owed = ask(&mut bench.drivers[1], 0x8_0000);
    worker.hold();
    failures.recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[1]), (owed, 1));
    assert!(!worker.is_held());
    worker.release();
    // A device that serves itself is held like any other.
    bench.hold(&worker);
    let later = ask(&mut bench.drivers[1], 0x8_1000);
    bench.drivers[1].kick.write(1).unwrap();
    worker.release();
    assert_eq!(answer_of(&mut bench.drivers[1]), (later, 1));
    worker.join();
}

#[test]
fn a_back_end_that_left_while_the_device_was_held_is_replaced_by_nobody() {
    let mut bench = bench(Some((Request::RemMemReg, BackendAction::Close)));
    let (worker, failures) = bench.started();
    bench.hold(&worker);
    bench.leave();
    let owed = ask(&mut bench.drivers[0], 0x8_0000);
    worker.release();
    failures.recv_timeout(PATIENCE).unwrap();
    assert_eq!(answer_of(&mut bench.drivers[0]), (owed, 1));
    assert_eq!(bench.metrics().connects.get(), 1);
    worker.join();
}
