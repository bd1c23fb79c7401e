//! `cargo lab demo`: from nothing to a guest's whole life.

use std::ffi::OsString;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{command, shown};
use crate::emulator::{Emulator, Request};
use crate::host::{Choice, Host};
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};
use crate::test::HOSTS;
use crate::{build, images, progress};

/// When the emulated host is taken to hang.
const TIMEOUT: Duration = Duration::from_secs(300);

/// The boot trace's name.
const TRACE: &str = "boot-trace.json";

/// Shows a guest's life; whether it came up and powered off.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, or the emulated host died.
pub fn run(lab: &Lab, choice: &Choice) -> Result<bool> {
    progress::say(&choice.why);
    progress::say("building husk");
    let programs = build::programs(lab)?;
    let kept = lab.path("demo").join(TRACE);
    let lived = match choice.host {
        Host::Native => {
            images::ensure_guests(lab, &programs.guest_init)?;
            let folder = kept.parent().context("a file needs a folder")?;
            std::fs::create_dir_all(folder)?;
            let mut life = command(std::env::current_exe()?);
            shown(life.args(life_arguments(&programs.husk, &lab.guest(), &kept))).is_ok()
        }
        Host::Emulated => in_a_host_that_lasts(&Emulator::prepare(lab, &programs)?, &kept)?,
    };
    if lived {
        progress::say(&format!("boot trace for ui.perfetto.dev: {}", kept.display()));
    }
    Ok(lived)
}

/// As [`emulated`], in another emulated host when one dies, which the user is told.
fn in_a_host_that_lasts(emulator: &Emulator, kept: &Path) -> Result<bool> {
    for _ in 1..HOSTS {
        match emulated(emulator, kept) {
            Err(death) => progress::say(&format!("{death:#}\nlab: the emulated host did not last: once more")),
            lived => return lived,
        }
    }
    emulated(emulator, kept)
}

fn emulated(emulator: &Emulator, kept: &Path) -> Result<bool> {
    let arguments = life_arguments("bin/husk".as_ref(), "/lab".as_ref(), &Path::new("out").join(TRACE));
    let mut request = Request {
        timeout: Some(TIMEOUT),
        ..Request::default()
    };
    request.command.push("husk-lab".into());
    request
        .command
        .extend(arguments.iter().map(|word| word.to_string_lossy().into_owned()));
    request.files.push((std::env::current_exe()?, "bin/husk-lab".into()));
    let mut booting = Some(progress::Ticker::start("booting the emulated host"));
    let finished = emulator.run(&request, &mut |bytes| {
        if let Some(ticker) = booting.take() {
            ticker.end("");
            progress::say(
                "the emulated host is up; times below are its own, ten times and more those of real hardware",
            );
        }
        let _ = std::io::stdout().write_all(bytes);
        let _ = std::io::stdout().flush();
    })?;
    if let Some(trace) = finished.files.iter().find(|file| file.name == TRACE) {
        paths::write(kept, &trace.content)?;
    }
    Ok(finished.exit == 0)
}

/// Arguments of `husk-lab life`.
fn life_arguments(husk: &Path, guest: &Path, trace: &Path) -> Vec<OsString> {
    let folder = guest.join(HOST_KERNEL.name);
    let mut words: Vec<OsString> = vec!["life".into()];
    let options = [
        ("--husk", husk.to_path_buf()),
        ("--kernel", folder.join("vmlinuz")),
        ("--initramfs", folder.join("initramfs.cpio")),
        ("--trace", trace.to_path_buf()),
    ];
    for (option, value) in options {
        words.extend([option.into(), value.into_os_string()]);
    }
    words
}
