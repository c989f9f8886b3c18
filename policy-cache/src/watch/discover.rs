//! Which of the optional collections the API has. They come and go with their CRDs while the process runs.
//!
//! One absence is believed at the start, when nothing is known that could be lost. Later it must be seen twice, a
//! while apart, before anything that is known counts as gone. What there is in other versions only than the one that
//! is read is not gone: the last state stays, and it is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use super::chance;
use super::course::Outcome;
use super::request::{self, Door, Failure};
use super::resource::{RESOURCES, Resource, TIER_GROUP};
use super::status::Board;

/// How much of an answer is read.
const MAX_ANSWER: usize = 1 << 20;
/// The wait before an absence is looked at for the second time.
const CONFIRMATION: Duration = Duration::from_secs(5);
/// How many versions of the group are looked at.
const MAX_VERSIONS: usize = 16;
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// What is known of the optional collections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// The number of looks that were answered.
    looks: u64,
    here: BTreeSet<&'static str>,
    /// Collections that there are in other versions only than those that are read, with these versions.
    elsewhere: BTreeMap<&'static str, String>,
    /// How many looks in a row have not found a collection, by its place in [`RESOURCES`].
    misses: [u32; RESOURCES.len()],
}

/// A follower's view of what is there.
#[derive(Debug)]
pub(crate) struct Presence {
    seen: watch::Receiver<Seen>,
    doubt: Arc<Notify>,
    /// The collection was there before.
    known: bool,
    /// Looks that had been answered when doubt was raised.
    doubted: Option<u64>,
}

impl Presence {
    /// False while it is not known, or known not to be there.
    pub(crate) fn is_here(&mut self, resource: Resource) -> bool {
        let seen = self.seen.borrow_and_update();
        let here = seen.here.contains(resource.plural) && self.doubted.is_none_or(|looks| seen.looks > looks);
        if here {
            self.known = true;
            self.doubted = None;
        }
        here
    }

    /// The collection is known not to be there.
    pub(crate) fn is_surely_absent(&mut self, resource: Resource) -> bool {
        let seen = self.seen.borrow();
        let Some(place) = RESOURCES.iter().position(|known| *known == resource) else { return false };
        let needed = if self.known { 2 } else { 1 };
        let absent = seen.misses[place] >= needed;
        if absent {
            self.known = false;
            self.doubted = None;
        }
        absent
    }

    /// The versions in which there is the collection, when the one that is read is none of them.
    pub(crate) fn elsewhere(&self, resource: Resource) -> Option<String> {
        self.seen.borrow().elsewhere.get(resource.plural).cloned()
    }

    /// A request for the collection was answered as if it were not there.
    pub(crate) fn doubt(&mut self) {
        self.doubted = Some(self.seen.borrow().looks);
        self.doubt.notify_one();
    }

    /// Waits for the next answer.
    pub(crate) async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        self.seen.changed().await
    }
}

/// Looks at what is there, again and again.
#[derive(Debug)]
pub(crate) struct Discovery {
    seen: watch::Sender<Seen>,
    doubt: Arc<Notify>,
}

impl Discovery {
    pub(crate) fn new() -> Self {
        Self { seen: watch::Sender::new(Seen::default()), doubt: Arc::new(Notify::new()) }
    }

    pub(crate) fn presence(&self) -> Presence {
        Presence { seen: self.seen.subscribe(), doubt: Arc::clone(&self.doubt), known: false, doubted: None }
    }

    /// Looks until nobody wants to know any more.
    pub(crate) async fn run(self, door: Arc<Door>, interval: Duration, board: Board) {
        let mut failures = 0_u32;
        while !self.seen.is_closed() {
            let wait = match look(&door).await {
                Ok((here, elsewhere)) => {
                    failures = 0;
                    let missing = self.note(here, elsewhere);
                    if missing { CONFIRMATION } else { interval.mul_f64(0.75 + chance() / 2.0) }
                }
                Err(failure) => {
                    failures = failures.saturating_add(1);
                    optional(|number, _| board.row(number, |row| row.error = Some(failure.message.clone())));
                    let wait = FIRST_WAIT.saturating_mul(1 << failures.min(6)).min(interval);
                    let asked = match failure.outcome {
                        Outcome::Refused { retry_after } => retry_after.unwrap_or_default(),
                        _ => Duration::ZERO,
                    };
                    wait.mul_f64(0.5 + chance() / 2.0).max(asked.min(Duration::from_secs(600)))
                }
            };
            if failures > 0 {
                tokio::time::sleep(wait).await;
            } else {
                // Doubt is looked into soon, and not at once: it may come often.
                let _ = tokio::time::timeout(wait, self.doubt.notified()).await;
                tokio::time::sleep(FIRST_WAIT.min(interval)).await;
            }
        }
    }

    /// Takes in what there is. True when something that was there is missing, and has been for one look only.
    fn note(&self, here: BTreeSet<&'static str>, elsewhere: BTreeMap<&'static str, String>) -> bool {
        let mut missing = false;
        self.seen.send_modify(|seen| {
            seen.looks += 1;
            optional(|number, resource| {
                if here.contains(resource.plural) || elsewhere.contains_key(resource.plural) {
                    seen.misses[number] = 0;
                } else {
                    seen.misses[number] = seen.misses[number].saturating_add(1);
                    missing |= seen.misses[number] == 1;
                }
            });
            seen.here = here;
            seen.elsewhere = elsewhere;
        });
        missing
    }
}

fn optional(mut each: impl FnMut(usize, Resource)) {
    for (number, resource) in RESOURCES.into_iter().enumerate() {
        if resource.is_optional() {
            each(number, resource);
        }
    }
}

#[derive(serde::Deserialize)]
struct Group {
    versions: Vec<Version>,
}

#[derive(serde::Deserialize)]
struct Version {
    version: String,
}

#[derive(serde::Deserialize)]
struct Collections {
    resources: Vec<Collection>,
}

#[derive(serde::Deserialize)]
struct Collection {
    name: String,
}

/// Collections that are there in the version that is read, and the versions of those that are there in others only.
type Found = (BTreeSet<&'static str>, BTreeMap<&'static str, String>);

/// The optional collections that there are now.
async fn look(door: &Door) -> Result<Found, Failure> {
    let (mut here, mut elsewhere) = (BTreeSet::new(), BTreeMap::<&'static str, String>::new());
    let Some(group) = ask::<Group>(door, &format!("/apis/{TIER_GROUP}")).await? else {
        return Ok((here, elsewhere));
    };
    for Version { version } in group.versions.into_iter().take(MAX_VERSIONS) {
        let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if version.is_empty() || !version.chars().all(is_plain) {
            continue;
        }
        let path = format!("/apis/{TIER_GROUP}/{version}");
        let Some(collections) = ask::<Collections>(door, &path).await? else { continue };
        let of_group = RESOURCES.into_iter().filter(|resource| resource.group == TIER_GROUP);
        for resource in
            of_group.filter(|wanted| collections.resources.iter().any(|c| c.name == wanted.plural))
        {
            if resource.version == version {
                here.insert(resource.plural);
                continue;
            }
            let versions = elsewhere.entry(resource.plural).or_default();
            if !versions.is_empty() {
                versions.push_str(", ");
            }
            versions.push_str(&version);
        }
    }
    elsewhere.retain(|plural, _| !here.contains(plural));
    Ok((here, elsewhere))
}

/// What stands at a path; `None` when nothing does.
async fn ask<T: serde::de::DeserializeOwned>(door: &Door, path: &str) -> Result<Option<T>, Failure> {
    let body = match door.get(path).await {
        Ok(body) => body,
        Err(failure) if failure.outcome == Outcome::NotServed => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let limit = door.answer_timeout();
    let bytes = tokio::time::timeout(limit, request::bounded(body, MAX_ANSWER)).await;
    let bytes = bytes.map_err(|_| Failure::silent(limit))??;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| {
        let error = request::short(&error.to_string());
        Failure::broken(format!("the answer at {path} cannot be read: {error}"))
    })
}
