//! Times as people write them and as records hold them.

use std::time::{Duration, SystemTime};

use audit::Glance;

use super::filter::duration;

/// Nanoseconds since 1970, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) since: i64,
    pub(crate) until: i64,
}

impl Span {
    pub(crate) fn contains(self, time: i64) -> bool {
        (self.since..=self.until).contains(&time)
    }
}

/// A moment: `5m` is five minutes ago, everything else is RFC 3339.
pub(crate) fn moment(text: &str) -> Result<i64, String> {
    if let Ok(ago) = duration(text) {
        return Ok(now().saturating_sub(span(ago)));
    }
    text.parse::<jiff::Timestamp>()
        .ok()
        .and_then(|time| i64::try_from(time.as_nanosecond()).ok())
        .ok_or_else(|| format!("{text} is no time such as 10m (ago) or 2026-08-01T12:00:00Z"))
}

/// `@timestamp` of a line.
pub(crate) fn of_line(line: &str) -> Option<i64> {
    Glance::from(&serde_json::from_str(line).ok()?).time
}

/// Now.
pub(crate) fn now() -> i64 {
    nanos(SystemTime::now())
}

fn nanos(time: SystemTime) -> i64 {
    time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, span)
}

fn span(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_a_time_ago_or_a_timestamp() {
        let now = now();
        let ago = moment("5m").unwrap();
        assert!((now - ago - 300_000_000_000).abs() < 10_000_000_000);
        assert_eq!(moment("1970-01-01T00:00:01.5Z"), Ok(1_500_000_000));
        assert_eq!(moment("1970-01-01T01:00:00+01:00"), Ok(0));
        assert!(moment("yesterday").is_err() && moment("2026-08-01").is_err());
    }
}
