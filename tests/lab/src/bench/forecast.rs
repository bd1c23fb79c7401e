//! What a measurement will do and about how long it takes, said before it and on the way.

use std::time::Duration;

use super::Profile;
use super::subject::Kind;

/// One profile of a measurement to come.
#[derive(Clone, Debug)]
pub struct Forecast {
    profile: Profile,
    kinds: Vec<Kind>,
    runs: u32,
}

impl Forecast {
    /// Of `runs` runs of those of `kinds` that `profile` measures.
    pub fn new(profile: Profile, kinds: impl IntoIterator<Item = Kind>, runs: u32) -> Self {
        Self {
            profile,
            kinds: kinds.into_iter().filter(|kind| profile.measures(*kind)).collect(),
            runs,
        }
    }

    /// About how long it takes on a machine that does little else.
    pub fn time(&self) -> Duration {
        let once: Duration = self.kinds.iter().map(|kind| self.profile.life(*kind)).sum();
        self.profile.start() + once.saturating_mul(self.runs.saturating_add(1))
    }

    /// All of it in a line.
    pub fn told(&self) -> String {
        let names: Vec<_> = self.kinds.iter().map(|kind| kind.name()).collect();
        format!(
            "{}: {}: {} lives of each, of which the first does not count; about {}",
            self.profile.name(),
            names.join(", "),
            self.runs.saturating_add(1),
            about(self.time())
        )
    }
}

/// How far a measurement is that has come to `done` lives in `elapsed`.
pub fn how_far(done: usize, left: usize, elapsed: Duration) -> String {
    let all = done.saturating_add(left);
    if left == 0 {
        return format!("{done} of {all}");
    }
    let count = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
    let rest = (elapsed / count(done).max(1)).saturating_mul(count(left));
    format!("{done} of {all}, about {} left", about(rest))
}

/// A time as people say it.
pub fn about(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds.div_ceil(60) {
        _ if seconds < 100 => format!("{} s", seconds.max(1)),
        minutes @ ..100 => format!("{minutes} min"),
        minutes => format!("{} h {} min", minutes / 60, minutes % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forecast_names_who_is_measured_how_often_and_how_long() {
        let kinds = [Kind::Husk, Kind::HuskUnfiltered, Kind::Floor, Kind::CloudHypervisor];
        let forecast = Forecast::new(Profile::Net, kinds, 3);
        let told = forecast.told();
        assert!(
            told.starts_with("net: husk, cloud-hypervisor: 4 lives of each, of which"),
            "{told}"
        );
        let longer = Forecast::new(Profile::Net, kinds, 6);
        assert!(longer.time() > forecast.time());
        let startup = Forecast::new(Profile::Startup, kinds, 3);
        assert!(
            startup
                .told()
                .starts_with("startup: husk, husk-unfiltered, floor, cloud")
        );
    }

    #[test]
    fn what_is_left_takes_as_long_as_what_is_done() {
        assert_eq!(how_far(2, 6, Duration::from_secs(60)), "2 of 8, about 3 min left");
        assert_eq!(how_far(8, 0, Duration::from_secs(60)), "8 of 8");
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        let told = [0, 40, 99, 100, 5940, 6000].map(|seconds| about(Duration::from_secs(seconds)));
        assert_eq!(told, ["1 s", "40 s", "99 s", "2 min", "99 min", "1 h 40 min"]);
    }
}
