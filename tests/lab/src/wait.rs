//! Bounded waiting for a condition. On a slow machine, such as an emulated one, every limit may be raised at once:
//! `LAB_PATIENCE` is the factor.

use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// A limit of a wait as this machine needs it: times `LAB_PATIENCE`, a whole number from 1 to 100; 1 without it. What
/// waits here and connects, asks and reads in this crate does so by itself.
pub fn patiently(limit: Duration) -> Duration {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    limit * *FACTOR.get_or_init(|| factor(std::env::var("LAB_PATIENCE").ok().as_deref()))
}

fn factor(given: Option<&str>) -> u32 {
    given.and_then(|given| given.parse().ok()).filter(|factor| (1..=100).contains(factor)).unwrap_or(1)
}

/// Asks again and again until `probe` gives a value, for at most `limit`. The probe always runs at least once,
/// and once more when the limit has passed.
pub fn wait_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + patiently(limit);
    loop {
        let last = Instant::now() >= end;
        if let Some(value) = probe() {
            return Some(value);
        }
        if last {
            return None;
        }
        thread::sleep(POLL);
    }
}

/// True as soon as `condition` holds, false when it did not within `limit`.
#[must_use]
pub fn wait_until(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    wait_for(limit, || condition().then_some(())).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_ends_when_the_condition_holds_or_the_limit_passes() {
        let mut rounds = 0;
        assert!(wait_until(Duration::from_secs(5), || {
            rounds += 1;
            rounds == 3
        }));
        assert_eq!(rounds, 3);
        assert!(!wait_until(Duration::from_millis(20), || false));
    }

    #[test]
    fn limits_are_raised_by_whole_factors_and_by_nothing_else() {
        assert_eq!(factor(Some("10")), 10);
        for given in [None, Some(""), Some("0"), Some("-1"), Some("1.5"), Some("101"), Some("much")] {
            assert_eq!(factor(given), 1, "{given:?}");
        }
    }
}
