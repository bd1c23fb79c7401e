use std::path::Path;

use husk_devices::testing::shipped_sources;

use super::*;
use crate::fatal::{FAULTS, OTHERS};

/// All of the source, less its tests, and less what is explained: that is no source of lines.
fn source() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let crates = ["vmm", "virtio", "devices", "hotplug", "firmware"];
    let sources = crates
        .iter()
        .flat_map(|name| shipped_sources(&root.join(name).join("src")));
    let sources = sources.filter(|(path, _)| !path.starts_with(root.join("vmm/src/explain")));
    sources.map(|(_, text)| text).collect()
}

/// The text of each warning and error, as it stands in the source.
fn complaints(source: &str) -> Vec<String> {
    let calls = source
        .split("log::warn!(")
        .skip(1)
        .chain(source.split("log::error!(").skip(1))
        // The level comes first.
        .chain(
            source
                .split("log::log!(")
                .skip(1)
                .filter_map(|call| Some(call.split_once(',')?.1)),
        );
    let literal = |call: &str| {
        let text = call.trim_start().strip_prefix('"')?;
        let end = text
            .char_indices()
            .find(|(at, found)| *found == '"' && !text[..*at].ends_with('\\'))?
            .0;
        // A literal over several lines is one.
        Some(text[..end].split("\\\n").map(str::trim_start).collect::<String>())
    };
    calls.filter_map(literal).collect()
}

/// What a text says by itself, without what is put into it.
fn is_more_than_values(text: &str) -> bool {
    let own: String = text
        .split('{')
        .map(|part| part.split_once('}').map_or(part, |(_, rest)| rest))
        .collect();
    own.chars().filter(char::is_ascii_alphabetic).count() > 3
}

#[test]
fn the_texts_are_of_whole_blocks() {
    for text in [EXITS, SIGNALS, LINES, KERNEL] {
        let parts: Vec<&str> = text
            .split("\n\n")
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        for part in &parts {
            assert!(part.starts_with('#') || part.lines().count() == 3, "{part}");
        }
        let known = parts.iter().filter(|part| !part.starts_with('#')).count();
        assert_eq!(blocks(text).count(), known);
    }
    assert!(
        LINES
            .lines()
            .filter(|line| line.starts_with('"'))
            .all(|line| line.ends_with('"') && line.len() > 2)
    );
    let listed: Vec<i32> = blocks(SIGNALS)
        .map(|signal| signal.key.split(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(listed.is_sorted_by(|a, b| a < b), "{listed:?}");
}

#[test]
fn a_line_that_is_another_signals_is_that_ones_and_none_stands_twice() {
    let (mut own, mut all) = (Vec::new(), Vec::new());
    for (written, told) in blocks(SIGNALS).zip(signals()) {
        assert_eq!(written.key, told.key);
        own.extend(
            [written.means, written.act]
                .into_iter()
                .filter(|line| !line.starts_with("= ")),
        );
        all.extend([told.means, told.act]);
    }
    let known = |line: &&&str| !own.contains(*line);
    assert_eq!(
        all.iter().find(known),
        None,
        "no signal has it, or its own is another's"
    );
    own.retain(|line| *line != "nothing");
    own.sort_unstable();
    assert_eq!(own.windows(2).find(|pair| pair[0] == pair[1]), None);
    let told = explain("SIGUSR2").unwrap();
    assert_eq!(told.replace("12 SIGUSR2", "10 SIGUSR1"), explain("SIGUSR1").unwrap());
}

/// All that husk says it dies of, and what it dies of without a word.
#[test]
fn every_signal_that_ends_husk_is_explained() {
    let listed: Vec<&str> = blocks(SIGNALS).map(|signal| signal.key).collect();
    let silent = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGKILL,
        libc::SIGPIPE,
        libc::SIGQUIT,
        libc::SIGTERM,
    ];
    let mut numbers = [&FAULTS[..], &OTHERS, &silent, &[libc::SIGRTMIN()]].concat();
    for number in &numbers {
        let key = listed.iter().find(|key| key.starts_with(&format!("{number} ")));
        let name = key
            .unwrap_or_else(|| panic!("{number}: {listed:?}"))
            .split(' ')
            .nth(1)
            .unwrap();
        let death = format!("ERRO: {name} in thread main of process 7; husk ends here");
        for what in [death.as_str(), name, &format!("{}", 128 + number)] {
            let told = explain(what).unwrap_or_else(|| panic!("{what}"));
            // husk's own exit code is its own: a filter of husk's says so.
            assert!(
                told.contains(&format!("{number} {name}")) || what == "159",
                "{what}: {told}"
            );
        }
    }
    numbers.sort_unstable();
    assert_eq!(numbers.len(), listed.len());
}

#[test]
fn every_real_time_signal_is_explained_by_number_and_name() {
    for (what, key) in [
        ("162", "34 SIGRTMIN:"),
        ("165", "37 SIGRTMIN+3:"),
        ("192", "64 SIGRTMIN+30:"),
        ("SIGRTMIN", "34 SIGRTMIN:"),
        ("RTMIN+3", "37 SIGRTMIN+3:"),
        ("SIGRTMAX", "64 SIGRTMIN+30:"),
        ("RTMAX-1", "63 SIGRTMIN+29:"),
        (
            "ERRO: SIGRTMIN+3 in thread husk of process 7; husk ends here",
            "37 SIGRTMIN+3:",
        ),
    ] {
        let told = explain(what).unwrap_or_else(|| panic!("{what}"));
        assert!(told.contains(key) && told.contains("another process"), "{what}: {told}");
    }
}

#[test]
fn every_phrase_is_one_that_husk_says() {
    let source: String = source().split("\\\n").map(str::trim_start).collect();
    for entry in blocks(LINES) {
        let phrase = entry.key.trim_matches('"');
        assert!(source.contains(phrase), "nobody says '{phrase}'");
    }
}

#[test]
fn lines_of_the_kernel_that_an_exit_code_sends_people_to_are_explained() {
    for (line, means) in [
        (
            "Memory cgroup out of memory: Killed process 4711 (husk) total-vm:2200000kB, anon-rss:1900000kB",
            "a control group's memory limit",
        ),
        (
            "Out of memory: Killed process 4711 (husk) total-vm:2200000kB",
            "the host had no memory left",
        ),
        (
            "audit: type=1326 audit(1796076003.1:7): auid=0 uid=0 pid=4711 comm=\"vcpu0\" exe=\"/usr/bin/husk\" sig=31 syscall=59",
            "a seccomp filter",
        ),
    ] {
        assert!(explain(line).unwrap().contains(means), "{line}");
    }
}

#[test]
fn every_warning_and_error_is_explained() {
    let complaints = complaints(&source());
    assert!(complaints.len() > 50, "{complaints:?}");
    let unexplained: Vec<&String> = complaints
        .iter()
        .filter(|text| is_more_than_values(text))
        .filter(|text| !phrases().any(|entry| text.contains(entry.key)))
        .collect();
    assert!(unexplained.is_empty(), "{unexplained:#?}");
}

#[test]
fn the_longest_phrase_wins_and_a_call_has_its_name() {
    let line = "ERRO: seccomp: thread vcpu0 of process 7 made system call 59 (execve), which it has no need of; husk ends here (see docs/seccomp.md)";
    let told = explain(line).unwrap();
    assert!(told.starts_with("log: a thread of husk made a system call"), "{told}");
    assert!(told.ends_with("system call 59 is execve: man 2 execve\n"), "{told}");
    let told = explain("SIGBUS sent by process 9, in thread husk of process 7; husk ends here").unwrap();
    assert!(told.starts_with("log: another process sent"), "{told}");
}

#[test]
fn what_every_end_has_in_common_says_least() {
    let end = "; husk ends here";
    assert!(phrases().any(|entry| entry.key == ANY_END && ANY_END == end));
    let shorter: Vec<_> = phrases().filter(|entry| entry.key.len() < end.len()).collect();
    assert!(shorter.iter().any(|entry| entry.key == "panic in thread"));
    for entry in shorter {
        let told = explain(&format!("ERRO: {}{end}", entry.key)).unwrap();
        assert!(told.starts_with(&format!("log: {}", entry.means)), "{told}");
    }
    let panic = "ERRO: panic in thread vcpu0 of process 7 at vmm/src/kvm/vcpu.rs:77; husk ends here: index out of bounds: the len is 3 but the index is 7";
    assert!(
        explain(panic)
            .unwrap()
            .starts_with("log: husk found itself in a state that cannot be")
    );
    let fault = explain("ERRO: SIGBUS at address 0x7f12 in thread io-disk0 of process 4711; husk ends here").unwrap();
    assert_eq!(Some(fault), explain("SIGBUS"));
    let error = explain("ERRO: cannot do IO; husk ends here").unwrap();
    assert!(error.starts_with("log: husk ended by the error"), "{error}");
}

#[test]
fn codes_and_signals_are_known_as_shells_engines_and_systemd_tell_of_them() {
    for (what, says) in [
        ("exit status 159", "exit code 159"),
        ("exit code 137", "signal 9 SIGKILL"),
        ("exited with code 137", "signal 9 SIGKILL"),
        ("Exit Code: 139", "signal 11 SIGSEGV"),
        ("code=exited, status=3", "exit code 3"),
        ("code=exited, status=5/NOTINSTALLED", "exit code 5"),
        ("status=9/KILL", "signal 9 SIGKILL"),
        ("code=killed, status=9/KILL", "signal 9 SIGKILL"),
        ("signal: killed", "signal 9 SIGKILL"),
        ("signal: bad system call (core dumped)", "signal 31 SIGSYS"),
        ("Segmentation fault (core dumped)", "signal 11 SIGSEGV"),
        ("signal 7", "signal 7 SIGBUS"),
        ("sigkill", "signal 9 SIGKILL"),
        ("-9", "signal 9 SIGKILL"),
        ("131", "signal 3 SIGQUIT"),
        ("SIGQUIT", "signal 3 SIGQUIT"),
    ] {
        let told = explain(what).unwrap_or_else(|| panic!("{what}"));
        assert!(told.contains(says), "{what}: {told}");
    }
}

#[test]
fn a_line_that_complains_of_nothing_says_so() {
    for line in [
        "INFO: vm.boot: after 12.3 ms",
        "husk[7]: INFO: vCPU 1: the guest took it",
    ] {
        assert!(
            explain(line).is_some_and(|told| told.contains("nothing is wrong")),
            "{line}"
        );
    }
    assert_eq!(explain("WARN: what nobody has ever heard of"), None);
}

/// A message of another command is no line of the log of a husk with a VM.
#[test]
fn the_error_of_a_command_is_not_taken_for_a_line_of_the_log() {
    let told = explain("error: bad BAR foo").unwrap();
    assert!(told.starts_with("error: a command of husk came to nothing"), "{told}");
}

/// Exit code 1 says to give it that line.
#[test]
fn the_line_by_which_a_command_fails_is_explained() {
    let told = explain("error: kernel /nowhere cannot be opened: No such file or directory (os error 2)").unwrap();
    assert!(
        told.starts_with("error: a command of husk came to nothing by the error that the line names"),
        "{told}"
    );
    let told = explain("error: --memory 1: is too little (see husk run --help)").unwrap();
    assert!(told.starts_with("error: wrong usage"), "{told}");
    // What is known of a part of it says more.
    let told = explain("error: the guest ended in a triple fault").unwrap();
    assert!(told.starts_with("log: the guest's kernel crashed"), "{told}");
}

#[test]
fn codes_and_signals_are_explained_and_nothing_is_made_up() {
    for (what, says) in [
        ("0", "powered itself off"),
        ("159", "docs/seccomp.md"),
        ("137", "memory.events"),
        ("139", "SIGSEGV"),
        ("SIGKILL", "cannot say so itself"),
        ("BUS", "HugePages_Free"),
        ("127", "did not find husk"),
    ] {
        assert!(explain(what).is_some_and(|told| told.contains(says)), "{what}");
    }
    for what in [
        "error",
        "an error: no",
        "6",
        "77",
        "255",
        "256",
        "65536",
        "-99",
        "",
        "hello",
        "SIG",
        "SIGRTMIN+",
        "SIGRTMIN+31",
        "SIGRTMAX-31",
        "SIGRTMAX-+1",
        "160",
        "161",
        "193",
    ] {
        assert_eq!(explain(what), None, "{what}");
    }
}
