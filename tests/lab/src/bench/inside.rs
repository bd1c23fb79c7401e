//! `husk-lab measure`: the part of `cargo lab bench` that runs in the emulated host.
//!
//! The measuring is done in there, by this same program: a clock outside would measure the emulation.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::emulated::Profile;
use super::subject::Subject;
use super::wire::Line;
use super::work_queue::Life;
use super::{boot, broken, disk, folder, net, resize, vsock};

/// How often the host's clock is told, in counted time.
const BEAT: Duration = Duration::from_millis(500);

/// What to measure in the emulated host.
#[derive(clap::Args)]
pub struct MeasureArgs {
    /// What.
    #[arg(value_enum)]
    profile: Profile,
    /// The plan.
    plan: PathBuf,
}

/// What one emulated host is asked for.
#[derive(Serialize, Deserialize)]
pub struct Plan {
    /// Who is measured.
    pub subjects: Vec<Subject>,
    /// Their lives, one after the other.
    pub lives: Vec<Life>,
    /// Guests given up in hosts before this one.
    pub given_up: u32,
}

/// Measures in the emulated host, and says each thing when it is known.
///
/// # Errors
///
/// The plan cannot be read. A life that fails is a result.
pub fn measure(arguments: &MeasureArgs) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&fs::read(&arguments.plan)?).context("a strange plan")?;
    tell_the_time();
    match arguments.profile {
        Profile::Boot => live(&plan, |subject, scratch, _| boot::sample(subject, scratch)),
        Profile::Vsock => live(&plan, |subject, scratch, _| vsock::sample(subject, scratch)),
        Profile::Net => live(&plan, |subject, scratch, _| net::sample(subject, scratch)),
        Profile::Resize => live(&plan, |subject, scratch, _| resize::sample(subject, scratch)),
        Profile::Block => live(&plan, disk::sample),
        Profile::Fs => live(&plan, folder::sample),
    }
}

/// Tells the host's clock for as long as this process lives: while it does, whoever watches from outside knows that the host gets on.
fn tell_the_time() {
    let start = Instant::now();
    thread::spawn(move || {
        loop {
            let ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            Line::<()>::CountedMs(ms).print();
            thread::sleep(BEAT);
        }
    });
}

fn live<T: Serialize>(plan: &Plan, once: fn(&Subject, &Path, usize) -> Result<T>) -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let (mut failed, mut given_up) = (BTreeSet::new(), plan.given_up);
    for life in &plan.lives {
        let Some(subject) = plan.subjects.get(life.subject) else {
            continue;
        };
        if failed.contains(&life.subject) {
            continue;
        }
        Line::<T>::Begins(life.number).print();
        let broken = |why: &str| Line::<T>::Broken(life.number, why.into()).print();
        let outcome = broken::avoided(life, &mut given_up, broken, || once(subject, scratch.path(), life.part));
        if outcome.is_err() {
            failed.insert(life.subject);
        }
        Line::Ended(life.number, outcome.map_err(|error| format!("{error:#}"))).print();
    }
    Ok(())
}
