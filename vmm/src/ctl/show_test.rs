use serde_json::json;

use super::*;

#[test]
fn columns_are_as_wide_as_their_widest_cell_and_end_at_the_last_letter() {
    let rows = [["a", "long word", "c"], ["longer", "x", ""]].map(|row| row.map(str::to_owned).to_vec());
    assert_eq!(table(&rows), "a       long word  c\nlonger  x\n");
    assert_eq!(table(&[]), "");
}

#[test]
fn an_answer_cannot_move_the_cursor() {
    let rows = [vec!["a\u{1b}[2Jb\nc".to_owned()]];
    assert_eq!(table(&rows), "a [2Jb c\n");
}

#[test]
fn a_vm_is_shown_with_its_size_and_devices() {
    let answer = json!({"state": "Running", "config": {
        "payload": {"kernel": "/k"},
        "disks": [{"id": "_disk0", "path": "/d"}],
        "net": [{"id": "_net0", "tap": null}, {"id": "_net1", "tap": "t0", "backend": "vhost"}],
        "fs": [{"id": "_fs0", "tag": "t", "dir": "/f"}, {"id": "_fs1", "tag": "u", "socket": "/s"}],
        "vsock": {"cid": 3, "socket": "/v"},
        "serial": {"mode": "Pty", "file": "/dev/pts/3"}, "console": {"mode": "Socket", "socket": "/c", "file": null},
    }});
    let status: Status = serde_json::from_value(json!({
        "vcpus": {"present": 2, "online": 1, "max": 8},
        "memory": {"present_bytes": 1 << 30, "boot_bytes": 512 << 20, "balloon": {"target_bytes": 0, "actual_bytes": 0}},
        "last": {"outcome": "refused", "what": "vcpu 1"},
    }))
    .unwrap();
    assert_eq!(
        info(&answer, &status),
        "state        Running\n\
         vcpus        2 present, 1 started, 8 at most\n\
         memory       1 GiB present, 512 MiB since the start\n\
         balloon      0 B given, 0 B asked for\n\
         last resize  refused: vcpu 1\n\
         kernel       /k\n\
         disks        _disk0 /d\n\
         net          _net0\n\
         net          _net1 t0 vhost\n\
         fs           _fs0 t /f\n\
         fs           _fs1 u\n\
         vsock        cid 3 /v\n\
         serial       /dev/pts/3\n\
         console      /c\n"
    );
    let of_kernel = json!({"config": {"vsock": {"cid": 9, "socket": "", "backend": "vhost"}}});
    assert!(info(&of_kernel, &status).ends_with("vsock        cid 9 vhost\n"));
    assert!(size(&Status::default()).starts_with("vcpus\nmemory\n"));
    let plain = json!({"memory": {"boot_bytes": 1, "hotplug_bytes": 0}, "last": {"outcome": "accepted", "what": ""}});
    let status: Status = serde_json::from_value(plain).unwrap();
    assert_eq!(
        size(&status),
        "vcpus\nmemory       1 B since the start\nlast resize  accepted\n"
    );
}

#[test]
fn counters_stand_beside_their_device() {
    let answer = json!({"_disk0": {"read_bytes": 5, "write_bytes": 6}, "__serial": {"bytes": 1}});
    assert_eq!(
        counters(&answer),
        "__serial  bytes        1\n_disk0    read_bytes   5\n_disk0    write_bytes  6\n"
    );
}

#[test]
fn each_queue_has_a_line_and_what_is_wrong_with_it_another() {
    let ring = |idx, event: &str, number| json!({"address": 4096, "flags": 0, "idx": idx, event: number});
    let answer = json!({
        "_disk0": [{
            "queue": 0, "size": 256, "event_idx": true, "served_by": "husk", "next_avail": 3, "kick_pending": true,
            "desc": {"address": 0}, "avail": ring(5, "used_event", 2), "used": ring(3, "avail_event", 3),
            "interrupt": {"masked": false, "pending": false}, "chains": 3, "wakeups": 1, "interrupts": 1,
        }],
        "_fs1": [{
            "queue": 1, "size": 64, "event_idx": false, "served_by": "back-end",
            "next_avail": null, "kick_pending": null,
            "desc": {"address": 0}, "avail": {"address": 1, "flags": 0, "idx": 1, "used_event": null},
            "used": {"address": 2, "error": "not in guest RAM"}, "interrupt": {"masked": true, "pending": true},
        }],
    });
    let shown = queues(&answer);
    let lines: Vec<Vec<&str>> = shown.lines().map(|line| line.split_whitespace().collect()).collect();
    let disk = ["_disk0", "0", "husk", "256", "5", "3", "3", "2", "3", "pending", "open"];
    assert_eq!(lines[1], disk);
    assert_eq!(lines[0].len(), disk.len());
    let share = [
        "_fs1", "1", "back-end", "64", "1", "-", "-", "-", "-", "-", "masked,", "pending",
    ];
    assert_eq!(lines[2], share);
    assert_eq!(shown.lines().nth(3), Some("_fs1: not in guest RAM"));
}
