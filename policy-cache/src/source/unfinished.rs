//! Whether manifests may be half written. Who writes a file in place empties it first, and then it has a beginning and
//! no end: objects that stand further behind are gone for a moment, and a rule without its last lines allows more.
//!
//! Two things tell: the kernel, that a writer has not closed a file yet, where it tells of changes at all; and that there
//! are fewer objects than before, which is believed when the files have looked the same for a while. Both have an end.
//! Pure: no clock and no I/O.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};

use crate::manifest::Fingerprint;

/// The longest a file that its writer keeps open is waited for.
pub(super) const WRITER_LIMIT: Duration = Duration::from_secs(5);
/// How long the files must have looked the same before objects that are in them no longer are gone.
const QUIET: Duration = Duration::from_millis(500);
/// The same while a file has no text at all: few mean that.
const EMPTY_QUIET: Duration = Duration::from_secs(2);
/// The longest that files which change all the time keep objects that are in them no longer.
const FEWER_LIMIT: Duration = Duration::from_secs(5);

/// Files that were written to and not closed since.
#[derive(Debug, Default)]
pub(super) struct Writers {
    since: HashMap<PathBuf, Instant>,
}

/// What an event says of a file's writer.
#[derive(Debug)]
pub(super) enum Writing {
    Goes(PathBuf),
    Ended(PathBuf),
}

impl Writing {
    /// Nothing for events of another kind, and of files that `is_manifest` denies. Source: inotify(7), `IN_MODIFY` and
    /// `IN_CLOSE_WRITE`.
    pub(super) fn of(event: &notify::Event, is_manifest: impl Fn(&Path) -> bool) -> Option<Self> {
        let path = event.paths.first().filter(|path| is_manifest(path))?.clone();
        match event.kind {
            EventKind::Modify(ModifyKind::Data(_)) => Some(Self::Goes(path)),
            // What is gone or has another name now is not waited for.
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => Some(Self::Ended(path)),
            _ => None,
        }
    }
}

impl Writers {
    pub(super) fn note(&mut self, writing: Writing, now: Instant) {
        match writing {
            Writing::Goes(path) => {
                self.since.entry(path).or_insert(now);
            }
            Writing::Ended(path) => {
                self.since.remove(&path);
            }
        }
    }

    /// True while a file has a writer that may come to its end. One that takes longer is not waited for again before it
    /// has closed its file.
    pub(super) fn are_waited_for(&self, now: Instant) -> bool {
        self.since.values().any(|since| now.duration_since(*since) < WRITER_LIMIT)
    }
}

/// Objects that are known and were not read.
#[derive(Debug)]
pub(super) struct Fewer {
    since: Instant,
    files: Fingerprint,
    unchanged_since: Instant,
    quiet: Duration,
}

impl Fewer {
    /// What a look found that took `files` for its beginning.
    pub(super) fn found(
        before: Option<Self>,
        files: Fingerprint,
        has_empty_file: bool,
        now: Instant,
    ) -> Self {
        let quiet = if has_empty_file { EMPTY_QUIET } else { QUIET };
        match before {
            Some(before) if before.files == files => Self { quiet, ..before },
            Some(before) => Self { since: before.since, files, unchanged_since: now, quiet },
            None => Self { since: now, files, unchanged_since: now, quiet },
        }
    }

    /// True when the files look as they did.
    pub(super) fn is_as_found(&self, files: &Fingerprint) -> bool {
        self.files == *files
    }

    /// True when they have looked so for long enough, or are never quiet.
    pub(super) fn is_believed(&self, now: Instant) -> bool {
        now.duration_since(self.unchanged_since) >= self.quiet
            || now.duration_since(self.since) >= FEWER_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_waited_for_until_it_closes_its_file_or_takes_too_long() {
        let (mut writers, start) = (Writers::default(), Instant::now());
        let file = PathBuf::from("a.yaml");
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        assert!(!writers.are_waited_for(start));
        writers.note(Writing::Goes(file.clone()), at(0.0));
        writers.note(Writing::Goes(file.clone()), at(4.0));
        assert!(writers.are_waited_for(at(4.9)));
        assert!(!writers.are_waited_for(at(5.0)));
        // It writes on: it was waited for once.
        writers.note(Writing::Goes(file.clone()), at(6.0));
        assert!(!writers.are_waited_for(at(6.0)));
        writers.note(Writing::Ended(file.clone()), at(7.0));
        writers.note(Writing::Goes(file.clone()), at(8.0));
        assert!(writers.are_waited_for(at(8.0)));
        writers.note(Writing::Ended(file), at(8.1));
        assert!(!writers.are_waited_for(at(8.1)));
    }

    #[test]
    fn fewer_objects_are_believed_when_the_files_are_quiet_or_never_are() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a.yaml");
        let files = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Fingerprint::take(&[folder.path().to_owned()])
        };
        let (start, (short, longer)) = (Instant::now(), (files("a"), files("ab")));
        let at = |millis: u64| start + Duration::from_millis(millis);
        let fewer = Fewer::found(None, short.clone(), false, at(0));
        assert!(fewer.is_as_found(&short) && !fewer.is_as_found(&longer));
        assert!(!fewer.is_believed(at(499)) && fewer.is_believed(at(500)));
        let fewer = Fewer::found(Some(fewer), longer.clone(), false, at(400));
        assert!(!fewer.is_believed(at(899)) && fewer.is_believed(at(900)));
        let fewer = Fewer::found(Some(fewer), longer, true, at(600));
        assert!(!fewer.is_believed(at(2_399)) && fewer.is_believed(at(2_400)));
        let fewer = Fewer::found(Some(fewer), short, false, at(4_900));
        assert!(!fewer.is_believed(at(4_999)) && fewer.is_believed(at(5_000)));
    }
}
