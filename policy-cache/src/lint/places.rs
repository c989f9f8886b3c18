//! Texts → where each policy and each of its fields stands: the table beside the objects.

use std::cell::OnceCell;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use flow::Protocol;

use crate::manifest::kinds;
use crate::manifest::tree::{self, Node, Value};
use crate::objects::{Objects, Pod};

/// Kinds whose pods follow from a template.
pub(super) const WORKLOADS: &[&str] =
    &["Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "ReplicationController", "Job", "CronJob"];

/// Where policies stand, and the pods that workloads will have.
#[derive(Debug, Default)]
pub(super) struct Places<'t> {
    texts: Vec<(&'t Path, &'t str)>,
    policies: HashMap<String, Place>,
    /// Pods as JSON, one for each template.
    pub(super) templates: Vec<serde_json::Value>,
    /// Those that look like policies and are none that is read.
    pub(super) strays: Vec<Stray>,
    /// Their kinds.
    stray_kinds: HashSet<String>,
    /// Read when somebody asks.
    declared: OnceCell<Declared>,
}

/// The ports of containers, named or not, by namespace and name of the pod.
type Declared = HashMap<(String, String), HashSet<(Protocol, u16)>>;

/// Something that looks like a policy and is none that is read.
#[derive(Debug)]
pub(super) struct Stray {
    /// `Kind/namespace/name`, as far as it says.
    pub(super) object: String,
    pub(super) why: String,
    pub(super) place: Place,
}

/// Where one object stands.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    /// From 1.
    pub(super) document: usize,
    lines_before: usize,
    root: Node,
}

impl<'t> Places<'t> {
    /// `objects` are those of the texts.
    pub(super) fn read(texts: &[(&'t Path, &'t str)], objects: &Objects) -> Self {
        let strays = objects.skipped.keys().filter_map(|kind| {
            let (group, kind) = kind.rsplit_once('/')?;
            kinds::stray(group, kind).map(|_| kind.to_owned())
        });
        let mut places = Self { texts: texts.to_vec(), stray_kinds: strays.collect(), ..Self::default() };
        for (path, text) in texts {
            if is_json(path) {
                places.json(path, text);
                continue;
            }
            for document in tree::split_yaml(text) {
                if places.is_wanted(document.text)
                    && let Ok(root) = tree::parse_yaml_with_lines(document.text)
                {
                    places.object(path, document.number, document.lines_before, &root, None);
                }
            }
        }
        places
    }

    /// JSON is YAML, so that the lines of a lone value can be read that way.
    fn json(&mut self, path: &Path, text: &str) {
        if !self.is_wanted(text) {
            return;
        }
        let mut roots = tree::parse_json(text).unwrap_or_default();
        if let [only] = &mut roots[..]
            && let Ok(root) = tree::parse_yaml_with_lines(text)
        {
            *only = root;
        }
        for (index, root) in roots.iter().enumerate() {
            self.object(path, index + 1, 0, root, None);
        }
    }

    /// `implied` is the kind that a typed list gives its items.
    fn object(
        &mut self,
        path: &Path,
        document: usize,
        lines_before: usize,
        node: &Node,
        implied: Option<&str>,
    ) {
        let Some(kind) = node.text("kind").or(implied) else { return };
        if let Some(item) = kind.strip_suffix("List")
            && let Some(Value::List(items)) = node.get("items").map(|items| &items.value)
        {
            let item = (!item.is_empty()).then_some(item);
            for node in items {
                self.object(path, document, lines_before, node, item);
            }
            return;
        }
        self.stray(path, document, lines_before, node, kind);
        let Some(metadata) = node.get("metadata") else { return };
        let name = metadata.text("name").unwrap_or_default();
        let namespace = metadata.text("namespace").filter(|name| !name.is_empty()).unwrap_or("default");
        if WORKLOADS.contains(&kind) {
            self.templates.extend(template(node, &format!("{}-{name}", kind.to_lowercase()), namespace));
        }
        if kind.ends_with("NetworkPolicy") {
            let name = if kind == "NetworkPolicy" { format!("{namespace}/{name}") } else { name.to_owned() };
            let place = Place { file: path.to_owned(), document, lines_before, root: node.clone() };
            self.policies.entry(format!("{kind}/{name}")).or_insert(place);
        }
    }

    fn stray(&mut self, path: &Path, document: usize, lines_before: usize, node: &Node, kind: &str) {
        if !self.stray_kinds.contains(kind) {
            return;
        }
        let Some(why) = kinds::stray(node.text("apiVersion").unwrap_or_default(), kind) else { return };
        let metadata = |key| node.get("metadata").and_then(|metadata| metadata.text(key));
        let words = [Some(kind), metadata("namespace"), metadata("name")];
        let object = words.into_iter().flatten().collect::<Vec<_>>().join("/");
        let place = Place { file: path.to_owned(), document, lines_before, root: node.clone() };
        self.strays.push(Stray { object, why, place });
    }

    /// Reading lines costs time: most documents of a large cluster are pods, which need none.
    fn is_wanted(&self, text: &str) -> bool {
        text.contains("NetworkPolicy")
            || text.contains("template")
            || self.stray_kinds.iter().any(|kind| text.contains(kind.as_str()))
    }

    /// True when a container of the pod declares this port, with a name or without. Policies do not ask for the
    /// latter, so the objects do not keep them.
    pub(super) fn declares(&self, pod: &Pod, protocol: Protocol, number: u16) -> bool {
        let key = (pod.namespace.clone(), pod.name.clone());
        self.declared().get(&key).is_some_and(|ports| ports.contains(&(protocol, number)))
    }

    fn declared(&self) -> &Declared {
        self.declared.get_or_init(|| {
            let mut declared = Declared::new();
            let texts = self.texts.iter().filter(|(_, text)| text.contains("containerPort"));
            for (path, text) in texts {
                if is_json(path) {
                    for root in tree::parse_json(text).unwrap_or_default() {
                        declare(&root, None, &mut declared);
                    }
                    continue;
                }
                for document in tree::split_yaml(text) {
                    if document.text.contains("containerPort")
                        && let Ok(root) = tree::parse_yaml(document.text)
                    {
                        declare(&root, None, &mut declared);
                    }
                }
            }
            for template in &self.templates {
                for root in tree::parse_json(&template.to_string()).unwrap_or_default() {
                    declare(&root, None, &mut declared);
                }
            }
            declared
        })
    }

    /// The place of a policy, `Kind/namespace/name`.
    pub(super) fn of(&self, object: &str) -> Option<&Place> {
        self.policies.get(object)
    }
}

impl Place {
    /// The line of a field such as `spec.ingress[0].from[1]`, or of the nearest one around it.
    pub(super) fn line(&self, field: &str) -> Option<usize> {
        let (node, _) = self.find(field);
        (node.line > 0).then_some(node.line + self.lines_before)
    }

    /// The node of a field, or of the nearest one around it and false.
    fn find(&self, field: &str) -> (&Node, bool) {
        let mut node = &self.root;
        for step in field.split(['.', '[']).filter(|step| !step.is_empty()) {
            let child = match (step.strip_suffix(']'), &node.value) {
                (Some(index), Value::List(items)) => {
                    index.parse::<usize>().ok().and_then(|index| items.get(index))
                }
                _ => node.get(step),
            };
            let Some(child) = child else { return (node, false) };
            node = child;
        }
        (node, true)
    }

    /// True when the field is written.
    pub(super) fn has(&self, field: &str) -> bool {
        self.find(field).1
    }

    /// How many items the list at a key of the spec has.
    pub(super) fn rules(&self, key: &str) -> usize {
        match self.root.get("spec").and_then(|spec| spec.get(key)).map(|rules| &rules.value) {
            Some(Value::List(rules)) => rules.len(),
            _ => 0,
        }
    }
}

impl Node {
    fn get(&self, key: &str) -> Option<&Node> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// The items of the list at a key; none where there is no list.
    fn items(&self, key: &str) -> impl Iterator<Item = &Node> {
        let list = match self.get(key).map(|node| &node.value) {
            Some(Value::List(items)) => items.as_slice(),
            _ => &[],
        };
        list.iter()
    }

    fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"))
}

/// Notes the ports of a pod's containers; `implied` is the kind that a typed list gives its items.
fn declare(node: &Node, implied: Option<&str>, declared: &mut Declared) {
    let Some(kind) = node.text("kind").or(implied) else { return };
    if let Some(item) = kind.strip_suffix("List") {
        let item = (!item.is_empty()).then_some(item);
        node.items("items").for_each(|node| declare(node, item, declared));
        return;
    }
    let (Some(metadata), Some(spec)) = (node.get("metadata"), node.get("spec")) else { return };
    if kind != "Pod" {
        return;
    }
    let namespace = metadata.text("namespace").filter(|name| !name.is_empty()).unwrap_or("default");
    let key = (namespace.to_owned(), metadata.text("name").unwrap_or_default().to_owned());
    let containers = spec.items("containers").chain(spec.items("initContainers"));
    let ports = containers.flat_map(|container| container.items("ports")).filter_map(|port| {
        let protocol = port.text("protocol").map_or(Some(Protocol::Tcp), |text| text.parse().ok())?;
        match port.get("containerPort")?.value {
            Value::Integer(number) => Some((protocol, u16::try_from(number).ok()?)),
            _ => None,
        }
    });
    declared.entry(key).or_default().extend(ports);
}

/// A workload's pod, without an address.
fn template(workload: &Node, name: &str, namespace: &str) -> Option<serde_json::Value> {
    let mut spec = workload.get("spec")?;
    if let Some(job) = spec.get("jobTemplate") {
        spec = job.get("spec")?;
    }
    let template = spec.get("template")?;
    let labels = template.get("metadata").and_then(|metadata| metadata.get("labels")).map(json);
    Some(serde_json::json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "spec": template.get("spec").map(json),
    }))
}

fn json(node: &Node) -> serde_json::Value {
    match &node.value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(value) => (*value).into(),
        Value::Integer(value) => (*value).into(),
        Value::Float(value) => (*value).into(),
        Value::String(value) => value.as_str().into(),
        Value::List(items) => items.iter().map(json).collect(),
        Value::Map(entries) => {
            serde_json::Value::Object(entries.iter().map(|(key, node)| (key.clone(), json(node))).collect())
        }
    }
}
