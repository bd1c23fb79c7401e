use std::sync::Mutex;

use super::super::testing::{Keeps, MIB, PATIENCE, Server, Vm};
use super::*;

const NODE: Node = Node {
    vcpus: 16,
    memory_bytes: 32 << 30,
};

/// Quota in thousandths of a CPU and memory in MiB; 0: no limit.
fn container(millis: u64, mib: u64) -> Container {
    annotated(millis, mib, &[]).unwrap()
}

fn annotated(millis: u64, mib: u64, annotations: &[(&str, &str)]) -> Result<Container, String> {
    let keys = annotations.iter().map(|(key, value)| {
        let key = format!("io.katacontainers.config.hypervisor.{key}");
        (key, Value::from(*value))
    });
    let annotations: serde_json::Map<String, Value> = keys.collect();
    let resources = json!({"cpu": {"quota": millis * 100, "period": 100_000}, "memory": {"limit": mib * MIB}});
    let text = json!({"annotations": annotations, "linux": {"resources": resources}}).to_string();
    let spec = Spec::parse(text.as_bytes()).unwrap();
    let policy = Policy::of([Policy::expression("^default_(vcpus|memory)").unwrap()]);
    Container::new(spec, &policy, NODE).map_err(|error| error.to_string())
}

fn size(vm: &Mutex<Vm>) -> (u32, u64) {
    let vm = vm.lock().unwrap();
    assert_eq!(
        (vm.vcpus, vm.desired),
        (vm.online, vm.present),
        "what was asked for is there"
    );
    (vm.online, vm.present / MIB)
}

fn ids(server: &Server) -> Vec<String> {
    let list = ContainerList::read(&mut server.client()).unwrap().list;
    list.containers.into_keys().collect()
}

/// The example that the Rust shim gives: 1 vCPU and 512 MiB, and a container of 1 CPU and 256 MiB.
#[test]
fn a_pod_grows_and_shrinks_with_its_containers() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "a", &container(1000, 256), PATIENCE).unwrap();
    assert_eq!(size(&vm), (2, 768));
    add(client, "b", &container(500, 100), PATIENCE).unwrap();
    assert_eq!(size(&vm), (3, 896), "2.5 vCPUs, 868 MiB: whole vCPUs and blocks");
    add(client, "c", &container(0, 0), PATIENCE).unwrap();
    assert_eq!(size(&vm), (3, 896));
    update(client, "b", &container(1500, 1024), PATIENCE).unwrap();
    assert_eq!(size(&vm), (4, 1792));
    update(client, "a", &container(100, 0), PATIENCE).unwrap();
    assert_eq!(size(&vm), (3, 1536), "2.6 vCPUs");
    remove(client, "b", PATIENCE).unwrap();
    assert_eq!(size(&vm), (2, 512));
    remove(client, "a", PATIENCE).unwrap();
    assert_eq!((size(&vm), ids(&server)), ((1, 512), vec!["c".to_owned()]));
}

/// In which blocks memory comes is husk's to know: also the last one, of a room that is no whole number of them.
#[test]
fn memory_is_asked_for_to_the_byte() {
    let (server, vm) = Vm {
        room: 384 * MIB,
        ..Vm::default()
    }
    .serve();
    let client = &mut server.client();
    let asked = || vm.lock().unwrap().resizes.last().unwrap()["desired_ram"].as_u64();
    add(client, "a", &container(0, 290), PATIENCE).unwrap();
    assert_eq!((size(&vm), asked()), ((1, 896), Some(802 * MIB)));
    update(client, "a", &container(0, 100), PATIENCE).unwrap();
    assert_eq!((size(&vm), asked()), ((1, 640), Some(612 * MIB)));
}

#[test]
fn the_first_container_says_what_the_pod_has_without_any() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    let first = annotated(1000, 0, &[("default_vcpus", "2.5"), ("default_memory", "1024")]).unwrap();
    add(client, "a", &first, PATIENCE).unwrap();
    assert_eq!(size(&vm), (4, 1024), "3.5 vCPUs");
    let second = annotated(500, 0, &[("default_vcpus", "7")]).unwrap();
    add(client, "b", &second, PATIENCE).unwrap();
    assert_eq!(size(&vm), (4, 1024));
}

#[test]
fn a_container_for_which_there_is_no_room_is_not_noted() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "a", &container(1000, 256), PATIENCE).unwrap();
    let error = add(client, "b", &container(0, 8192), PATIENCE).unwrap_err();
    assert_eq!(
        format!("{:#}", anyhow::Error::new(error)),
        "the pod cannot be large enough: memory of 9395240960 bytes wanted, at most 9126805504 allowed"
    );
    vm.lock().unwrap().full = true;
    let error = add(client, "b", &container(1000, 512), PATIENCE).unwrap_err();
    assert_eq!(
        error.to_string(),
        "vm.resize was refused (500): cannot resize the VM: out of memory"
    );
    let error = update(client, "a", &container(1000, 512), PATIENCE).unwrap_err();
    assert!(matches!(error, ContainerError::Resize(_)), "{error}");
    vm.lock().unwrap().full = false;
    assert_eq!((size(&vm), ids(&server)), ((2, 768), vec!["a".to_owned()]));
    let noted = ContainerList::read(client).unwrap().list.resources();
    assert_eq!(noted[0].memory_limit_bytes, Some(256 * MIB), "as before");
}

#[test]
fn what_came_for_a_container_that_does_not_start_is_given_back() {
    let (server, vm) = Vm {
        deaf: true,
        ..Vm::default()
    }
    .serve();
    let client = &mut server.client();
    let error = add(client, "a", &container(2000, 256), Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().starts_with("not there within 0.05 s: "), "{error}");
    let vm = vm.lock().unwrap();
    assert_eq!((vm.vcpus, vm.desired), (1, 512 * MIB));
    assert_eq!(vm.containers["containers"], json!({}));
}

/// A guest that keeps memory, or is slow, has more than its pod without containers.
#[test]
fn containers_that_come_and_go_make_no_pod_larger() {
    let (server, vm) = Vm {
        kept: 768 * MIB,
        ..Vm::default()
    }
    .serve();
    let client = &mut server.client();
    for id in ["a", "b", "c"] {
        add(client, id, &container(1000, 256), PATIENCE).unwrap();
        assert_eq!(size(&vm), (2, 768), "{id}");
        remove(client, id, Duration::from_millis(50)).unwrap();
        // As one that gives back later than it is waited for.
        let mut vm = vm.lock().unwrap();
        vm.desired = vm.present;
    }
}

/// Whether it was to have more or less.
#[test]
fn a_container_whose_update_fails_has_what_it_had() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "a", &container(4000, 256), PATIENCE).unwrap();
    vm.lock().unwrap().deaf = true;
    for millis in [1000, 6000] {
        update(client, "a", &container(millis, 0), Duration::from_millis(50)).unwrap_err();
        let asked = vm.lock().unwrap().resizes.last().cloned().unwrap();
        assert_eq!(
            asked,
            json!({"desired_vcpus": 5, "containers_revision": vm.lock().unwrap().revision}),
            "after {millis}"
        );
        let noted = ContainerList::read(client).unwrap().list.resources();
        assert_eq!(noted[0].cpu_time(), Some(CpuTime::from_millis(4000)));
    }
}

/// It may use for itself what a container no longer needs; that vCPUs stay is told.
#[test]
fn memory_that_the_guest_keeps_keeps_no_container_from_its_size() {
    const SHORT: Duration = Duration::from_millis(50);
    let (server, vm) = Vm {
        kept: 1024 * MIB,
        ..Vm::default()
    }
    .serve();
    let client = &mut server.client();
    add(client, "a", &container(1000, 512), PATIENCE).unwrap();
    let status = update(client, "a", &container(1000, 0), SHORT).unwrap();
    assert_eq!(
        (status.memory_now(), status.memory.present_bytes),
        (512 * MIB, Some(1024 * MIB))
    );
    let noted = ContainerList::read(client).unwrap().list.resources();
    assert_eq!(noted[0].memory_limit_bytes, None, "as it is now");
    vm.lock().unwrap().deaf = true;
    let error = remove(client, "a", SHORT).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("not there within 0.05 s: 1 vCPUs asked for"),
        "{error}"
    );
}

/// Linux lets no DIMM go that it uses: neither is that the container's failure, nor does it keep vCPUs from coming.
#[test]
fn memory_that_the_guest_refuses_to_give_back_keeps_no_container_from_its_size() {
    for keeps in [Keeps::AtOnce, Keeps::Later] {
        let (server, vm) = Vm { keeps, ..Vm::default() }.serve();
        let client = &mut server.client();
        add(client, "a", &container(1000, 512), PATIENCE).unwrap();
        assert_eq!(size(&vm), (2, 1024));
        for (limits, vcpus) in [
            (container(2000, 128), 3),
            (container(3000, 0), 4),
            (container(500, 64), 2),
        ] {
            let status = update(client, "a", &limits, PATIENCE).unwrap();
            assert_eq!(size(&vm), (vcpus, 1024), "{keeps:?}");
            assert_eq!(status.outcome(), Some("refused"), "which is told");
            let noted = ContainerList::read(client).unwrap().list.resources();
            assert_eq!(noted, [limits.spec.resources().sized().unwrap()], "{keeps:?}");
        }
        remove(client, "a", PATIENCE).unwrap();
        assert_eq!((size(&vm), ids(&server)), ((1, 1024), vec![]), "{keeps:?}");
        // It is not asked for again, and there is room in it.
        add(client, "b", &container(1000, 512), PATIENCE).unwrap();
        assert_eq!(size(&vm), (2, 1024), "{keeps:?}");
    }
}

/// The base of a pod is that of a container that has been there.
#[test]
fn a_first_container_that_fails_leaves_nothing() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    let large = annotated(1000, 0, &[("default_vcpus", "7"), ("default_memory", "16384")]).unwrap();
    let error = add(client, "a", &large, PATIENCE).unwrap_err();
    assert!(matches!(error, ContainerError::Sizing(_)), "{error}");
    assert_eq!(vm.lock().unwrap().revision, 0, "not even noted");
    vm.lock().unwrap().full = true;
    let more = annotated(1000, 256, &[("default_memory", "1024")]).unwrap();
    add(client, "a", &more, PATIENCE).unwrap_err();
    assert_eq!(ContainerList::read(client).unwrap().list, PodContainers::default());
    vm.lock().unwrap().full = false;
    add(client, "a", &container(1000, 256), PATIENCE).unwrap();
    assert_eq!(size(&vm), (2, 768));
    // One that comes later and fails takes the base of the others not with it.
    remove(client, "a", PATIENCE).unwrap();
    let base = ContainerList::read(client).unwrap().list.pod;
    vm.lock().unwrap().deaf = true;
    add(client, "b", &container(1000, 256), Duration::from_millis(50)).unwrap_err();
    assert_eq!(ContainerList::read(client).unwrap().list.pod, base);
    assert!(base.is_some());
}

#[test]
fn an_id_is_one_container() {
    let (server, _) = Vm::default().serve();
    let client = &mut server.client();
    let small = container(0, 0);
    let message = |error: ContainerError| error.to_string();
    let none = "there is no container a, there are: none";
    assert_eq!(
        update(client, "a", &small, PATIENCE).map_err(message).unwrap_err(),
        none
    );
    add(client, "b", &small, PATIENCE).unwrap();
    assert_eq!(
        add(client, "b", &small, PATIENCE).map_err(message).unwrap_err(),
        "container b is there already: update it, or remove it first"
    );
    let other = "there is no container a, there are: b";
    assert_eq!(remove(client, "a", PATIENCE).map_err(message).unwrap_err(), other);
}

#[test]
fn two_that_come_at_once_both_have_their_room() {
    for _ in 0..20 {
        let (server, vm) = Vm::default().serve();
        thread::scope(|scope| {
            for id in ["a", "b", "c"] {
                let mut client = server.client();
                scope.spawn(move || add(&mut client, id, &container(1000, 256), PATIENCE).unwrap());
            }
        });
        assert_eq!((size(&vm), ids(&server).len()), ((4, 1280), 3));
    }
}

/// Whatever comes between a client's look at the list and its request.
#[test]
fn a_sum_that_another_container_has_overtaken_is_not_asked_for() {
    let vm = std::sync::Arc::new(Mutex::new(Vm::default()));
    let served = std::sync::Arc::clone(&vm);
    let mut overtaken = false;
    let server = Server::new(move |request, body| {
        let mut vm = served.lock().unwrap();
        if request == "PUT vm.resize" && !std::mem::replace(&mut overtaken, true) {
            // It is noted, has its size, and starts.
            vm.revision += 1;
            vm.containers["containers"]["b"] = json!(container(3000, 512).spec.resources());
            (vm.vcpus, vm.online) = (5, 5);
            (vm.desired, vm.present) = (1280 * MIB, 1280 * MIB);
        }
        vm.answer(request, body)
    });
    add(&mut server.client(), "a", &container(1000, 256), PATIENCE).unwrap();
    assert_eq!((size(&vm), ids(&server).len()), ((5, 1280), 2));
    let revision = vm.lock().unwrap().revision;
    let asked = std::mem::take(&mut vm.lock().unwrap().resizes);
    assert_eq!(asked, [json!({"desired_vcpus": 5, "containers_revision": revision})]);
}

/// One that goes while another comes asks for what both lists need, not for what there was when it looked.
#[test]
fn a_container_that_goes_takes_no_vcpus_from_one_that_comes() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "a", &container(1000, 0), PATIENCE).unwrap();
    ContainerList::change(client, |list| {
        list.containers.insert("b".into(), container(4000, 0).spec.resources());
        Ok::<_, ContainerListError>(())
    })
    .unwrap();
    remove(client, "a", PATIENCE).unwrap();
    assert_eq!(size(&vm), (5, 512));
}

#[test]
fn while_containers_only_come_nobody_asks_for_less() {
    for keeps in [Keeps::Nothing, Keeps::AtOnce] {
        let (server, vm) = Vm {
            keeps,
            max_vcpus: 16,
            ..Vm::default()
        }
        .serve();
        thread::scope(|scope| {
            for id in 0..12 {
                let mut client = server.client();
                scope.spawn(move || add(&mut client, &id.to_string(), &container(1000, 256), PATIENCE).unwrap());
            }
        });
        assert_eq!((size(&vm), ids(&server).len()), ((13, 3584), 12));
        let vm = vm.lock().unwrap();
        for field in ["desired_vcpus", "desired_ram"] {
            let asked: Vec<u64> = vm.resizes.iter().filter_map(|body| body[field].as_u64()).collect();
            assert!(asked.is_sorted(), "{field}: {asked:?}");
        }
    }
}

#[test]
fn without_a_running_guest_no_container_comes() {
    for state in ["Created", "Paused", "Shutdown"] {
        let (server, _) = Vm { state, ..Vm::default() }.serve();
        let error = add(&mut server.client(), "a", &container(0, 0), PATIENCE).unwrap_err();
        assert_eq!(error.to_string(), format!("the VM is {state}, its guest has to run"));
    }
}

/// It may have ended before that.
#[test]
fn a_container_of_a_paused_guest_is_removed_and_its_room_is_asked_for() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "a", &container(1000, 256), PATIENCE).unwrap();
    {
        let mut vm = vm.lock().unwrap();
        (vm.state, vm.deaf) = ("Paused", true);
    }
    remove(client, "a", PATIENCE).unwrap();
    {
        let vm = vm.lock().unwrap();
        assert_eq!((vm.vcpus, vm.desired), (1, 512 * MIB));
    }
    assert_eq!(ids(&server), Vec::<String>::new());
    vm.lock().unwrap().state = "Shutdown";
    let error = remove(client, "a", PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "the VM is Shutdown, its guest has to run");
}

#[test]
fn a_list_of_somebody_else_is_left_alone() {
    let (server, vm) = Vm {
        containers: json!(["mine"]),
        ..Vm::default()
    }
    .serve();
    let error = add(&mut server.client(), "a", &container(0, 0), PATIENCE).unwrap_err();
    assert_eq!(error.to_string(), "the list of containers is another client's");
    assert_eq!(vm.lock().unwrap().containers, json!(["mine"]));
}

#[test]
fn annotations_are_held_against_the_node_before_anything_is_asked() {
    let refusal = annotated(0, 0, &[("default_vcpus", "17")]).unwrap_err();
    assert!(
        refusal.ends_with("default_vcpus is \"17\", allowed: a decimal number from 0 to 16"),
        "{refusal}"
    );
    let refusal = annotated(0, 0, &[("kernel_params", "x")]).unwrap_err();
    assert!(
        refusal.contains("kernel_params is not enabled on this node"),
        "{refusal}"
    );
}

#[test]
fn containers_are_listed_with_what_they_ask_for() {
    let (server, vm) = Vm::default().serve();
    let client = &mut server.client();
    add(client, "web", &container(1500, 256), PATIENCE).unwrap();
    add(client, "pause", &container(0, 0), PATIENCE).unwrap();
    let (value, table) = list(client).unwrap();
    assert_eq!(
        table,
        "container  vcpus  cpuset  memory\npause      -      -       -\nweb        1.5    -       256 MiB\n"
    );
    assert_eq!(value["containers"]["web"]["memory"]["limit"], 256 * MIB);
    assert_eq!(
        value["pod"],
        json!({"default_vcpus": "1", "max_vcpus": 0, "default_memory_bytes": 512 * MIB})
    );
    assert_eq!(vm.lock().unwrap().containers, value, "as husk keeps it");
}
