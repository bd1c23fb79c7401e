//! The rules of file systems, on each share and on the host's own file system: the same answers,
//! but for a list of differences.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use husk_guest::rules::{self, Choice, Line};
use husk_tests::agent::Agent;

use crate::amount;
use crate::served::{SERVERS, Served};

/// Answers in a guest that are not those of the host's file system.
struct Difference {
    /// Of the cases: all that begin like this.
    case: &'static str,
    /// What a guest is answered; `*` for anything.
    found: &'static str,
    /// Whose shares answer so.
    servers: &'static [&'static str],
    /// In guests of which kernels.
    kernels: &'static [&'static str],
    /// Why that is as it is.
    why: &'static str,
}

const BOTH: &[&str] = &["6.12", "6.1"];
const HUSK: &[&str] = &["device", "daemon"];
const VIRTIOFSD: &[&str] = &["virtiofsd"];

const fn difference(
    case: &'static str,
    found: &'static str,
    servers: &'static [&'static str],
    kernels: &'static [&'static str],
    why: &'static str,
) -> Difference {
    Difference {
        case,
        found,
        servers,
        kernels,
        why,
    }
}

const NO_RANGES: &str = "Linux passes no FALLOC_FL_COLLAPSE_RANGE and INSERT_RANGE to a FUSE server";
const NO_TRUSTED: &str = "attributes of root's take a right that a daemon does not keep";
const NO_TMPFILE: &str = "virtiofsd does not know the request";

const DIFFERENCES: &[Difference] = &[
    difference(
        "fallocate: COLLAPSE_RANGE",
        "EOPNOTSUPP 262144",
        &SERVERS,
        BOTH,
        NO_RANGES,
    ),
    difference(
        "fallocate: INSERT_RANGE",
        "EOPNOTSUPP 262144",
        &SERVERS,
        BOTH,
        NO_RANGES,
    ),
    difference(
        "fallocate: what COLLAPSE_RANGE leaves",
        "EOPNOTSUPP",
        &SERVERS,
        BOTH,
        NO_RANGES,
    ),
    difference(
        "fallocate: what INSERT_RANGE leaves",
        "EOPNOTSUPP",
        &SERVERS,
        BOTH,
        NO_RANGES,
    ),
    difference(
        "xattr: root's ",
        "was prepared in vain: EOPNOTSUPP",
        &["daemon"],
        BOTH,
        NO_TRUSTED,
    ),
    difference(
        "xattr: root's ",
        "was prepared in vain: EPERM",
        VIRTIOFSD,
        BOTH,
        NO_TRUSTED,
    ),
    difference(
        "bits: a write by a member of its group of 2767",
        "767",
        HUSK,
        BOTH,
        "the server writes without the groups of the writer, and so the host takes the bit",
    ),
    difference(
        "bits: fallocate by root of 6777",
        "777",
        HUSK,
        BOTH,
        "a request to allocate does not say whether the caller may keep the bits, and they go when in doubt",
    ),
    difference(
        "bits: chown to nobody ",
        "6777",
        HUSK,
        BOTH,
        "Linux leaves the bits to a server that takes them away by itself (FUSE_HANDLE_KILLPRIV_V2), and asks it nothing",
    ),
    difference(
        "O_TMPFILE: a file",
        "was prepared in vain: EOPNOTSUPP",
        VIRTIOFSD,
        BOTH,
        NO_TMPFILE,
    ),
    difference(
        "O_TMPFILE: gets",
        "was prepared in vain: EOPNOTSUPP",
        VIRTIOFSD,
        BOTH,
        NO_TMPFILE,
    ),
    difference(
        "O_TMPFILE: with",
        "was prepared in vain: EOPNOTSUPP",
        VIRTIOFSD,
        BOTH,
        NO_TMPFILE,
    ),
    difference(
        "bits: a write by a user of 2767",
        "2767",
        VIRTIOFSD,
        BOTH,
        "virtiofsd leaves it to the guest, which reads the rule another way",
    ),
    difference(
        "bits: a truncation by a user of 2767",
        "2767",
        VIRTIOFSD,
        BOTH,
        "virtiofsd leaves it to the guest, which reads the rule another way",
    ),
    difference(
        "bits: O_TRUNC by a user of 6777",
        "6777",
        VIRTIOFSD,
        BOTH,
        "virtiofsd opens and cuts the file as root",
    ),
    difference(
        "times: statx has the time of birth",
        "none",
        HUSK,
        &["6.1"],
        "FUSE has a request for it from Linux 6.6 on",
    ),
    difference(
        "times: statx has the time of birth",
        "none",
        VIRTIOFSD,
        BOTH,
        "virtiofsd does not know the request",
    ),
];

/// What the cases found, by their names.
type Answers = BTreeMap<String, String>;

fn answers(lines: Vec<Line>) -> Answers {
    lines.into_iter().map(|line| (line.name, line.found)).collect()
}

fn in_the_guest(agent: &mut Agent, root: &str, choice: &Choice) -> Answers {
    let every = choice.every.to_string();
    let mut command = vec!["/init", "files", "rules", root, &every];
    command.extend(choice.also.iter().map(String::as_str));
    let lines = agent.run(&command).unwrap();
    answers(lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// A sample of all groups, with what is known to differ and what only a server with a word in it
/// can do; all of them if asked for.
fn choice() -> Choice {
    let listed = DIFFERENCES.iter().map(|difference| difference.case);
    Choice {
        every: usize::try_from(amount("HUSK_TEST_RULES_EVERY", 16)).unwrap(),
        also: listed
            .chain(["lock: two who wait", "lock: of an open file"])
            .map(String::from)
            .collect(),
    }
}

/// What is not as on the host and not in the list, and what is in the list and as on the host.
fn surprises(kernel: &str, server: &str, host: &Answers, guest: &Answers) -> Vec<String> {
    assert!(host.keys().eq(guest.keys()), "all cases, and no other");
    let listed = || {
        let of_both =
            |difference: &&Difference| difference.servers.contains(&server) && difference.kernels.contains(&kernel);
        DIFFERENCES.iter().filter(of_both)
    };
    let mut surprises = Vec::new();
    for (name, found) in guest.iter().filter(|(name, found)| host[*name] != **found) {
        let known = |difference: &Difference| {
            name.starts_with(difference.case) && (difference.found == "*" || *found == difference.found)
        };
        if !listed().any(known) {
            surprises.push(format!(
                "{kernel}, {server}: {name}: {found} (the host: {})",
                host[name]
            ));
        }
    }
    for difference in listed() {
        let mut of_case = guest.iter().filter(|(name, _)| name.starts_with(difference.case));
        if of_case.all(|(name, found)| host[name] == *found) {
            surprises.push(format!(
                "{kernel}, {server}: {}: no longer different ({})",
                difference.case, difference.why
            ));
        }
    }
    surprises
}

fn on_the_host(root: &Path, choice: &Choice) -> Answers {
    fs::create_dir(root).unwrap();
    answers(rules::run(root, choice).unwrap())
}

/// Cases copy the table of descriptors of their process: those of two runs would hold each other's files open.
static ALONE: Mutex<()> = Mutex::new(());

fn shares_keep_the_rules(kernel: &'static str, servers: &[&str]) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let choice = choice();
    let (served, mut agent) = Served::start(kernel, 1);
    let host = on_the_host(&served.host("host"), &choice);
    let mut surprising = Vec::new();
    for server in servers {
        let guest = in_the_guest(&mut agent, &format!("/{server}"), &choice);
        surprising.extend(surprises(kernel, server, &host, &guest));
    }
    served.end();
    assert!(surprising.is_empty(), "{surprising:#?}");
}

#[test]
fn every_share_keeps_the_rules_of_the_hosts_file_system() {
    shares_keep_the_rules("6.12", &SERVERS);
}

#[test]
fn a_share_of_husks_own_keeps_the_rules_in_a_guest_of_the_older_kernel() {
    shares_keep_the_rules("6.1", &SERVERS[..1]);
}
