//! What the log says of an API server that does not answer: that it began, at most once a minute what has changed,
//! now and then that it lasts, and its end. Every try of every collection would be a flood, on every node at once.
//!
//! [`Voice`] is pure: the time and the state of the collections come in as values.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::status::Board;

/// How often the state is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// What is over sooner was a hiccup and is not told.
const SETTLED: Duration = Duration::from_secs(2);
/// Without trouble for this long, it is over.
const QUIET: Duration = Duration::from_secs(5);
/// The shortest time between two lines about a trouble that lasts.
const CHANGE: Duration = Duration::from_secs(60);
/// How often a trouble that lasts and does not change is told again.
const SUMMARY: Duration = Duration::from_secs(600);

/// A collection that is in trouble, and why.
pub(crate) type Trouble = (&'static str, String);

/// What there is to say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// It has begun.
    Begun { what: String },
    /// It lasts, and maybe has changed.
    Lasting { what: String, lasting: Duration },
    /// It is over.
    Over { lasted: Duration },
}

/// Remembers what was said.
#[derive(Debug, Default)]
pub(crate) struct Voice {
    began: Option<Instant>,
    /// The last look that found trouble.
    last: Option<Instant>,
    /// When something was said of it, and what.
    said: Option<(Instant, String)>,
}

impl Voice {
    /// Takes in which collections are in trouble now.
    pub(crate) fn look(&mut self, now: Instant, troubles: &[Trouble]) -> Option<Line> {
        if troubles.is_empty() {
            let quiet = now.saturating_duration_since(self.last?);
            // Of what was never told no end is told.
            if self.said.is_none() || quiet >= QUIET {
                let ended = Self { said: self.said.take(), began: self.began.take(), last: self.last.take() };
                ended.said?;
                let lasted = ended.last?.saturating_duration_since(ended.began?);
                return Some(Line::Over { lasted });
            }
            return None;
        }
        self.last = Some(now);
        let began = *self.began.get_or_insert(now);
        let what = summary(troubles);
        let lasting = now.saturating_duration_since(began);
        let line = match &self.said {
            None if lasting < SETTLED => return None,
            None => Line::Begun { what: what.clone() },
            Some((at, before)) => {
                let pause = now.saturating_duration_since(*at);
                if pause < CHANGE || (pause < SUMMARY && *before == what) {
                    return None;
                }
                Line::Lasting { what: what.clone(), lasting }
            }
        };
        self.said = Some((now, what));
        Some(line)
    }
}

/// Each reason once, with the collections it is about.
fn summary(troubles: &[Trouble]) -> String {
    let mut by_reason: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (kind, reason) in troubles {
        by_reason.entry(reason).or_default().push(kind);
    }
    let parts: Vec<String> =
        by_reason.iter().map(|(reason, kinds)| format!("{}: {reason}", kinds.join(", "))).collect();
    parts.join("; ")
}

/// Speaks for as long as the collections are followed.
pub(crate) async fn run(board: Board) {
    let mut voice = Voice::default();
    loop {
        tokio::time::sleep(LOOK).await;
        match voice.look(Instant::now(), &board.troubles()) {
            None => {}
            Some(Line::Begun { what }) => {
                tracing::warn!(
                    error = what,
                    "the API server does not answer as it should; the last state stays in force"
                );
            }
            Some(Line::Lasting { what, lasting }) => {
                let seconds = lasting.as_secs();
                tracing::warn!(seconds, error = what, "the API server still does not answer as it should");
            }
            Some(Line::Over { lasted }) => {
                tracing::info!(seconds = lasted.as_secs(), "the API server answers again");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said in the seconds of a trouble, with the second it is said in.
    fn said(seconds: u64, troubles: impl Fn(u64) -> Vec<Trouble>) -> Vec<(u64, Line)> {
        let (mut voice, start) = (Voice::default(), Instant::now());
        (0..seconds)
            .filter_map(|second| {
                let line = voice.look(start + Duration::from_secs(second), &troubles(second))?;
                Some((second, line))
            })
            .collect()
    }

    fn refused(kinds: &[&'static str]) -> Vec<Trouble> {
        kinds.iter().map(|kind| (*kind, "refused".to_owned())).collect()
    }

    #[test]
    fn an_hour_without_the_api_is_a_line_at_its_beginning_one_every_ten_minutes_and_one_at_its_end() {
        let lines =
            said(
                4_000,
                |second| {
                    if (10..3_610).contains(&second) { refused(&["Pod", "Node"]) } else { Vec::new() }
                },
            );
        let what = "Pod, Node: refused".to_owned();
        let lasting = |second: u64| {
            (second, Line::Lasting { what: what.clone(), lasting: Duration::from_secs(second - 10) })
        };
        assert_eq!(
            lines,
            [
                (12, Line::Begun { what: what.clone() }),
                lasting(612),
                lasting(1_212),
                lasting(1_812),
                lasting(2_412),
                lasting(3_012),
                (3_614, Line::Over { lasted: Duration::from_secs(3_599) }),
            ]
        );
    }

    #[test]
    fn a_hiccup_is_not_told_and_neither_are_changes_more_often_than_once_a_minute() {
        assert_eq!(said(100, |second| if second % 10 == 5 { refused(&["Pod"]) } else { Vec::new() }), []);
        let flapping = said(300, |second| refused(if second % 2 == 0 { &["Pod"] } else { &["Pod", "Node"] }));
        assert!((4..=6).contains(&flapping.len()), "{flapping:?}");
        let pausing = said(300, |second| if second % 4 == 0 { Vec::new() } else { refused(&["Pod"]) });
        assert_eq!(pausing.len(), 1, "{pausing:?}");
    }

    #[test]
    fn each_reason_is_said_once_with_all_it_is_about() {
        let mut troubles = refused(&["Pod", "Node"]);
        troubles.push(("Service", "forbidden".to_owned()));
        assert_eq!(summary(&troubles), "Service: forbidden; Pod, Node: refused");
    }
}
