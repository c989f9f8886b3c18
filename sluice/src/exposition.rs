//! The two texts that metrics are told in: OpenMetrics, which prometheus-client writes, and Prometheus' older text
//! format, which everything reads that does not ask for the other. Sources: the OpenMetrics specification 1.0;
//! prometheus.io/docs/instrumenting/exposition_formats.

use hyper::HeaderMap;
use hyper::header::ACCEPT;

/// Whether a client says that it reads OpenMetrics.
pub(crate) fn wants_openmetrics(headers: &HeaderMap) -> bool {
    let accepted = headers.get_all(ACCEPT).into_iter().filter_map(|value| value.to_str().ok());
    accepted.flat_map(|value| value.split(',')).any(|kind| {
        let mut words = kind.split(';').map(str::trim);
        let is_it = words.next() == Some("application/openmetrics-text");
        is_it && !words.any(|word| word == "q=0")
    })
}

/// OpenMetrics as the older text: a counter's family has the name of its samples, an info is a gauge, and there are
/// no units and no end mark.
pub(crate) fn text_format(openmetrics: &str) -> String {
    let mut text = String::with_capacity(openmetrics.len());
    // The help of a family stands before its type, on which its name depends.
    let mut help = None;
    for line in openmetrics.lines() {
        if let Some(told) = line.strip_prefix("# HELP ") {
            help = told.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|told| told.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                other => ("", other),
            };
            if let Some((_, told)) = help.take() {
                text.extend(["# HELP ", name, suffix, " ", told, "\n"]);
            }
            text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            text.extend([line, "\n"]);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn each_family_keeps_its_help_type_and_samples() {
        let mut registry = Registry::default();
        registry.register("seen", "Things seen", Counter::<u64>::default());
        registry.register_with_unit("age", "Of it", Unit::Seconds, Gauge::<i64>::default());
        registry.register("build", "What it is", Info::new([("version", "1")]));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        assert_eq!(
            text_format(&text),
            "# HELP seen_total Things seen.\n# TYPE seen_total counter\nseen_total 0\n\
             # HELP age_seconds Of it.\n# TYPE age_seconds gauge\nage_seconds 0\n\
             # HELP build_info What it is.\n# TYPE build_info gauge\nbuild_info{version=\"1\"} 1\n"
        );
    }

    #[test]
    fn only_those_who_name_openmetrics_get_it() {
        let wants = |accept: &str| {
            let accept = HeaderValue::from_str(accept).unwrap();
            wants_openmetrics(&HeaderMap::from_iter([(ACCEPT, accept)]))
        };
        assert!(wants("application/openmetrics-text"));
        assert!(wants("text/plain;version=0.0.4;q=0.5, application/openmetrics-text; version=1.0.0;q=0.8"));
        assert!(!wants("text/plain, */*;q=0.1"));
        assert!(!wants("application/openmetrics-text;q=0"));
        assert!(!wants_openmetrics(&HeaderMap::new()));
    }
}
