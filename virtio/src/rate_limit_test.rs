use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn bucket(size: u64, burst: u64, refill: Duration) -> Option<BucketConfig> {
    Some(BucketConfig {
        size,
        one_time_burst: burst,
        refill,
    })
}

fn limiter(bandwidth: Option<BucketConfig>, ops: Option<BucketConfig>, now: Instant) -> Limiter {
    Limiter::new(LimiterConfig { bandwidth, ops }, now).unwrap()
}

/// Spends `bytes` a time as often as is allowed until `end`, waiting exactly as long as told. How often it was.
fn use_up(limiter: &Limiter, bytes: u64, start: Instant, end: Duration) -> u64 {
    let (mut now, mut count) = (start, 0);
    while now <= start + end {
        match limiter.wait(now) {
            Some(wait) => now += wait,
            None => {
                limiter.spend(bytes);
                count += 1;
            }
        }
    }
    count
}

#[test]
fn a_full_bucket_is_spent_and_refilled_at_its_rate() {
    let start = Instant::now();
    let limiter = limiter(bucket(1000, 0, SECOND), None, start);
    assert_eq!(
        use_up(&limiter, 10, start, 10 * SECOND),
        100 + 1000,
        "one bucket at once, then ten"
    );
}

#[test]
fn both_buckets_must_have_tokens() {
    let start = Instant::now();
    let limiter = limiter(bucket(1_000_000, 0, SECOND), bucket(5, 0, SECOND), start);
    assert_eq!(
        use_up(&limiter, 1, start, 2 * SECOND),
        5 + 10,
        "operations run out first"
    );
}

#[test]
fn a_burst_is_spent_first_and_never_comes_back() {
    let start = Instant::now();
    let limiter = limiter(None, bucket(10, 50, SECOND), start);
    assert_eq!(use_up(&limiter, 0, start, Duration::from_nanos(1)), 60);
    assert_eq!(use_up(&limiter, 0, start + SECOND, Duration::from_nanos(1)), 10);
}

#[test]
fn a_request_larger_than_the_bucket_passes_and_is_paid_for_afterwards() {
    let start = Instant::now();
    let limiter = limiter(bucket(100, 0, SECOND), None, start);
    assert_eq!(limiter.wait(start), None);
    limiter.spend(1100);
    let wait = limiter.wait(start).unwrap();
    assert_eq!(wait, 10 * SECOND + SECOND / 100, "the debt and one token");
    assert_eq!(limiter.wait(start + wait), None);
}

#[test]
fn the_smallest_limit_lets_each_request_pass_once_the_last_is_paid_for_and_is_asked_once_between() {
    let start = Instant::now();
    let limiter = limiter(bucket(1, 0, SECOND), None, start);
    let mut now = start;
    for _ in 0..3 {
        assert_eq!(limiter.wait(now), None);
        limiter.spend(4096);
        let wait = limiter.wait(now).unwrap();
        assert_eq!(wait, 4096 * SECOND);
        assert_eq!(
            limiter.wait(now + wait - Duration::from_nanos(1)),
            Some(Duration::from_nanos(1))
        );
        now += wait;
    }
}

#[test]
fn idle_time_fills_no_more_than_the_bucket() {
    let start = Instant::now();
    let limiter = limiter(None, bucket(10, 0, SECOND), start);
    assert_eq!(use_up(&limiter, 0, start + 1000 * SECOND, Duration::from_nanos(1)), 10);
}

#[test]
fn buckets_without_size_or_time_limit_nothing() {
    let now = Instant::now();
    let none = |bandwidth, ops| Limiter::new(LimiterConfig { bandwidth, ops }, now).is_none();
    assert!(none(None, None));
    assert!(none(bucket(0, 5, SECOND), bucket(5, 0, Duration::ZERO)));
}

proptest! {
    #[test]
    fn no_numbers_break_it(size: u64, burst: u64, refill_ms: u64, costs in proptest::collection::vec(any::<u64>(), 1..20)) {
        let mut now = Instant::now();
        let config = bucket(size, burst, Duration::from_millis(refill_ms));
        if let Some(limiter) = Limiter::new(LimiterConfig { bandwidth: config, ops: config }, now) {
            for cost in costs {
                limiter.spend(cost);
                if let Some(wait) = limiter.wait(now) {
                    prop_assert!(wait > Duration::ZERO);
                    now = now.checked_add(wait.min(SECOND)).unwrap();
                }
            }
        }
    }

    #[test]
    fn waiting_as_long_as_told_is_enough(size in 1u64..1 << 40, refill_ms in 1u64..100_000, cost: u32) {
        let start = Instant::now();
        let limiter = limiter(bucket(size, 0, Duration::from_millis(refill_ms)), None, start);
        limiter.spend(size);
        limiter.spend(cost.into());
        if let Some(wait) = limiter.wait(start) {
            prop_assert_eq!(limiter.wait(start + wait), None);
        }
    }
}
