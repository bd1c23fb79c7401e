//! `cargo lab demo`: from nothing to a pod's whole life.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use crate::command::{command, shown};
use crate::emulator::{Emulator, Request};
use crate::host::{Choice, Host};
use crate::kernel::HOST_KERNEL;
use crate::paths::Lab;
use crate::pool::HOSTS;
use crate::{build, images, progress, ready, sys};

/// When the emulated host is taken to hang.
const TIMEOUT: Duration = Duration::from_secs(900);

/// Shows a pod's life; whether it came up and powered off.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, or the emulated host died.
pub fn run(lab: &Lab, choice: &Choice) -> Result<bool> {
    progress::say(&choice.why);
    ready::ensure(lab, choice.host)?;
    progress::say("building husk");
    let programs = build::programs(lab)?;
    match choice.host {
        Host::Native => {
            images::ensure_guests(lab, &programs.guest_init)?;
            let mut life = command(std::env::current_exe()?);
            life.args(words(&lab.guest()));
            life.env("HUSK_LAB_DIR", lab.guest()).env("HUSK_BIN", &programs.husk);
            Ok(shown(&mut life).is_ok())
        }
        Host::Emulated => in_a_host_that_lasts(&Emulator::prepare(lab, &programs)?),
    }
}

/// As [`emulated`], in another emulated host when one dies, which the user is told.
fn in_a_host_that_lasts(emulator: &Emulator) -> Result<bool> {
    for _ in 1..HOSTS {
        match emulated(emulator) {
            Err(death) if !sys::interrupted() => {
                progress::say(&format!("{death:#}\nlab: the emulated host did not last: once more"))
            }
            ended => return ended,
        }
    }
    emulated(emulator)
}

fn emulated(emulator: &Emulator) -> Result<bool> {
    let mut request = Request {
        timeout: Some(TIMEOUT),
        ..Request::default()
    };
    request.command.push("husk-lab".into());
    request.command.extend(words(Path::new("/lab")));
    request.files.push((std::env::current_exe()?, "bin/husk-lab".into()));
    let mut booting = Some(progress::Ticker::start("booting the emulated host"));
    let exit = emulator.run(&request, &mut |bytes| {
        if let Some(ticker) = booting.take() {
            ticker.end("");
            progress::say(
                "the emulated host is up; times below are its own, ten times and more those of real hardware",
            );
        }
        let _ = std::io::stdout().write_all(bytes);
        let _ = std::io::stdout().flush();
    })?;
    Ok(exit == 0)
}

/// Arguments of `husk-lab life`.
fn words(guest: &Path) -> [String; 3] {
    let folder = guest.join(HOST_KERNEL.name);
    ["life".into(), "--guest".into(), folder.to_string_lossy().into_owned()]
}
