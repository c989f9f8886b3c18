//! Counts descriptors before they are opened, so that the limit is met by refusing a new connection and
//! never by breaking one.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Descriptors of one carried connection: a leg to either side.
const PER_CONNECTION: u64 = 2;

/// The budget of connections.
#[derive(Debug)]
pub(crate) struct Descriptors {
    for_connections: u64,
    used: AtomicU64,
}

/// Room for one connection; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation(Arc<Descriptors>);

impl Descriptors {
    /// `limit` is what the process may open, `kept_back` what is not for connections.
    pub(crate) fn new(limit: u64, kept_back: u64) -> Self {
        Self { for_connections: limit.saturating_sub(kept_back), used: AtomicU64::new(0) }
    }

    /// Room for one more connection, unless the budget is used up.
    pub(crate) fn reserve(self: &Arc<Self>) -> Option<Reservation> {
        let used = self.used.fetch_add(PER_CONNECTION, Ordering::Relaxed) + PER_CONNECTION;
        let reservation = Reservation(Arc::clone(self));
        (used <= self.for_connections).then_some(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.0.used.fetch_sub(PER_CONNECTION, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_stop_short_of_the_limit_and_room_comes_back() {
        let descriptors = Arc::new(Descriptors::new(14, 10));
        let (one, two) = (descriptors.reserve(), descriptors.reserve());
        assert!(one.is_some() && two.is_some() && descriptors.reserve().is_none());
        drop(one);
        assert!(descriptors.reserve().is_some());
    }
}
