//! Equal things, kept once.

use std::borrow::Borrow;
use std::collections::HashSet;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::{Arc, LazyLock};

use flow::Labels;

/// How many things there are before those that nobody uses any more are looked for.
const FIRST_LOOK: usize = 1024;

/// Equal values behind one pointer. Forgets those that nobody else has, now and then.
#[derive(Debug)]
pub(super) struct Shared<T: ?Sized> {
    all: HashSet<Arc<T>>,
    next_look: usize,
}

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self { all: HashSet::new(), next_look: FIRST_LOOK }
    }
}

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// The pointer to the value that equals `value`; `make` makes the first.
    pub(super) fn get<Q>(&mut self, value: &Q, make: impl FnOnce() -> Arc<T>) -> Arc<T>
    where
        Arc<T>: Borrow<Q>,
        Q: ?Sized + Eq + Hash,
    {
        if let Some(known) = self.all.get(value) {
            return Arc::clone(known);
        }
        let new = make();
        self.all.insert(Arc::clone(&new));
        new
    }

    /// Forgets what nobody else has, when there are twice as many as were needed at the last look.
    pub(super) fn sweep(&mut self) {
        if self.all.len() < self.next_look {
            return;
        }
        self.all.retain(|value| Arc::strong_count(value) > 1);
        self.next_look = FIRST_LOOK.max(2 * self.all.len());
    }
}

impl Shared<str> {
    pub(super) fn text(&mut self, text: &str) -> Arc<str> {
        self.get(text, || text.into())
    }

    pub(super) fn labels<'l>(&mut self, labels: impl Iterator<Item = (&'l String, &'l String)>) -> Labels {
        labels.map(|(key, value)| (self.text(key), self.text(value))).collect()
    }
}

/// The keys of this process's fingerprints, which nobody else knows.
static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// A number that two different values share as often as one in 2^64 times: values that are not kept are
/// compared by it.
pub(super) fn fingerprint(value: &impl Hash) -> u64 {
    KEYS.hash_one(value)
}
