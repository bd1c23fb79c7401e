//! Whether the threads of a subject are confined while its guest runs, so that figures compare like
//! with like: seccomp costs time and memory, and a filter may be there and allow everything.
//!
//! The kernel says for each thread whether it has filters and how many (`/proc/PID/task/TID/status`, Linux
//! `Documentation/filesystems/proc.rst`). What they do it shows to root alone (ptrace(2), `PTRACE_SECCOMP_GET_FILTER`).

use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::figures::Figure;
use super::payload;
use super::subject::{Kind, Subject};
use crate::sys::{self, Instruction};

/// Status field `Seccomp` of a thread that has filters (seccomp(2), `SECCOMP_MODE_FILTER`).
const MODE_FILTER: u32 = 2;
/// An instruction that ends a program with its operand (linux/bpf_common.h: `BPF_RET | BPF_K`).
const RETURN: u16 = 0x06;
/// What lets a call pass (linux/seccomp.h): `SECCOMP_RET_ALLOW`, `SECCOMP_RET_LOG`. The low half of the word is data.
const PASSES: [u32; 2] = [0x7fff_0000, 0x7ffc_0000];
const ACTION: u32 = 0xffff_0000;

/// From the guest's mark to the look: whoever confines himself after his guest has started has done it by then.
const SETTLE: Duration = Duration::from_millis(300);

/// What was seen of a subject.
pub struct Seen {
    kind: Kind,
    threads: Result<Vec<Thread>, String>,
}

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Thread {
    /// Whether filters are in force.
    filtered: bool,
    /// How many; Linux before 5.9 does not say.
    filters: Option<usize>,
    /// Them, if this user may see them.
    programs: Option<Vec<Vec<Instruction>>>,
}

/// Looks at every subject, in a life of its own: with the guest of the profile `memory`, halted.
pub fn look(subjects: &[Subject]) -> Vec<Seen> {
    let seen = |subject: &Subject| Seen {
        kind: subject.kind,
        threads: payload::halted(subject, SETTLE, threads).map_err(|error| format!("{error:#}")),
    };
    subjects.iter().map(seen).collect()
}

/// The threads of the process whose folder below `/proc` is `process`.
fn threads(process: &Path) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for task in fs::read_dir(process.join("task"))? {
        let task = task?;
        let id = task.file_name().to_string_lossy().parse().context("a strange thread")?;
        // One that has ended meanwhile is no thread any more.
        let Ok(status) = fs::read_to_string(task.path().join("status")) else {
            continue;
        };
        threads.push(Thread::read(&status, || sys::seccomp_filters(id).ok())?);
    }
    ensure!(!threads.is_empty(), "no thread is left");
    Ok(threads)
}

impl Thread {
    /// From its `status`, and from what `programs` finds if it has filters.
    fn read(status: &str, programs: impl FnOnce() -> Option<Vec<Vec<Instruction>>>) -> Result<Self> {
        let mode: u32 = field(status, "Seccomp:").context("its status does not say whether it is confined")?;
        let filtered = mode == MODE_FILTER;
        Ok(Self {
            filtered,
            filters: field(status, "Seccomp_filters:"),
            programs: filtered.then(programs).flatten(),
        })
    }

    /// Whether a call can be denied; without a look at its filters, whether it has some.
    fn is_confined(&self) -> bool {
        let denies = |programs: &Vec<Vec<Instruction>>| programs.iter().any(|program| can_deny(program));
        self.filtered && self.programs.as_ref().is_none_or(denies)
    }

    /// Instructions of all its filters.
    fn instructions(&self) -> Option<usize> {
        Some(self.programs.as_ref()?.iter().map(Vec::len).sum())
    }
}

fn field<T: std::str::FromStr>(status: &str, name: &str) -> Option<T> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

/// Whether any end of `program` does not let the call pass.
fn can_deny(program: &[Instruction]) -> bool {
    program
        .iter()
        .any(|instruction| instruction.code == RETURN && !PASSES.contains(&(instruction.k & ACTION)))
}

impl Seen {
    /// Its figures: threads, those that are confined, and the fewest filters and instructions of one that has filters.
    pub fn figures(&self) -> Vec<Figure> {
        let Ok(threads) = &self.threads else { return Vec::new() };
        let confined = threads.iter().filter(|thread| thread.is_confined()).count();
        let filtered = || threads.iter().filter(|thread| thread.filtered);
        let figures = [
            ("threads", "threads", Some(threads.len())),
            ("confined_threads", "threads", Some(confined)),
            (
                "filters",
                "filters",
                filtered().filter_map(|thread| thread.filters).min(),
            ),
            (
                "filter_instructions",
                "instructions",
                filtered().filter_map(Thread::instructions).min(),
            ),
        ];
        let figure = |(figure, unit, value): (&str, &str, Option<usize>)| {
            let value = u32::try_from(value?).ok()?;
            Figure::new("confinement", figure, unit, self.kind.name(), vec![f64::from(value)])
        };
        figures.into_iter().filter_map(figure).collect()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.kind.name())?;
        let threads = match &self.threads {
            Ok(threads) => threads,
            Err(why) => return write!(f, "whether it is confined could not be seen: {why}"),
        };
        let confined = threads.iter().filter(|thread| thread.is_confined()).count();
        let filtered: Vec<_> = threads.iter().filter(|thread| thread.filtered).collect();
        write!(f, "{confined} of {} threads confined by seccomp", threads.len())?;
        if let Some(filters) = range(filtered.iter().filter_map(|thread| thread.filters)) {
            write!(f, "; filters of one: {filters}")?;
        }
        match range(filtered.iter().filter_map(|thread| thread.instructions())) {
            Some(instructions) => write!(f, ", of {instructions} instructions")?,
            None if !filtered.is_empty() => write!(f, ", which only root can read")?,
            None => {}
        }
        let idle = filtered.iter().filter(|thread| !thread.is_confined()).count();
        match idle {
            0 => Ok(()),
            _ => write!(f, "; those of {idle} threads allow everything"),
        }
    }
}

/// The least and the greatest.
fn range(values: impl Iterator<Item = usize> + Clone) -> Option<String> {
    let (least, greatest) = (values.clone().min()?, values.max()?);
    Some(match least == greatest {
        true => least.to_string(),
        false => format!("{least} to {greatest}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const STATUS: &str =
        "Name:\tvcpu0\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\nSpeculation_Store_Bypass:\tvulnerable\n";

    fn returns(actions: &[u32]) -> Vec<Instruction> {
        let instruction = |action: &u32| Instruction {
            code: RETURN,
            jt: 0,
            jf: 0,
            k: *action,
        };
        actions.iter().map(instruction).collect()
    }

    fn seen(threads: Vec<Thread>) -> Seen {
        Seen {
            kind: Kind::Firecracker,
            threads: Ok(threads),
        }
    }

    fn told(figures: &[Figure]) -> Vec<(&str, f64)> {
        figures
            .iter()
            .map(|figure| (figure.figure.as_str(), figure.median))
            .collect()
    }

    #[test]
    fn a_thread_whose_filter_denies_something_is_confined() {
        // ALLOW, ERRNO | EPERM
        let programs = vec![returns(&[0x7fff_0000, 0x0005_0001]), returns(&[0x7fff_0000])];
        let thread = Thread::read(STATUS, || Some(programs)).unwrap();
        assert!(thread.is_confined());
        assert_eq!((thread.filters, thread.instructions()), (Some(2), Some(3)));
        let seen = seen(vec![thread]);
        let line = "firecracker: 1 of 1 threads confined by seccomp; filters of one: 2, of 3 instructions";
        assert_eq!(seen.to_string(), line);
        let figures = [
            ("threads", 1.0),
            ("confined_threads", 1.0),
            ("filters", 2.0),
            ("filter_instructions", 3.0),
        ];
        assert_eq!(told(&seen.figures()), figures);
    }

    #[test]
    fn a_thread_whose_filters_let_everything_pass_is_not() {
        // ALLOW; LOG, with data.
        let programs = vec![returns(&[0x7fff_0000]), returns(&[0x7ffc_0007])];
        let open = Thread::read(STATUS, || Some(programs)).unwrap();
        assert!(!open.is_confined());
        let line = "firecracker: 0 of 1 threads confined by seccomp; filters of one: 2, of 2 instructions; \
            those of 1 threads allow everything";
        assert_eq!(seen(vec![open]).to_string(), line);
    }

    #[test]
    fn a_thread_without_a_filter_is_not_looked_into() {
        for mode in ["0", "1"] {
            let status = format!("Seccomp:\t{mode}\nSeccomp_filters:\t0\n");
            let thread = Thread::read(&status, || panic!("there is nothing to see")).unwrap();
            assert!(!thread.is_confined());
        }
        let bare = Thread::read("Seccomp:\t0\nSeccomp_filters:\t0\n", || None).unwrap();
        let seen = seen(vec![bare]);
        assert_eq!(seen.to_string(), "firecracker: 0 of 1 threads confined by seccomp");
        assert_eq!(told(&seen.figures()), [("threads", 1.0), ("confined_threads", 0.0)]);
    }

    #[test]
    fn a_user_who_may_not_read_filters_learns_that_there_are_some() {
        let shut = Thread::read("Seccomp:\t2\n", || None).unwrap();
        assert!(shut.is_confined());
        let line = "firecracker: 1 of 1 threads confined by seccomp, which only root can read";
        assert_eq!(seen(vec![shut]).to_string(), line);
    }

    #[test]
    fn a_status_that_says_nothing_of_it_is_an_error() {
        assert!(Thread::read("Name:\thusk\n", || None).is_err());
        let failed = Seen {
            kind: Kind::Husk,
            threads: Err("no mark".into()),
        };
        assert_eq!(
            failed.to_string(),
            "husk: whether it is confined could not be seen: no mark"
        );
        assert!(failed.figures().is_empty());
    }
}
