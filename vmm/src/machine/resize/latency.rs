//! How long the guest has taken, as a histogram.

use std::time::Duration;

use serde_json::{Value, json};

/// Upper bounds of the buckets in milliseconds, each twice the one before; what takes longer is in the last.
const BOUNDS_MS: [u64; 12] = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048];

/// Counts of one kind of answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    buckets: [u64; BOUNDS_MS.len() + 1],
    count: u64,
    sum: Duration,
    max: Duration,
}

impl Latency {
    /// One more, which took so long.
    pub fn add(&mut self, took: Duration) {
        let bucket = BOUNDS_MS.iter().position(|bound| took <= Duration::from_millis(*bound));
        if let Some(bucket) = self.buckets.get_mut(bucket.unwrap_or(BOUNDS_MS.len())) {
            *bucket = bucket.saturating_add(1);
        }
        self.count = self.count.saturating_add(1);
        self.sum = self.sum.saturating_add(took);
        self.max = self.max.max(took);
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How long all of them took.
    pub fn sum(&self) -> Duration {
        self.sum
    }

    /// Upper bound in seconds of each bucket, and how many are in it and in none before; the last has no bound.
    pub fn buckets(&self) -> Vec<(f64, u64)> {
        let bounds = BOUNDS_MS
            .iter()
            .map(|bound| Duration::from_millis(*bound).as_secs_f64());
        bounds.chain([f64::INFINITY]).zip(self.buckets).collect()
    }

    /// As JSON: `count`, `sum_ms`, `max_ms`, and `le_ms`, how many took at most so many milliseconds, cumulative.
    pub fn json(&self) -> Value {
        let mut below = 0_u64;
        let cumulative: serde_json::Map<String, Value> = BOUNDS_MS
            .iter()
            .zip(&self.buckets)
            .map(|(bound, count)| {
                below = below.saturating_add(*count);
                (bound.to_string(), Value::from(below))
            })
            .collect();
        json!({
            "count": self.count,
            "sum_ms": millis(self.sum),
            "max_ms": millis(self.max),
            "le_ms": cumulative,
        })
    }
}

/// Milliseconds with their fraction.
pub fn millis(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_took_as_long_as_a_bound_is_below_it() {
        let mut latency = Latency::default();
        for micros in [1, 1000, 1001, 2_048_000, 9_000_000] {
            latency.add(Duration::from_micros(micros));
        }
        let json = latency.json();
        assert_eq!(
            (json["count"].as_u64(), json["max_ms"].as_f64()),
            (Some(5), Some(9000.0))
        );
        let at = |bound: &str| json["le_ms"][bound].as_u64();
        assert_eq!(
            [at("1"), at("2"), at("1024"), at("2048")],
            [Some(2), Some(3), Some(3), Some(4)]
        );
        assert_eq!((latency.count(), latency.sum()), (5, Duration::from_micros(11_050_002)));
        let buckets = latency.buckets();
        let found: Vec<_> = buckets.iter().filter(|(_, count)| *count > 0).collect();
        let expected = [(0.001, 2), (0.002, 1), (2.048, 1), (f64::INFINITY, 1)];
        assert_eq!((buckets.len(), found), (13, expected.iter().collect()));
    }
}
