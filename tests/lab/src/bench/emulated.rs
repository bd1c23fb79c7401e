//! Measuring in emulated hosts with deterministic time: lives go in, the sample of each comes out as soon as it is there.
//!
//! A host is watched from outside. One that is lost, or does not get on any more, costs the life that was under way: its samples are
//! here already, and the rest is measured in a new one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::de::DeserializeOwned;

pub use super::inside::{MeasureArgs, measure};

use super::inside::Plan;
use super::rounds::{self, FigureDef};
use super::subject::{Kind, Subject};
use super::wire::{Line, Lines};
use super::work_queue::{Life, WorkQueue};
use super::{Results, forecast, portable};
use crate::build::Programs;
use crate::emulator::{Emulator, Lost, Request, Timing};
use crate::paths::{self, Lab};
use crate::progress;
use crate::stall::HostProgress;
use crate::sys;

/// When an emulated host is given up at last, for each life in it: ten times what one takes.
const TIMEOUT_A_LIFE: Duration = Duration::from_secs(600);

const PLAN: &str = "plan.json";

/// What can be measured in the emulated host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Profile {
    /// A stock kernel's boot.
    Boot,
    /// Streams of vsock.
    Vsock,
    /// Traffic of a tap.
    Net,
    /// Resizes of a running pod.
    Resize,
    /// A disk.
    Block,
    /// Files of the host.
    Fs,
}

impl Profile {
    /// Its name in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::Boot => "boot",
            Self::Vsock => "vsock",
            Self::Net => "net",
            Self::Resize => "resize",
            Self::Block => "block",
            Self::Fs => "fs",
        }
    }
}

/// How much of it, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Extent {
    /// Lives of each subject that count.
    pub runs: u32,
    /// Processor time in which an emulated host has to get on.
    pub patience: Duration,
    /// How time passes in emulated hosts.
    pub timing: Timing,
}

/// A profile's part in it.
pub struct Session<'a, T: 'static> {
    /// Which.
    pub profile: Profile,
    /// Who is measured.
    pub subjects: Vec<&'a Subject>,
    /// How much of it.
    pub extent: Extent,
    /// The init of guests.
    pub guest_init: PathBuf,
    /// Files to take along beside the subjects: path here, path below `/work`.
    pub files: Vec<(PathBuf, String)>,
    /// Its parts that are measured, each with guests of its own; none if it is a whole.
    pub parts: Vec<usize>,
    /// What the samples say.
    pub figure_defs: &'static [FigureDef<T>],
}

impl<T: DeserializeOwned> Session<'_, T> {
    /// Boots emulated hosts, and measures there.
    ///
    /// # Errors
    ///
    /// An emulated host cannot be made.
    pub fn run(self, lab: &Lab) -> Result<Results> {
        let husk = self.subjects.iter().find(|subject| subject.kind == Kind::Husk);
        let programs = Programs {
            husk: husk.context("no husk to measure")?.program.clone(),
            guest_init: self.guest_init.clone(),
        };
        let name = self.profile.name();
        let mut files = self.files.clone();
        files.push((std::env::current_exe()?, "bin/husk-lab".to_string()));
        let (there, mut failures) = pack(&self.subjects, &mut files);
        for (kind, why) in &failures {
            progress::say(&format!("{name}: {}: left out: {why}", kind.name()));
        }
        let emulator = Emulator::prepare(lab, &programs)?;
        let mut measuring = Measuring::new(name, &there, self.extent, &self.parts, self.figure_defs);
        let what = format!("{name}: {} lives in emulated hosts", measuring.work_queue.all());
        progress::step(&what, || {
            measuring.carry_out(&mut |lives, given_up, progress, output| {
                let plan = Plan {
                    subjects: there.clone(),
                    lives,
                    given_up,
                };
                let request = Request {
                    timing: self.extent.timing,
                    ..request(lab, self.profile, &plan, &files, progress)?
                };
                emulator.run(&request, output)
            })
        })?;
        let mut results = measuring.results();
        failures.append(&mut results.failures);
        results.failures = failures;
        Ok(results)
    }
}

/// The subjects as they are started in the emulated host, and why some cannot be; what they need is added to `files`.
fn pack(subjects: &[&Subject], files: &mut Vec<(PathBuf, String)>) -> (Vec<Subject>, Vec<(Kind, String)>) {
    let (mut there, mut failures) = (Vec::new(), Vec::new());
    for subject in subjects {
        let known = files.len();
        match portable::pack(subject, files) {
            Ok(subject) => there.push(subject),
            Err(error) => {
                files.truncate(known);
                failures.push((subject.kind, format!("{error:#}")));
            }
        }
    }
    (there, failures)
}

fn request(
    lab: &Lab,
    profile: Profile,
    plan: &Plan,
    files: &[(PathBuf, String)],
    progress: &Arc<HostProgress>,
) -> Result<Request> {
    let file = lab.path("bench").join(PLAN);
    paths::write(&file, &serde_json::to_vec(plan)?)?;
    let mut files = files.to_vec();
    files.push((file, PLAN.into()));
    let words = ["husk-lab", "measure", profile.name(), PLAN];
    Ok(Request {
        command: words.map(str::to_string).to_vec(),
        files,
        // With it more lives came to their end, in one run each way (docs/benchmarks.md).
        steady: matches!(profile, Profile::Fs | Profile::Block),
        // And one for the host's own boot.
        timeout: Some(TIMEOUT_A_LIFE * (u32::try_from(plan.lives.len())? + 1)),
        progress: Some(Arc::clone(progress)),
        ..Request::default()
    })
}

/// Has an emulated host measure these lives, after so many guests were given up, and passes on what it says.
type Host<'a> = dyn FnMut(Vec<Life>, u32, &Arc<HostProgress>, &mut dyn FnMut(&[u8])) -> Result<i32> + 'a;

/// A profile that is being measured.
struct Measuring<T: 'static> {
    name: &'static str,
    patience: Duration,
    figure_defs: &'static [FigureDef<T>],
    work_queue: WorkQueue<T>,
    begun: Instant,
}

impl<T: DeserializeOwned> Measuring<T> {
    fn new(
        name: &'static str,
        subjects: &[Subject],
        extent: Extent,
        parts: &[usize],
        figure_defs: &'static [FigureDef<T>],
    ) -> Self {
        Self {
            name,
            patience: extent.patience,
            figure_defs,
            work_queue: WorkQueue::new(subjects.iter().map(|subject| subject.kind), extent.runs, parts),
            begun: Instant::now(),
        }
    }

    /// Gives hosts what is left to measure until nothing is.
    fn carry_out(&mut self, host: &mut Host) -> Result<()> {
        loop {
            let lives = self.work_queue.rest();
            if lives.is_empty() {
                return Ok(());
            }
            let progress = Arc::new(HostProgress::new(self.patience));
            let given_up = u32::try_from(self.work_queue.given_up().len())?;
            let (mut lines, mut last_line) = (Lines::default(), String::new());
            let ended = host(lives, given_up, &progress, &mut |bytes| {
                lines.more(bytes, |line| {
                    if !self.hear(line, &progress) {
                        line.clone_into(&mut last_line);
                    }
                });
            });
            match ended {
                Ok(_) if self.work_queue.rest().is_empty() => {}
                Ok(exit) => self.lose(&format!("ended before its lives did, with {exit}: {last_line}")),
                Err(error) => match error.downcast_ref::<Lost>() {
                    Some(lost) if !sys::interrupted() => {
                        progress::say(&format!("{}: the emulated host was lost: {error:#}", self.name));
                        self.lose(&lost.why);
                    }
                    _ => return Err(error),
                },
            }
        }
    }

    /// Takes note of a line of the host, and tells the user what there is to tell; whether it was one for the lab.
    fn hear(&mut self, line: &str, progress: &HostProgress) -> bool {
        let name = self.name;
        let heard = Line::<T>::parse(line);
        let is_for_lab = heard.is_some();
        let said = match heard {
            Some(Line::CountedMs(ms)) => {
                progress.counted(ms);
                return true;
            }
            Some(Line::Begins(life)) => {
                self.work_queue.begins(life);
                None
            }
            Some(Line::Broken(life, why)) => {
                let kind = self.work_queue.broken(life, why.clone());
                kind.map(|kind| format!("{}: the emulation has broken its guest: {why}; once more", kind.name()))
            }
            Some(Line::Ended(life, outcome)) => {
                let what = match &outcome {
                    Ok(sample) => rounds::told(sample, self.figure_defs),
                    Err(why) => format!("failed: {why}"),
                };
                let kind = self.work_queue.ended(life, outcome);
                kind.map(|kind| format!("{}: {what}; {}", kind.name(), self.how_far()))
            }
            None => Some(line.trim_start_matches("lab: ").to_string()),
        };
        progress.line();
        if let Some(said) = said {
            progress::say(&format!("{name}: {said}"));
        }
        is_for_lab
    }

    fn lose(&mut self, why: &str) {
        let lost = match self.work_queue.host_lost(why) {
            Some(kind) => format!("a life of {} was under way", kind.name()),
            None => "no life was under way".into(),
        };
        let (left, all) = (self.work_queue.rest().len(), self.work_queue.all());
        let rest = match left {
            0 => String::new(),
            left => format!("; what is left, {left} of {all} lives, goes on in a new one"),
        };
        progress::say(&format!("{}: {lost}{rest}", self.name));
    }

    /// How many lives are done, and about how long the others take.
    fn how_far(&self) -> String {
        let (left, all) = (self.work_queue.rest().len(), self.work_queue.all());
        forecast::how_far(all.saturating_sub(left), left, self.begun.elapsed())
    }

    fn results(self) -> Results {
        let (samples, given_up) = self.work_queue.into_parts();
        let mut results = rounds::summarise(self.name, &samples, self.figure_defs);
        results.given_up = given_up;
        results
    }
}

#[cfg(test)]
#[path = "emulated_test.rs"]
mod tests;
