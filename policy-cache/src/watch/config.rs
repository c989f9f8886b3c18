//! The `api:` section of the configuration file.

use serde::{Deserialize, Serialize};

/// How the Kubernetes API is followed.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct ApiConfig {
    /// The longest wait before the first request, in milliseconds; every node waits a random part of it, so
    /// that a DaemonSet does not ask all at once. Default 1000.
    pub start_jitter_ms: u64,
    /// A watch without event or bookmark for this long counts as dead and is opened anew, in milliseconds.
    /// The API server sends a bookmark about every minute, for a quiet collection too where etcd tells it of its
    /// progress (etcd's watch-progress-notify-interval, which kubeadm sets). Default 150000.
    pub silence_ms: u64,
    /// How long the API server may take to begin an answer, and for each object of a list, in milliseconds.
    /// Default 30000.
    pub answer_timeout_ms: u64,
    /// Objects asked for at a time where lists come in pages. Default 500.
    pub page_size: u32,
    /// How often it is looked which policy kinds the API has, in milliseconds. Default 60000.
    pub discovery_ms: u64,
    /// Ask for lists as streams where the server has them (Kubernetes 1.32). Default true.
    pub streaming_lists: bool,
    /// Tell in the cluster which policies do not validate: an Event each, and a condition in the status of
    /// ClusterNetworkPolicies. Default true.
    pub report: bool,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            start_jitter_ms: 1_000,
            silence_ms: 150_000,
            answer_timeout_ms: 30_000,
            page_size: 500,
            discovery_ms: 60_000,
            streaming_lists: true,
            report: true,
        }
    }
}

/// A value of [`ApiConfig`] that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiConfigProblem {
    /// The key inside the section.
    pub field: &'static str,
    /// The value.
    pub value: String,
    /// What it must be.
    pub problem: &'static str,
}

impl ApiConfig {
    /// Every value that cannot be used; empty when all can.
    pub fn validate(&self) -> Vec<ApiConfigProblem> {
        const HOUR_MS: u64 = 60 * 60 * 1_000;
        let checks = [
            ("start_jitter_ms", self.start_jitter_ms, 0..=HOUR_MS, "must be at most 3600000"),
            ("silence_ms", self.silence_ms, 100..=HOUR_MS, "must be from 100 to 3600000"),
            ("answer_timeout_ms", self.answer_timeout_ms, 100..=HOUR_MS, "must be from 100 to 3600000"),
            ("page_size", self.page_size.into(), 1..=10_000, "must be from 1 to 10000"),
            ("discovery_ms", self.discovery_ms, 100..=HOUR_MS, "must be from 100 to 3600000"),
        ];
        checks
            .into_iter()
            .filter(|(_, value, allowed, _)| !allowed.contains(value))
            .map(|(field, value, _, problem)| ApiConfigProblem { field, value: value.to_string(), problem })
            .collect()
    }
}
