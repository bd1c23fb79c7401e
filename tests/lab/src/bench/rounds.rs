//! Interleaved runs: one of each subject in turn, so that whatever else the machine does meets all of them alike.
//!
//! A subject also leaves something behind for the next, warm caches or a busy kernel: so each round begins with another subject, and
//! every other round runs backwards.

use anyhow::Result;

use super::Results;
use super::figures::Figure;
use super::subject::{Kind, Subject};

/// A figure to be made of every sample: its name, its unit and its value.
pub type Extract<T> = (&'static str, &'static str, fn(&T) -> f64);

/// The samples of one subject, or why it was given up.
#[derive(Debug)]
pub struct Samples<T> {
    /// Who was measured.
    pub kind: Kind,
    /// One sample a run, or the first failure.
    pub outcome: Result<Vec<T>, String>,
}

/// Measures every subject `runs` times and once before that, which does not count. Who fails is not asked again.
pub fn interleaved<T>(
    subjects: &[Subject],
    runs: u32,
    mut sample: impl FnMut(&Subject) -> Result<T>,
) -> Vec<Samples<T>> {
    let empty = |subject: &Subject| Samples {
        kind: subject.kind,
        outcome: Ok(Vec::new()),
    };
    let mut all: Vec<Samples<T>> = subjects.iter().map(empty).collect();
    for round in 0..=runs {
        for turn in turns(subjects.len(), round) {
            let (Some(subject), Some(samples)) = (subjects.get(turn), all.get_mut(turn)) else {
                continue;
            };
            let Ok(kept) = &mut samples.outcome else { continue };
            match sample(subject) {
                Ok(_) if round == 0 => {}
                Ok(value) => kept.push(value),
                Err(error) => samples.outcome = Err(format!("{error:#}")),
            }
        }
    }
    all
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
pub fn summarise<T>(profile: &str, samples: &[Samples<T>], extracts: &[Extract<T>]) -> Results {
    let mut results = Results::default();
    for (figure, unit, value) in extracts {
        for Samples { kind, outcome } in samples {
            let values = outcome.iter().flatten().map(value).collect();
            let figure = Figure::new(profile, figure, unit, kind.name(), values);
            results.figures.extend(figure);
        }
    }
    for Samples { kind, outcome } in samples {
        if let Err(why) = outcome {
            results.failures.push((*kind, why.clone()));
        }
    }
    results
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
        assert_eq!(samples[0].outcome, Ok(vec![4, 6]));
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
}
