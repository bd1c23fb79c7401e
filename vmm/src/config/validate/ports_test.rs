use super::super::super::testing::{HOST, error, good};
use super::*;
use crate::config::VmConfig;

#[test]
fn a_port_at_a_socket_needs_one_that_no_other_has() {
    let at = |socket: &str| ConsoleConfig::socket(socket);
    assert_eq!(
        error(|c| c.console = ConsoleConfig::new(ConsoleMode::Socket)),
        "console: mode Socket needs a socket"
    );
    assert_eq!(error(|c| c.serial = at("")), "serial.socket: no path given");
    assert_eq!(
        error(|c| c.serial = at(&"/".repeat(108))),
        "serial.socket: the path has 108 bytes, allowed: up to 107"
    );
    assert_eq!(
        error(|c| (c.serial, c.console) = (at("/s"), at("/s"))),
        "serial and console both have the socket /s, only one of them can"
    );
    let mut config = good();
    (config.serial, config.console) = (at("/s"), ConsoleConfig::new(ConsoleMode::Pty));
    // What it means for another mode is nothing.
    config.console.socket = Some("/s".into());
    config.validate(HOST).unwrap();
}

#[test]
fn a_file_with_a_limit_is_one_ports_alone() {
    let limited = |path: &str| ConsoleConfig {
        limit: Some(4096),
        keep: Some(1),
        ..ConsoleConfig::file(path)
    };
    for (serial, console, file) in [
        (limited("/l"), limited("/l"), "/l"),
        (limited("/l"), ConsoleConfig::file("/l"), "/l"),
        (ConsoleConfig::file("/l"), limited("/l"), "/l"),
        (limited("/l"), ConsoleConfig::file("/l.1"), "/l.1"),
        (ConsoleConfig::file("/l.1"), limited("/l"), "/l.1"),
    ] {
        assert_eq!(
            error(|c| (c.serial, c.console) = (serial, console)),
            format!("serial and console both have the file {file}: with a limit only one of them can")
        );
    }
    for (serial, console) in [
        (ConsoleConfig::file("/l"), ConsoleConfig::file("/l")),
        (limited("/l"), ConsoleConfig::file("/l.2")),
        (limited("/l"), limited("/m")),
    ] {
        let mut config = good();
        (config.serial, config.console) = (serial, console);
        config.validate(HOST).unwrap();
    }
}

#[test]
fn consoles_need_their_files_and_only_one_has_stdio() {
    assert_eq!(
        error(|c| c.serial.mode = ConsoleMode::File),
        "serial: mode File needs a file"
    );
    assert_eq!(
        error(|c| c.console.mode = ConsoleMode::File),
        "console: mode File needs a file"
    );
    let limited = |limit: Option<u64>, keep: Option<u32>| {
        error(|c| {
            c.serial = ConsoleConfig {
                limit,
                keep,
                ..ConsoleConfig::file("/f")
            }
        })
    };
    assert_eq!(
        limited(Some(4_095), None),
        "serial.limit: 4095 is not supported, allowed: 4096 bytes or more"
    );
    assert_eq!(
        limited(Some(4_096), Some(100)),
        "serial.keep: 100 is not supported, allowed: 0 to 99 files"
    );
    let named = |c: &mut VmConfig| c.console.identifier = Some("a\nPRIORITY=0".into());
    assert_eq!(
        error(named),
        "console.identifier: 'a\\nPRIORITY=0' is not supported, allowed: 1 to 64 letters, digits, _, . and -"
    );
    let both = |c: &mut VmConfig| (c.serial.mode, c.console.mode) = (ConsoleMode::Tty, ConsoleMode::Tty);
    assert_eq!(error(both), "serial and console both use stdio, only one of them can");
}
