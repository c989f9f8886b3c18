//! What the followers of the collections tell → events for the cluster.
//!
//! Knows of every object only its name and a hash of what was read, which is enough to pass over what did not
//! change and to find what a new list no longer has. Objects of a list that replaces an earlier one are held
//! until the list is complete and then applied together with its deletions, so that no object is ever
//! missing in between. Pure: no clock, no I/O.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use flow::PolicyKind;

use crate::manifest::{Problem, Reading};
use crate::objects::{Event, Kind, ObjectKey};

/// Objects held until a list is complete. More are applied at once: the list then differs in so much that
/// memory matters more than one moment for all of it.
const MAX_HELD: usize = 20_000;

/// What a follower tells.
#[derive(Debug)]
pub(crate) enum Note {
    /// An object as it is now, from a list (between `Begin` and `End`) or from a watch.
    Object(Box<Sighting>),
    /// An object is gone.
    Deleted(ObjectKey),
    /// A list of the kind begins, or begins again.
    Begin(Kind),
    /// The list is complete: what was not in it is gone.
    End(Kind),
    /// The API does not have the kind: there are no such objects.
    Absent(Kind),
}

/// An object that was seen.
#[derive(Debug)]
pub(crate) struct Sighting {
    pub(crate) kind: Kind,
    pub(crate) reading: Reading,
    /// A hash of all that was read, but for what changes with every write.
    pub(crate) content: u64,
    pub(crate) origin: Origin,
}

/// What a report about an object needs to know of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) uid: String,
    pub(crate) generation: i64,
}

/// What follows from a note.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// To be applied together.
    pub(crate) events: Vec<Event>,
    /// Objects whose rejection is new, other than before, or over.
    pub(crate) verdicts: Vec<Verdict>,
}

/// An object is rejected, or no longer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) key: ObjectKey,
    pub(crate) origin: Origin,
    /// Empty: it is good.
    pub(crate) problems: Arc<[Problem]>,
}

/// The objects known, by kind.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    kinds: HashMap<Kind, Known>,
    rejected: BTreeMap<ObjectKey, Arc<[Problem]>>,
}

#[derive(Debug, Default)]
struct Known {
    objects: HashMap<Name, Entry>,
    /// Number of the list that is being read, or was last.
    round: u32,
    /// A list was read to its end at least once.
    complete: bool,
    listing: bool,
    held: Vec<Event>,
}

/// Namespace and name, with a slash, which neither can contain.
type Name = Box<str>;

#[derive(Debug)]
struct Entry {
    content: u64,
    round: u32,
}

impl Ledger {
    /// A ledger of these kinds.
    pub(crate) fn new(kinds: impl IntoIterator<Item = Kind>) -> Self {
        let kinds = kinds.into_iter().map(|kind| (kind, Known::default())).collect();
        Self { kinds, rejected: BTreeMap::new() }
    }

    /// True once every kind was listed to its end, or is not there.
    pub(crate) fn is_complete(&self) -> bool {
        self.kinds.values().all(|known| known.complete)
    }

    /// The objects that are rejected, with all that is wrong with them.
    #[cfg(test)]
    pub(crate) fn rejected(&self) -> &BTreeMap<ObjectKey, Arc<[Problem]>> {
        &self.rejected
    }

    /// How many objects of the kind there are.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.kinds.get(&kind).map_or(0, |known| known.objects.len())
    }

    /// The names of the objects of a cluster-scoped kind.
    pub(crate) fn names(&self, kind: Kind) -> impl Iterator<Item = &str> {
        let known = self.kinds.get(&kind).into_iter();
        known.flat_map(|known| known.objects.keys().map(|name| name.trim_start_matches('/')))
    }

    pub(crate) fn take(&mut self, note: Note) -> Effects {
        let mut effects = Effects::default();
        match note {
            Note::Object(sighting) => self.object(*sighting, &mut effects),
            Note::Deleted(key) => {
                if let Some(known) = self.kinds.get_mut(&key.kind) {
                    known.objects.remove(&name(&key));
                    known.held.retain(|event| !matches!(event, Event::Put(object) if object.key() == key));
                }
                self.gone(key, &mut effects);
            }
            Note::Begin(kind) => {
                if let Some(known) = self.kinds.get_mut(&kind) {
                    known.round = known.round.wrapping_add(1);
                    known.listing = true;
                    // What a list that broke off has told is true, and its hashes are noted.
                    effects.events.append(&mut known.held);
                }
            }
            Note::End(kind) => self.end(kind, &mut effects),
            Note::Absent(kind) => {
                if let Some(known) = self.kinds.get_mut(&kind) {
                    known.round = known.round.wrapping_add(1);
                    known.held.clear();
                }
                self.end(kind, &mut effects);
            }
        }
        effects
    }

    fn object(&mut self, sighting: Sighting, effects: &mut Effects) {
        let Sighting { kind, reading, content, origin } = sighting;
        let Some(known) = self.kinds.get_mut(&kind) else { return };
        let Some(key) = reading.key else {
            for problem in &reading.problems {
                tracing::warn!(kind = kind.as_str(), %problem, "an object without a usable name is left out");
            }
            return;
        };
        let entry = Entry { content, round: known.round };
        if known.objects.insert(name(&key), entry).is_some_and(|old| old.content == content) {
            return;
        }
        if let Some(object) = reading.object {
            let first_list = !known.complete;
            if known.listing && !first_list {
                known.held.push(Event::Put(object));
                if known.held.len() >= MAX_HELD {
                    effects.events.append(&mut known.held);
                }
            } else {
                effects.events.push(Event::Put(object));
            }
        }
        self.judge(key, origin, reading.problems, effects);
    }

    /// Tells of a rejection when it is other than before, and of every ClusterNetworkPolicy, which has
    /// conditions in its status.
    fn judge(&mut self, key: ObjectKey, origin: Origin, problems: Vec<Problem>, effects: &mut Effects) {
        let problems: Arc<[Problem]> = problems.into();
        if problems.is_empty() {
            let was_rejected = self.rejected.remove(&key).is_some();
            if was_rejected || key.kind == Kind::Policy(PolicyKind::ClusterNetworkPolicy) {
                effects.verdicts.push(Verdict { key, origin, problems });
            }
            return;
        }
        if self.rejected.get(&key) != Some(&problems) {
            self.rejected.insert(key.clone(), Arc::clone(&problems));
            effects.verdicts.push(Verdict { key, origin, problems });
        }
    }

    fn gone(&mut self, key: ObjectKey, effects: &mut Effects) {
        if self.rejected.remove(&key).is_some() {
            let verdict = Verdict { key: key.clone(), origin: Origin::default(), problems: Arc::default() };
            effects.verdicts.push(verdict);
        }
        effects.events.push(Event::Delete(key));
    }

    fn end(&mut self, kind: Kind, effects: &mut Effects) {
        let Some(known) = self.kinds.get_mut(&kind) else { return };
        known.complete = true;
        known.listing = false;
        let mut held = std::mem::take(&mut known.held);
        let round = known.round;
        let mut vanished = Vec::new();
        known.objects.retain(|name, entry| {
            let stays = entry.round == round;
            if !stays {
                vanished.push(key(kind, name));
            }
            stays
        });
        for key in vanished {
            self.gone(key, effects);
        }
        effects.events.append(&mut held);
    }
}

fn name(key: &ObjectKey) -> Name {
    format!("{}/{}", key.namespace, key.name).into()
}

fn key(kind: Kind, name: &str) -> ObjectKey {
    let (namespace, name) = name.split_once('/').unwrap_or(("", name));
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

#[cfg(test)]
#[path = "ledger_tests.rs"]
mod tests;
