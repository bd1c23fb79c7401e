//! `cargo lab soak`: many pods one after another, or one pod that is resized many times, and nothing left of them.

mod census;
mod lives;
mod phases;
mod plan;
mod resizes;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;

use crate::command::{command, shown};
use crate::emulator::{Emulator, Request};
use crate::host::{Choice, Host};
use crate::kernel::HOST_KERNEL;
use crate::paths::Lab;
use crate::{build, images, progress, ready};

pub use lives::{LivesArgs, run as live};

/// What a pod may take at most before the emulated host is taken to hang. Most take a tenth of it.
const POD_TIMEOUT: Duration = Duration::from_secs(120);

/// As much for one resize. A few seconds are usual.
const RESIZE_TIMEOUT: Duration = Duration::from_secs(60);

/// How much to do.
#[derive(clap::Args)]
pub struct SoakArgs {
    /// How many pods.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    pods: u32,
    /// Give each pod so many vCPUs: every second four of them by their boot, the others by a resize once their guest runs.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=254))]
    vcpus: u32,
    /// Resize one pod so often in place of that, at random, while its guest works.
    #[arg(long, conflicts_with_all = ["pods", "vcpus"], value_parser = clap::value_parser!(u32).range(1..))]
    resizes: Option<u32>,
    /// What the resizes are chosen by: the same again for the same number.
    #[arg(long, default_value_t = 1, requires = "resizes")]
    seed: u64,
}

impl SoakArgs {
    /// When the emulated host is taken to hang: ten times what it should take.
    fn timeout(&self) -> Duration {
        match self.resizes {
            Some(resizes) => POD_TIMEOUT * 4 + RESIZE_TIMEOUT.saturating_mul(resizes),
            None => POD_TIMEOUT.saturating_mul(self.pods.saturating_add(2)),
        }
    }
}

/// Lets pods live one after another; whether all of them did, and left nothing.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, or the emulated host died.
pub fn run(lab: &Lab, choice: &Choice, arguments: &SoakArgs) -> Result<bool> {
    progress::say(&choice.why);
    ready::ensure(lab, choice.host)?;
    progress::say("building husk");
    let programs = build::programs(lab)?;
    match choice.host {
        Host::Native => {
            images::ensure_guests(lab, &programs.guest_init)?;
            let mut lives = command(std::env::current_exe()?);
            lives.args(words(arguments, &lab.guest()));
            lives.env("HUSK_LAB_DIR", lab.guest()).env("HUSK_BIN", &programs.husk);
            Ok(shown(&mut lives).is_ok())
        }
        Host::Emulated => emulated(&Emulator::prepare(lab, &programs)?, arguments),
    }
}

fn emulated(emulator: &Emulator, arguments: &SoakArgs) -> Result<bool> {
    let mut request = Request {
        timeout: Some(arguments.timeout()),
        ..Request::default()
    };
    request.command.push("husk-lab".into());
    request.command.extend(words(arguments, Path::new("/lab")));
    request.files.push((std::env::current_exe()?, "bin/husk-lab".into()));
    let mut booting = Some(progress::Ticker::start("booting the emulated host"));
    let exit = emulator.run(&request, &mut |bytes| {
        if let Some(ticker) = booting.take() {
            ticker.end("");
        }
        let _ = std::io::stdout().write_all(bytes);
        let _ = std::io::stdout().flush();
    })?;
    Ok(exit == 0)
}

/// Arguments of `husk-lab lives`.
fn words(arguments: &SoakArgs, guest: &Path) -> Vec<String> {
    let folder: PathBuf = guest.join(HOST_KERNEL.name);
    let mut words = vec!["lives".into(), "--guest".into(), folder.to_string_lossy().into_owned()];
    match arguments.resizes {
        Some(resizes) => words.extend([
            "--resizes".into(),
            resizes.to_string(),
            "--seed".into(),
            arguments.seed.to_string(),
        ]),
        None => words.extend([
            "--pods".into(),
            arguments.pods.to_string(),
            "--vcpus".into(),
            arguments.vcpus.to_string(),
        ]),
    }
    words
}
