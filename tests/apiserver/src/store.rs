//! The objects, their versions, and what happened to them.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;

use serde_json::{Value, json};
use tokio::sync::watch;

use crate::lock;
use crate::watch::Command;

/// Namespace and name.
pub(crate) type Key = (String, String);

/// The collections that are known: plural, group and version, kind.
pub(crate) const COLLECTIONS: [(&str, &str, &str); 9] = [
    ("pods", "v1", "Pod"),
    ("namespaces", "v1", "Namespace"),
    ("nodes", "v1", "Node"),
    ("services", "v1", "Service"),
    ("endpointslices", "discovery.k8s.io/v1", "EndpointSlice"),
    ("networkpolicies", "networking.k8s.io/v1", "NetworkPolicy"),
    ("clusternetworkpolicies", "policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"),
    ("adminnetworkpolicies", "policy.networking.k8s.io/v1alpha1", "AdminNetworkPolicy"),
    ("baselineadminnetworkpolicies", "policy.networking.k8s.io/v1alpha1", "BaselineAdminNetworkPolicy"),
];

/// What happened to an object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) plural: &'static str,
    pub(crate) event: &'static str,
    pub(crate) json: std::sync::Arc<[u8]>,
}

/// A command for the watches of a collection, and when it was given.
#[derive(Clone, Debug)]
pub(crate) struct Told {
    pub(crate) serial: u64,
    pub(crate) plural: String,
    pub(crate) command: Command,
}

#[derive(Debug)]
pub(crate) struct Store {
    state: Mutex<State>,
    /// Changes with everything that a watch may want to know of.
    woken: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct State {
    version: u64,
    /// What happened up to this version is forgotten.
    compacted: u64,
    objects: BTreeMap<&'static str, BTreeMap<Key, std::sync::Arc<[u8]>>>,
    changes: VecDeque<Change>,
    told: Vec<Told>,
    serial: u64,
    watches: BTreeMap<String, usize>,
    /// The Events, by namespace and name.
    events: BTreeMap<Key, Value>,
}

impl Default for Store {
    fn default() -> Self {
        let state = State { version: 100, compacted: 100, ..State::default() };
        Self { state: Mutex::new(state), woken: watch::Sender::new(0) }
    }
}

/// One page of a list.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) items: Vec<std::sync::Arc<[u8]>>,
    pub(crate) version: u64,
    /// Where the next one begins.
    pub(crate) next: Option<Key>,
}

impl Store {
    pub(crate) fn wake(&self) {
        self.woken.send_modify(|count| *count += 1);
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<u64> {
        self.woken.subscribe()
    }

    pub(crate) fn put(&self, mut object: Value) -> u64 {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let (version, kind) = (text(&object["apiVersion"]), text(&object["kind"]));
        let (plural, ..) = COLLECTIONS
            .iter()
            .find(|(_, known, name)| *known == version && *name == kind)
            .unwrap_or_else(|| panic!("no such kind here: {version} {kind}"));
        let metadata = &object["metadata"];
        let name = text(&metadata["name"]);
        assert!(!name.is_empty(), "an object without a name: {object}");
        let cluster = ["namespaces", "nodes"].contains(plural) || version.starts_with("policy.");
        let namespace = match (cluster, text(&metadata["namespace"])) {
            (true, _) => String::new(),
            (false, namespace) if namespace.is_empty() => "default".to_owned(),
            (false, namespace) => namespace,
        };
        let metadata = &mut object["metadata"];
        if !cluster {
            metadata["namespace"] = json!(namespace);
        }
        let mut state = lock(&self.state);
        let next = state.version + 1;
        metadata["resourceVersion"] = json!(next.to_string());
        if metadata["uid"].is_null() {
            metadata["uid"] = json!(format!("{plural}-{namespace}-{name}"));
        }
        let json = object.to_string().into_bytes();
        let version = state.put(plural, (namespace, name), json);
        drop(state);
        self.wake();
        version
    }

    pub(crate) fn put_raw(&self, plural: &str, namespace: &str, name: &str, json: Vec<u8>) -> u64 {
        let version = lock(&self.state).put(known(plural), (namespace.to_owned(), name.to_owned()), json);
        self.wake();
        version
    }

    /// An object as it is now.
    pub(crate) fn get(&self, plural: &str, name: &str) -> Option<std::sync::Arc<[u8]>> {
        lock(&self.state).objects.get(plural)?.get(&(String::new(), name.to_owned())).cloned()
    }

    /// Takes conditions into the status of an object: each in the place of the one of its type.
    pub(crate) fn apply_conditions(&self, plural: &str, name: &str, patch: &Value) -> bool {
        let Some(json) = self.get(plural, name) else { return false };
        let Ok(mut object) = serde_json::from_slice::<Value>(&json) else { return false };
        let mut conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        for new in patch["status"]["conditions"].as_array().into_iter().flatten() {
            conditions.retain(|old| old["type"] != new["type"]);
            conditions.push(new.clone());
        }
        object["status"]["conditions"] = Value::Array(conditions);
        self.put(object);
        true
    }

    /// Creates an Event. False when there is one of its name.
    pub(crate) fn create_event(&self, namespace: &str, event: &Value) -> bool {
        let name = event["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let mut state = lock(&self.state);
        let key = (namespace.to_owned(), name);
        if state.events.contains_key(&key) {
            return false;
        }
        state.events.insert(key, event.clone());
        true
    }

    pub(crate) fn events(&self) -> Vec<Value> {
        lock(&self.state).events.values().cloned().collect()
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = lock(&self.state);
        let plural = known(plural);
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(json) = state.objects.entry(plural).or_default().remove(&key) {
            state.version += 1;
            let version = state.version;
            state.changes.push_back(Change { version, plural, event: "DELETED", json });
        }
        drop(state);
        self.wake();
    }

    pub(crate) fn delete_silently(&self, plural: &str, namespace: &str, name: &str) {
        let mut state = lock(&self.state);
        state.version += 1;
        state.objects.entry(known(plural)).or_default().remove(&(namespace.to_owned(), name.to_owned()));
    }

    pub(crate) fn compact(&self) {
        let mut state = lock(&self.state);
        state.version += 1;
        state.compacted = state.version;
        state.changes.clear();
    }

    pub(crate) fn restore(&self) {
        let mut state = lock(&self.state);
        state.version = 10;
        state.compacted = 10;
        state.changes.clear();
    }

    pub(crate) fn tell(&self, plural: &str, command: Command) {
        let mut state = lock(&self.state);
        state.serial += 1;
        let serial = state.serial;
        state.told.push(Told { serial, plural: plural.to_owned(), command });
        drop(state);
        self.wake();
    }

    /// The serial of the last command: a watch that begins now obeys later ones.
    pub(crate) fn serial(&self) -> u64 {
        lock(&self.state).serial
    }

    pub(crate) fn commands(&self, plural: &str, after: u64) -> Vec<Told> {
        let concerns =
            |told: &&Told| told.serial > after && (told.plural.is_empty() || told.plural == plural);
        lock(&self.state).told.iter().filter(concerns).cloned().collect()
    }

    pub(crate) fn version(&self) -> u64 {
        lock(&self.state).version
    }

    /// What happened to a collection after a version; `None` when that is forgotten.
    pub(crate) fn changes(&self, plural: &str, after: u64) -> Option<Vec<Change>> {
        let state = lock(&self.state);
        if after < state.compacted {
            return None;
        }
        let from = state.changes.partition_point(|change| change.version <= after);
        Some(state.changes.range(from..).filter(|change| change.plural == plural).cloned().collect())
    }

    /// A page, from a key on. `None` when the pages of that version have expired.
    pub(crate) fn page(&self, plural: &str, from: Option<(u64, Key)>, limit: usize) -> Option<Page> {
        let state = lock(&self.state);
        let version = from.as_ref().map_or(state.version, |(version, _)| *version);
        if from.is_some() && version < state.compacted {
            return None;
        }
        let empty = BTreeMap::new();
        let objects = state.objects.get(plural).unwrap_or(&empty);
        let start = from.map(|(_, key)| key).unwrap_or_default();
        let mut rest = objects.range(start..);
        let items = rest.by_ref().take(limit).map(|(_, json)| json.clone()).collect();
        let next = rest.next().map(|(key, _)| key.clone());
        Some(Page { items, version, next })
    }

    pub(crate) fn watch_opened(&self, plural: &str) {
        *lock(&self.state).watches.entry(plural.to_owned()).or_default() += 1;
    }

    pub(crate) fn watch_closed(&self, plural: &str) {
        if let Some(count) = lock(&self.state).watches.get_mut(plural) {
            *count -= 1;
        }
    }

    pub(crate) fn open_watches(&self, plural: &str) -> usize {
        lock(&self.state).watches.get(plural).copied().unwrap_or_default()
    }
}

impl State {
    fn put(&mut self, plural: &'static str, key: Key, json: Vec<u8>) -> u64 {
        self.version += 1;
        let json: std::sync::Arc<[u8]> = json.into();
        let old = self.objects.entry(plural).or_default().insert(key, json.clone());
        let event = if old.is_some() { "MODIFIED" } else { "ADDED" };
        self.changes.push_back(Change { version: self.version, plural, event, json });
        self.version
    }
}

fn known(plural: &str) -> &'static str {
    COLLECTIONS
        .iter()
        .map(|(known, ..)| *known)
        .find(|known| *known == plural)
        .unwrap_or_else(|| panic!("no such collection here: {plural}"))
}
