//! Tells the API server which policies are not understood: a Kubernetes Event for each rejection, and a condition in
//! the status of every ClusterNetworkPolicy.
//!
//! Every node comes to the same verdict, and 5,000 must not all say so. Each policy has three nodes that speak for it,
//! chosen by a hash of both names; the second and third wait half a minute each and then find it said. Events have a
//! name that follows from what they say, so saying it twice is one Event; conditions are looked at before they are
//! written, by server-side apply under one owner. Reports are a courtesy: nothing waits for them, and a role without
//! the rights to write them is told once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use flow::PolicyKind;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::chance;
use super::course::{LONGEST_ASKED, Outcome};
use super::ledger::Verdict;
use super::request::{self, Door, Failure};
use super::resource::{RESOURCES, TIER_GROUP};
use crate::objects::{Kind, ObjectKey};

/// How many nodes speak for a policy.
const SPEAKERS: usize = 3;
/// How long each of them waits for the one before.
const TURN: Duration = Duration::from_secs(30);
/// The longest text an Event takes (k8s.io/api/events/v1, `note`).
const MAX_NOTE: usize = 1_000;
/// How often a report that fails is tried again.
const TRIES: u32 = 5;
const RETRY: Duration = Duration::from_secs(10);
/// How much of a policy is read back for its conditions.
const MAX_POLICY: usize = 8 << 20;
/// Who reports.
const MANAGER: &str = "sluice";
/// The condition that says whether a policy is enforced as it is written.
const CONDITION: &str = "SluiceAccepted";

/// A verdict that this node is to report.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) verdict: Verdict,
    /// Its turn among the nodes that speak for the policy.
    pub(crate) turn: usize,
}

/// This node's turn to speak for a policy, when it is one of those that do.
pub(crate) fn turn<'n>(key: &ObjectKey, own: &str, nodes: impl Iterator<Item = &'n str>) -> Option<usize> {
    let policy = key.to_string();
    let own_weight = (weight(&policy, own), own);
    let (mut before, mut known) = (0, false);
    for node in nodes {
        known |= node == own;
        before += usize::from((weight(&policy, node), node) < own_weight);
    }
    (known && before < SPEAKERS).then_some(before)
}

/// FNV-1a, 64 bit: the same on every node and in every version. Its end is mixed once more (the finalizer of
/// MurmurHash3), for names that differ in their last character only.
fn weight(policy: &str, node: &str) -> u64 {
    let bytes = policy.bytes().chain([0]).chain(node.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^ (hash >> 33)
}

/// Writes reports when their turn comes, until nobody sends any more.
pub(crate) async fn run(door: Arc<Door>, node: String, mut reports: mpsc::UnboundedReceiver<Report>) {
    let mut due: BTreeMap<ObjectKey, (Instant, u32, Verdict)> = BTreeMap::new();
    let mut refused = false;
    loop {
        let next = due.iter().min_by_key(|(_, (at, ..))| *at).map(|(key, (at, ..))| (key.clone(), *at));
        let sleep = async {
            match &next {
                Some((_, at)) => tokio::time::sleep_until(*at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            report = reports.recv() => {
                let Some(Report { verdict, turn }) = report else { return };
                let turns = u32::try_from(turn).unwrap_or_default();
                let at = Instant::now() + TURN * turns + Duration::from_millis(200).mul_f64(chance());
                // A later verdict on the same policy takes the place of an earlier one.
                due.insert(verdict.key.clone(), (at, 0, verdict));
                continue;
            }
            () = sleep => {}
        }
        let Some((key, _)) = next else { continue };
        let Some((_, tries, verdict)) = due.remove(&key) else { continue };
        let Err(failure) = write(&door, &node, &verdict).await else { continue };
        if failure.status == Some(StatusCode::FORBIDDEN) {
            if !refused {
                tracing::warn!(
                    error = failure.message,
                    "rejected policies are not told in the cluster: the role lacks the right"
                );
            }
            refused = true;
        } else if tries < TRIES && failure.status != Some(StatusCode::NOT_FOUND) {
            let at = Instant::now() + again(tries, &failure.outcome, chance());
            due.insert(key, (at, tries + 1, verdict));
        } else {
            tracing::debug!(policy = %key, error = failure.message, "not reported");
        }
    }
}

/// How long a report waits that has failed so often before, at least as long as the server asks; `chance` is from 0 to 1.
fn again(tries: u32, outcome: &Outcome, chance: f64) -> Duration {
    let asked = match outcome {
        Outcome::Refused { retry_after: Some(asked) } => *asked.min(&LONGEST_ASKED),
        _ => Duration::ZERO,
    };
    RETRY.saturating_mul(1 << tries).mul_f64(0.5 + chance).max(asked.mul_f64(1.0 + chance / 4.0))
}

async fn write(door: &Door, node: &str, verdict: &Verdict) -> Result<(), Failure> {
    if !verdict.problems.is_empty() {
        let (path, event) = event(verdict, node, Timestamp::now());
        match door.write(Method::POST, &path, "application/json", event.to_string().into_bytes()).await {
            // Another node has said it.
            Err(failure) if failure.status == Some(StatusCode::CONFLICT) => {}
            result => result?,
        }
    }
    if verdict.key.kind == Kind::Policy(PolicyKind::ClusterNetworkPolicy) {
        write_condition(door, verdict).await?;
    }
    Ok(())
}

/// The path to create an Event at, and the Event. Its name follows from the policy and what is wrong with it.
fn event(verdict: &Verdict, node: &str, now: Timestamp) -> (String, Value) {
    let key = &verdict.key;
    let lines: Vec<String> = verdict.problems.iter().map(ToString::to_string).collect();
    let said = format!("{} {}", verdict.origin.uid, lines.join("\n"));
    let note = format!("Not enforced as written, and never more open than that: {}", lines.join("; "));
    let namespace = if key.namespace.is_empty() { "default" } else { &key.namespace };
    // A name takes 253 characters.
    let short: String = key.name.chars().take(230).collect();
    let resource = RESOURCES.iter().find(|resource| resource.kind == key.kind);
    let api_version =
        resource.map(|resource| format!("{}/{}", resource.group, resource.version)).unwrap_or_default();
    let event = json!({
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": { "name": format!("{short}.{:016x}", weight(&key.to_string(), &said)), "namespace": namespace },
        "eventTime": now.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        "reportingController": MANAGER,
        "reportingInstance": node,
        "action": "Validate",
        "reason": "PolicyRejected",
        "type": "Warning",
        "note": note.chars().take(MAX_NOTE).collect::<String>(),
        "regarding": {
            "apiVersion": api_version,
            "kind": key.kind.as_str(),
            "namespace": key.namespace,
            "name": key.name,
            "uid": verdict.origin.uid,
        },
    });
    (format!("/apis/events.k8s.io/v1/namespaces/{namespace}/events?fieldManager={MANAGER}"), event)
}

async fn write_condition(door: &Door, verdict: &Verdict) -> Result<(), Failure> {
    let path = format!("/apis/{TIER_GROUP}/v1alpha2/clusternetworkpolicies/{}", verdict.key.name);
    let body = door.get(&path).await?;
    let limit = door.answer_timeout();
    let bytes = tokio::time::timeout(limit, request::bounded(body, MAX_POLICY)).await;
    let bytes = bytes.map_err(|_| Failure::silent(limit))??;
    let policy: Value = serde_json::from_slice(&bytes).map_err(|error| Failure::broken(error.to_string()))?;
    let Some(condition) = condition(verdict, &policy, Timestamp::now()) else { return Ok(()) };
    let patch = json!({
        "apiVersion": format!("{TIER_GROUP}/v1alpha2"),
        "kind": "ClusterNetworkPolicy",
        "metadata": { "name": verdict.key.name },
        "status": { "conditions": [condition] },
    });
    let path = format!("{path}/status?fieldManager={MANAGER}&force=true");
    door.write(Method::PATCH, &path, "application/apply-patch+yaml", patch.to_string().into_bytes()).await
}

/// What the policy's condition is to be; `None` when it is so, or when the policy is another by now.
fn condition(verdict: &Verdict, policy: &Value, now: Timestamp) -> Option<Value> {
    if policy["metadata"]["uid"].as_str().unwrap_or_default() != verdict.origin.uid {
        return None;
    }
    let good = verdict.problems.is_empty();
    let (status, reason) = if good { ("True", "Enforced") } else { ("False", "Invalid") };
    let message = if good {
        "The policy is enforced as it is written.".to_owned()
    } else {
        let lines: Vec<String> = verdict.problems.iter().map(ToString::to_string).collect();
        format!("Not enforced as written, and never more open than that: {}", lines.join("; "))
    };
    let message: String = message.chars().take(8 * MAX_NOTE).collect();
    let conditions = policy["status"]["conditions"].as_array();
    let old = conditions.and_then(|all| all.iter().find(|condition| condition["type"] == CONDITION));
    let since = match old {
        Some(old) if old["status"] == status => old["lastTransitionTime"].clone(),
        _ => json!(now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
    };
    let new = json!({
        "type": CONDITION,
        "status": status,
        "reason": reason,
        "message": message,
        "observedGeneration": verdict.origin.generation,
        "lastTransitionTime": since,
    });
    (old != Some(&new)).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::read_object;
    use crate::watch::ledger::Origin;

    const CNP: Kind = Kind::Policy(PolicyKind::ClusterNetworkPolicy);

    fn verdict(spec: &str) -> Verdict {
        let json = format!(r#"{{"metadata":{{"name":"p"}},"spec":{spec}}}"#);
        let reading = read_object(json.as_bytes(), Some(CNP));
        let origin = Origin { uid: "u".to_owned(), generation: 4 };
        Verdict { key: reading.key.unwrap(), origin, problems: reading.problems.into() }
    }

    const GOOD: &str = r#"{"tier":"Admin","priority":1,"subject":{"namespaces":{}},"ingress":[{"action":"Deny","from":[{"namespaces":{}}]}]}"#;

    #[test]
    fn a_report_that_fails_waits_longer_each_time_and_as_long_as_a_busy_server_asks() {
        let broken = |tries, chance| again(tries, &Outcome::Broken, chance);
        assert_eq!((broken(0, 0.0), broken(0, 1.0)), (RETRY / 2, RETRY * 3 / 2));
        assert_eq!(broken(3, 0.5), RETRY * 8);
        let busy = |seconds| Outcome::Refused { retry_after: Some(Duration::from_secs(seconds)) };
        assert_eq!(again(0, &busy(60), 0.0), Duration::from_secs(60));
        assert_eq!(again(0, &busy(0), 0.5), RETRY);
        assert_eq!(again(0, &busy(86_400), 1.0), LONGEST_ASKED * 5 / 4);
    }

    #[test]
    fn three_of_the_nodes_speak_for_a_policy_each_in_its_turn_and_the_work_is_shared() {
        let nodes: Vec<String> = (0..500).map(|number| format!("node-{number}")).collect();
        let mut first = std::collections::BTreeSet::new();
        for policy in 0..50 {
            let key = ObjectKey { kind: CNP, namespace: String::new(), name: format!("p{policy}") };
            let mut turns: Vec<(usize, &String)> = nodes
                .iter()
                .filter_map(|own| Some((turn(&key, own, nodes.iter().map(String::as_str))?, own)))
                .collect();
            turns.sort();
            assert_eq!(turns.iter().map(|(turn, _)| *turn).collect::<Vec<_>>(), [0, 1, 2]);
            first.insert(turns[0].1);
        }
        assert!(first.len() > 35, "{}", first.len());
        let key = ObjectKey { kind: CNP, namespace: String::new(), name: "p".to_owned() };
        assert_eq!(turn(&key, "unknown", nodes.iter().map(String::as_str)), None);
        assert_eq!(turn(&key, "alone", ["alone"].into_iter()), Some(0));
    }

    #[test]
    fn the_same_rejection_is_the_same_event_and_another_is_another() {
        let now = Timestamp::UNIX_EPOCH;
        let name = |verdict: &Verdict, node| event(verdict, node, now).1["metadata"]["name"].clone();
        let (one, other) = (verdict("7"), verdict("[]"));
        assert_eq!(name(&one, "a"), name(&one, "b"));
        assert_ne!(name(&one, "a"), name(&other, "a"));
        let (path, event) = event(&one, "a", now);
        assert!(path.starts_with("/apis/events.k8s.io/v1/namespaces/default/events?"), "{path}");
        assert_eq!(event["eventTime"], "1970-01-01T00:00:00.000000Z");
        assert_eq!(event["regarding"]["apiVersion"], "policy.networking.k8s.io/v1alpha2");
        let long = "x".repeat(5_000);
        let note = super::event(&verdict(&format!("\"{long}\"")), "a", now).1["note"].clone();
        assert!(note.as_str().unwrap().len() <= 1_024);
    }

    #[test]
    fn a_condition_is_written_only_when_it_changes_and_keeps_the_time_of_its_transition() {
        let now = Timestamp::UNIX_EPOCH;
        let later = now + Duration::from_secs(60);
        let (good, bad) = (verdict(GOOD), verdict("7"));
        let mut policy = json!({ "metadata": { "uid": "u" } });
        let first = condition(&good, &policy, now).unwrap();
        assert_eq!((&first["status"], &first["observedGeneration"]), (&json!("True"), &json!(4)));
        policy["status"] = json!({ "conditions": [{ "type": "Other" }, first] });
        assert_eq!(condition(&good, &policy, later), None);
        let mut newer = good.clone();
        newer.origin.generation = 5;
        assert_eq!(condition(&newer, &policy, later).unwrap()["lastTransitionTime"], "1970-01-01T00:00:00Z");
        let second = condition(&bad, &policy, later).unwrap();
        assert_eq!(
            (&second["status"], &second["lastTransitionTime"]),
            (&json!("False"), &json!("1970-01-01T00:01:00Z"))
        );
        assert_eq!(condition(&good, &json!({ "metadata": { "uid": "another" } }), now), None);
    }
}
