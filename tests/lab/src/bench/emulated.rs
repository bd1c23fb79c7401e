//! Measuring in the emulated host with deterministic time: a plan goes in, the samples of each subject come out.
//!
//! The measuring is done in there, by this same program: a clock outside would measure the emulation.

use std::fmt::Debug;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::rounds::{self, Extract, Samples};
use super::subject::{Kind, Subject};
use super::{Results, boot, net, portable, standstill, vsock};
use crate::build::Programs;
use crate::emulator::{Emulator, Finished, Request, Timing};
use crate::paths::{self, Lab};
use crate::progress;

/// When the emulated host is taken to hang, for each run in it: ten times what one takes.
const TIMEOUT_A_RUN: Duration = Duration::from_secs(600);

const PLAN: &str = "plan.json";
const SAMPLES: &str = "samples.json";

/// What can be measured in the emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// A stock kernel's boot.
    Boot,
    /// Streams of vsock.
    Vsock,
    /// Traffic of a tap.
    Net,
}

impl Profile {
    /// Its name in results.
    fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Vsock => "vsock",
            Self::Net => "net",
        }
    }
}

/// What to measure in the emulated host.
#[derive(clap::Args)]
pub struct MeasureArgs {
    /// What.
    #[arg(value_enum)]
    profile: Profile,
    /// The plan.
    plan: PathBuf,
    /// Where the samples go.
    samples: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Plan {
    subjects: Vec<Subject>,
    runs: u32,
}

/// A subject's samples, or why there are none, on their way out.
#[derive(Serialize, Deserialize)]
struct Outcome<T> {
    kind: Kind,
    outcome: Result<Vec<T>, String>,
}

/// A profile's part in it.
pub struct Session<'a, T: 'static> {
    /// Which.
    pub profile: Profile,
    /// Who is measured.
    pub subjects: Vec<&'a Subject>,
    /// How often.
    pub runs: u32,
    /// The init of guests.
    pub guest_init: PathBuf,
    /// Files to take along beside the subjects: path here, path below `/work`.
    pub files: Vec<(PathBuf, String)>,
    /// What the samples say.
    pub extracts: &'static [Extract<T>],
}

impl<T: DeserializeOwned> Session<'_, T> {
    /// Boots the emulated host and measures there.
    ///
    /// # Errors
    ///
    /// The emulated host cannot be made, or died.
    pub fn run(self, lab: &Lab) -> Result<Results> {
        let husk = self.subjects.iter().find(|subject| subject.kind == Kind::Husk);
        let programs = Programs {
            husk: husk.context("no husk to measure")?.program.clone(),
            guest_init: self.guest_init.clone(),
        };
        let emulator = Emulator::prepare(lab, &programs)?;
        let request = self.request(lab)?;
        let name = self.profile.name();
        let what = format!("{name}: {} runs of each subject in the emulated host", self.runs);
        let mut said = Said::default();
        let finished = progress::step(&what, || emulator.run(&request, &mut |bytes| said.more(bytes)))?;
        ensure!(
            finished.exit == 0,
            "cannot measure in the emulated host: {}",
            said.last_line
        );
        summarise(name, &finished, self.extracts)
    }

    fn request(&self, lab: &Lab) -> Result<Request> {
        let mut files = self.files.clone();
        files.push((std::env::current_exe()?, "bin/husk-lab".to_string()));
        let mut there = Vec::new();
        for subject in &self.subjects {
            there.push(portable::pack(subject, &mut files)?);
        }
        // One round more than is counted, and the host's own boot.
        let lives = (self.runs + 1) * u32::try_from(there.len())? + 1;
        let plan = serde_json::to_vec(&Plan {
            subjects: there,
            runs: self.runs,
        })?;
        let file = lab.path("bench").join(PLAN);
        paths::write(&file, &plan)?;
        files.push((file, PLAN.into()));
        let words = ["husk-lab", "measure", self.profile.name(), PLAN];
        let mut command = words.map(str::to_string).to_vec();
        command.push(format!("out/{SAMPLES}"));
        Ok(Request {
            command,
            files,
            timing: Timing::Deterministic,
            timeout: Some(TIMEOUT_A_RUN * lives),
            ..Request::default()
        })
    }
}

/// What the program in the emulated host says, shown line by line as it comes.
#[derive(Default)]
struct Said {
    open: Vec<u8>,
    last_line: String,
}

impl Said {
    fn more(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if *byte != b'\n' {
                self.open.push(*byte);
                continue;
            }
            let line = String::from_utf8_lossy(&std::mem::take(&mut self.open))
                .trim()
                .to_string();
            if !line.is_empty() {
                progress::say(line.trim_start_matches("lab: "));
                self.last_line = line;
            }
        }
    }
}

fn summarise<T: DeserializeOwned>(name: &str, finished: &Finished, extracts: &[Extract<T>]) -> Result<Results> {
    let file = finished.files.iter().find(|file| file.name == SAMPLES);
    let outcomes: Vec<Outcome<T>> = serde_json::from_slice(&file.context("nothing was measured")?.content)?;
    let samples: Vec<_> = outcomes
        .into_iter()
        .map(|Outcome { kind, outcome }| Samples { kind, outcome })
        .collect();
    Ok(rounds::summarise(name, &samples, extracts))
}

/// Measures in the emulated host.
///
/// # Errors
///
/// The plan cannot be read or the samples not be written. A subject that fails is a result.
pub fn measure(arguments: &MeasureArgs) -> Result<()> {
    let samples = match arguments.profile {
        Profile::Boot => sample(arguments, boot::sample)?,
        Profile::Vsock => sample(arguments, vsock::sample)?,
        Profile::Net => sample(arguments, net::sample)?,
    };
    fs::write(&arguments.samples, samples)?;
    Ok(())
}

fn sample<T: Serialize + Debug>(arguments: &MeasureArgs, once: fn(&Subject, &Path) -> Result<T>) -> Result<Vec<u8>> {
    let plan: Plan = serde_json::from_slice(&fs::read(&arguments.plan)?).context("a strange plan")?;
    let scratch = tempfile::tempdir()?;
    let all = (plan.runs + 1) * u32::try_from(plan.subjects.len())?;
    let mut done = 0;
    let samples = rounds::interleaved(&plan.subjects, plan.runs, |subject| {
        let name = subject.kind.name();
        let result = standstill::avoided(name, || once(subject, scratch.path()));
        done += 1;
        match &result {
            Ok(sample) => println!("{done} of {all}: {name}: {sample:?}"),
            Err(error) => println!("{done} of {all}: {name}: failed: {error:#}"),
        }
        result
    });
    let outcomes: Vec<_> = samples
        .into_iter()
        .map(|Samples { kind, outcome }| Outcome { kind, outcome })
        .collect();
    Ok(serde_json::to_vec(&outcomes)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::FileBack;

    #[test]
    fn samples_survive_the_way_out_of_the_emulated_host() {
        let outcomes = [
            Outcome {
                kind: Kind::Husk,
                outcome: Ok(vec![(1.5, 2.5)]),
            },
            Outcome {
                kind: Kind::QemuQ35,
                outcome: Err("no KVM".into()),
            },
        ];
        let files = vec![FileBack {
            name: SAMPLES.into(),
            content: serde_json::to_vec(&outcomes).unwrap(),
        }];
        let extracts: [Extract<(f64, f64)>; 2] = [("a_ms", "ms", |sample| sample.0), ("b_ms", "ms", |sample| sample.1)];
        let results = summarise("boot", &Finished { exit: 0, files }, &extracts).unwrap();
        assert_eq!(results.failures, [(Kind::QemuQ35, "no KVM".to_string())]);
        let medians: Vec<_> = results
            .figures
            .iter()
            .map(|figure| (figure.figure.as_str(), figure.median))
            .collect();
        assert_eq!(medians, [("a_ms", 1.5), ("b_ms", 2.5)]);
    }

    #[test]
    fn the_last_whole_line_is_kept_however_it_comes() {
        let mut said = Said::default();
        for bytes in [&b"lab: fir"[..], b"st\r\nlab: sec", b"ond\r\n", b"\r\nrest"] {
            said.more(bytes);
        }
        assert_eq!(said.last_line, "lab: second");
    }
}
