//! The current snapshot, read without waiting and watched for changes.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use flow::Generation;
use tokio::sync::watch;

use crate::snapshot::Snapshot;

/// Where the newest snapshot is found. Clones share it.
#[derive(Clone, Debug)]
pub struct SnapshotStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    current: ArcSwapOption<Snapshot>,
    generation: watch::Sender<Generation>,
}

impl SnapshotStore {
    /// A store without a snapshot.
    pub fn new() -> Self {
        let generation = watch::Sender::new(Generation::default());
        Self { shared: Arc::new(Shared { current: ArcSwapOption::empty(), generation }) }
    }

    /// The newest snapshot; `None` before the first. Never waits.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.shared.current.load_full()
    }

    /// Tells of every later publication; generation 0 means there was none yet.
    pub fn subscribe(&self) -> watch::Receiver<Generation> {
        self.shared.generation.subscribe()
    }

    /// Makes `snapshot` the newest. Whoever is told of its generation finds it, or a newer one.
    pub fn publish(&self, snapshot: Snapshot) {
        let generation = snapshot.generation();
        self.shared.current.store(Some(Arc::new(snapshot)));
        self.shared.generation.send_replace(generation);
    }
}

impl Default for SnapshotStore {
    fn default() -> Self {
        Self::new()
    }
}
