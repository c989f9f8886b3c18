//! How the following of the API goes, told to whoever asks.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::resource::RESOURCES;
use crate::manifest::Problem;
use crate::objects::ObjectKey;

/// How the following of the API goes.
#[derive(Clone, Debug, PartialEq)]
pub struct ApiStatus {
    /// Every kind was listed to its end at least once, or is not there: what is published is the whole cluster.
    pub complete: bool,
    /// False once nobody follows any more.
    pub alive: bool,
    /// Each kind that is followed.
    pub kinds: Vec<KindStatus>,
    /// The objects that are rejected, with each of their problems as a line.
    pub rejected: Vec<(ObjectKey, Vec<String>)>,
}

impl ApiStatus {
    /// The longest time that any kind that is there has been without a sign of life from the API server.
    pub fn age(&self) -> Option<Duration> {
        self.kinds.iter().filter_map(|kind| kind.age).max()
    }
}

/// How the following of one kind goes.
#[derive(Clone, Debug, PartialEq)]
pub struct KindStatus {
    /// The kind's name.
    pub kind: &'static str,
    /// The API has the kind. True until it is known not to.
    pub served: bool,
    /// It was listed to its end at least once, or is not there.
    pub listed: bool,
    /// How many objects there are.
    pub objects: usize,
    /// How many of them are rejected.
    pub rejected: usize,
    /// Since the last event, bookmark or list: what is known was right then. `None` before the first, and for a
    /// kind that is not there.
    pub age: Option<Duration>,
    /// Watches opened after the first.
    pub reconnects: u64,
    /// Lists read after the first.
    pub relists: u64,
    /// Why the last request failed, until one succeeds.
    pub error: Option<String>,
    /// For how long a list of it has been read that has not come to its end.
    pub listing: Option<Duration>,
}

/// Where the parts write what [`ApiStatus`] is read from.
#[derive(Clone, Debug)]
pub(crate) struct Board {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    kinds: Vec<Row>,
    complete: bool,
    rejected: BTreeMap<ObjectKey, Arc<[Problem]>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Row {
    pub(crate) absent: bool,
    pub(crate) listed: bool,
    pub(crate) objects: usize,
    pub(crate) heard: Option<Instant>,
    pub(crate) watches: u64,
    pub(crate) lists: u64,
    pub(crate) error: Option<String>,
    pub(crate) listing: Option<Instant>,
}

impl Board {
    pub(crate) fn new() -> Self {
        let kinds = vec![Row::default(); RESOURCES.len()];
        Self { state: Arc::new(Mutex::new(State { kinds, complete: false, rejected: BTreeMap::new() })) }
    }

    /// Changes the row of the resource with this number.
    pub(crate) fn row(&self, number: usize, change: impl FnOnce(&mut Row)) {
        if let Some(row) = self.lock().kinds.get_mut(number) {
            change(row);
        }
    }

    pub(crate) fn set_complete(&self) {
        self.lock().complete = true;
    }

    /// The kinds whose last request failed, each with why.
    pub(crate) fn troubles(&self) -> Vec<(&'static str, String)> {
        let state = self.lock();
        let rows = RESOURCES.iter().zip(&state.kinds);
        rows.filter_map(|(resource, row)| Some((resource.kind.as_str(), row.error.clone()?))).collect()
    }

    /// What is wrong with an object now; with nothing wrong, it is not rejected.
    pub(crate) fn judged(&self, key: &ObjectKey, problems: &Arc<[Problem]>) {
        let rejected = &mut self.lock().rejected;
        if problems.is_empty() {
            rejected.remove(key);
        } else {
            rejected.insert(key.clone(), Arc::clone(problems));
        }
    }

    pub(crate) fn read(&self, alive: bool) -> ApiStatus {
        let state = self.lock();
        let kinds = RESOURCES.iter().zip(&state.kinds).map(|(resource, row)| KindStatus {
            kind: resource.kind.as_str(),
            served: !row.absent,
            listed: row.listed,
            objects: row.objects,
            rejected: state.rejected.keys().filter(|key| key.kind == resource.kind).count(),
            age: row.heard.filter(|_| !row.absent).map(|heard| heard.elapsed()),
            reconnects: row.watches.saturating_sub(1),
            relists: row.lists.saturating_sub(1),
            error: row.error.clone(),
            listing: row.listing.map(|since| since.elapsed()),
        });
        let kinds = kinds.collect();
        let lines = |problems: &Arc<[Problem]>| problems.iter().map(ToString::to_string).collect();
        let rejected = state.rejected.iter().map(|(key, problems)| (key.clone(), lines(problems))).collect();
        ApiStatus { complete: state.complete, alive, kinds, rejected }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
