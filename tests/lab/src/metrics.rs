//! Reads one series out of the Prometheus text format. Labels compare as a set, in whatever order.

use std::collections::BTreeSet;

/// The value of `series`, written `name` or `name{label="value",…}`. A series that does not exist yet, of a
/// metric that is announced by a `# TYPE` line, is 0: counters with labels appear on first use. `None` when
/// there is no such metric.
pub(crate) fn value(text: &str, series: &str) -> Option<f64> {
    let (name, labels) = split(series)?;
    let sample = text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let (found, rest) = split_sample(line)?;
        (split(found)? == (name, labels.clone())).then(|| rest.trim().parse().ok()).flatten()
    });
    sample.or_else(|| announced(text, name).then_some(0.0))
}

fn announced(text: &str, name: &str) -> bool {
    let suffixes = ["", "_total", "_count", "_sum", "_bucket"];
    text.lines()
        .filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next())
        .any(|family| name.strip_prefix(family).is_some_and(|suffix| suffixes.contains(&suffix)))
}

/// Splits a sample line at the end of its series.
fn split_sample(line: &str) -> Option<(&str, &str)> {
    match line.find('{') {
        Some(open) => {
            let close = open + line[open..].rfind('}')?;
            Some(line.split_at(close + 1))
        }
        None => line.split_once(' '),
    }
}

fn split(series: &str) -> Option<(&str, BTreeSet<String>)> {
    let Some((name, rest)) = series.split_once('{') else { return Some((series, BTreeSet::new())) };
    let mut labels = BTreeSet::new();
    let mut rest = rest.strip_suffix('}')?;
    while !rest.is_empty() {
        let (key, after) = rest.split_once("=\"")?;
        let end = closing_quote(after)?;
        labels.insert(format!("{}={}", key.trim(), &after[..end]));
        rest = after[end + 1..].trim_start_matches(',');
    }
    Some((name, labels))
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, c)| {
        let closes = c == '"' && !escaped;
        escaped = c == '\\' && !escaped;
        closes.then_some(index)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# TYPE sluice_opened counter\nsluice_opened_total 7\n\
        # TYPE sluice_denied counter\nsluice_denied_total{side=\"in,\\\"}\",node=\"a\"} 3\n\
        # TYPE sluice_live gauge\nsluice_live{} 2.5\n# EOF\n";

    #[test]
    fn a_series_is_found_whatever_the_order_of_its_labels() {
        assert_eq!(value(TEXT, "sluice_opened_total"), Some(7.0));
        assert_eq!(value(TEXT, "sluice_denied_total{node=\"a\",side=\"in,\\\"}\"}"), Some(3.0));
        assert_eq!(value(TEXT, "sluice_live"), Some(2.5));
    }

    #[test]
    fn a_series_not_used_yet_is_zero_and_an_unknown_metric_is_none() {
        assert_eq!(value(TEXT, "sluice_denied_total{node=\"b\"}"), Some(0.0));
        assert_eq!(value(TEXT, "sluice_opened_seconds"), None);
        assert_eq!(value(TEXT, "sluice"), None);
    }
}
