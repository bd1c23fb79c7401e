//! Random work of several processes at once on each share, in the manner of fsx and fsstress. What
//! comes out of it is known from a seed, and found on both sides.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use husk_guest::file_stress::{PART_BYTES, Part};
use husk_guest::tree::{self, Depth};
use husk_guest::tree_stress::{self, Done};
use husk_guest::{Call, Reply, pattern};
use husk_tests::agent::Agent;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::served::{Plan, SERVERS, Served};
use crate::{amount, sh};

/// Processes at work on one file, and on one tree.
const PARTS: usize = 4;
const PROCESSES: u64 = 3;

/// How much, from which seed.
struct Work {
    seed: u64,
    steps: u64,
}

/// Runs both kinds at once in the guest: processes that share a file, and processes that share a
/// tree. What each of them says.
fn strain(agent: &mut Agent, server: &str, work: &Work) -> (Vec<Part>, Vec<Done>) {
    let Work { seed, steps } = work;
    let said = sh(
        agent,
        &format!(
            "cd /tmp; mkdir {server}; cd {server}; all=
             for n in $(seq 0 {last_part}); do
               /init files strain /{server}/file $(({seed} + n)) {steps} $n {PARTS} > part$n 2>&1 & all=\"$all $!\"
             done
             for n in $(seq 0 {last_process}); do
               /init files stress /{server}/tree {seed} {steps} $n > process$n 2>&1 & all=\"$all $!\"
             done
             failed=0; for one in $all; do wait $one || failed=1; done
             if [ $failed = 1 ]; then grep . part* process* >&2; exit 1; fi
             cat part* process*",
            last_part = PARTS - 1,
            last_process = PROCESSES - 1,
        ),
    );
    let lines: Vec<_> = said.lines().collect();
    let (parts, processes) = lines.split_at(PARTS);
    (read(parts), read(processes))
}

fn read<T: DeserializeOwned>(lines: &[&str]) -> Vec<T> {
    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn the_file_holds_what_each_process_put_there(served: &Served, agent: &mut Agent, server: &str, parts: &[Part]) {
    let path = served.host(server).join("file");
    let file = File::open(&path).unwrap();
    for (number, part) in parts.iter().enumerate() {
        let mut bytes = vec![0; usize::try_from(part.bytes).unwrap()];
        file.read_exact_at(&mut bytes, (number * PART_BYTES) as u64).unwrap();
        assert_eq!(pattern::checksum(&bytes), part.checksum, "{server}: part {number}");
    }
    let whole = fs::read(&path).unwrap();
    let last = parts.last().unwrap().bytes;
    assert_eq!(whole.len() as u64, ((PARTS - 1) * PART_BYTES) as u64 + last, "{server}");
    // And so for the guest when it has to ask for it.
    sh(agent, "echo 3 > /proc/sys/vm/drop_caches");
    let found = agent
        .must(&Call::Sum {
            path: format!("/{server}/file"),
        })
        .unwrap();
    let (bytes, checksum) = (whole.len() as u64, pattern::checksum(&whole));
    assert_eq!(found, Reply::Data { bytes, checksum }, "{server}");
}

/// The answers, and the tree, are those of the host's own file system.
fn the_tree_is_what_the_host_makes_of_the_same_work(
    served: &Served,
    agent: &mut Agent,
    (server, done): (&str, &[Done]),
    expected: &[Done],
) {
    let (here, there) = (served.host("host"), served.host(server).join("tree"));
    for (number, (done, expected)) in (0..).zip(done.iter().zip(expected)) {
        assert_eq!(done, expected, "{server}: process {number}");
        let survey = |root| tree::survey(&tree_stress::own(root, number), Depth::Contents).unwrap();
        assert_eq!(survey(&there), survey(&here), "{server}: process {number}");
    }
    let survey = tree::survey(&there, Depth::Contents).unwrap();
    let call = Call::Survey {
        path: format!("/{server}/tree"),
        depth: Depth::Contents,
    };
    assert_eq!(agent.must(&call).unwrap(), Reply::Surveyed { survey }, "{server}");
    let counted: u64 = done.iter().map(|done| done.counted).sum();
    let counter = there.join(tree_stress::COMMON).join(tree_stress::COUNTER);
    assert_eq!(fs::read_to_string(counter).unwrap(), counted.to_string(), "{server}");
}

#[test]
fn what_several_processes_write_map_cut_copy_rename_and_lock_at_once_is_the_same_on_both_sides() {
    let work = Work {
        seed: amount("HUSK_TEST_STRAIN_SEED", 1),
        steps: amount("HUSK_TEST_STRAIN_STEPS", 150),
    };
    let plan = Plan {
        vcpus: 2,
        device: json!({"num_queues": 2}),
        ..Plan::default()
    };
    let (served, mut agent) = Served::start_with(plan, |folder| {
        let file = File::create_new(folder.join("file")).unwrap();
        file.set_len((PARTS * PART_BYTES) as u64).unwrap();
        fs::create_dir(folder.join("tree")).unwrap();
        tree_stress::prepare(&folder.join("tree")).unwrap();
    });
    let host = served.host("host");
    fs::create_dir(&host).unwrap();
    tree_stress::prepare(&host).unwrap();
    let expected: Vec<_> = (0..PROCESSES)
        .map(|number| tree_stress::work(&host, work.seed, work.steps, number).unwrap())
        .collect();
    for server in SERVERS {
        let (parts, done) = strain(&mut agent, server, &work);
        the_file_holds_what_each_process_put_there(&served, &mut agent, server, &parts);
        the_tree_is_what_the_host_makes_of_the_same_work(&served, &mut agent, (server, &done), &expected);
    }
    served.end();
}
