//! Husks as a table for people, and as JSON for programs.

use std::time::Duration;

use serde_json::{Value, json};

use super::snapshot::Snapshot;
use crate::ctl::show;

/// A row for each of `snapshots`, with the share of a processor that each has had in percent, where that is known.
pub fn table(snapshots: &[Snapshot], shares: Option<&[Option<f64>]>) -> String {
    let mut head = vec![
        "POD", "PID", "UPTIME", "STATE", "VCPUS", "MEMORY", "PLUGGED", "RESIDENT", "OVERHEAD",
    ];
    if shares.is_some() {
        head.insert(3, "CPU");
    }
    let mut rows: Vec<Vec<String>> = vec![head.into_iter().map(str::to_owned).collect()];
    for (number, snapshot) in snapshots.iter().enumerate() {
        let mut row = vec![
            snapshot.husk.pod(),
            snapshot.husk.pid.to_string(),
            age(snapshot.husk.uptime),
        ];
        if let Some(shares) = shares {
            let share = shares.get(number).copied().flatten();
            row.push(share.map_or("-".into(), |share| format!("{share:.0}%")));
        }
        row.extend([
            snapshot.reported.state.clone(),
            vcpus(snapshot),
            bytes(snapshot.reported.configured),
            bytes(snapshot.reported.plugged),
            bytes(snapshot.resident),
            bytes(snapshot.overhead),
        ]);
        rows.push(row);
    }
    show::table(&rows)
}

/// The same in bytes and seconds.
pub fn json(snapshots: &[Snapshot]) -> String {
    let all = snapshots.iter().map(|snapshot| {
        let vcpus = snapshot.reported.size.as_ref().map(|size| size.vcpus);
        json!({
            "pod": snapshot.husk.pod(),
            "pid": snapshot.husk.pid,
            "socket": snapshot.husk.socket,
            "uptime_seconds": snapshot.husk.uptime.as_secs_f64(),
            "processor_seconds": snapshot.husk.processor_time.as_secs_f64(),
            "state": snapshot.reported.state,
            "version": snapshot.reported.version,
            "vcpus": vcpus.map(|vcpus| json!({"online": vcpus.online, "present": vcpus.present, "max": vcpus.max})),
            "memory": {
                "configured_bytes": snapshot.reported.configured,
                "plugged_bytes": snapshot.reported.plugged,
                "resident_bytes": snapshot.resident,
                "overhead_bytes": snapshot.overhead,
            },
        })
    });
    show::json(&Value::Array(all.collect()))
}

/// Those that the guest has started, of those that are there.
fn vcpus(snapshot: &Snapshot) -> String {
    let Some(vcpus) = snapshot.reported.size.as_ref().map(|size| size.vcpus) else {
        return "-".into();
    };
    let count = |count: Option<u32>| count.map_or("?".into(), |count| count.to_string());
    match (vcpus.online, vcpus.present) {
        (None, None) => "-".into(),
        (online, present) => format!("{}/{}", count(online), count(present)),
    }
}

fn bytes(bytes: Option<u64>) -> String {
    let Some(bytes) = bytes else { return "-".into() };
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let (mut value, mut units) = (bytes as f64, ["B", "K", "M", "G"].into_iter());
    let mut unit = units.next();
    while let (true, Some(larger)) = (value >= 1024.0, units.next()) {
        value /= 1024.0;
        unit = Some(larger);
    }
    let digits = usize::from(value < 10.0 && value.fract() != 0.0);
    format!("{value:.digits$}{}", unit.unwrap_or_default())
}

fn age(uptime: Duration) -> String {
    let seconds = uptime.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::super::HuskProcess;
    use super::super::snapshot::ReportedState;
    use super::*;
    use crate::ctl::status::Status;

    fn snapshot(state: &str, size: Option<Status>) -> Snapshot {
        Snapshot {
            husk: HuskProcess {
                pid: 42,
                socket: Some("/run/vc/vm/web/clh-api.sock".into()),
                uptime: Duration::from_secs(3700),
                processor_time: Duration::from_secs(1),
                ..HuskProcess::sample()
            },
            reported: ReportedState {
                state: state.into(),
                size,
                configured: Some(2 << 30),
                ..ReportedState::default()
            },
            resident: Some(1_572_864),
            overhead: None,
        }
    }

    #[test]
    fn husks_are_rows_and_objects() {
        let mut size = Status::default();
        (size.vcpus.online, size.vcpus.present) = (Some(1), Some(2));
        let snapshots = [snapshot("Running", Some(size)), snapshot("no answer", None)];
        assert_eq!(
            table(&snapshots, None),
            "POD  PID  UPTIME  STATE      VCPUS  MEMORY  PLUGGED  RESIDENT  OVERHEAD\n\
             web  42   1h01m   Running    1/2    2G      -        1.5M      -\n\
             web  42   1h01m   no answer  -      2G      -        1.5M      -\n"
        );
        let shown = table(&snapshots, Some(&[Some(151.4), None]));
        assert!(
            shown.contains("1h01m   151%  Running") && shown.contains("1h01m   -     no answer"),
            "{shown}"
        );
        let value: Value = serde_json::from_str(&json(&snapshots)).unwrap();
        assert_eq!(value[0]["vcpus"]["present"], 2);
        assert_eq!(value[1]["vcpus"], Value::Null);
        assert_eq!(value[0]["memory"]["configured_bytes"], 2_u64 << 30);
    }

    #[test]
    fn sizes_and_times_are_short() {
        let shown = [0, 1023, 1024, 1536, 10 << 20, 3 << 29, 99 << 30].map(|size| bytes(Some(size)));
        assert_eq!(shown, ["0B", "1023B", "1K", "1.5K", "10M", "1.5G", "99G"]);
        let shown = [9, 61, 3600, 90_000].map(|seconds| age(Duration::from_secs(seconds)));
        assert_eq!(shown, ["9s", "1m01s", "1h00m", "1d01h"]);
    }
}
