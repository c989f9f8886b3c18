//! Live lines to whoever follows flows, and the last of them for an agent without a store.
//!
//! The lane of live lines hands bytes over and never waits. One task makes flows of them, once for all followers,
//! and only while there are any. A follower that is too slow is told how many it has missed.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use audit::Recorder;
use tokio::sync::{broadcast, mpsc};

use crate::flow;
use crate::proto::observer::GetFlowsResponse;

/// Pieces of up to 256 KiB that wait to be taken apart.
const PIECES: usize = 64;
/// Flows that a follower may be behind.
const BEHIND: usize = 4_096;
/// Lines kept where there is no store.
const KEPT: usize = 4_095;
/// And where there is one: what it may not have written yet.
const RECENT: usize = 1_024;
/// Bytes of those lines.
const KEPT_BYTES: usize = 16 << 20;
/// Seconds that the rate is taken over.
const RATE_OVER: usize = 60;

/// Live lines. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Hub {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    node: String,
    cluster: String,
    live: broadcast::Sender<Arc<GetFlowsResponse>>,
    /// The last lines, the oldest first.
    kept: Mutex<Kept>,
    seen: AtomicU64,
    /// Lines that came faster than they were taken apart.
    missed: AtomicU64,
    rate: Mutex<Rate>,
    started: Instant,
}

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<Box<str>>,
    bytes: usize,
    /// How many there may be.
    limit: usize,
}

/// Lines of each of the last seconds.
#[derive(Debug)]
struct Rate {
    seconds: [u64; RATE_OVER],
    newest: u64,
}

impl Hub {
    /// Listens to `recorder` from now on.
    pub(crate) fn start(recorder: &Recorder, node: &str, cluster: &str) -> Self {
        let hub = Self::new(node, cluster, if recorder.store_folder().is_some() { RECENT } else { KEPT });
        let (pieces, taken) = mpsc::channel::<Vec<u8>>(PIECES);
        let near = Arc::downgrade(&hub.shared);
        recorder.listen(Box::new(move |lines| {
            let Some(shared) = near.upgrade() else { return false };
            match pieces.try_send(lines.to_vec()) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Full(lines)) => {
                    shared.missed.fetch_add(count(&lines), Ordering::Relaxed);
                    true
                }
                Err(mpsc::error::TrySendError::Closed(_)) => false,
            }
        }));
        let far = Arc::downgrade(&hub.shared);
        tokio::spawn(async move {
            let mut taken = taken;
            while let Some(lines) = taken.recv().await {
                let Some(shared) = far.upgrade() else { return };
                shared.tell(&lines);
            }
        });
        hub
    }

    /// Listens to nobody yet.
    fn new(node: &str, cluster: &str, limit: usize) -> Self {
        let shared = Arc::new(Shared {
            node: node.to_owned(),
            cluster: cluster.to_owned(),
            live: broadcast::channel(BEHIND).0,
            kept: Mutex::new(Kept { limit, ..Kept::default() }),
            seen: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            rate: Mutex::new(Rate { seconds: [0; RATE_OVER], newest: 0 }),
            started: Instant::now(),
        });
        Self { shared }
    }

    /// Flows from now on.
    pub(crate) fn follow(&self) -> broadcast::Receiver<Arc<GetFlowsResponse>> {
        self.shared.live.subscribe()
    }

    /// The last lines, the oldest first: all that are kept without a store, a few with one.
    pub(crate) fn kept(&self) -> Vec<Box<str>> {
        lock(&self.shared.kept).lines.iter().cloned().collect()
    }

    pub(crate) fn node(&self) -> &str {
        &self.shared.node
    }

    pub(crate) fn cluster(&self) -> &str {
        &self.shared.cluster
    }

    /// Lines since the start.
    pub(crate) fn seen(&self) -> u64 {
        self.shared.seen.load(Ordering::Relaxed)
    }

    /// How many are kept, and how many may be.
    pub(crate) fn room(&self) -> (u64, u64) {
        (lock(&self.shared.kept).lines.len() as u64, KEPT as u64)
    }

    pub(crate) fn started(&self) -> Instant {
        self.shared.started
    }

    /// Lines a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(crate) fn rate(&self) -> f64 {
        let now = self.shared.started.elapsed().as_secs();
        let mut rate = lock(&self.shared.rate);
        rate.move_to(now);
        let over = (now + 1).min(RATE_OVER as u64);
        rate.seconds.iter().sum::<u64>() as f64 / over as f64
    }
}

impl Shared {
    fn tell(&self, lines: &[u8]) {
        let missed = self.missed.swap(0, Ordering::Relaxed);
        let has_followers = self.live.receiver_count() > 0;
        if missed > 0 && has_followers {
            let _ = self.live.send(Arc::new(flow::missed(missed, &self.node, &self.cluster)));
        }
        let count = count(lines);
        self.seen.fetch_add(count + missed, Ordering::Relaxed);
        lock(&self.rate).add(self.started.elapsed().as_secs(), count + missed);
        let mut kept = lock(&self.kept);
        for line in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let Ok(line) = std::str::from_utf8(line) else { continue };
            kept.add(line);
            if has_followers && let Some(told) = flow::told(line, &self.cluster) {
                // Whoever went away since needs none.
                let _ = self.live.send(Arc::new(told));
            }
        }
    }
}

impl Kept {
    fn add(&mut self, line: &str) {
        self.bytes += line.len();
        self.lines.push_back(line.into());
        while self.lines.len() > self.limit || self.bytes > KEPT_BYTES {
            let Some(oldest) = self.lines.pop_front() else { return };
            self.bytes -= oldest.len();
        }
    }
}

impl Rate {
    fn add(&mut self, now: u64, count: u64) {
        self.move_to(now);
        self.seconds[place(now)] += count;
    }

    /// Forgets the seconds that are over.
    fn move_to(&mut self, now: u64) {
        let first = (self.newest + 1).max(now.saturating_sub(RATE_OVER as u64 - 1));
        for second in first..=now {
            self.seconds[place(second)] = 0;
        }
        self.newest = self.newest.max(now);
    }
}

fn place(second: u64) -> usize {
    usize::try_from(second % RATE_OVER as u64).unwrap_or(0)
}

fn count(lines: &[u8]) -> u64 {
    lines.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// Nothing in here panics half way through a change.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
impl Hub {
    /// A hub that is told by its test.
    pub(crate) fn of_test(node: &str) -> Self {
        Self::new(node, "default", KEPT)
    }

    pub(crate) fn tell(&self, lines: &str) {
        self.shared.tell(lines.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_forgets_what_is_older_than_a_minute() {
        let mut rate = Rate { seconds: [0; RATE_OVER], newest: 0 };
        rate.add(0, 30);
        rate.add(59, 30);
        assert_eq!(rate.seconds.iter().sum::<u64>(), 60);
        rate.move_to(60);
        assert_eq!(rate.seconds.iter().sum::<u64>(), 30);
        rate.move_to(10_000);
        assert_eq!(rate.seconds.iter().sum::<u64>(), 0);
    }

    #[test]
    fn what_is_kept_is_bounded_in_lines_and_bytes() {
        let mut kept = Kept { limit: KEPT, ..Kept::default() };
        (0..KEPT + 10).for_each(|_| kept.add("x"));
        assert_eq!((kept.lines.len(), kept.bytes), (KEPT, KEPT));
        let long = "y".repeat(KEPT_BYTES / 4);
        (0..6).for_each(|_| kept.add(&long));
        assert!(kept.lines.len() == 4 && kept.bytes <= KEPT_BYTES, "{}", kept.lines.len());
    }
}
