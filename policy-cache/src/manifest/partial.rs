//! Manifests, some of them broken → what reads, for a process that runs already and has something to lose.
//!
//! One broken object concerns that object only: a policy is quarantined, any other keeps its last good version. What
//! cannot be told whose it is (a file that is no YAML, an object without a name, a file that cannot be read) may have
//! been any object, and so may one that is broken and was not known before, for it may be the new name of another:
//! until it is mended nothing that is known is taken away, and all that reads is applied.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use flow::PolicyKind;

use super::problem::Problem;
use super::single::quarantined;
use super::{Loader, files};
use crate::objects::{Entity, Kind, Object, ObjectKey, Objects};

/// What could be read.
#[derive(Debug)]
pub(crate) struct Partial {
    /// The good objects, and quarantined policies.
    pub(crate) objects: Objects,
    /// Objects that are there and do not read: their last good versions stay.
    kept: HashSet<ObjectKey>,
    /// Something was broken that may have been any object.
    any: bool,
    /// A file has no text at all: perhaps somebody has only begun to write it.
    pub(crate) has_empty_file: bool,
    /// Everything that is wrong.
    pub(crate) problems: Vec<Problem>,
}

impl Partial {
    /// Which of the known objects that were not read are gone.
    pub(crate) fn gone(&self, mut vanished: Vec<ObjectKey>) -> Vec<ObjectKey> {
        let before = vanished.len();
        vanished.retain(|key| !self.kept.contains(key));
        let all_were_known = before - vanished.len() == self.kept.len();
        if self.any || !all_were_known { Vec::new() } else { vanished }
    }
}

/// Reads what can be read under `paths`, as [`super::load`] does.
pub(crate) fn load_what_reads(paths: &[PathBuf]) -> Partial {
    let mut loader = Loader::default();
    let mut unreadable = Vec::new();
    let files = files::find(paths, &mut unreadable).files;
    loader.problems.extend(unreadable);
    let mut has_empty_file = false;
    for file in files {
        match files::read(&file) {
            Ok(text) => {
                has_empty_file |= text.is_empty();
                loader.text(&file, &text);
            }
            Err(problem) => loader.problems.push(*problem),
        }
    }
    Partial { has_empty_file, ..sort(loader) }
}

fn sort(mut loader: Loader) -> Partial {
    let broken = loader.problems.objects();
    let any = broken.iter().any(|object| !loader.seen.contains_key(object));
    let mut kept = HashSet::new();
    let mut keep = |kind: Kind, namespace: &str, name: &str| {
        let key = ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
        let good = broken.is_empty() || !broken.contains(&key.to_string());
        if !good {
            kept.insert(key);
        }
        good
    };
    let objects = &mut loader.objects;
    objects.pods.retain(|pod| keep(Kind::Pod, &pod.namespace, &pod.name));
    objects.namespaces.retain(|namespace| keep(Kind::Namespace, "", &namespace.name));
    objects.nodes.retain(|node| keep(Kind::Node, "", &node.name));
    objects.services.retain(|service| keep(Kind::Service, &service.namespace, &service.name));
    objects.slices.retain(|slice| keep(Kind::EndpointSlice, &slice.namespace, &slice.name));
    // Which of two policies of one name is meant cannot be told.
    for policy in &mut objects.policies {
        let kind = Kind::Policy(PolicyKind::NetworkPolicy);
        let key = ObjectKey { kind, namespace: policy.namespace.clone(), name: policy.name.clone() };
        if loader.twice.contains(&key.to_string())
            && let Some(Object(Entity::NetworkPolicy(closed))) = quarantined(&key)
        {
            *policy = Arc::new(closed);
        }
    }
    for policy in &mut objects.tiers {
        let kind = Kind::Policy(policy.kind);
        let key = ObjectKey { kind, namespace: String::new(), name: policy.name.clone() };
        if loader.twice.contains(&key.to_string())
            && let Some(Object(Entity::TierPolicy(closed))) = quarantined(&key)
        {
            *policy = Arc::new(closed);
        }
    }
    let problems = std::mem::take(&mut loader.problems).into_list();
    Partial { objects: loader.sorted(), kept, any, has_empty_file: false, problems }
}
