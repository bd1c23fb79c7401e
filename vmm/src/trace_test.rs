use std::thread;

use serde_json::Value;

use super::*;

fn json_of(trace: &Trace) -> Vec<Value> {
    let mut out = Vec::new();
    trace.write_json(&mut out).unwrap();
    let value: Value = serde_json::from_slice(&out).unwrap();
    value["traceEvents"].as_array().unwrap().clone()
}

fn phase<'a>(events: &'a [Value], name: &str) -> &'a Value {
    events
        .iter()
        .find(|event| event["ph"] == "X" && event["name"] == name)
        .unwrap_or_else(|| panic!("no {name}"))
}

fn interval(event: &Value) -> (f64, f64) {
    let start = event["ts"].as_f64().unwrap();
    (start, start + event["dur"].as_f64().unwrap())
}

#[test]
fn phases_of_the_main_thread_follow_one_another() {
    let trace = Trace::on_since(Begin::now());
    trace.mark(Phase::Args);
    thread::sleep(Duration::from_millis(2));
    trace.mark(Phase::KvmOpen);
    let events = json_of(&trace);
    let (exec, args, kvm) = (
        interval(phase(&events, "exec")),
        interval(phase(&events, "args")),
        interval(phase(&events, "kvm open")),
    );
    assert_eq!(exec.0, 0.0);
    assert!(
        (exec.1 - args.0).abs() < 0.01 && (args.1 - kvm.0).abs() < 0.01,
        "{exec:?} {args:?} {kvm:?}"
    );
    assert!(kvm.1 - kvm.0 >= 2000.0, "{kvm:?}");
}

#[test]
fn exec_lies_as_far_back_as_the_process_has_worked() {
    // Of its own time: on a busy machine five milliseconds may pass without any work.
    while cpu_time::of_process() < Duration::from_millis(5) {
        std::hint::spin_loop();
    }
    let trace = Trace::on_since(Begin::now());
    let (start, end) = interval(phase(&json_of(&trace), "exec"));
    assert!(
        end - start > 1000.0,
        "the process had worked for more than {} µs",
        end - start
    );
}

#[test]
fn a_span_of_another_thread_overlaps_the_main_one() {
    let trace = Trace::on_since(Begin::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            let _span = trace.span(Phase::KernelLoad);
            thread::sleep(Duration::from_millis(3));
        });
        thread::sleep(Duration::from_millis(1));
        trace.mark(Phase::Devices);
    });
    let events = json_of(&trace);
    let (load, devices) = (phase(&events, "kernel load"), phase(&events, "devices"));
    assert_ne!(load["tid"], devices["tid"]);
    assert!(interval(load).1 - interval(load).0 >= 3000.0);
}

#[test]
fn guest_marks_come_from_vcpu_threads_and_teardown_follows_the_guest() {
    let trace = Trace::on_since(Begin::now());
    thread::scope(|scope| {
        scope.spawn(|| {
            trace.enter_guest();
            trace.guest_mark(0x41);
            trace.guest_mark(0x07);
            trace.leave_guest();
        });
    });
    trace.enter_guest();
    trace.leave_guest();
    trace.mark(Phase::Teardown);
    let events = json_of(&trace);
    let marks: Vec<_> = events
        .iter()
        .filter(|event| event["ph"] == "i")
        .map(|event| event["name"].clone())
        .collect();
    assert_eq!(marks, ["mark 0x41", "mark 0x07"]);
    let (first, guest, teardown) = (
        interval(phase(&events, "first KVM_RUN")),
        interval(phase(&events, "guest")),
        interval(phase(&events, "teardown")),
    );
    assert!((first.1 - guest.0).abs() < 0.01, "{first:?} {guest:?}");
    assert!((teardown.0 - guest.1).abs() < 0.01, "{guest:?} {teardown:?}");
    assert_eq!(
        events.iter().filter(|event| event["name"] == "guest").count(),
        1,
        "the first calls count"
    );
}

#[test]
fn a_guest_cannot_fill_memory_with_marks() {
    let trace = Trace::on_since(Begin::now());
    trace.enter_guest();
    for _ in 0..MAX_GUEST_MARKS + 3 {
        trace.guest_mark(0);
    }
    assert_eq!(
        json_of(&trace).iter().filter(|event| event["ph"] == "i").count(),
        MAX_GUEST_MARKS
    );
    let lost = MAX_GUEST_MARKS - 16 + 3;
    assert!(
        trace.table().ends_with(&format!("{lost} more guest marks\n")),
        "{}",
        trace.table()
    );
}

#[test]
fn the_table_has_one_line_for_each_phase_in_order() {
    let trace = Trace::on_since(Begin::now());
    trace.mark(Phase::Args);
    trace.enter_guest();
    trace.guest_mark(0x41);
    trace.leave_guest();
    let table = trace.table();
    let names: Vec<_> = table.lines().skip(1).map(|line| line.get(23..).unwrap()).collect();
    assert_eq!(names, ["exec", "args", "first KVM_RUN", "guest", "guest mark 0x41"]);
}

#[test]
fn a_trace_that_is_off_records_nothing() {
    let trace = Trace::off();
    trace.mark(Phase::Args);
    trace.guest_mark(1);
    drop(trace.span(Phase::KernelLoad));
    assert!(!trace.is_on());
    assert_eq!(trace.table(), "");
    assert!(json_of(&trace).is_empty());
}

#[test]
fn the_phases_of_a_start_are_a_line() {
    assert_eq!(Trace::off().phases(), "");
    let trace = Trace::of_start();
    trace.mark(Phase::KvmOpen);
    drop(trace.span(Phase::KernelLoad));
    trace.mark(Phase::Devices);
    let line = trace.phases();
    let names: Vec<&str> = line.split(", ").filter_map(|phase| phase.strip_suffix(" ms")).collect();
    let names: Vec<&str> = names
        .iter()
        .filter_map(|phase| phase.rsplit_once(' '))
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["kvm open", "kernel load", "devices"]);
}
