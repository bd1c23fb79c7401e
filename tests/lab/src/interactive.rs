//! `cargo lab shell` and `cargo lab run`: the emulated host for a person.

use anyhow::Result;

use crate::build;
use crate::emulator::{Emulator, Request, Terminal};
use crate::paths::Lab;
use crate::progress;

/// Opens a shell in the emulated host; its exit code.
///
/// # Errors
///
/// The emulated host cannot be made or died.
pub fn shell(lab: &Lab) -> Result<i32> {
    let emulator = Emulator::prepare(lab, &build::programs(lab)?)?;
    progress::say("booting the emulated host; leave with exit. Try:");
    let kernel = "/lab/6.12";
    progress::say(&format!(
        "  husk run --kernel {kernel}/vmlinuz --initramfs {kernel}/shell.cpio --cpus 2"
    ));
    let env = vec![
        ("TERM".into(), std::env::var("TERM").unwrap_or_else(|_| "dumb".into())),
        ("PS1".into(), "host# ".into()),
    ];
    let command = vec!["sh".into(), "-i".into()];
    let request = Request {
        command,
        env,
        terminal: Terminal::Given,
        ..Request::default()
    };
    emulator.run(&request, &mut |_| {})
}

/// Runs husk with `arguments` in the emulated host; its exit code.
///
/// # Errors
///
/// As [`shell`].
pub fn husk(lab: &Lab, arguments: &[String]) -> Result<i32> {
    let emulator = Emulator::prepare(lab, &build::programs(lab)?)?;
    progress::say("booting the emulated host; kernels are in /lab. Ctrl-C ends it");
    let mut command = vec!["husk".to_string()];
    command.extend(arguments.iter().cloned());
    let request = Request {
        command,
        terminal: Terminal::Shared,
        ..Request::default()
    };
    emulator.run(&request, &mut |_| {})
}
