use husk_devices::testing::until;

use super::super::testing::{MIB, PATIENCE, Reply, Server, Vm};
use super::*;

const BRIEF: Duration = Duration::from_millis(50);

fn vcpus(wanted: u32) -> TargetSize {
    TargetSize {
        vcpus: Some(wanted),
        ..TargetSize::default()
    }
}

fn memory(mib: u64) -> TargetSize {
    TargetSize {
        memory_bytes: Some(mib * MIB),
        ..TargetSize::default()
    }
}

#[test]
fn it_returns_when_the_vcpus_run_and_the_memory_is_there() {
    let (server, vm) = Vm::default().serve();
    let both = TargetSize {
        memory_bytes: Some(1024 * MIB),
        ..vcpus(4)
    };
    let status = resize(&mut server.client(), both, PATIENCE).unwrap();
    assert_eq!(
        (status.vcpus.online, status.memory.present_bytes),
        (Some(4), Some(1024 * MIB))
    );
    let status = resize(&mut server.client(), vcpus(1), PATIENCE).unwrap();
    assert_eq!(
        (status.vcpus.online, status.memory.present_bytes),
        (Some(1), Some(1024 * MIB))
    );
    let status = resize(&mut server.client(), memory(512), PATIENCE).unwrap();
    assert_eq!(status.memory.present_bytes, Some(512 * MIB));
    assert_eq!(
        vm.lock().unwrap().resizes,
        [
            json!({"desired_vcpus": 4, "desired_ram": 1024 * MIB}),
            json!({"desired_vcpus": 1}),
            json!({"desired_ram": 512 * MIB}),
        ]
    );
}

#[test]
fn a_refusal_of_husk_is_told_at_once() {
    let (server, _) = Vm::default().serve();
    let error = resize(&mut server.client(), memory(1 << 20), PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vm.resize was refused (500): cannot resize the VM: out of memory"
    );
}

#[test]
fn a_guest_that_refuses_later_is_told_and_one_that_refused_before_is_not() {
    let (server, vm) = Vm {
        outcome: "refused",
        ..Vm::default()
    }
    .serve();
    assert!(
        resize(&mut server.client(), vcpus(2), PATIENCE).is_ok(),
        "that was the one before"
    );
    let late = Vm {
        deaf: true,
        outcome: "timed-out",
        ..Vm::default()
    };
    *vm.lock().unwrap() = late;
    let told = thread::spawn({
        let vm = std::sync::Arc::clone(&vm);
        move || {
            until(|| !vm.lock().unwrap().resizes.is_empty());
            vm.lock().unwrap().refuse();
        }
    });
    let error = resize(&mut server.client(), vcpus(2), PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "the guest refused: as told");
    told.join().unwrap();
}

#[test]
fn a_size_that_another_takes_the_place_of_is_not_waited_for() {
    let slow = Vm {
        deaf: true,
        ..Vm::default()
    };
    let (server, vm) = slow.serve();
    let other = thread::spawn({
        let vm = std::sync::Arc::clone(&vm);
        move || {
            until(|| !vm.lock().unwrap().resizes.is_empty());
            vm.lock().unwrap().vcpus = 5;
        }
    });
    let error = resize(&mut server.client(), vcpus(2), PATIENCE).unwrap_err();
    assert!(matches!(error, ResizeError::Superseded), "{error}");
    other.join().unwrap();
}

#[test]
fn what_does_not_come_is_named_with_what_is_there() {
    let (server, _) = Vm {
        deaf: true,
        outcome: "timed-out",
        ..Vm::default()
    }
    .serve();
    let both = TargetSize {
        memory_bytes: Some(1024 * MIB),
        ..vcpus(4)
    };
    let error = resize(&mut server.client(), both, BRIEF).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not there within 0.05 s: 4 vCPUs asked for, 4 present, 1 started, 1 GiB of memory asked for, 512 MiB present (as told)"
    );
}

#[test]
fn memory_that_a_guest_keeps_is_no_failure_once_it_has_been_heard() {
    let (server, vm) = Vm {
        desired: 1024 * MIB,
        present: 1024 * MIB,
        deaf: true,
        ..Vm::default()
    }
    .serve();
    let status = resize(&mut server.client(), memory(512), PATIENCE).unwrap();
    assert_eq!(status.memory.present_bytes, Some(1024 * MIB));
    vm.lock().unwrap().outcome = "timed-out";
    assert!(matches!(
        resize(&mut server.client(), memory(512), BRIEF),
        Err(ResizeError::Late { .. })
    ));
}

/// A VM that shrinks from 512 MiB: its status, `changed` by what else happens, at each look after the first.
fn shrinking(changed: impl Fn(&mut Value, u32) + Send + 'static) -> Server {
    let mut looks = 0;
    Server::new(move |request, _| match request {
        "GET vm.info" => Reply::Answer(200, json!({"state": "Running"})),
        "GET vm.resize-status" => {
            let mut status = json!({
                "vcpus": {"desired": 1, "present": 1, "online": 1, "pending": null, "refusals": []},
                "memory": {"desired_bytes": 256 * MIB, "asked_bytes": 256 * MIB, "present_bytes": 512 * MIB,
                           "pending": "virtio-mem: 256 of 0 MiB", "refusals": []},
                "last": {"outcome": "timed-out", "what": "as told"},
            });
            if looks > 0 {
                changed(&mut status, looks);
            }
            looks += 1;
            Reply::Answer(200, status)
        }
        _ => Reply::Answer(204, Value::Null),
    })
}

#[test]
fn memory_that_is_still_to_go_is_waited_for_whatever_became_of_another_clients_vcpus() {
    let accepted = shrinking(|status, _| status["last"] = json!({"outcome": "accepted", "what": ""}));
    let error = resize(&mut accepted.client(), memory(256), BRIEF).unwrap_err();
    assert!(matches!(error, ResizeError::Late { .. }), "{error}");
    let refused = |status: &mut Value, looks| {
        status["last"] = json!({"outcome": "refused", "what": "add vCPU 2"});
        status["vcpus"]["refusals"] = json!(["add vCPU 2"]);
        if looks > 2 {
            status["memory"]["present_bytes"] = json!(256 * MIB);
        }
    };
    assert!(resize(&mut shrinking(refused).client(), memory(256), PATIENCE).is_ok());
}

#[test]
fn memory_that_the_guest_keeps_is_done_refused_or_wanted_by_another_as_is_said_of_memory() {
    let done = shrinking(|status, _| status["memory"]["pending"] = Value::Null);
    assert!(resize(&mut done.client(), memory(256), PATIENCE).is_ok());
    let refused = shrinking(|status, _| {
        status["memory"]["pending"] = Value::Null;
        status["memory"]["refusals"] = json!(["remove memory slot 0"]);
    });
    let error = resize(&mut refused.client(), memory(256), PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "the guest refused: remove memory slot 0");
    let other = shrinking(|status, _| {
        status["memory"]["pending"] = Value::Null;
        status["memory"]["asked_bytes"] = json!(512 * MIB);
    });
    let error = resize(&mut other.client(), memory(256), PATIENCE).unwrap_err();
    assert!(matches!(error, ResizeError::Superseded), "{error}");
}

#[test]
fn nothing_is_waited_for_without_a_guest_or_when_that_is_asked_for() {
    for (state, wait) in [
        ("Created", PATIENCE),
        ("Shutdown", PATIENCE),
        ("Running", Duration::ZERO),
    ] {
        let deaf = Vm {
            state,
            deaf: true,
            ..Vm::default()
        };
        let (server, vm) = deaf.serve();
        let status = resize(&mut server.client(), vcpus(2), wait).unwrap();
        assert_eq!((status.vcpus.desired, status.vcpus.online), (Some(2), Some(1)));
        assert_eq!(vm.lock().unwrap().resizes.len(), 1);
    }
}

#[test]
fn a_husk_that_tells_less_is_believed_as_far_as_it_tells() {
    let info = json!({"state": "Running", "memory_actual_size": 512 * MIB,
        "config": {"cpus": {"boot_vcpus": 2, "max_vcpus": 4}, "memory": {"size": 512 * MIB, "hotplug_size": null}}});
    let server = Server::new(move |request, _| match request {
        "GET vm.info" => Reply::Answer(200, info.clone()),
        "PUT vm.resize" => Reply::Answer(204, Value::Null),
        _ => Reply::Answer(404, json!(["no such path"])),
    });
    let status = resize(&mut server.client(), vcpus(2), PATIENCE).unwrap();
    assert_eq!((status.vcpus.present, status.vcpus.max), (Some(2), Some(4)));
    assert!(matches!(
        resize(&mut server.client(), vcpus(3), BRIEF),
        Err(ResizeError::Late { .. })
    ));
    let silent = Server::new(|request, _| match request {
        "PUT vm.resize" => Reply::Answer(204, Value::Null),
        _ => Reply::Answer(
            200,
            json!({"state": "Running", "vcpus": {}, "memory": {"balloon": {}}, "last": null}),
        ),
    });
    let all = TargetSize {
        vcpus: Some(2),
        memory_bytes: Some(1),
        balloon_bytes: Some(1),
    };
    assert!(resize(&mut silent.client(), all, PATIENCE).is_ok());
}

#[test]
fn a_vm_that_does_not_run_has_the_sizes_of_its_configuration() {
    let server = Server::new(|request, _| match request {
        "GET vm.resize-status" => Reply::Answer(200, json!({"last": {"outcome": "accepted"}})),
        _ => Reply::Answer(
            200,
            json!({"config": {"cpus": {"boot_vcpus": 2, "max_vcpus": 4}}, "memory_actual_size": 64 * MIB}),
        ),
    });
    let status = Status::ask(&mut server.client()).unwrap();
    assert_eq!(
        (status.vcpus_now(), status.memory_now(), status.outcome()),
        (2, 64 * MIB, None)
    );
}

#[test]
fn a_balloon_is_there_when_the_guest_has_given_it() {
    let mut given = 0;
    let server = Server::new(move |request, _| match request {
        "GET vm.info" => Reply::Answer(200, json!({"state": "Running"})),
        "GET vm.resize-status" => {
            given += 64 * MIB;
            Reply::Answer(
                200,
                json!({"memory": {"balloon": {"target_bytes": 0, "actual_bytes": given}}}),
            )
        }
        _ => Reply::Answer(204, Value::Null),
    });
    let balloon = TargetSize {
        balloon_bytes: Some(256 * MIB),
        ..TargetSize::default()
    };
    let status = resize(&mut server.client(), balloon, PATIENCE).unwrap();
    assert_eq!(status.memory.balloon.unwrap().actual_bytes, Some(256 * MIB));
}

#[test]
fn a_balloon_that_another_client_wants_otherwise_is_not_waited_for() {
    let server = Server::new(|request, _| match request {
        "GET vm.info" => Reply::Answer(200, json!({"state": "Running"})),
        "GET vm.resize-status" => {
            let balloon = json!({"asked_bytes": 64 * MIB, "target_bytes": 64 * MIB, "actual_bytes": 0});
            Reply::Answer(200, json!({"memory": {"balloon": balloon}}))
        }
        _ => Reply::Answer(204, Value::Null),
    });
    let balloon = TargetSize {
        balloon_bytes: Some(256 * MIB),
        ..TargetSize::default()
    };
    let error = resize(&mut server.client(), balloon, PATIENCE).unwrap_err();
    assert!(matches!(error, ResizeError::Superseded), "{error}");
}

/// husk waits for a guest as long as it was told to, which may be longer.
#[test]
fn the_time_that_husk_takes_for_its_answer_is_a_part_of_the_wait() {
    let silent = |online: u32| {
        Server::new(move |request, _| match request {
            "GET vm.info" => Reply::Answer(200, json!({"state": "Running"})),
            "GET vm.resize-status" => Reply::Answer(
                200,
                json!({"vcpus": {"desired": 2, "present": 2, "online": online}, "last": {"what": "as told"}}),
            ),
            _ => Reply::Silence,
        })
    };
    let error = resize(&mut silent(1).client(), vcpus(2), BRIEF).unwrap_err();
    assert_eq!(
        error.to_string(),
        "not there within 0.05 s: 2 vCPUs asked for, 2 present, 1 started (as told)"
    );
    let status = resize(&mut silent(2).client(), vcpus(2), BRIEF).unwrap();
    assert_eq!(status.vcpus.online, Some(2), "it may have come meanwhile");
}
