//! How long each phase of a pod's life took, over many pods.

use std::fmt;
use std::time::{Duration, Instant};

/// The durations of each phase, in the order in which phases were first seen.
#[derive(Debug, Default)]
pub struct Phases(Vec<(&'static str, Vec<Duration>)>);

impl Phases {
    /// Does one phase and keeps its duration.
    pub fn measure<T>(&mut self, name: &'static str, work: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = work();
        self.note(name, start.elapsed());
        result
    }

    /// Keeps a duration that was measured elsewhere.
    pub fn note(&mut self, name: &'static str, took: Duration) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, durations)) => durations.push(took),
            None => self.0.push((name, vec![took])),
        }
    }
}

/// A table, in milliseconds.
impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<22} {:>6} {:>10} {:>10} {:>10}",
            "phase", "times", "min ms", "median ms", "max ms"
        )?;
        for (name, durations) in &self.0 {
            let mut sorted = durations.clone();
            sorted.sort_unstable();
            let at = |index: usize| sorted.get(index).map_or(0.0, |took| took.as_secs_f64() * 1e3);
            let (min, median, max) = (at(0), at(sorted.len() / 2), at(sorted.len().saturating_sub(1)));
            writeln!(
                f,
                "{name:<22} {:>6} {min:>10.1} {median:>10.1} {max:>10.1}",
                sorted.len()
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_phase_has_its_extremes_and_its_median() {
        let mut phases = Phases::default();
        for ms in [30, 10, 20] {
            phases.note("boot", Duration::from_millis(ms));
        }
        phases.note("stop", Duration::from_millis(5));
        let table = phases.to_string();
        let row = table.lines().nth(1).unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(words, ["boot", "3", "10.0", "20.0", "30.0"]);
        assert!(table.lines().nth(2).unwrap().starts_with("stop"));
    }
}
