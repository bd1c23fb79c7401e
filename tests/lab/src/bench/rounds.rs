//! Interleaved runs: one of each subject in turn, so that whatever else the machine does meets all of them alike.
//!
//! A subject also leaves something behind for the next, warm caches or a busy kernel: so each round
//! begins with another subject, and every other round runs backwards.

use anyhow::Result;

use super::Results;
use super::figures::Figure;
use super::subject::{Kind, Subject};

/// A figure to be made of every sample: its name, its unit and its value.
pub type FigureDef<T> = (&'static str, &'static str, fn(&T) -> f64);

/// One subject's turn in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    /// Index of the subject.
    pub subject: usize,
    /// Whether its sample counts: that of the first round does not.
    pub counts: bool,
    /// Which part of the profile it measures.
    pub part: usize,
}

/// The samples of one subject.
#[derive(Debug)]
pub struct Samples<T> {
    /// Who was measured.
    pub kind: Kind,
    /// One a run, as far as it went.
    pub values: Vec<T>,
    /// Why it went no further.
    pub failure: Option<String>,
}

impl<T> Samples<T> {
    /// None yet.
    pub fn none(kind: Kind) -> Self {
        Self {
            kind,
            values: Vec::new(),
            failure: None,
        }
    }

    /// Adds what a turn came to.
    pub fn add(&mut self, turn: Turn, outcome: Result<T, String>) {
        match outcome {
            Ok(value) if turn.counts => self.values.push(value),
            Ok(_) => {}
            Err(why) => self.failure = Some(why),
        }
    }
}

/// Measures every subject `runs` times and once before that, which does not count. Who fails is not asked again.
pub fn interleaved<T>(
    subjects: &[Subject],
    runs: u32,
    mut sample: impl FnMut(&Subject) -> Result<T>,
) -> Vec<Samples<T>> {
    let mut all: Vec<_> = subjects.iter().map(|subject| Samples::none(subject.kind)).collect();
    for turn in order(subjects.len(), runs) {
        if let (Some(subject), Some(samples)) = (subjects.get(turn.subject), all.get_mut(turn.subject))
            && samples.failure.is_none()
        {
            samples.add(turn, sample(subject).map_err(|error| format!("{error:#}")));
        }
    }
    all
}

/// All turns of all rounds.
pub fn order(subjects: usize, runs: u32) -> Vec<Turn> {
    let round = |round| {
        turns(subjects, round).into_iter().map(move |subject| Turn {
            subject,
            counts: round > 0,
            part: 0,
        })
    };
    (0..=runs).flat_map(round).collect()
}

/// All turns of a profile that has these parts: each has a round of its own. A profile that is a
/// whole has a first round that does not count; here the first part warms up what the others use.
pub fn order_of_parts(subjects: usize, runs: u32, parts: &[usize]) -> Vec<Turn> {
    if parts.is_empty() {
        return order(subjects, runs);
    }
    let round = |round: u32| {
        let turns = move |part: &usize| {
            let part = *part;
            turns(subjects, round).into_iter().map(move |subject| Turn {
                subject,
                counts: true,
                part,
            })
        };
        parts.iter().flat_map(turns)
    };
    (0..runs).flat_map(round).collect()
}

/// Who comes when in a round.
fn turns(subjects: usize, round: u32) -> Vec<usize> {
    let mut turns: Vec<usize> = (0..subjects).collect();
    if let Some(first) = usize::try_from(round / 2)
        .ok()
        .and_then(|half| half.checked_rem(subjects))
    {
        turns.rotate_left(first);
    }
    if round % 2 == 1 {
        turns.reverse();
    }
    turns
}

/// Makes figures of samples, figure by figure.
pub fn summarise<T>(profile: &str, samples: &[Samples<T>], figure_defs: &[FigureDef<T>]) -> Results {
    let mut results = Results::default();
    for (figure, unit, value) in figure_defs {
        for samples in samples {
            // What a subject cannot do is no number.
            let values = samples.values.iter().map(value).filter(|value| value.is_finite());
            let figure = Figure::new(profile, figure, unit, samples.kind.name(), values.collect());
            results.figures.extend(figure);
        }
    }
    for Samples { kind, failure, .. } in samples {
        results.failures.extend(failure.clone().map(|why| (*kind, why)));
    }
    results
}

/// The figures of one sample, each with its unit.
pub fn told<T>(sample: &T, figure_defs: &[FigureDef<T>]) -> String {
    let values = figure_defs
        .iter()
        .map(|(figure, unit, value)| (figure, unit, value(sample)));
    let figures = values
        .filter(|(_, _, value)| value.is_finite())
        .map(|(figure, unit, value)| format!("{figure} {value:.2} {unit}"));
    figures.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn subjects(kinds: [Kind; 2]) -> [Subject; 2] {
        kinds.map(|kind| Subject::new(kind, "/bin/true"))
    }

    #[test]
    fn subjects_take_turns_and_the_first_round_does_not_count() {
        let mut order = Vec::new();
        let samples = interleaved(&subjects([Kind::Husk, Kind::Floor]), 2, |subject| {
            order.push(subject.kind);
            Ok(order.len())
        });
        let (husk, floor) = (Kind::Husk, Kind::Floor);
        assert_eq!(order, [husk, floor, floor, husk, floor, husk]);
        assert_eq!(samples[0].values, [4, 6]);
    }

    #[test]
    fn over_the_rounds_everyone_comes_first_and_last_equally_often() {
        let rounds: Vec<_> = (0..12).map(|round| turns(3, round)).collect();
        for subject in 0..3 {
            assert_eq!(rounds.iter().filter(|turns| turns[0] == subject).count(), 4);
            assert_eq!(rounds.iter().filter(|turns| turns[2] == subject).count(), 4);
        }
        assert!(turns(0, 5).is_empty());
    }

    #[test]
    fn every_part_has_a_round_of_its_own() {
        let turns = |runs, parts: &[usize]| {
            let turns = order_of_parts(2, runs, parts).into_iter();
            turns
                .map(|turn| (turn.part, turn.subject, turn.counts))
                .collect::<Vec<_>>()
        };
        let first = [(0, 0, true), (0, 1, true), (3, 0, true), (3, 1, true)];
        assert_eq!(turns(1, &[0, 3]), first);
        let second = [(0, 1, true), (0, 0, true), (3, 1, true), (3, 0, true)];
        assert_eq!(turns(2, &[0, 3])[4..], second);
        assert_eq!(
            turns(1, &[]),
            [(0, 0, false), (0, 1, false), (0, 1, true), (0, 0, true)]
        );
    }

    #[test]
    fn a_subject_that_fails_is_named_and_the_others_go_on() {
        let mut calls = 0;
        let samples = interleaved(&subjects([Kind::Firecracker, Kind::Husk]), 3, |subject| {
            calls += 1;
            if subject.kind == Kind::Firecracker {
                bail!("no such guest")
            }
            Ok(8.0)
        });
        let results = summarise("startup", &samples, &[("exit_ms", "ms", |sample| *sample)]);
        assert_eq!(calls, 1 + 4);
        assert_eq!(results.failures, [(Kind::Firecracker, "no such guest".to_string())]);
        assert_eq!(results.figures.len(), 1);
        assert_eq!((results.figures[0].n, results.figures[0].median), (3, 8.0));
    }

    #[test]
    fn a_subject_that_fails_late_keeps_its_samples() {
        let mut lives = 0;
        let samples = interleaved(&[Subject::new(Kind::Husk, "/bin/true")], 5, |_| {
            lives += 1;
            if lives == 4 {
                bail!("reset")
            }
            Ok(lives)
        });
        assert_eq!((lives, samples[0].values.as_slice()), (4, &[2, 3][..]));
        assert_eq!(samples[0].failure.as_deref(), Some("reset"));
    }

    #[test]
    fn a_sample_is_told_with_its_units() {
        let figure_defs: [FigureDef<(f64, f64)>; 3] = [
            ("init_virtual_ms", "ms", |s| s.0),
            ("to_guest", "MiB/s", |s| s.1),
            ("returned", "KiB", |_| f64::NAN),
        ];
        assert_eq!(
            told(&(1306.254, 93.8), &figure_defs),
            "init_virtual_ms 1306.25 ms, to_guest 93.80 MiB/s"
        );
    }
}
