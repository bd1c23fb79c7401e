//! `cargo lab shell` and `cargo lab run`: the emulated host for a person.

use anyhow::Result;

use crate::emulator::{Emulator, Request, Terminal};
use crate::host::Host;
use crate::paths::Lab;
use crate::{build, progress, ready};

/// Where files come back to, below `target/lab`.
const OUT: &str = "out";

/// Runs `request`, and says what has come back of its files.
fn run(emulator: &Emulator, request: &Request) -> Result<i32> {
    let exit = emulator.run(request, &mut |_| {})?;
    if let Some(out) = request.out.as_ref().filter(|out| out.exists()) {
        progress::say(&format!("what was left in out/ is in {}", out.display()));
    }
    Ok(exit)
}

/// Opens a shell in the emulated host; its exit code.
///
/// # Errors
///
/// The emulated host cannot be made or died.
pub fn shell(lab: &Lab) -> Result<i32> {
    ready::ensure(lab, Host::Emulated)?;
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
        out: Some(lab.path(OUT)),
        ..Request::default()
    };
    run(&emulator, &request)
}

/// Runs husk with `arguments` in the emulated host; its exit code.
///
/// # Errors
///
/// As [`shell`].
pub fn husk(lab: &Lab, arguments: &[String]) -> Result<i32> {
    ready::ensure(lab, Host::Emulated)?;
    let emulator = Emulator::prepare(lab, &build::programs(lab)?)?;
    progress::say("booting the emulated host; kernels are in /lab. Ctrl-C ends it");
    let mut command = vec!["husk".to_string()];
    command.extend(arguments.iter().cloned());
    let request = Request {
        command,
        terminal: Terminal::Shared,
        out: Some(lab.path(OUT)),
        ..Request::default()
    };
    run(&emulator, &request)
}
