//! Whether new connections may be admitted, seen from the records: one atomic that every new connection asks.

use std::sync::atomic::{AtomicU64, Ordering};

/// A bit for each place that holds as many records as it may. Nobody may add to them while one is set.
#[derive(Debug, Default)]
pub(crate) struct Pressure(AtomicU64);

impl Pressure {
    /// Notes whether the place with this number is full. Numbers from 0 to 63.
    pub(crate) fn set(&self, place: u32, is_full: bool) {
        let bit = 1 << (place % u64::BITS);
        if is_full {
            self.0.fetch_or(bit, Ordering::Relaxed);
        } else {
            self.0.fetch_and(!bit, Ordering::Relaxed);
        }
    }

    /// True while any place is full.
    pub(crate) fn is_on(&self) -> bool {
        self.0.load(Ordering::Relaxed) != 0
    }
}
