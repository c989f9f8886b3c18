//! Events, one at a time → snapshots. Holds what the cluster is like now, on the side of whoever follows it.

use flow::Generation;

use crate::compile::compile;
use crate::objects::{Event, Objects};
use crate::options::Options;
use crate::snapshot::Snapshot;

/// The objects of a cluster as they are now, and what is compiled from them.
#[derive(Debug, Default)]
pub struct Cluster {
    objects: Objects,
    options: Options,
    generation: Generation,
}

impl Cluster {
    /// A cluster in which nothing is known yet.
    pub fn new(options: Options) -> Self {
        Self { objects: Objects::default(), options, generation: Generation(0) }
    }

    /// Applies one event. False when it changed nothing.
    pub fn apply(&mut self, event: Event) -> bool {
        self.objects.apply(event)
    }

    /// Says how this is used from now on. False when it changed nothing.
    pub fn set_options(&mut self, options: Options) -> bool {
        let changed = self.options != options;
        self.options = options;
        changed
    }

    /// What decisions read from now on, numbered one higher than the one before.
    pub fn snapshot(&mut self) -> Snapshot {
        self.generation.0 += 1;
        compile(&self.objects, &self.options, self.generation)
    }
}
