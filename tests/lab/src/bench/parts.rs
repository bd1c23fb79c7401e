//! Profiles in parts, each with a guest of its own that measures by its own clock and prints what it came to.

use std::collections::BTreeMap;
use std::fmt::Display;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::emulated::{Extent, Profile, Session};
use super::rounds::FigureDef;
use super::subject::{Guest, Kind, Subject};
use super::{Results, scripted};
use crate::paths::Lab;

/// The word of the kernel's command line that tells the part.
const PART: &str = "bench.part";

/// A profile in parts.
pub struct InParts<P: 'static> {
    /// Which.
    pub profile: Profile,
    /// The image of its guests.
    pub image: &'static str,
    /// What they do, with the part as `$part`.
    pub commands: String,
    /// The parts that there are.
    pub all: &'static [P],
    /// The figures of all of them.
    pub figures: &'static [FigureDef<Figures>],
}

impl<P: Display> InParts<P> {
    /// Measures `subjects` in the parts of the names `chosen`, or in all.
    ///
    /// # Errors
    ///
    /// An emulated host cannot be made.
    pub fn run(self, lab: &Lab, subjects: Vec<&Subject>, extent: Extent, chosen: &[String]) -> Result<Results> {
        let guest_init = super::guest_init(lab)?;
        let session = Session {
            profile: self.profile,
            subjects,
            extent,
            files: vec![scripted::image(lab, &guest_init, self.image, &script(&self.commands))?],
            guest_init,
            parts: places(self.all, chosen),
            figure_defs: self.figures,
        };
        session.run(lab)
    }
}

/// The script of a guest that is told which part of a profile it measures: `commands`, which have
/// it as `$part`, once the guest has come to rest.
fn script(commands: &str) -> String {
    format!(
        "set -e\n/init rest >/dev/null\nfor word in $(cat /proc/cmdline); do case $word in {PART}=*) part=${{word#*=}};; esac; done\n{commands}"
    )
}

/// A guest of such an image, told that it measures `part`.
pub fn guest(image: &str, part: &impl Display) -> Guest {
    let mut guest = scripted::guest(image);
    guest.cmdline.push_str(&format!(" {PART}={part}"));
    guest
}

/// Which of `all` parts have one of `names`, by their places: all of them if there are no names.
fn places(all: &[impl Display], names: &[String]) -> Vec<usize> {
    let is_chosen = |part: &str| names.is_empty() || names.iter().any(|name| name == part);
    let parts = all.iter().enumerate();
    let chosen = parts.filter(|(_, part)| is_chosen(&part.to_string()));
    chosen.map(|(place, _)| place).collect()
}

/// What one life of a subject came to, by the figures' names. What could not be had is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures(BTreeMap<String, f64>);

impl Figures {
    /// Those that a guest has `printed`. What there is none of is said.
    pub fn had(kind: Kind, printed: &[String]) -> Self {
        let mut figures = Self::default();
        for line in printed {
            let figure = line
                .split_once(' ')
                .and_then(|(name, value)| Some((name, value.parse().ok()?)));
            match figure {
                Some((name, value)) => figures.add(name, value),
                None => println!("{}: {line}", kind.name()),
            }
        }
        figures
    }

    /// One more.
    pub fn add(&mut self, name: &str, value: f64) {
        self.0.insert(name.into(), value);
    }

    /// The figure of this name.
    pub fn of(&self, name: &str) -> f64 {
        self.0.get(name).copied().unwrap_or(f64::NAN)
    }

    /// Itself.
    ///
    /// # Errors
    ///
    /// There is no figure at all.
    pub fn of_any(self) -> Result<Self> {
        ensure!(!self.0.is_empty(), "no figure at all");
        Ok(self)
    }
}

/// What is made of [`Figures`]: `"NAME" in "UNIT"`, one after the other.
macro_rules! figures_of {
    ($($name:literal in $unit:literal,)*) => {
        [$(($name, $unit, |figures| figures.of($name))),*]
    };
}
pub(super) use figures_of;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_that_cannot_be_had_costs_no_other() {
        let printed = [
            "lookup_us 12.5",
            "no untar_ms: tar: no space",
            "random_4k_iops_1 900.000",
        ];
        let figures = Figures::had(Kind::HuskFs, &printed.map(String::from)).of_any().unwrap();
        assert_eq!((figures.of("lookup_us"), figures.of("random_4k_iops_1")), (12.5, 900.0));
        assert!(figures.of("untar_ms").is_nan());
        // It crosses a serial line as JSON.
        let line = serde_json::to_string(&figures).unwrap();
        assert_eq!(serde_json::from_str::<Figures>(&line).unwrap(), figures);
        assert!(
            Figures::had(Kind::HuskFs, &["no lookup_us: no share".into()])
                .of_any()
                .is_err()
        );
    }

    #[test]
    fn parts_are_chosen_by_name_and_all_without_one() {
        let all = ["read", "write", "random"];
        let places = |names: &[&str]| places(&all, &names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
        assert_eq!(places(&[]), [0, 1, 2]);
        assert_eq!(places(&["random", "read", "names"]), [0, 2]);
    }

    #[test]
    fn a_guest_is_told_its_part_and_its_script_finds_it() {
        let guest = guest("x.cpio", &"random");
        assert!(guest.cmdline.ends_with(" bench.part=random"), "{}", guest.cmdline);
        let script = script("echo is $part\n")
            .replace("/proc/cmdline", "-")
            .replace("/init rest", "true");
        let mut shell = std::process::Command::new("sh");
        shell.arg("-c").arg(format!("echo '{}' | ({script})", guest.cmdline));
        assert_eq!(String::from_utf8_lossy(&shell.output().unwrap().stdout), "is random\n");
    }
}
