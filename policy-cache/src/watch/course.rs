//! What to ask the API server next, and how long to wait before. One course per collection.
//!
//! Pure: time and chance come in as values. Every request that does not bring the course forward makes the next
//! wait longer, so that no answer, whatever it is, can make a busy loop.

use std::time::Duration;

/// The first wait after a failure; each further one doubles it.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait, but for what the server asks for.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// The longest wait while watches end early but bring events.
const LONGEST_WAIT_HEARD: Duration = Duration::from_secs(2);
/// What a server may ask for at most.
pub(crate) const LONGEST_ASKED: Duration = Duration::from_secs(600);
/// A watch that lasted this long was no failure.
const STABLE: Duration = Duration::from_secs(5);
/// The wait before a stable watch is taken up again: all nodes' watches may end at once.
const REOPEN: Duration = Duration::from_millis(500);
/// Watches in a row that may bring nothing at all before the server is asked whether it has the version at all. One
/// whose store was restored from a backup takes a watch from a version that it has not reached yet, and then sends
/// neither events nor bookmarks; and so does a healthy one for a quiet collection, when etcd tells it of no progress.
const SILENT_TRIES: u32 = 2;
/// Streamed lists that may fail before lists are asked for in pages.
const STREAM_TRIES: u32 = 2;

/// The next request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A watch that begins with everything there is (KEP-3157).
    Stream,
    /// A list, or its next page.
    List {
        from: From,
        /// Where the last page ended.
        token: Option<String>,
        /// In one piece: pages have expired under way before.
        whole: bool,
    },
    /// What happened after this resource version.
    Watch { version: String },
    /// Whether the server has reached this resource version, by a list of one object.
    Probe { version: String },
}

/// How fresh a list must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum From {
    /// Whatever the server has in memory, the cheapest.
    Memory,
    /// Not older than what is known already.
    NotOlder(String),
    /// The newest.
    Newest,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// A page was read; without a token it was the last, and the list is as of the version.
    Page { token: Option<String>, version: String, empty: bool },
    /// The pages do not make one list: they lead back to one another, or are of different versions.
    Muddled,
    /// The version is one that the server has, or one that it has not reached.
    Probed { reached: bool },
    /// The server ended the watch.
    Ended,
    /// The version, or the pages, are no longer there.
    Expired,
    /// The server does not understand.
    Invalid,
    /// The server does not want to, or cannot now.
    Refused { retry_after: Option<Duration> },
    /// The collection does not exist.
    NotServed,
    /// The connection failed, or brought what cannot be read.
    Broken,
    /// What came can be read only in part: everything must be listed again.
    Garbled,
    /// Nothing came for too long.
    Silent,
}

/// Where a collection's following stands.
#[derive(Debug)]
pub(crate) struct Course {
    position: Position,
    streaming: bool,
    stream_failures: u32,
    failures: u32,
    silences: u32,
    /// Pages of the list that is being read, and a token among theirs to compare later ones with.
    pages: u32,
    milestone: String,
    /// The version that the first of them had.
    list_version: String,
    /// Since the last request: whether an event or a bookmark came.
    heard: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Position {
    Unlisted { from: From, whole: bool },
    Listing { from: From, whole: bool, token: String },
    Watching { version: String },
}

impl Course {
    pub(crate) fn new(streaming: bool) -> Self {
        Self {
            position: Position::Unlisted { from: From::Memory, whole: false },
            streaming,
            stream_failures: 0,
            failures: 0,
            silences: 0,
            pages: 0,
            milestone: String::new(),
            list_version: String::new(),
            heard: false,
        }
    }

    pub(crate) fn ask(&mut self) -> Ask {
        self.heard = false;
        if matches!(self.position, Position::Unlisted { .. }) {
            self.pages = 0;
        }
        match &self.position {
            Position::Unlisted { .. } if self.streaming => Ask::Stream,
            Position::Unlisted { from, whole } => {
                Ask::List { from: from.clone(), token: None, whole: *whole }
            }
            Position::Listing { from, whole, token } => {
                Ask::List { from: from.clone(), token: Some(token.clone()), whole: *whole }
            }
            Position::Watching { version } if self.silences >= SILENT_TRIES => {
                Ask::Probe { version: version.clone() }
            }
            Position::Watching { version } => Ask::Watch { version: version.clone() },
        }
    }

    /// Everything there was has come, as of the version.
    pub(crate) fn listed(&mut self, version: String) {
        self.heard = true;
        self.stream_failures = 0;
        self.position = Position::Watching { version };
    }

    /// An event or a bookmark came.
    pub(crate) fn heard(&mut self, version: &str) {
        self.heard = true;
        if let Position::Watching { version: last } = &mut self.position
            && !version.is_empty()
        {
            version.clone_into(last);
        }
    }

    /// Takes in the version of a page. True when it is not that of the list's first page: objects of both are then as of
    /// different times, and a watch from either version would miss what happened to some of them in between.
    pub(crate) fn is_of_another_list(&mut self, version: &str) -> bool {
        if self.pages == 0 {
            version.clone_into(&mut self.list_version);
        }
        self.list_version != version
    }

    /// Takes in where the next page is said to begin. True when the pages lead back to one that was read: a later
    /// one of ever more distant milestones comes again (R. P. Brent, BIT 20, 1980).
    pub(crate) fn goes_in_circles(&mut self, token: &str) -> bool {
        if self.pages > 0 && self.milestone == token {
            return true;
        }
        self.pages = self.pages.saturating_add(1);
        if self.pages.is_power_of_two() {
            token.clone_into(&mut self.milestone);
        }
        false
    }

    /// Begins anew: the collection has come back.
    pub(crate) fn restart(&mut self) {
        self.position = Position::Unlisted { from: From::Newest, whole: false };
    }

    /// Takes in how the request of the last [`Course::ask`] ended after `lasted`. Returns the wait before the
    /// next one; `chance` is from 0 to 1.
    pub(crate) fn after(&mut self, outcome: Outcome, lasted: Duration, chance: f64) -> Duration {
        if let Outcome::Page { token, version, empty } = outcome {
            let is_idle = empty && token.is_some();
            match (token, &self.position) {
                (Some(token), Position::Unlisted { from, whole } | Position::Listing { from, whole, .. }) => {
                    self.position = Position::Listing { from: from.clone(), whole: *whole, token };
                }
                (_, _) => self.listed(version),
            }
            if !is_idle {
                return Duration::ZERO;
            }
            self.failures = self.failures.saturating_add(1);
            return self.wait(chance);
        }
        if let Outcome::Probed { reached } = outcome {
            self.silences = 0;
            if !reached {
                self.position = Position::Unlisted { from: From::Newest, whole: false };
            }
            return FIRST_WAIT.mul_f64(chance);
        }
        self.count_silence(&outcome);
        if matches!(self.position, Position::Watching { .. })
            && lasted >= STABLE
            && matches!(outcome, Outcome::Ended | Outcome::Silent | Outcome::Broken)
        {
            self.failures = 0;
            return REOPEN.mul_f64(chance);
        }
        self.move_on(&outcome);
        self.failures = self.failures.saturating_add(1);
        let wait = self.wait(chance);
        match outcome {
            Outcome::Refused { retry_after: Some(asked) } => {
                wait.max(asked.min(LONGEST_ASKED).mul_f64(1.0 + chance / 4.0))
            }
            _ => wait,
        }
    }

    fn count_silence(&mut self, outcome: &Outcome) {
        if self.heard {
            self.silences = 0;
        } else if *outcome == Outcome::Silent && matches!(self.position, Position::Watching { .. }) {
            self.silences += 1;
        }
    }

    fn move_on(&mut self, outcome: &Outcome) {
        let streamed = self.streaming && matches!(self.position, Position::Unlisted { .. });
        let newest = |whole| Position::Unlisted { from: From::Newest, whole };
        match outcome {
            Outcome::Invalid if streamed => self.streaming = false,
            Outcome::Ended | Outcome::Silent | Outcome::Broken | Outcome::Garbled if streamed => {
                self.stream_failures += 1;
                if self.stream_failures >= STREAM_TRIES {
                    self.streaming = false;
                }
            }
            Outcome::Muddled => self.position = newest(true),
            Outcome::Expired => {
                self.position = newest(matches!(self.position, Position::Listing { .. }));
            }
            Outcome::Garbled => {
                let from = match &self.position {
                    Position::Watching { version } => From::NotOlder(version.clone()),
                    _ => From::Newest,
                };
                self.position = Position::Unlisted { from, whole: false };
            }
            // Whatever it was that the server did not understand: the plainest question comes next.
            Outcome::Invalid => self.position = newest(false),
            // A server that was restored from a backup may never reach the version asked for.
            Outcome::Refused { .. }
                if matches!(&self.position, Position::Unlisted { from: From::NotOlder(_), .. }) =>
            {
                self.position = newest(false);
            }
            _ => {}
        }
    }

    fn wait(&self, chance: f64) -> Duration {
        let doublings = self.failures.saturating_sub(1).min(16);
        let longest = if self.heard { LONGEST_WAIT_HEARD } else { LONGEST_WAIT };
        FIRST_WAIT.saturating_mul(1 << doublings).min(longest).mul_f64(0.5 + chance / 2.0)
    }
}

#[cfg(test)]
#[path = "course_tests.rs"]
mod tests;
