use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::process::{Command, Stdio};
use std::sync::Arc;

use super::*;
use crate::config::VmConfig;
use crate::machine::Counted;
use crate::metrics::{Endpoint, Mapped, ProcessFiles, Ram, families};

/// A machine whose devices have counted `1`, `2` and so on, in the order of the list.
fn figures() -> Figures {
    let mut counted: Vec<Counted> = Vec::new();
    for (row, value) in devices().zip(1..) {
        if counted.last().is_none_or(|last| last.kind != row.device) {
            counted.push(Counted {
                name: format!("_{}0", row.device),
                kind: row.device,
                counters: vec![(FAILURES, 0)],
                queues: vec![(
                    1,
                    QueueStats {
                        chains: 7,
                        ..QueueStats::default()
                    },
                )],
            });
        }
        counted.last_mut().unwrap().counters.push((row.counter, value));
    }
    counted.push(Counted {
        name: "__vcpu0".into(),
        kind: VCPU,
        counters: vec![("exits", 9), ("io_exits", 4)],
        queues: Vec::new(),
    });
    let mut latency = Latency::default();
    latency.add(Duration::from_millis(3));
    latency.add(Duration::from_secs(5));
    Figures {
        boots: 1,
        phases: vec![("kvm open", Duration::from_micros(150))],
        counted,
        vcpus: vec![Vcpu {
            id: 0,
            online: true,
            ran: Some(Duration::from_millis(1500)),
            halted: Some(Duration::from_secs(2)),
        }],
        resizes: vec![("vcpu_online", latency)],
        resize_failures: vec![("refused", 3), ("unanswered", 0), ("superseded", 1)],
        ram: Some(Ram {
            boot_bytes: 3,
            dimm_bytes: 2,
        }),
        mapped: Some(Mapped {
            bytes: 4096,
            page_table_bytes: 16384,
        }),
        process: Arc::new(ProcessFiles::open()),
    }
}

fn exposition(figures: Figures) -> Exposition {
    let mut calls = Calls::default();
    calls.add(Endpoint::Named("vm.info"), 200, Duration::from_micros(10));
    calls.add(Endpoint::Add("disk"), 400, Duration::from_micros(10));
    Exposition {
        figures: Box::new(figures),
        vm: Some(Arc::new(VmInfo {
            config: VmConfig::default(),
            state: VmState::Running,
            memory_actual_size: 5,
        })),
        calls,
        connections: vec![("api", 1), ("metrics", 0)],
    }
}

/// Every sample by its name, labels included.
fn samples(text: &str) -> BTreeMap<&str, &str> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.rsplit_once(' ').unwrap()).collect()
}

/// What `what` (`HELP`, `TYPE`, `UNIT`) says, by name.
fn said<'a>(text: &'a str, what: &str) -> BTreeMap<&'a str, &'a str> {
    let lines = text.lines().filter_map(|line| line.strip_prefix("# "));
    let lines = lines.filter_map(|line| line.strip_prefix(what)?.strip_prefix(' '));
    lines.map(|line| line.split_once(' ').unwrap()).collect()
}

#[test]
fn every_family_has_help_and_type_and_those_with_a_unit_say_it() {
    let text = exposition(figures()).write(Format::OpenMetrics);
    assert!(text.ends_with("\n# EOF\n"), "{text}");
    let (help, types, units) = (said(&text, "HELP"), said(&text, "TYPE"), said(&text, "UNIT"));
    // Info has its end in the name of the sample alone.
    for family in families() {
        assert_eq!(help.get(family.name.as_str()), Some(&family.help), "{}", family.name);
        assert_eq!(
            types.get(family.name.as_str()),
            Some(&family.kind.name()),
            "{}",
            family.name
        );
        let unit = ["bytes", "seconds"]
            .into_iter()
            .find(|unit| family.name.ends_with(&format!("_{unit}")));
        assert_eq!(units.get(family.name.as_str()), unit.as_ref(), "{}", family.name);
    }
    assert_eq!(help.len(), families().count(), "nothing else is told");
}

#[test]
fn every_sample_belongs_to_a_family_and_has_its_labels() {
    let text = exposition(figures()).write(Format::Prometheus);
    let types = said(&text, "TYPE");
    let mut seen = BTreeSet::new();
    for sample in samples(&text).keys() {
        let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
        let base = ["_bucket", "_sum", "_count"].into_iter().find_map(|end| {
            let base = name.strip_suffix(end)?;
            (types.get(base) == Some(&"histogram")).then_some(base)
        });
        let base = base.unwrap_or(name);
        assert!(types.contains_key(base), "{sample} has no type");
        let family = base
            .strip_suffix("_total")
            .or(base.strip_suffix("_info"))
            .unwrap_or(base);
        let family = families().find(|known| known.name == family).unwrap();
        let labels: BTreeSet<&str> = labels
            .split("=\"")
            .map(|part| part.rsplit(['"', ',']).next().unwrap())
            .collect();
        let labels: BTreeSet<&str> = labels
            .into_iter()
            .filter(|label| !matches!(*label, "}" | "le" | ""))
            .collect();
        assert_eq!(labels, family.labels.iter().copied().collect(), "{sample}");
        seen.insert(family.name);
    }
    assert_eq!(seen.len(), families().count());
}

#[test]
fn values_are_those_of_the_devices() {
    let text = exposition(figures()).write(Format::Prometheus);
    let samples = samples(&text);
    for (row, value) in devices().zip(1..) {
        let end = if row.kind == Type::Counter { "_total" } else { "" };
        let name = format!("{}{end}{{device=\"_{}0\"}}", row.name(), row.device);
        assert_eq!(samples.get(name.as_str()), Some(&value.to_string().as_str()), "{name}");
    }
    for (name, value) in [
        ("husk_vcpu_exits_total{vcpu=\"0\"}", "9"),
        ("husk_vcpu_reason_exits_total{vcpu=\"0\",reason=\"io\"}", "4"),
        ("husk_vcpu_run_seconds_total{vcpu=\"0\"}", "1.5"),
        ("husk_vm_state{state=\"Running\"}", "1"),
        ("husk_vm_state{state=\"Paused\"}", "0"),
        ("husk_guest_memory_bytes{class=\"boot\"}", "3"),
        ("husk_guest_memory_bytes{class=\"dimms\"}", "2"),
        ("husk_guest_memory_bytes{class=\"mapped\"}", "4096"),
        ("husk_kvm_page_table_bytes", "16384"),
        (
            "husk_resize_duration_seconds_bucket{what=\"vcpu_online\",le=\"0.004\"}",
            "1",
        ),
        (
            "husk_resize_duration_seconds_bucket{what=\"vcpu_online\",le=\"+Inf\"}",
            "2",
        ),
        ("husk_resize_duration_seconds_count{what=\"vcpu_online\"}", "2"),
        ("husk_resize_failures_total{outcome=\"refused\"}", "3"),
        ("husk_resize_failures_total{outcome=\"unanswered\"}", "0"),
        ("husk_resize_failures_total{outcome=\"superseded\"}", "1"),
        (
            "husk_api_request_duration_seconds_count{endpoint=\"vm.add-disk\",status=\"400\"}",
            "1",
        ),
        (
            "husk_queue_chains_total{device=\"_block0\",kind=\"block\",queue=\"1\"}",
            "7",
        ),
        ("husk_boots_total", "1"),
        ("kata_hypervisor_threads", samples["kata_hypervisor_threads"]),
    ] {
        assert_eq!(samples.get(name), Some(&value), "{name} in {text}");
    }
}

#[test]
fn without_a_vm_there_is_the_process() {
    let text = Exposition {
        vm: None,
        ..exposition(Figures {
            process: Arc::new(ProcessFiles::open()),
            ..Figures::default()
        })
    }
    .write(Format::Prometheus);
    let samples = samples(&text);
    assert_eq!(samples["husk_vm_state{state=\"Running\"}"], "0");
    assert!(samples.contains_key("kata_hypervisor_fds"));
    assert!(!text.contains("husk_block") && !text.contains("husk_vcpus"));
}

#[test]
fn a_devices_name_is_a_label_whatever_is_in_it() {
    let figures = Figures {
        counted: vec![Counted {
            name: "a\"b\\c\nd é".into(),
            kind: "rng",
            counters: vec![("bytes", 7)],
            queues: Vec::new(),
        }],
        ..Figures::default()
    };
    let text = exposition(figures).write(Format::OpenMetrics);
    assert!(
        text.contains("\nhusk_rng_bytes_total{device=\"a\\\"b\\\\c\\nd é\"} 7\n"),
        "{text}"
    );
}

#[test]
fn open_metrics_is_for_who_asks_for_it() {
    for (accept, format) in [
        ("", Format::Prometheus),
        ("*/*", Format::Prometheus),
        ("text/plain;version=0.0.4", Format::Prometheus),
        (
            "text/html, application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
            Format::OpenMetrics,
        ),
        ("application/openmetrics-text;q=0", Format::Prometheus),
        (
            "application/openmetrics-text; version=1.0.0; Q=0.000, */*",
            Format::Prometheus,
        ),
        ("application/openmetrics-text;q=0.001", Format::OpenMetrics),
        ("application/openmetrics-text;q=much", Format::OpenMetrics),
        (
            "application/openmetrics-text;q=0,application/openmetrics-text;version=1.0.0;q=0.5",
            Format::OpenMetrics,
        ),
        (
            "application/openmetrics-text;q=0.3,text/plain;q=0.4",
            Format::Prometheus,
        ),
        (
            "application/openmetrics-text;q=0.4,text/plain;q=0.4",
            Format::OpenMetrics,
        ),
    ] {
        assert_eq!(Format::accepted(accept), format, "{accept}");
    }
}

/// Debian's package `prometheus` has it; `cargo lab test` fetches that.
#[test]
fn promtool_has_nothing_to_say() {
    let promtool = std::env::var_os("HUSK_TEST_PROMTOOL").unwrap_or("promtool".into());
    let mut check = Command::new(promtool);
    check.args(["check", "metrics"]);
    check
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut check = match check.spawn() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            println!("skipped: needs promtool: Debian's package prometheus has it");
            return;
        }
        check => check.unwrap(),
    };
    let text = exposition(figures()).write(Format::Prometheus);
    // Its end is that of the input.
    check.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = check.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert_eq!(
        (output.status.code(), String::from_utf8_lossy(&said).as_ref()),
        (Some(0), "")
    );
}
