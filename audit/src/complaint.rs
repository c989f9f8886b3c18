//! Says when a repeated failure is worth another line in the log.

use std::time::{Duration, Instant};

/// Complaints of one kind are at least this far apart.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

#[derive(Debug, Default)]
pub(crate) struct Complaint {
    last: Option<Instant>,
    unreported: u64,
    open: bool,
}

impl Complaint {
    /// Adds `count` failures; the number to report when it is time to.
    pub(crate) fn due(&mut self, count: u64) -> Option<u64> {
        self.open = true;
        self.unreported += count;
        if self.last.is_some_and(|last| last.elapsed() < COMPLAIN_EVERY) {
            return None;
        }
        self.last = Some(Instant::now());
        Some(std::mem::take(&mut self.unreported))
    }

    /// The failure is over; true when there was one.
    pub(crate) fn settled(&mut self) -> bool {
        std::mem::take(&mut self.open)
    }
}
