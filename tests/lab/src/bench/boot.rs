//! The profile `boot`: a stock kernel in the emulated host, where the clock counts instructions.
//!
//! The measuring is done in there, by this same program: a clock outside would measure the emulation.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use husk_guest::{Step, step};
use serde::{Deserialize, Serialize};

use super::measure::{self, Life};
use super::rounds::{self, Extract, Samples};
use super::subject::{Guest, Kind, Subject};
use super::{Results, portable};
use crate::archive::Archive;
use crate::build::Programs;
use crate::emulator::{Emulator, Finished, Request, Timing};
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};
use crate::progress;

/// When a run is taken to hang, in virtual time: ten times what the slowest subject takes. A guest that waits gets there at once.
const LIMIT: Duration = Duration::from_secs(30);

/// When the emulated host is taken to hang, for each run in it: ten times what one takes.
const TIMEOUT_A_RUN: Duration = Duration::from_secs(300);

const MEMORY_MIB: u32 = 512;
const PLAN: &str = "plan.json";
const LIVES: &str = "lives.json";

/// What to measure in the emulated host.
#[derive(clap::Args)]
pub struct MeasureArgs {
    /// The plan.
    plan: PathBuf,
    /// Where the results go.
    lives: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    subjects: Vec<Subject>,
    runs: u32,
}

/// A subject's times in milliseconds to init and to the exit, or why there are none.
#[derive(Serialize, Deserialize)]
struct Lives {
    kind: Kind,
    outcome: Result<Vec<(f64, f64)>, String>,
}

/// From exec to a stock kernel's init, and to the exit, in virtual time. There is no floor: it runs no kernel.
///
/// # Errors
///
/// The emulated host cannot be made, or died.
pub fn run(lab: &Lab, subjects: &[Subject], runs: u32) -> Result<Results> {
    let subjects: Vec<_> = subjects.iter().filter(|subject| subject.kind != Kind::Floor).collect();
    let husk = subjects.iter().find(|subject| subject.kind == Kind::Husk);
    let programs = Programs {
        husk: husk.context("no husk to boot with")?.program.clone(),
        guest_init: super::guest_init(lab)?,
    };
    let emulator = Emulator::prepare(lab, &programs)?;
    let request = request(lab, &subjects, runs, &programs.guest_init)?;
    let (mut said, what) = (
        Vec::new(),
        format!("boot: {runs} runs of each subject in the emulated host"),
    );
    let finished = progress::step(&what, || {
        emulator.run(&request, &mut |bytes| said.extend_from_slice(bytes))
    })?;
    let said = String::from_utf8_lossy(&said);
    ensure!(
        finished.exit == 0,
        "cannot measure in the emulated host: {}",
        said.trim()
    );
    summarise(&finished)
}

fn request(lab: &Lab, subjects: &[&Subject], runs: u32, init: &Path) -> Result<Request> {
    let folder = lab.path("bench");
    let mut files = vec![(std::env::current_exe()?, "bin/husk-lab".to_string())];
    let mut image = Archive::default();
    image.file("init", &fs::read(init)?)?;
    image.character_device("dev/null", 1, 3)?;
    paths::write(&folder.join("initramfs.cpio"), &image.finish()?)?;
    files.push((folder.join("initramfs.cpio"), "initramfs.cpio".into()));
    let mut there = Vec::new();
    for subject in subjects {
        there.push(portable::pack(subject, &mut files)?);
    }
    let boots = (runs + 1) * u32::try_from(there.len())?;
    let plan = serde_json::to_vec(&Plan { subjects: there, runs })?;
    paths::write(&folder.join(PLAN), &plan)?;
    files.push((folder.join(PLAN), PLAN.into()));
    let words = ["husk-lab", "measure", PLAN, &format!("out/{LIVES}")];
    Ok(Request {
        command: words.map(str::to_string).to_vec(),
        files,
        timing: Timing::Deterministic,
        timeout: Some(TIMEOUT_A_RUN * (boots + 1)),
        ..Request::default()
    })
}

fn summarise(finished: &Finished) -> Result<Results> {
    let file = finished.files.iter().find(|file| file.name == LIVES);
    let lives: Vec<Lives> = serde_json::from_slice(&file.context("nothing was measured")?.content)?;
    let samples: Vec<_> = lives
        .into_iter()
        .map(|Lives { kind, outcome }| Samples { kind, outcome })
        .collect();
    let extracts: [Extract<(f64, f64)>; 2] = [
        ("init_virtual_ms", "ms", |life| life.0),
        ("exit_virtual_ms", "ms", |life| life.1),
    ];
    Ok(rounds::summarise("boot", &samples, &extracts))
}

/// Measures in the emulated host.
///
/// # Errors
///
/// The plan cannot be read or the results not be written. A subject that fails is a result.
pub fn measure(arguments: &MeasureArgs) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(&arguments.plan)?).context("a strange plan")?;
    let scratch = tempfile::tempdir()?;
    let samples = rounds::interleaved(&plan.subjects, plan.runs, |subject| {
        measure::life(subject.start(&guest(subject.kind), scratch.path())?, LIMIT)
    });
    let times = |life: Life| (life.mark.as_secs_f64() * 1e3, life.exit.as_secs_f64() * 1e3);
    let lives: Vec<_> = samples
        .into_iter()
        .map(|Samples { kind, outcome }| Lives {
            kind,
            outcome: outcome.map(|lives| lives.into_iter().map(times).collect()),
        })
        .collect();
    fs::write(&arguments.lives, serde_json::to_vec(&lives)?)?;
    Ok(())
}

/// The same guest for all, but for its end. Firecracker has no ACPI S5 and ends on a reset; Cloud Hypervisor boots its guest
/// again on a reset and ends on S5 only.
fn guest(kind: Kind) -> Guest {
    let last = match kind {
        Kind::Firecracker => Step::Reset,
        _ => Step::PowerOff,
    };
    let steps = step::join(&[Step::Mark(husk_benches::MARK), last]);
    Guest {
        kernel: Path::new("/lab").join(HOST_KERNEL.name).join("vmlinux"),
        initramfs: Some("/work/initramfs.cpio".into()),
        cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 husk.do={steps}"),
        memory_mib: MEMORY_MIB,
        disk: None,
        vsock: None,
        tap: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_marks_and_then_ends_as_its_vmm_understands() {
        assert!(guest(Kind::Husk).cmdline.ends_with(" husk.do=mark:2,poweroff"));
        assert!(
            guest(Kind::CloudHypervisor)
                .cmdline
                .ends_with(" husk.do=mark:2,poweroff")
        );
        assert!(guest(Kind::Firecracker).cmdline.ends_with(" husk.do=mark:2,reset"));
    }

    #[test]
    fn lives_survive_the_way_out_of_the_emulated_host() {
        let lives = [
            Lives {
                kind: Kind::Husk,
                outcome: Ok(vec![(1.5, 2.5)]),
            },
            Lives {
                kind: Kind::QemuQ35,
                outcome: Err("no KVM".into()),
            },
        ];
        let content = serde_json::to_vec(&lives).unwrap();
        let files = vec![crate::archive::FileBack {
            name: LIVES.into(),
            content,
        }];
        let results = summarise(&Finished { exit: 0, files }).unwrap();
        assert_eq!(results.failures, [(Kind::QemuQ35, "no KVM".to_string())]);
        let medians: Vec<_> = results
            .figures
            .iter()
            .map(|figure| (figure.figure.as_str(), figure.median))
            .collect();
        assert_eq!(medians, [("init_virtual_ms", 1.5), ("exit_virtual_ms", 2.5)]);
    }
}
