//! What an exit code, a signal or a line of the log means, and what to do about it: `husk explain`.
//!
//! What is known lies in four texts, of blocks of three lines each: a key, what it means, what to
//! do. As texts they cost a husk that runs a VM nothing, where tables would be relocated at its
//! start.

use std::fmt::Write;
use std::sync::LazyLock;

use crate::fatal::real_time;
use crate::seccomp;

const EXITS: &str = include_str!("exits.txt");
const SIGNALS: &str = include_str!("signals.txt");
const LINES: &str = include_str!("lines.txt");
const KERNEL: &str = include_str!("kernel.txt");

/// What is known of something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// What it is known by.
    pub key: &'static str,
    /// What it means.
    pub means: &'static str,
    /// What to do about it.
    pub act: &'static str,
}

fn blocks(text: &'static str) -> impl Iterator<Item = Known> {
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    std::iter::from_fn(move || {
        Some(Known {
            key: lines.next()?,
            means: lines.next()?,
            act: lines.next()?,
        })
    })
}

/// Signals that husk may die of, each in full.
fn signals() -> impl Iterator<Item = Known> {
    blocks(SIGNALS).map(|signal| Known {
        means: resolved(signal.means, |other| other.means),
        act: resolved(signal.act, |other| other.act),
        ..signal
    })
}

/// `line`, or what another signal has in its place (`= SIGNAL`).
fn resolved(line: &'static str, place: fn(Known) -> &'static str) -> &'static str {
    let Some(name) = line.strip_prefix("= ") else {
        return line;
    };
    let other = blocks(SIGNALS).find(|signal| signal.key.split(' ').nth(1) == Some(name));
    other.map_or(line, place)
}

/// husk's own exit codes.
pub fn exits() -> impl Iterator<Item = Known> {
    blocks(EXITS)
}

/// The table of exit codes for the help of every command and the manual page, which is made once.
pub fn exit_codes() -> &'static str {
    static TABLE: LazyLock<String> = LazyLock::new(|| {
        let rows = exits().map(|exit| format!("\n  {}  {}", exit.key, exit.means));
        format!("Exit codes:{}", rows.collect::<String>())
    });
    &TABLE
}

/// Lines of husk's log and of the kernel's, by a phrase that stays as it is.
fn phrases() -> impl Iterator<Item = Known> {
    blocks(LINES).chain(blocks(KERNEL)).map(|entry| Known {
        key: entry.key.trim_matches('"'),
        ..entry
    })
}

/// Explains an exit code (a number, or `exit status 137` and the like), a signal (`SIGKILL`,
/// `kill`, `-9`, `signal: killed`, systemd's `status=9/KILL`) or a line of the log; `None` for what
/// is unknown.
pub fn explain(what: &str) -> Option<String> {
    let what = what.trim();
    let of_signal_told = || signal_in(what).and_then(|signal| of_signal(&signal));
    of_signal_told()
        .or_else(|| code_in(what).and_then(of_code))
        .or_else(|| of_line(what))
        .or_else(|| of_error(what))
        .or_else(|| of_note(what))
}

/// The exit code that `what` is, by itself or behind the words that shells, container engines and
/// systemd put before one.
fn code_in(what: &str) -> Option<u16> {
    let small = what.to_ascii_lowercase();
    let words = ["code=exited,", "exited", "with", "exit", "status", "code"];
    let mut rest = small.as_str();
    while let Some(shorter) = words.iter().find_map(|word| rest.strip_prefix(word)) {
        rest = shorter.trim_start_matches([' ', ':', '=']);
    }
    // systemd puts a name behind it: status=203/EXEC.
    rest.split('/').next()?.trim().parse().ok()
}

/// The name of the signal that `what` is, without `SIG`: by name, as `-9`, as systemd has it, or in
/// the words in which Go's and C's libraries tell of one.
fn signal_in(what: &str) -> Option<String> {
    let small = what.to_ascii_lowercase();
    let systemd = small.split_once("code=killed, status=").map(|(_, rest)| rest);
    if let Some((_, name)) = systemd
        .or(small.strip_prefix("status="))
        .and_then(|rest| rest.split_once('/'))
    {
        return Some(name.to_ascii_uppercase());
    }
    if let Some(number) = small.strip_prefix('-').and_then(|number| number.parse::<i32>().ok()) {
        return name_of(number);
    }
    let told = small
        .strip_prefix("signal: ")
        .or(small.strip_prefix("signal "))
        .unwrap_or(&small);
    let told = told.trim_end_matches(" (core dumped)");
    let by_words = WORDS.iter().find(|(words, _)| *words == told).map(|(_, name)| *name);
    let by_number = (told != small).then(|| told.parse().ok().and_then(name_of)).flatten();
    let is_a_name = told
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte));
    by_words
        .map(str::to_owned)
        .or(by_number)
        .or_else(|| is_a_name.then(|| told.strip_prefix("sig").unwrap_or(told).to_ascii_uppercase()))
}

/// What libraries call signals.
const WORDS: [(&str, &str); 13] = [
    ("hangup", "HUP"),
    ("interrupt", "INT"),
    ("quit", "QUIT"),
    ("illegal instruction", "ILL"),
    ("trace/breakpoint trap", "TRAP"),
    ("aborted", "ABRT"),
    ("bus error", "BUS"),
    ("floating point exception", "FPE"),
    ("killed", "KILL"),
    ("segmentation fault", "SEGV"),
    ("broken pipe", "PIPE"),
    ("terminated", "TERM"),
    ("bad system call", "SYS"),
];

/// The name, without `SIG`, of a signal that is known by its number.
fn name_of(number: i32) -> Option<String> {
    let (key, _) = signal_of(number)?;
    key.split_once(" SIG").map(|(_, name)| name.to_owned())
}

/// What an exit code means, husk's own or a shell's.
fn of_code(code: u16) -> Option<String> {
    if let Some(exit) = exits().find(|exit| exit.key.parse() == Ok(code)) {
        return Some(told(&format!("exit code {code}"), exit));
    }
    let (means, act) = match code {
        126 => (
            "the shell found husk, and could not execute it",
            "look at its mode, at noexec of its mount, and whether it is for this processor",
        ),
        127 => ("the shell did not find husk", "name it with its whole path"),
        _ => {
            let (key, signal) = signal_of(code.checked_sub(128)?.into())?;
            let title = format!("exit code {code} of a shell or container, signal {key}");
            return Some(told(&title, signal));
        }
    };
    let key = "";
    Some(told(&format!("exit code {code}"), Known { key, means, act }))
}

/// What a death by the signal of this name, or one without `SIG`, means.
fn of_signal(wanted: &str) -> Option<String> {
    let wanted = wanted.strip_prefix("SIG").unwrap_or(wanted);
    let mut numbers = signals().filter_map(|signal| {
        let (number, name) = signal.key.split_once(" SIG")?;
        (name == wanted).then(|| number.parse().ok())?
    });
    let (key, signal) = signal_of(numbers.next().or_else(|| real_time_number(wanted))?)?;
    Some(told(&format!("signal {key}"), signal))
}

/// Number and name of a signal, and what is known of it.
fn signal_of(number: libc::c_int) -> Option<(String, Known)> {
    let first = match number {
        number if real_time().contains(&number) => *real_time().start(),
        number => number,
    };
    let signal = signals().find(|signal| signal.key.split(' ').next().map(str::parse) == Some(Ok(first)))?;
    let key = match number - first {
        0 => signal.key.to_owned(),
        after => format!("{number} SIGRTMIN+{after}"),
    };
    Some((key, signal))
}

/// The number of a real-time signal, from the name that husk gives it or that of kill(1): `RTMIN+3`, `RTMAX`,
/// `RTMAX-1`.
fn real_time_number(name: &str) -> Option<libc::c_int> {
    let (first, last) = (*real_time().start(), *real_time().end());
    let count = |text: &str| {
        let digits = text.bytes().all(|found| found.is_ascii_digit());
        text.parse::<u8>().ok().filter(|_| digits).map(libc::c_int::from)
    };
    let number = match (name.strip_prefix("RTMIN+"), name.strip_prefix("RTMAX")) {
        (Some(after), _) => first + count(after)?,
        (None, Some("")) => last,
        (None, Some(before)) => last - count(before.strip_prefix('-')?)?,
        (None, None) => return None,
    };
    real_time().contains(&number).then_some(number)
}

/// Shorter phrases may stand in the error of any command.
const LEAST_IN_ERROR: usize = 12;

/// How every line ends by which husk says that it ends: it says least of all, whatever else is in the line.
const ANY_END: &str = "; husk ends here";

/// The entry of the longest phrase that the line has: a longer one says more.
fn of_line(line: &str) -> Option<String> {
    // What a command says that fails is no line of the log, though it may name the same things.
    let is_error = line.starts_with("error: ");
    let known = phrases().filter(|entry| line.contains(entry.key) && !(is_error && entry.key.len() < LEAST_IN_ERROR));
    let entry = known.max_by_key(|entry| (entry.key != ANY_END, entry.key.len()))?;
    // A fault's line has the signal's name, and nothing else that is known.
    let fault = (entry.key == ANY_END)
        .then(|| {
            let mut names = line.split(' ').filter(|word| word.starts_with("SIG"));
            names.find_map(of_signal)
        })
        .flatten();
    let mut text = fault.unwrap_or_else(|| told("log", entry));
    if let Some((number, name)) = call_in(line) {
        let _ = writeln!(text, "system call {number} is {name}: man 2 {name}");
    }
    Some(text)
}

/// What a command says that fails, where nothing more is known of it: on standard error, as exit codes 1 and 2 tell of.
fn of_error(line: &str) -> Option<String> {
    let error = line.strip_prefix("error: ")?;
    if error.contains(" (see husk ") {
        return Some(told("error", exits().find(|exit| exit.key == "2")?));
    }
    // husk run and husk fs end by it; of the others it is only the answer.
    Some(told(
        "error",
        Known {
            key: "",
            means: "a command of husk came to nothing by the error that the line names; if that command ran a VM or served files, it has ended",
            act: "the error names what was not as it must be, the last part of it the reason: mend that, and do it again",
        },
    ))
}

/// A line of the log that complains of nothing.
fn of_note(line: &str) -> Option<String> {
    let levels = ["INFO: ", "DEBU: ", "TRAC: "];
    let (at, _) = levels
        .iter()
        .filter_map(|level| line.find(level).map(|at| (at, level)))
        .min()?;
    // Other programs have such words too, further into a line.
    (at <= LONGEST_PREFIX).then(|| {
        told(
            "log",
            Known {
                key: "",
                means: "husk tells what it does; nothing is wrong",
                act: "nothing; lines that begin with WARN: or ERRO: are those that complain",
            },
        )
    })
}

/// The most that stands before a line's level: the time, the process and the thread.
const LONGEST_PREFIX: usize = 80;

fn told(title: &str, known: Known) -> String {
    format!("{title}: {}\ndo: {}\n", known.means, known.act)
}

/// The system call that a line names by its number.
fn call_in(line: &str) -> Option<(i32, &'static str)> {
    let (_, rest) = line.split_once("system call ").or(line.split_once("syscall="))?;
    let digits = rest.split(|found: char| !found.is_ascii_digit()).next()?;
    let number = digits.parse().ok()?;
    Some((number, seccomp::name(number)?))
}

#[cfg(test)]
#[path = "explain_test.rs"]
mod tests;
