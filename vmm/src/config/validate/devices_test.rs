use serde_json::json;

use super::super::super::testing::{HOST, error, good, merge, wire_error};
use super::super::super::{Limits, VmConfig};

#[test]
fn disk_queues_are_bounded() {
    assert_eq!(
        error(|c| c.disks[1].num_queues = 0),
        "disk /b: 0 queues asked for, 1 to 255 allowed"
    );
    assert_eq!(
        error(|c| c.disks[0].num_queues = 256),
        "disk /a: 256 queues asked for, 1 to 255 allowed"
    );
    for size in [0, 1, 8, 100, 1025, 2048, u16::MAX] {
        assert_eq!(
            error(|c| c.disks[0].queue_size = size),
            format!("disk /a: queue size {size} is not a power of two from 16 to 1024")
        );
    }
}

#[test]
fn any_name_is_a_disks_and_a_serial_number_is_bounded() {
    let mut config = good();
    let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
    config.disks[0].id = Some(uuid.into());
    config.disks[1].id = Some("naïve\n".repeat(36));
    config.validate(HOST).unwrap();
    assert_eq!(config.disks[0].serial_number(), "6ba7b810-9dad-11d1-8");
    assert_eq!(config.disks[1].serial_number(), "na_ve_na_ve_na_ve_na");
    config.disks[0].serial = Some("0123456789abcdefghij".into());
    config.validate(HOST).unwrap();
    assert_eq!(config.disks[0].serial_number(), "0123456789abcdefghij");
    assert_eq!(
        error(|c| c.disks[1].serial = Some(uuid.into())),
        format!("disk /b: serial '{uuid}' has 36 bytes, up to 20 of printable ASCII are allowed")
    );
    assert_eq!(
        error(|c| c.disks[0].serial = Some("a\tb".into())),
        "disk /a: serial 'a\\tb' has 4 bytes, up to 20 of printable ASCII are allowed"
    );
}

#[test]
fn the_kernel_as_a_back_end_has_no_socket_and_no_limits() {
    for allowed in [
        json!({"vsock": {"cid": 3, "backend": "vhost"}}),
        json!({"vsock": {"cid": 3, "backend": "vhost", "socket": null}}),
        json!({"vsock": {"cid": 3, "backend": null, "socket": "/s"}}),
        json!({"net": [{"tap": "t0", "backend": "vhost", "rate_limiter_config": null}]}),
    ] {
        let mut wire = serde_json::to_value(good()).unwrap();
        merge(&mut wire, allowed);
        let config: VmConfig = serde_json::from_value(wire).unwrap();
        config.validate(HOST).unwrap();
    }
    for (bad, expected) in [
        (
            json!({"vsock": {"cid": 3, "backend": "vhost", "socket": "/s"}}),
            "vsock: socket is given, and with backend=vhost the host reaches the guest by its cid: leave it out",
        ),
        (json!({"vsock": {"cid": 3}}), "vsock: no socket given"),
        (
            json!({"vsock": {"cid": 2, "backend": "vhost"}}),
            "vsock: cid 2 is reserved, allowed: 3 to 4294967294",
        ),
        (
            json!({"net": [{"tap": "t0", "backend": "vhost", "rate_limiter_config": {"ops": {"size": 1, "refill_time": 1}}}]}),
            "net t0: rate limits are for backend=husk; vhost has none",
        ),
    ] {
        assert_eq!(wire_error(bad), expected);
    }
}

#[test]
fn a_disk_without_a_path_is_one_without_an_image() {
    for disk in [json!({}), json!({"path": null}), json!({"path": ""})] {
        assert_eq!(wire_error(json!({"disks": [disk]})), "disk: no path given");
    }
}

#[test]
fn network_queues_come_in_pairs_of_a_size_that_rings_have() {
    let message = |net: serde_json::Value| {
        let config = json!({"payload": {"kernel": "/k"}, "net": [net]});
        let config: VmConfig = serde_json::from_value(config).unwrap();
        config.validate(Limits::ARCHITECTURE).map_err(|error| error.to_string())
    };
    assert_eq!(
        message(json!({"tap": "t", "num_queues": 254, "queue_size": 1024})),
        Ok(())
    );
    for queues in [0, 1, 3, 255, 256] {
        let expected = format!("net t: {queues} queues asked for, 2 to 254 allowed, two for each pair");
        assert_eq!(message(json!({"tap": "t", "num_queues": queues})), Err(expected));
    }
    for size in [0, 8, 255, 2048] {
        let expected = format!("net t: queue size {size} is not a power of two from 16 to 1024");
        assert_eq!(message(json!({"tap": "t", "queue_size": size})), Err(expected));
    }
    assert_eq!(
        message(json!({"mac": "02:00:00:00:00:01", "mtu": 67})),
        Err("net 02:00:00:00:00:01: mtu is 67, allowed: 68 to 65535".into())
    );
}

#[test]
fn persistent_memory_is_a_file_and_whole_huge_pages() {
    let message = |pmem: serde_json::Value| {
        let config = json!({"payload": {"kernel": "/k"}, "pmem": [pmem]});
        let config: VmConfig = serde_json::from_value(config).unwrap();
        config.validate(Limits::ARCHITECTURE).map_err(|error| error.to_string())
    };
    assert_eq!(message(json!({"file": "/f"})), Ok(()));
    assert_eq!(message(json!({"file": "/f", "size": 4 << 20})), Ok(()));
    assert_eq!(message(json!({"file": ""})), Err("pmem: no file given".into()));
    for size in [0, 1, 4096, (2 << 20) + 1] {
        let expected = format!("pmem /f: {size} bytes are not a multiple of 2097152, and at least that");
        assert_eq!(message(json!({"file": "/f", "size": size})), Err(expected));
    }
}
