//! Bounded waiting for a condition.

use std::thread;
use std::time::{Duration, Instant};

const POLL: Duration = Duration::from_millis(5);

/// Asks again and again until `probe` gives a value, for at most `limit`. The probe always runs at least once,
/// and once more when the limit has passed.
pub fn wait_for<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
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
}
