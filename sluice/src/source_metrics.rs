//! What is counted of where the policy comes from, read when it is scraped: `sluice_objects_rejected`, and of an API
//! that is followed `sluice_api_…`. The only label is the kind, of which there are nine.

use std::sync::{Arc, Mutex, PoisonError};

use policy_cache::{ApiStatus, KindStatus};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;

/// Where the agent leaves the state of the source. Clones share it. Nothing is exported before the first.
#[derive(Clone, Debug, Default)]
pub(crate) struct SourceMetrics {
    state: Arc<Mutex<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    api: Option<ApiStatus>,
    rejected: Vec<(&'static str, usize)>,
}

impl SourceMetrics {
    pub(crate) fn set(&self, api: Option<ApiStatus>, rejected: Vec<(&'static str, usize)>) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = State { api, rejected };
    }
}

impl Collector for SourceMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), std::fmt::Error> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if !state.rejected.is_empty() {
            let mut family = encoder.encode_descriptor(
                "sluice_objects_rejected",
                "Objects that do not validate: policies in quarantine, others as they last were",
                None,
                MetricType::Gauge,
            )?;
            for (kind, count) in state.rejected {
                ConstGauge::new(as_float(count)).encode(family.encode_family(&[("kind", kind)])?)?;
            }
        }
        let Some(status) = state.api else { return Ok(()) };
        gauges(
            &mut encoder,
            &status.kinds,
            "sluice_api_age",
            "Since the API server last told anything of the kind",
            Some(&Unit::Seconds),
            |kind| kind.age.map(|age| age.as_secs_f64()),
        )?;
        gauges(&mut encoder, &status.kinds, "sluice_api_objects", "Objects of the kind", None, |kind| {
            Some(as_float(kind.objects))
        })?;
        counters(&mut encoder, &status.kinds, "sluice_api_reconnects", "Watches opened again", |kind| {
            kind.reconnects
        })?;
        counters(&mut encoder, &status.kinds, "sluice_api_relists", "Lists read again", |kind| kind.relists)
    }
}

fn gauges(
    encoder: &mut DescriptorEncoder<'_>,
    kinds: &[KindStatus],
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: impl Fn(&KindStatus) -> Option<f64>,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?;
    for kind in kinds {
        if let Some(value) = value(kind) {
            ConstGauge::new(value).encode(family.encode_family(&[("kind", kind.kind)])?)?;
        }
    }
    Ok(())
}

fn counters(
    encoder: &mut DescriptorEncoder<'_>,
    kinds: &[KindStatus],
    name: &str,
    help: &str,
    value: impl Fn(&KindStatus) -> u64,
) -> Result<(), std::fmt::Error> {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for kind in kinds {
        ConstCounter::new(value(kind)).encode(family.encode_family(&[("kind", kind.kind)])?)?;
    }
    Ok(())
}

fn as_float(count: usize) -> f64 {
    u32::try_from(count).map_or(f64::from(u32::MAX), f64::from)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;

    #[test]
    fn each_kind_has_its_series_once_the_api_is_followed() {
        let metrics = SourceMetrics::default();
        let mut registry = Registry::default();
        registry.register_collector(Box::new(metrics.clone()));
        let text = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        assert!(!text().contains("sluice_api"), "{}", text());
        let kind = |kind, age| KindStatus {
            kind,
            served: true,
            listed: true,
            objects: 7,
            rejected: 2,
            age,
            reconnects: 3,
            relists: 1,
            error: None,
            listing: None,
        };
        let kinds = vec![kind("Pod", Some(Duration::from_millis(1500))), kind("ClusterNetworkPolicy", None)];
        let api = ApiStatus { complete: true, alive: true, kinds, rejected: Vec::new() };
        metrics.set(Some(api), vec![("ClusterNetworkPolicy", 2)]);
        let text = text();
        for line in [
            "sluice_api_age_seconds{kind=\"Pod\"} 1.5",
            "sluice_api_objects{kind=\"Pod\"} 7.0",
            "sluice_objects_rejected{kind=\"ClusterNetworkPolicy\"} 2.0",
            "sluice_api_reconnects_total{kind=\"Pod\"} 3",
            "sluice_api_relists_total{kind=\"Pod\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("age_seconds{kind=\"ClusterNetworkPolicy\"}"), "{text}");
    }
}
