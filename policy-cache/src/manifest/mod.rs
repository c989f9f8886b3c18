//! Manifest files and folders → [`Objects`], or every problem in them.
//!
//! Reads YAML with many documents, JSON, and lists of either. Kinds that decide nothing are counted and
//! passed over. Nothing is half accepted: with one problem anywhere there are no objects.

mod cluster;
mod envelope;
mod fields;
pub(crate) mod files;
pub(crate) mod kinds;
mod misspelt;
mod near;
mod partial;
mod policy;
mod problem;
pub(crate) mod prune;
mod reader;
pub(crate) mod single;
mod syntax;
mod tiers;
pub(crate) mod tree;
pub(crate) mod words;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use files::{Fingerprint, is_manifest};
pub(crate) use partial::{Partial, load_what_reads};
use problem::Problems;
pub use problem::{LoadError, Problem};
pub use single::{Reading, read_object};

use crate::objects::{Counts, Entity, Object, Objects};
use envelope::Doubt;
use fields::Scope;
use reader::{Cursor, Findings};
use tree::{Node, SyntaxError};

/// How deep lists of lists may nest.
const MAX_LIST_DEPTH: usize = 8;

/// Reads every manifest under `paths`.
///
/// A path is a file, or a folder that is read with its subfolders: `*.yaml`, `*.yml` and `*.json`, hidden
/// entries left out. A file reached twice is read once.
///
/// # Errors
///
/// All problems of all files; a path that cannot be read is one of them, and so is that there is no manifest at all.
pub fn load(paths: &[PathBuf]) -> Result<Objects, LoadError> {
    let (objects, found) = read_all(paths)?;
    objects.with_files(paths, found)
}

/// As [`load`], for a process that may begin before there is any manifest.
pub(crate) fn load_any(paths: &[PathBuf]) -> Result<Objects, LoadError> {
    read_all(paths).map(|(objects, _)| objects)
}

fn read_all(paths: &[PathBuf]) -> Result<(Objects, files::Found), LoadError> {
    let mut loader = Loader::default();
    let mut unreadable = Vec::new();
    let found = files::find(paths, &mut unreadable);
    loader.problems.extend(unreadable);
    for file in &found.files {
        match files::read(file) {
            Ok(text) => loader.text(file, &text),
            Err(problem) => loader.problems.push(*problem),
        }
    }
    Ok((loader.finish()?, found))
}

/// Reads manifests that are in memory already; the paths name them in problems, and `.json` means JSON.
///
/// # Errors
///
/// All problems of all texts.
pub fn parse<'t>(texts: impl IntoIterator<Item = (&'t Path, &'t str)>) -> Result<Objects, LoadError> {
    let mut loader = Loader::default();
    for (path, text) in texts {
        loader.text(path, text);
    }
    loader.finish()
}

#[derive(Default)]
struct Loader {
    objects: Objects,
    problems: Problems,
    /// `Kind/namespace/name` → where it was first seen.
    seen: HashMap<String, String>,
    /// Those that were seen again.
    twice: HashSet<String>,
}

impl Loader {
    fn text(&mut self, path: &Path, text: &str) {
        if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json")) {
            match tree::parse_json(text) {
                Ok(roots) => {
                    let is_one = roots.len() == 1;
                    for (index, root) in roots.into_iter().enumerate() {
                        // JSON is YAML, so the lines of a file with problems can be read that way.
                        let located = || is_one.then(|| tree::parse_yaml_with_lines(text).ok())?;
                        self.document(path, index + 1, 0, root, located);
                    }
                }
                Err(error) => self.syntax_error(path, 1, 0, error),
            }
            return;
        }
        for document in tree::split_yaml(text) {
            match tree::parse_yaml(document.text) {
                Ok(root) => {
                    let located = || tree::parse_yaml_with_lines(document.text).ok();
                    self.document(path, document.number, document.lines_before, root, located);
                }
                Err(error) => self.syntax_error(path, document.number, document.lines_before, error),
            }
        }
    }

    fn syntax_error(&mut self, path: &Path, document: usize, lines_before: usize, error: SyntaxError) {
        self.problems.push(Problem {
            file: path.to_owned(),
            document,
            line: error.line.map(|line| line + lines_before),
            object: String::new(),
            field: String::new(),
            value: String::new(),
            message: error.message,
        });
    }

    /// Reads one document, and once more with lines when it has problems or an object that was seen before. The second reading counts: it
    /// also tells a name that looks like a boolean from a boolean.
    fn document(
        &mut self,
        path: &Path,
        number: usize,
        lines_before: usize,
        root: Node,
        located: impl Fn() -> Option<Node>,
    ) {
        let findings = || Findings {
            problems: Problems::default(),
            file: path.to_owned(),
            document: number,
            lines_before,
            object: String::new(),
            strict: true,
        };
        let mut first = findings();
        let mut found = read_document(&root, &mut first);
        // Never two trees of a large document at once.
        drop(root);
        let again = |(_, id, _): &Found| !id.is_empty() && self.seen.contains_key(id);
        let mut ids = HashSet::new();
        let twice = found.iter().any(|one| again(one) || !(one.1.is_empty() || ids.insert(&one.1)));
        if (twice || first.problems.count() > 0)
            && let Some(root) = located()
        {
            first = findings();
            found = read_document(&root, &mut first);
        }
        // Fields are read in an order of their own.
        first.problems.sort();
        self.problems.append(first.problems);
        for (object, id, line) in found {
            self.add(object, &id, path, number, line.map(|line| line + lines_before));
        }
    }

    fn add(&mut self, read: Read, id: &str, path: &Path, document: usize, line: Option<usize>) {
        let object = match read {
            Read::Object(object) => object,
            Read::Skipped(kind) => {
                *self.objects.skipped.entry(kind).or_default() += 1;
                return;
            }
        };
        let place = format!("{}, document {document}", path.display());
        if let Some(first) = self.seen.get(id) {
            self.twice.insert(id.to_owned());
            self.problems.push(Problem {
                file: path.to_owned(),
                document,
                line,
                object: id.to_owned(),
                field: "metadata.name".to_owned(),
                value: String::new(),
                message: format!("declared twice, first in {first}"),
            });
            return;
        }
        self.seen.insert(id.to_owned(), place);
        let objects = &mut self.objects;
        match object.0 {
            Entity::Namespace(namespace) => objects.namespaces.push(namespace),
            Entity::Pod(pod) => objects.pods.push(*pod),
            Entity::NetworkPolicy(policy) => objects.policies.push(Arc::new(policy)),
            Entity::TierPolicy(policy) => {
                if policy.has_unknown_peer() {
                    tracing::warn!(policy = id, "a rule names a peer that is not known and fails closed");
                }
                objects.tiers.push(Arc::new(policy));
            }
            Entity::Node(node) => objects.nodes.push(node),
            Entity::Service(service) => objects.services.push(service),
            Entity::EndpointSlice(slice) => objects.slices.push(slice),
        }
    }

    fn finish(self) -> Result<Objects, LoadError> {
        if self.problems.count() > 0 {
            return Err(LoadError { problems: self.problems.into_list() });
        }
        Ok(self.sorted())
    }

    fn sorted(mut self) -> Objects {
        // The order of files is no property of the cluster.
        let objects = &mut self.objects;
        objects.pods.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        objects.namespaces.sort_by(|a, b| a.name.cmp(&b.name));
        objects.policies.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        objects.tiers.sort_by(|a, b| a.order().cmp(&b.order()));
        objects.nodes.sort_by(|a, b| a.name.cmp(&b.name));
        objects.services.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        objects.slices.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        self.objects
    }
}

impl Objects {
    /// Remembers which files may have been meant as well.
    ///
    /// # Errors
    ///
    /// There is no object of any kind.
    pub(crate) fn with_files(mut self, paths: &[PathBuf], found: files::Found) -> Result<Self, LoadError> {
        if self.counts() == Counts::default() {
            return Err(LoadError { problems: vec![found.nothing(paths)] });
        }
        self.other_files = found.nearly();
        Ok(self)
    }
}

/// What a document holds.
enum Read {
    Object(Object),
    /// `apiVersion/kind` of what decides nothing.
    Skipped(String),
}

/// An object, its `Kind/namespace/name`, and its line where known.
type Found = (Read, String, Option<usize>);

fn read_document(root: &Node, findings: &mut Findings) -> Vec<Found> {
    let mut found = Vec::new();
    if root.value != tree::Value::Null {
        read_item(&Cursor::root(root), None, MAX_LIST_DEPTH, findings, &mut found);
    }
    found
}

/// The `apiVersion` and `kind` of an object; those of a list's items follow from the list's.
#[derive(Clone, Debug)]
struct TypeMeta {
    api_version: String,
    kind: String,
}

fn read_item(
    object: &Cursor<'_, '_>,
    implied: Option<&TypeMeta>,
    depth: usize,
    findings: &mut Findings,
    found: &mut Vec<Found>,
) {
    findings.object.clear();
    if !object.is_map() {
        findings.report(object, "must be a Kubernetes object");
        return;
    }
    let Some(meta) = type_meta(object, implied, findings) else { return };
    if let Some(item_kind) = meta.kind.strip_suffix("List")
        && (object.get("items").is_some() || item_kind.is_empty() || is_read(item_kind))
    {
        read_list(object, &meta, item_kind, depth, findings, found);
        return;
    }
    found.extend(read_known(object, &meta, findings));
}

/// Reads an object that is no list.
fn read_single(object: &Cursor<'_, '_>, findings: &mut Findings) -> Option<Found> {
    if !object.is_map() {
        findings.report(object, "must be a Kubernetes object");
        return None;
    }
    let meta = type_meta(object, None, findings)?;
    read_known(object, &meta, findings)
}

fn read_list(
    list: &Cursor<'_, '_>,
    meta: &TypeMeta,
    item_kind: &str,
    depth: usize,
    findings: &mut Findings,
    found: &mut Vec<Found>,
) {
    if depth == 0 {
        findings.report(list, "lists nest too deeply");
        return;
    }
    if findings.strict && (item_kind.is_empty() || is_read(item_kind)) {
        envelope::report_list(list, findings);
    }
    let implied = (!item_kind.is_empty())
        .then(|| TypeMeta { api_version: meta.api_version.clone(), kind: item_kind.to_owned() });
    if let Some(items) = list.get("items") {
        for item in items.items(findings) {
            read_item(&item, implied.as_ref(), depth - 1, findings, found);
        }
    }
}

/// True for kinds that decide something, in some group and version.
fn is_read(kind: &str) -> bool {
    matches!(kind, "Namespace" | "Node" | "Pod" | "Service" | "NetworkPolicy" | "EndpointSlice")
        || tiers::version(kind).is_some()
}

fn type_meta(
    object: &Cursor<'_, '_>,
    implied: Option<&TypeMeta>,
    findings: &mut Findings,
) -> Option<TypeMeta> {
    let mut text = |key: &str, implied: Option<&str>| match object.get(key) {
        Some(field) => field.string(findings).map(str::to_owned),
        None if implied.is_some() => implied.map(str::to_owned),
        None => {
            findings.missing(object, key);
            None
        }
    };
    let api_version = text("apiVersion", implied.map(|meta| meta.api_version.as_str()));
    let kind = text("kind", implied.map(|meta| meta.kind.as_str()));
    Some(TypeMeta { api_version: api_version?, kind: kind? })
}

fn read_known(object: &Cursor<'_, '_>, meta: &TypeMeta, findings: &mut Findings) -> Option<Found> {
    let kind = meta.kind.as_str();
    let scope = match (meta.api_version.as_str(), kind) {
        ("v1", "Namespace" | "Node") => Scope::Cluster,
        ("v1", "Pod" | "Service")
        | ("networking.k8s.io/v1", "NetworkPolicy")
        | ("discovery.k8s.io/v1", "EndpointSlice") => Scope::Namespaced,
        // Passing over a policy in an old spelling would open what it closes.
        (group, "NetworkPolicy")
            if group.starts_with("networking.k8s.io/") || group.starts_with("extensions/") =>
        {
            return wrong_version(object, kind, "networking.k8s.io/v1", findings);
        }
        (version, _) if tiers::version(kind) == Some(version) => Scope::Cluster,
        (group, _) if group.starts_with(tiers::GROUP) && tiers::version(kind).is_some() => {
            return wrong_version(object, kind, tiers::version(kind).unwrap_or_default(), findings);
        }
        _ => {
            if findings.strict
                && let Some(message) = kinds::refused(&meta.api_version, kind)
            {
                let field = object.get("kind").or_else(|| object.get("apiVersion"));
                findings.report(field.as_ref().unwrap_or(object), message);
                return None;
            }
            let kind = format!("{}/{}", meta.api_version, kind);
            return Some((Read::Skipped(kind), String::new(), None));
        }
    };
    // Without a usable name the rest is read all the same, for the problems in it.
    let doubt = if findings.strict { envelope::doubt(object, kind, scope) } else { Doubt::default() };
    let name = fields::name(object, kind, scope, doubt.namespace, findings);
    if findings.strict {
        envelope::report(object, kind, findings);
    }
    let named = name.is_some();
    let name = name.unwrap_or_default();
    let entity = match kind {
        "Namespace" => Entity::Namespace(cluster::namespace(object, name, findings)),
        "Node" => Entity::Node(cluster::node(object, name, findings)),
        "Pod" => Entity::Pod(Box::new(cluster::pod(object, name, findings))),
        "Service" => Entity::Service(cluster::service(object, name, findings)),
        "NetworkPolicy" => Entity::NetworkPolicy(policy::network_policy(object, name, doubt, findings)),
        "ClusterNetworkPolicy" => {
            Entity::TierPolicy(tiers::cluster_network_policy(object, name, doubt, findings))
        }
        "AdminNetworkPolicy" => {
            Entity::TierPolicy(tiers::admin_network_policy(object, name, doubt, findings))
        }
        "BaselineAdminNetworkPolicy" => {
            Entity::TierPolicy(tiers::baseline_admin_network_policy(object, name, doubt, findings))
        }
        _ => Entity::EndpointSlice(cluster::endpoint_slice(object, name, findings)),
    };
    let line = object.node().line;
    named.then(|| (Read::Object(Object(entity)), findings.object.clone(), (line > 0).then_some(line)))
}

fn wrong_version(object: &Cursor<'_, '_>, kind: &str, known: &str, findings: &mut Findings) -> Option<Found> {
    findings.object = kind.to_owned();
    if let Some(field) = object.get("apiVersion") {
        findings.report(&field, format!("must be {known}"));
    }
    None
}
