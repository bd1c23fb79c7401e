use std::time::Duration;

use serde_json::json;

use super::*;
use crate::api::{Containers, Reply, Resize};
use crate::config::NewDevice;

const SECOND: Duration = Duration::from_secs(1);

/// What the fakes do their work to: what has happened, and which of them may end.
#[derive(Default)]
struct Log {
    lines: Vec<String>,
    ready: Vec<&'static str>,
}

/// Work that is done when its owner says so.
struct Fake {
    operation: Operation,
    command: &'static str,
}

impl Work<Log> for Fake {
    fn operation(&self) -> Operation {
        self.operation
    }

    fn command(&self) -> &'static str {
        self.command
    }

    fn advance(&mut self, owner: &mut Log) -> Option<Outcome> {
        owner.ready.contains(&self.command).then_some(Ok(Reply::Done))
    }

    /// An addition ends, and whatever else it is goes on.
    fn asker_has_gone(&mut self, _owner: &mut Log) -> Option<Outcome> {
        (self.operation == Operation::Add).then(|| Err(superseded(self.command, "nobody")))
    }

    fn give_up(&mut self, owner: &mut Log, why: GiveUp<'_>) -> Outcome {
        owner.lines.push(format!("{} gives up: {why:?}", self.command));
        Err(superseded(self.command, "time"))
    }
}

fn fake(operation: Operation, command: &'static str) -> Box<Fake> {
    Box::new(Fake { operation, command })
}

fn replies(answers: &Answers<u32>) -> Vec<(u32, bool)> {
    answers
        .iter()
        .map(|(reply, outcome)| (*reply, outcome.is_ok()))
        .collect()
}

#[test]
fn an_operation_is_answered_once_it_is_done_and_not_before() {
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    let id = operations.begin(fake(Operation::Pause, "vm.pause"), now + SECOND);
    operations.keep(id, 7);
    assert!(operations.advance(&mut owner, now).is_empty());
    owner.ready.push("vm.pause");
    assert_eq!(replies(&operations.advance(&mut owner, now)), [(7, true)]);
    assert!(operations.advance(&mut owner, now + 2 * SECOND).is_empty());
    assert!(owner.lines.is_empty());
}

#[test]
fn what_never_comes_to_an_end_is_given_up_at_its_deadline() {
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    let pause = operations.begin(fake(Operation::Pause, "vm.pause"), now + 2 * SECOND);
    operations.keep(pause, 1);
    assert_eq!(operations.deadline(), Some(now + 2 * SECOND));
    let stop = operations.begin(fake(Operation::Stop, "vm.delete"), now + SECOND);
    operations.keep(stop, 2);
    assert_eq!(operations.deadline(), Some(now + SECOND), "the next one counts");
    assert_eq!(replies(&operations.advance(&mut owner, now + SECOND)), [(2, false)]);
    assert_eq!(owner.lines, ["vm.delete gives up: Late"]);
    assert_eq!(operations.deadline(), Some(now + 2 * SECOND));
    assert_eq!(replies(&operations.advance(&mut owner, now + 9 * SECOND)), [(1, false)]);
    assert_eq!(operations.deadline(), None);
}

#[test]
fn what_is_done_at_its_deadline_is_done() {
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    let id = operations.begin(fake(Operation::Pause, "vm.pause"), now);
    operations.keep(id, 1);
    owner.ready.push("vm.pause");
    assert_eq!(replies(&operations.advance(&mut owner, now + SECOND)), [(1, true)]);
    assert!(owner.lines.is_empty());
}

#[test]
fn a_command_that_takes_the_place_of_another_ends_that_one_alone() {
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    for (reply, work) in [
        (1, fake(Operation::Pause, "vm.pause")),
        (2, fake(Operation::Stop, "vm.delete")),
    ] {
        let id = operations.begin(work, now + SECOND);
        operations.keep(id, reply);
    }
    assert_eq!(replies(&operations.supersede(&mut owner, &Command::Counters)), []);
    assert_eq!(
        replies(&operations.supersede(&mut owner, &Command::Resume)),
        [(1, false)]
    );
    assert_eq!(owner.lines, ["vm.pause gives up: Superseded(\"vm.resume\")"]);
    assert!(operations.any(|operation| operation == Operation::Stop));
}

#[test]
fn what_nobody_waits_for_ends_only_if_it_is_no_use_then() {
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    for (reply, work) in [
        (1, fake(Operation::Add, "vm.add-disk")),
        (2, fake(Operation::Add, "vm.add-net")),
        (3, fake(Operation::Boot, "vm.boot")),
    ] {
        let id = operations.begin(work, now + SECOND);
        operations.keep(id, reply);
    }
    // Who will be answered is not known yet.
    operations.begin(fake(Operation::Add, "vm.add-fs"), now + SECOND);
    let left = operations.leave_unawaited(&mut owner, |reply| *reply == 2);
    assert_eq!(replies(&left), [(1, false)]);
    owner.ready = vec!["vm.add-disk", "vm.add-net", "vm.boot"];
    assert_eq!(replies(&operations.advance(&mut owner, now)), [(2, true), (3, true)]);
}

#[test]
fn work_that_turns_into_other_work_has_its_time() {
    /// Has a minute from its second look on.
    struct Turning(Option<Instant>, Instant);
    impl Work<Log> for Turning {
        fn operation(&self) -> Operation {
            Operation::Stop
        }
        fn command(&self) -> &'static str {
            "vm.reboot"
        }
        fn advance(&mut self, _: &mut Log) -> Option<Outcome> {
            self.0 = Some(self.1 + 60 * SECOND);
            None
        }
        fn deadline(&self) -> Option<Instant> {
            self.0
        }
        fn give_up(&mut self, _: &mut Log, _: GiveUp<'_>) -> Outcome {
            Err(superseded("vm.reboot", "time"))
        }
    }
    let (mut operations, mut owner, now) = (Operations::default(), Log::default(), Instant::now());
    let id = operations.begin(Box::new(Turning(None, now)), now + SECOND);
    operations.keep(id, 1);
    assert_eq!(operations.deadline(), Some(now + SECOND));
    assert!(operations.advance(&mut owner, now + 2 * SECOND).is_empty());
    assert_eq!(operations.deadline(), Some(now + 60 * SECOND));
    let late = operations.advance(&mut owner, now + 60 * SECOND);
    assert_eq!(replies(&late), [(1, false)]);
}

#[test]
fn a_refusal_names_both_commands() {
    let (mut operations, now) = (Operations::<Log, u32>::default(), Instant::now());
    assert_eq!(operations.refusal(&Command::Boot), None);
    operations.begin(fake(Operation::Stop, "vm.reboot"), now + SECOND);
    let refusal = operations.refusal(&Command::Boot).unwrap();
    assert_eq!(refusal.kind, Kind::Conflict);
    assert_eq!(
        refusal.to_string(),
        "vm.reboot is being carried out, vm.boot has to wait for its end"
    );
    assert_eq!(operations.refusal(&Command::PowerButton), None);
}

/// One of each, in the order of the columns in docs/api.md.
fn columns() -> Vec<(&'static str, Vec<Command>)> {
    let disk = || NewDevice::Disk(serde_json::from_value(json!({"path": "/d"})).unwrap());
    vec![
        (
            "vm.counters, vm.queues, vmm.metrics, vm.events, vm.resize-status, vm.containers, vm.set-containers, vm.power-button",
            vec![
                Command::Counters,
                Command::Queues,
                Command::Metrics,
                Command::Events,
                Command::ResizeStatus,
                Command::Containers,
                Command::SetContainers(Containers::default()),
                Command::PowerButton,
            ],
        ),
        (
            "vm.add-*, vm.remove-device",
            vec![Command::Add(Box::new(disk()), Vec::new()), Command::Remove("d".into())],
        ),
        ("vm.resize", vec![Command::Resize(Resize::default())]),
        ("vm.pause", vec![Command::Pause]),
        ("vm.resume", vec![Command::Resume]),
        (
            "vm.create, vm.boot",
            vec![Command::Create(Box::default()), Command::Boot],
        ),
        (
            "vm.shutdown, vm.reboot, vm.delete",
            vec![Command::Shutdown, Command::Reboot, Command::Delete],
        ),
        ("vmm.shutdown", vec![Command::ShutdownVmm]),
    ]
}

#[test]
fn the_documented_table_is_what_happens() {
    let rows = [
        ("vm.boot", Operation::Boot),
        ("vm.add-*", Operation::Add),
        ("vm.resize", Operation::Resize),
        ("vm.pause", Operation::Pause),
        ("vm.shutdown, vm.reboot, vm.delete", Operation::Stop),
        ("vmm.shutdown", Operation::Leave),
    ];
    let docs = include_str!("../../../docs/api.md");
    let heads = columns()
        .iter()
        .map(|(head, _)| format!("`{}`", head.replace(", ", "`, `")))
        .collect::<Vec<_>>();
    let head = format!("| in progress | {} |", heads.join(" | "));
    assert!(docs.contains(&head), "{head}");
    for (name, operation) in rows {
        let cells = columns().into_iter().map(|(_, commands)| {
            let mut relations: Vec<Relation> = commands.iter().map(|command| relation(operation, command)).collect();
            relations.dedup();
            match relations[..] {
                [Relation::Concurrent] => "meanwhile",
                [Relation::Refused] => "409",
                [Relation::Supersedes] => "takes its place",
                _ => panic!("{name}: the columns do not fit {commands:?}"),
            }
        });
        let row = format!(
            "| `{}` | {} |",
            name.replace(", ", "`, `"),
            cells.collect::<Vec<_>>().join(" | ")
        );
        assert!(docs.contains(&row), "{row}");
    }
}
