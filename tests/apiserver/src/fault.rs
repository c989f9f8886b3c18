//! What can go wrong, and for which requests.

use std::time::Duration;

/// What a request wants of a collection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A list or one of its pages.
    List,
    /// A watch, one that streams a list included.
    Watch,
    /// A look at what there is.
    Discover,
    /// A write.
    Write,
    /// Any of them.
    Any,
}

/// What a request gets instead of what it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// This status, with `Retry-After` in seconds when it says so.
    Status(u16, Option<u64>),
    /// No answer: the connection is reset.
    Reset,
    /// No answer, and the connection stays open.
    Silence,
    /// 200, and these bytes as the whole body.
    Body(Vec<u8>),
    /// 200, and the body breaks off with a reset after this many bytes.
    BreakAfter(usize),
    /// The answer comes after a while.
    Late(Duration),
    /// This status with these headers and this body, as another program than an API server may answer.
    Foreign(u16, Vec<(&'static str, &'static str)>, Vec<u8>),
    /// 200, and the right body, a few bytes at a time with this pause before each.
    Drip(Duration),
    /// 200, and a body of a beginning and then the same bytes again and again for this long; then a reset.
    Endless(Vec<u8>, Vec<u8>, Duration),
}

/// An answer for some requests.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The collection; empty: all of them.
    pub plural: String,
    /// What is wanted of it.
    pub verb: Verb,
    /// Only requests whose path and query contain this.
    pub containing: String,
    /// For how many requests.
    pub times: usize,
    /// What they get.
    pub answer: Answer,
}

impl Fault {
    /// For the next `times` requests of this kind.
    pub fn new(plural: &str, verb: Verb, times: usize, answer: Answer) -> Self {
        Self { plural: plural.to_owned(), verb, containing: String::new(), times, answer }
    }

    /// The same, for those only whose path and query contain a text: `continue=` is in those for later pages.
    #[must_use]
    pub fn containing(self, text: &str) -> Self {
        Self { containing: text.to_owned(), ..self }
    }

    pub(crate) fn concerns(&self, plural: &str, verb: Verb, path: &str) -> bool {
        (self.plural.is_empty() || self.plural == plural)
            && (self.verb == Verb::Any || self.verb == verb)
            && path.contains(&self.containing)
    }
}

/// How open watches end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// As a watch ends whose time is over.
    Clean,
    /// The connection is reset.
    Reset,
    /// The connection stays open and nothing comes any more.
    Silence,
    /// With an ERROR event that says 410 Gone.
    Expired,
}
