use super::*;
use crate::config::MacAddr;
use crate::metrics::Format;

fn routed(method: Method, path: &str, body: &str) -> Routed {
    let message = Message {
        format: Format::default(),
        method,
        path: path.into(),
        body: body.into(),
        close: false,
        end: 0,
    };
    route(&message, Vec::new(), &Info::new(), &Events::default())
}

fn command(name: &str, body: &str) -> Command {
    match routed(Method::Put, &format!("/api/v1/{name}"), body) {
        Routed::Command(command) => command,
        Routed::Answer(answer) => panic!("{answer:?}"),
    }
}

fn refused(method: Method, path: &str, body: &str) -> (u16, String) {
    match routed(method, path, body) {
        Routed::Answer(answer) => (answer.status, String::from_utf8(answer.body.unwrap()).unwrap()),
        Routed::Command(command) => panic!("{command:?}"),
    }
}

#[test]
fn every_command_has_its_path() {
    for (name, variant) in [
        ("vmm.shutdown", "ShutdownVmm"),
        ("vm.boot", "Boot"),
        ("vm.shutdown", "Shutdown"),
        ("vm.delete", "Delete"),
        ("vm.reboot", "Reboot"),
        ("vm.power-button", "PowerButton"),
        ("vm.pause", "Pause"),
        ("vm.resume", "Resume"),
    ] {
        assert_eq!(format!("{:?}", command(name, "")), variant);
    }
    for (name, variant) in [
        ("vm.counters", "Counters"),
        ("vm.queues", "Queues"),
        ("vm.containers", "Containers"),
    ] {
        match routed(Method::Get, &format!("/api/v1/{name}"), "") {
            Routed::Command(command) => assert_eq!(format!("{command:?}"), variant),
            Routed::Answer(answer) => panic!("{answer:?}"),
        }
    }
    let set = command("vm.set-containers", r#"{"revision":7,"containers":{"a":{}}}"#);
    assert!(
        matches!(set, Command::SetContainers(list) if list.revision == 7 && list.containers.as_str() == r#"{"a":{}}"#)
    );
}

#[test]
fn the_bodies_of_both_shims_are_understood() {
    let body = r#"{"ip":"192.168.249.1","mask":"255.255.255.0","mac":"02:42:ac:11:00:02","iommu":false,"num_queues":2,"queue_size":256,
        "vhost_user":false,"vhost_mode":"Client","fds":[23]}"#;
    let Command::Add(device, _) = command("vm.add-net", body) else {
        panic!("another command")
    };
    let NewDevice::Net(net) = *device else {
        panic!("{device:?}")
    };
    assert_eq!(Ok(net.mac), "02:42:ac:11:00:02".parse::<MacAddr>());
    let body = r#"{"path":"/dev/dm-3","readonly":false,"direct":false,"iommu":false,"num_queues":1,"queue_size":128,"vhost_user":false,
        "vhost_socket":null,"rate_limiter_config":null,"id":null,"disable_io_uring":false,"pci_segment":0,"sparse":false,
        "image_type":"Raw"}"#;
    let Command::Add(device, _) = command("vm.add-disk", body) else {
        panic!("another command")
    };
    assert!(matches!(*device, NewDevice::Disk(disk) if !disk.sparse && disk.id.is_none()));
    let body = r#"{"desired_vcpus":3,"desired_ram":null,"desired_balloon":null}"#;
    assert!(
        matches!(command("vm.resize", body), Command::Resize(size) if size.desired_vcpus == Some(3) && size.desired_ram.is_none())
    );
    let body = r#"{"desired_ram":805306368}"#;
    assert!(matches!(command("vm.resize", body), Command::Resize(size) if size.desired_ram == Some(805_306_368)));
    assert!(matches!(command("vm.remove-device", r#"{"id":"_disk5"}"#), Command::Remove(id) if id == "_disk5"));
}

#[test]
fn a_wrong_body_is_a_bad_request_that_says_what_is_wrong() {
    for (name, body, says) in [
        ("vm.create", "", "it is empty"),
        ("vm.create", "{\"memory\":{}}", "missing field `size`"),
        ("vm.create", "[]", "invalid"),
        (
            "vm.create",
            "{\"memory\":{\"size\":\"1G\"}}",
            "memory.size: invalid type",
        ),
        ("vm.resize", "null", "invalid type"),
        ("vm.resize", "{\"desired_vcpus\":-1}", "invalid value"),
        ("vm.add-disk", "{\"path\":1}", "path: invalid type"),
        ("vm.add-fs", "{\"tag\":1}", "invalid type"),
        ("vm.add-vsock", "{\"socket\":\"/s\"}", "missing field `cid`"),
        ("vm.add-pmem", "{} trailing", "missing field `file`"),
        ("vm.remove-device", "{\"id\":\"a\"}x", "trailing"),
        ("vm.set-containers", "{}", "missing field `revision`"),
        ("vm.set-containers", "{\"revision\":-1}", "invalid value"),
    ] {
        let (status, body) = refused(Method::Put, &format!("/api/v1/{name}"), body);
        assert_eq!(status, 400, "{name}");
        let chain: Vec<String> = serde_json::from_str(&body).unwrap();
        assert!(
            chain.len() == 2 && chain[0].starts_with(name) && chain[1].contains(says),
            "{chain:?}"
        );
    }
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
    assert_eq!(refused(Method::Put, "/api/v1/vm.create", &deep).0, 400);
}

#[test]
fn the_method_must_be_the_right_one() {
    for method in [Method::Get, Method::Head, Method::Other] {
        let (status, body) = refused(method, "/api/v1/vm.boot", "");
        assert_eq!((status, body.as_str()), (405, "[\"vm.boot: the method is PUT\"]"));
    }
    for method in [Method::Put, Method::Other] {
        assert_eq!(refused(method, "/api/v1/vmm.ping", "").0, 405);
        assert_eq!(refused(method, "/api/v1/vm.info", "").0, 405);
        assert_eq!(refused(method, "/api/v1/vm.counters", "").0, 405);
    }
}

/// RFC 9110 §9.3.2 and §15.5.6.
#[test]
fn whatever_can_be_asked_for_has_a_head_and_what_is_asked_for_otherwise_is_told_the_methods() {
    let mut heads = 0;
    for (name, endpoint) in ENDPOINTS {
        let path = format!("/api/v1/{name}");
        let (allowed, is_asked_for) = match endpoint {
            Endpoint::Info | Endpoint::PastEvents | AtOnce(Method::Get, _) | Plain(Method::Get, _) => {
                ("GET, HEAD", true)
            }
            AtOnce(..) | Plain(..) | Full(_) | Endpoint::Add(_) => ("PUT", false),
            Missing => continue,
        };
        let Routed::Answer(other) = routed(Method::Other, &path, "") else {
            panic!("{name} has any method")
        };
        assert_eq!((other.status, other.allow), (405, Some(allowed)), "{name}");
        if is_asked_for {
            heads += 1;
            let [get, head] = [Method::Get, Method::Head].map(|method| match routed(method, &path, "") {
                Routed::Answer(answer) => format!("{answer:?}"),
                Routed::Command(command) => format!("{command:?}"),
            });
            assert_eq!(head, get);
        }
    }
    assert!(heads > 6);
}

#[test]
fn what_husk_does_not_have_is_told_from_what_does_not_exist() {
    for name in [
        "vm.snapshot",
        "vm.restore",
        "vm.add-device",
        "vm.resize-zone",
        "vm.coredump",
        "vm.nmi",
    ] {
        let (status, body) = refused(Method::Put, &format!("/api/v1/{name}"), "{}");
        assert_eq!((status, body), (501, format!("[\"husk does not have {name}\"]")));
    }
    for path in [
        "/",
        "*",
        "/api/v1/",
        "/api/v1/vm.fly",
        "/api/v2/vmm.ping",
        "/api/v1/vmm.ping/",
    ] {
        assert_eq!(refused(Method::Get, path, "").0, 404, "{path}");
    }
}

#[test]
fn the_description_of_the_api_has_these_paths_and_no_others() {
    let text = include_str!("../../../docs/openapi.yaml");
    let mut described = Vec::new();
    for line in text.lines() {
        if let Some(path) = line.strip_prefix("  /") {
            let (name, rest) = path.split_once(':').unwrap();
            described.push((name, rest.contains("put:").then_some("put")));
        } else if let (Some((_, method)), "    get:" | "    put:") = (described.last_mut(), line) {
            *method = Some(line.trim().trim_end_matches(':'));
        }
    }
    described.sort_unstable();
    let added: Vec<String> = NewDevice::KINDS
        .iter()
        .map(|(kind, _)| format!("vm.add-{kind}"))
        .collect();
    let names = ENDPOINTS.iter().map(|(name, _)| *name);
    let mut served: Vec<_> = names
        .chain(added.iter().map(String::as_str))
        .map(|name| match endpoint(name).unwrap() {
            Endpoint::Info | Endpoint::PastEvents | AtOnce(Method::Get, _) | Plain(Method::Get, _) => {
                (name, Some("get"))
            }
            _ => (name, Some("put")),
        })
        .collect();
    served.sort_unstable();
    assert_eq!(described, served);
}
