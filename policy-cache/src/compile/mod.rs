//! What snapshots are made of, and a whole snapshot from a whole set of objects. Pure: no clock, no I/O, no lock.

pub(crate) mod domains;
pub(crate) mod ranges;
pub(crate) mod rules;

use flow::Generation;

use crate::cluster::Cluster;
use crate::objects::Objects;
use crate::options::Options;
use crate::snapshot::Snapshot;

/// Compiles a set of objects for one node.
pub fn compile(objects: &Objects, options: &Options, generation: Generation) -> Snapshot {
    let mut cluster = Cluster::new(options.clone());
    cluster.replace(objects);
    cluster.number_next(generation);
    cluster.snapshot()
}
