//! Which files of a store go: the first that were written while there are too many bytes, and those that are too old.
//!
//! The wall clock may be wrong, by days, and what was dropped does not come back when it is set right. So a file of this
//! process ages on the steady clock from its last record on. How old others were when they were found, only the wall
//! clock can tell: it is believed once it has said the same for an hour.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use super::{HOUR, StoreConfig};

/// The wall clock has to say for so long that a file is too old.
const BELIEVED_AFTER: Duration = HOUR;

/// A moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Now {
    /// Goes forward only.
    pub(super) steady: Instant,
    /// Goes wherever it is set.
    pub(super) wall: SystemTime,
}

impl Now {
    pub(super) fn read() -> Self {
        Self { steady: Instant::now(), wall: SystemTime::now() }
    }
}

/// A file that gets no more records.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// By the wall clock of then; `None` when it cannot be told.
    pub(super) changed: Option<SystemTime>,
}

/// How much may be kept, and what is known of each file.
#[derive(Debug)]
pub(super) struct Retention {
    max_bytes: u64,
    max_age: Duration,
    known: HashMap<PathBuf, Known>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    /// When its last record was written, or when it was found.
    since: Instant,
    /// Whether this process wrote it.
    is_own: bool,
    /// Since when the wall clock says that it is too old.
    old_since: Option<Instant>,
}

impl Retention {
    pub(super) fn new(config: &StoreConfig) -> Self {
        let hours = u32::try_from(config.max_age_h).unwrap_or(u32::MAX);
        Self { max_bytes: config.max_bytes, max_age: HOUR * hours, known: HashMap::new() }
    }

    /// A file of this process has got its last record.
    pub(super) fn finished(&mut self, path: PathBuf, at: Instant) {
        self.known.insert(path, Known { since: at, is_own: true, old_since: None });
    }

    /// Those of all `files` that must go, where the file in use has `in_use` bytes.
    pub(super) fn surplus(&mut self, files: Vec<Kept>, in_use: u64, now: Now) -> Vec<PathBuf> {
        let mut files: Vec<(Kept, Known)> = files
            .into_iter()
            .map(|file| {
                let known = self.look_at(&file, now);
                (file, known)
            })
            .collect();
        self.known = files.iter().map(|(file, known)| (file.path.clone(), *known)).collect();
        // What was found was found at once, and its names tell which is older.
        files.sort_by(|(one, known), (other, known_other)| {
            (known.since, &one.path).cmp(&(known_other.since, &other.path))
        });
        let mut total = in_use + files.iter().map(|(file, _)| file.bytes).sum::<u64>();
        let mut surplus = Vec::new();
        for (file, known) in files {
            if total > self.max_bytes || self.is_too_old(known, now.steady) {
                total = total.saturating_sub(file.bytes);
                surplus.push(file.path);
            }
        }
        surplus
    }

    fn look_at(&self, file: &Kept, now: Now) -> Known {
        let found = Known { since: now.steady, is_own: false, old_since: None };
        let known = self.known.get(&file.path).copied().unwrap_or(found);
        let age = file.changed.and_then(|changed| now.wall.duration_since(changed).ok());
        let is_old = age.is_some_and(|age| age > self.max_age);
        Known { old_since: is_old.then(|| known.old_since.unwrap_or(now.steady)), ..known }
    }

    fn is_too_old(&self, known: Known, now: Instant) -> bool {
        let elapsed = |since: Instant| now.saturating_duration_since(since);
        let is_believed =
            !known.is_own && known.old_since.is_some_and(|since| elapsed(since) >= BELIEVED_AFTER);
        is_believed || elapsed(known.since) > self.max_age
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 3_600);

    /// Two files of an earlier process, and two of this one, an hour apart. Clocks begin with its start.
    struct History {
        retention: Retention,
        files: Vec<Kept>,
        start: Now,
    }

    impl History {
        fn new(max_bytes: u64) -> Self {
            let start = Now::read();
            let kept = |name: &str, changed| Kept { path: name.into(), bytes: 10, changed: Some(changed) };
            let mut retention = Retention::new(&StoreConfig { max_bytes, ..StoreConfig::default() });
            let files = vec![
                kept("20260801T10", start.wall - 3 * HOUR),
                kept("20260801T11", start.wall - 2 * HOUR),
                kept("20260801T12", start.wall + HOUR),
                // Here the wall clock was set back: by its name it is the oldest.
                kept("20260731T13", start.wall - DAY + 2 * HOUR),
            ];
            assert!(retention.surplus(files[..2].to_vec(), 0, start).is_empty());
            retention.finished(files[2].path.clone(), start.steady + HOUR);
            retention.finished(files[3].path.clone(), start.steady + 2 * HOUR);
            Self { retention, files, start }
        }

        /// What goes so long after the start, when the wall clock is `ahead` by so much.
        fn surplus(&mut self, after: Duration, ahead: Duration) -> Vec<String> {
            let now = Now { steady: self.start.steady + after, wall: self.start.wall + after + ahead };
            let surplus = self.retention.surplus(self.files.clone(), 10, now);
            self.files.retain(|file| !surplus.contains(&file.path));
            surplus.iter().map(|path| path.display().to_string()).collect()
        }
    }

    #[test]
    fn a_wall_clock_that_jumps_ahead_and_comes_back_drops_nothing() {
        let mut history = History::new(1_000);
        for minutes in 0..6 {
            assert!(history.surplus(3 * HOUR + minutes * HOUR / 6, 30 * DAY).is_empty(), "{minutes}");
        }
        assert!(history.surplus(4 * HOUR, Duration::ZERO).is_empty());
        // And the next time the hour is another one.
        assert!(history.surplus(5 * HOUR, 30 * DAY).is_empty());
    }

    #[test]
    fn a_wall_clock_that_stays_ahead_is_believed_of_files_of_earlier_processes_only() {
        let mut history = History::new(1_000);
        assert!(history.surplus(3 * HOUR, 30 * DAY).is_empty());
        assert_eq!(history.surplus(4 * HOUR, 30 * DAY), ["20260801T10", "20260801T11"]);
        assert!(history.surplus(20 * HOUR, 30 * DAY).is_empty());
    }

    #[test]
    fn files_go_a_day_after_their_last_record_whatever_the_wall_clock_said_then() {
        let mut history = History::new(1_000);
        assert!(history.surplus(21 * HOUR, Duration::ZERO).is_empty());
        // By the wall clock, which has said so for an hour.
        assert!(history.surplus(22 * HOUR + HOUR / 2, Duration::ZERO).is_empty());
        assert_eq!(history.surplus(23 * HOUR + HOUR / 2, Duration::ZERO), ["20260801T10", "20260801T11"]);
        assert!(history.surplus(24 * HOUR + HOUR / 2, Duration::ZERO).is_empty());
        assert_eq!(history.surplus(25 * HOUR + HOUR / 2, Duration::ZERO), ["20260801T12"]);
        assert_eq!(history.surplus(26 * HOUR + HOUR / 2, Duration::ZERO), ["20260731T13"]);
    }

    #[test]
    fn what_was_written_first_makes_room_first_also_where_the_wall_clock_was_set_back() {
        let mut history = History::new(30);
        assert_eq!(history.surplus(3 * HOUR, Duration::ZERO), ["20260801T10", "20260801T11"]);
        assert_eq!(history.files.len(), 2, "and the one in use");
    }
}
