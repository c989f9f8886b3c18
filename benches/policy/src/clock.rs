//! Times of single operations, without the time that reading the clock takes.

use std::time::Instant;

/// Times of one kind of operation, in nanoseconds.
#[derive(Debug)]
pub(crate) struct Times {
    nanos: Vec<f64>,
    clock_cost: f64,
}

impl Times {
    pub(crate) fn new() -> Self {
        Self { nanos: Vec::new(), clock_cost: clock_cost() }
    }

    /// Runs `operation` and notes how long it took.
    pub(crate) fn measure<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let started = Instant::now();
        let result = std::hint::black_box(operation());
        let elapsed = started.elapsed();
        self.nanos.push((elapsed.as_nanos() as f64 - self.clock_cost).max(0.0));
        result
    }

    /// Runs `operation`, which waits for nothing, and notes for how long this thread was running: others on the
    /// same processor are not in it.
    pub(crate) fn measure_running<R>(&mut self, operation: impl FnOnce() -> R) -> R {
        let started = running();
        let result = std::hint::black_box(operation());
        self.nanos.push(running() - started);
        result
    }

    /// The time that a share of the operations did not exceed.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index from a share of a length"
    )]
    pub(crate) fn quantile(&self, share: f64) -> f64 {
        let mut sorted = self.nanos.clone();
        sorted.sort_by(f64::total_cmp);
        let last = sorted.len().saturating_sub(1);
        sorted.get((share * last as f64).round() as usize).copied().unwrap_or(f64::NAN)
    }
}

/// For how long this thread has been running, in nanoseconds. Source: clock_gettime(2).
fn running() -> f64 {
    let clock = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID);
    clock.map_or(f64::NAN, |time| time.tv_sec() as f64 * 1e9 + time.tv_nsec() as f64)
}

/// The median time between two readings of the clock.
fn clock_cost() -> f64 {
    let mut nanos: Vec<f64> = (0..10_001)
        .map(|_| {
            let started = Instant::now();
            started.elapsed().as_nanos() as f64
        })
        .collect();
    nanos.sort_by(f64::total_cmp);
    nanos[nanos.len() / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_taken_from_sorted_times() {
        let times = Times { nanos: vec![50.0, 2.0, 3.0, 4.0, 1.0], clock_cost: 0.0 };
        assert_eq!((times.quantile(0.5), times.quantile(1.0)), (3.0, 50.0));
        assert!(Times::new().quantile(0.5).is_nan());
    }

    #[test]
    fn an_operation_that_takes_long_is_seen_to() {
        let mut times = Times::new();
        assert_eq!(times.measure(|| (std::thread::sleep(std::time::Duration::from_millis(2)), 7).1), 7);
        assert!(times.quantile(0.0) > 1e6);
    }

    #[test]
    fn a_thread_that_sleeps_does_not_run() {
        let mut times = Times::new();
        times.measure_running(|| std::thread::sleep(std::time::Duration::from_millis(50)));
        assert!(times.quantile(0.0) < 25e6);
    }
}
