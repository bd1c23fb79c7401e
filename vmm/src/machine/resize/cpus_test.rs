use super::*;

/// A guest may begin, by INIT, and never go on.
#[test]
fn a_vcpu_that_is_never_started_is_looked_at_more_and_more_seldom() {
    let since = Instant::now();
    let after = |millis: u64| since + Duration::from_millis(millis);
    let idle = Starting { since, begun: None };
    assert_eq!(idle.pause(after(5)), None, "nobody starts it");
    let begun = Some(after(100));
    let starting = Starting { since, begun };
    let pauses = [100, 101, 108, 180, 900, 8100, 1_000_000].map(|at| starting.pause(after(at)).unwrap().as_millis());
    assert_eq!(pauses, [1, 1, 1, 10, 100, 1000, 1000]);
    let mut resize = CpuResize::default();
    assert_eq!(resize.poll(since), None);
    resize.starting.insert(1, idle);
    resize.starting.insert(2, starting);
    let begun = Some(after(8000));
    resize.starting.insert(3, Starting { since, begun });
    assert_eq!(
        resize.poll(after(8100)),
        Some(Duration::from_micros(12_500)),
        "the soonest"
    );
}
