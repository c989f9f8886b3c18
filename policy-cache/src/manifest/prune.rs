//! JSON of the API → a tree of only the fields that are read. What is not read is passed over without being
//! kept, so that an object costs what it says about policy, not what it weighs.
//!
//! Every byte may be hostile: depth and number of values are bounded, and a key that stands twice is an error.

use std::cell::Cell;
use std::fmt;

use flow::PolicyKind;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::tree::{Node, Value};
use crate::objects::Kind;

/// The most values one object may have. A NetworkPolicy of the largest size that etcd takes has fewer.
pub(crate) const MAX_VALUES: usize = 250_000;

/// Which part of a value is kept.
#[derive(Debug)]
enum Want {
    All,
    /// These fields of a mapping.
    Fields(&'static [(&'static str, Want)]),
    /// This of each item of a list.
    Each(&'static Want),
}

use Want::{All, Each, Fields};

const METADATA: Want = Fields(&[
    ("name", All),
    ("namespace", All),
    ("uid", All),
    ("resourceVersion", All),
    ("generation", All),
    ("labels", All),
    ("creationTimestamp", All),
    ("deletionTimestamp", All),
    ("ownerReferences", Each(&Fields(&[("controller", All), ("kind", All), ("name", All)]))),
    ("annotations", Fields(&[(INITIAL_EVENTS_END, All)])),
]);

/// The annotation of the bookmark that ends a streamed list (KEP-3157).
pub(crate) const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

macro_rules! object {
    ($($field:literal: $want:expr),* $(,)?) => {
        &Fields(&[
            ("apiVersion", All),
            ("kind", All),
            ("metadata", METADATA),
            // Of a Status, which stands in an object's place when a watch fails.
            ("code", All),
            ("reason", All),
            ("message", All),
            $(($field, $want)),*
        ])
    };
}

const PORTS: (&str, Want) = ("ports", All);
const IPS: Want = Each(&Fields(&[("ip", All)]));

static POD: &Want = object! {
    "spec": Fields(&[
        ("hostNetwork", All),
        ("nodeName", All),
        ("containers", Each(&Fields(&[PORTS]))),
        ("initContainers", Each(&Fields(&[PORTS, ("restartPolicy", All)]))),
    ]),
    "status": Fields(&[
        ("phase", All),
        ("podIP", All),
        ("podIPs", IPS),
        ("hostIP", All),
        ("hostIPs", IPS),
        ("conditions", Each(&Fields(&[("type", All), ("status", All)]))),
    ]),
};
static NAMESPACE: &Want = object! {};
static NODE: &Want = object! {
    "spec": Fields(&[("podCIDR", All), ("podCIDRs", All)]),
    "status": Fields(&[("addresses", All)]),
};
static SERVICE: &Want = object! {
    "spec": Fields(&[
        ("clusterIP", All),
        ("clusterIPs", All),
        ("externalIPs", All),
        ("externalTrafficPolicy", All),
        ("selector", All),
        PORTS,
    ]),
    "status": Fields(&[("loadBalancer", Fields(&[("ingress", IPS)]))]),
};
static SLICE: &Want = object! {
    "addressType": All,
    "ports": All,
    "endpoints": Each(&Fields(&[("addresses", All), ("conditions", Fields(&[("ready", All)]))])),
};
static POLICY: &Want = object! { "spec": All };
static ANYTHING: &Want = &All;

fn of(kind: Option<Kind>) -> &'static Want {
    match kind {
        None => ANYTHING,
        Some(Kind::Pod) => POD,
        Some(Kind::Namespace) => NAMESPACE,
        Some(Kind::Node) => NODE,
        Some(Kind::Service) => SERVICE,
        Some(Kind::EndpointSlice) => SLICE,
        Some(Kind::Policy(
            PolicyKind::NetworkPolicy
            | PolicyKind::ClusterNetworkPolicy
            | PolicyKind::AdminNetworkPolicy
            | PolicyKind::BaselineAdminNetworkPolicy,
        )) => POLICY,
    }
}

/// Reads an object of the kind; of an unknown kind everything is kept.
///
/// # Errors
///
/// JSON that is none, or exceeds a limit.
pub(crate) fn object(json: &[u8], kind: Option<Kind>) -> Result<Node, serde_json::Error> {
    let values = Cell::new(0);
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let node = Pruned { want: of(kind), values: &values }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok(node)
}

/// One frame of a watch.
#[derive(Debug)]
pub(crate) struct Frame {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`.
    pub(crate) event: String,
    pub(crate) object: Node,
}

/// Reads a frame with an object of the kind.
///
/// # Errors
///
/// As [`object()`], and a frame without its two fields.
pub(crate) fn frame(json: &[u8], kind: Kind) -> Result<Frame, serde_json::Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let frame = deserializer.deserialize_map(FrameVisitor { kind })?;
    deserializer.end()?;
    Ok(frame)
}

struct FrameVisitor {
    kind: Kind,
}

impl<'de> Visitor<'de> for FrameVisitor {
    type Value = Frame;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a watch event")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Frame, A::Error> {
        let values = Cell::new(0);
        let (mut event, mut object) = (None, None);
        while let Some(key) = map.next_key_seed(Key(&["type", "object"]))? {
            match key {
                Some(0) if event.is_none() => event = Some(map.next_value::<String>()?),
                Some(1) if object.is_none() => {
                    object =
                        Some(map.next_value_seed(Pruned { want: of(Some(self.kind)), values: &values })?);
                }
                Some(_) => return Err(A::Error::custom("a field stands twice")),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        match (event, object) {
            (Some(event), Some(object)) => Ok(Frame { event, object }),
            _ => Err(A::Error::custom("a watch event needs a type and an object")),
        }
    }
}

/// Forgets a field of `metadata`.
pub(crate) fn drop_metadata(object: &mut Node, field: &str) {
    let Value::Map(entries) = &mut object.value else { return };
    if let Some((_, metadata)) = entries.iter_mut().find(|(key, _)| key == "metadata")
        && let Value::Map(entries) = &mut metadata.value
    {
        entries.retain(|(key, _)| key != field);
    }
}

/// Finds `metadata.namespace` and `metadata.name` in JSON that may break off or break anywhere after them.
/// `wrapped`: in a watch frame.
pub(crate) fn identity(json: &[u8], wrapped: bool) -> Option<(String, String)> {
    let found = Identity::default();
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let path: &[&str] = if wrapped { &["object", "metadata"] } else { &["metadata"] };
    // It breaks off: what was found before that counts.
    let _ = Walk { path, found: &found }.deserialize(&mut deserializer);
    let name = found.name.take()?;
    Some((found.namespace.take().unwrap_or_default(), name))
}

#[derive(Default)]
struct Identity {
    namespace: Cell<Option<String>>,
    name: Cell<Option<String>>,
}

struct Walk<'w> {
    path: &'w [&'static str],
    found: &'w Identity,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a mapping")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((step, rest)) = self.path.split_first() else {
            while let Some(key) = map.next_key_seed(Key(&["name", "namespace"]))? {
                match key {
                    Some(0) => self.found.name.set(Some(map.next_value()?)),
                    Some(_) => self.found.namespace.set(Some(map.next_value()?)),
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            return Ok(());
        };
        while let Some(key) = map.next_key_seed(Key(&[*step]))? {
            match key {
                Some(_) => map.next_value_seed(Walk { path: rest, found: self.found })?,
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// A key as its place among those that are known.
struct Key<'k>(&'k [&'static str]);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|known| *known == key))
    }
}

/// The same among the fields of a [`Want`].
struct FieldKey(&'static [(&'static str, Want)]);

impl<'de> DeserializeSeed<'de> for FieldKey {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for FieldKey {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|(known, _)| *known == key))
    }
}

#[derive(Clone, Copy)]
struct Pruned<'v> {
    want: &'static Want,
    /// How many values the object has so far.
    values: &'v Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Pruned<'_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        self.values.set(self.values.get() + 1);
        if self.values.get() > MAX_VALUES {
            return Err(D::Error::custom(format_args!("more than {MAX_VALUES} values")));
        }
        Ok(Node { line: 0, value: deserializer.deserialize_any(self)? })
    }
}

impl Pruned<'_> {
    fn child(self, want: &'static Want) -> Self {
        Self { want, values: self.values }
    }

    fn fields<'de, A: MapAccess<'de>>(
        self,
        fields: &'static [(&'static str, Want)],
        mut map: A,
    ) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut seen = 0_u32;
        while let Some(key) = map.next_key_seed(FieldKey(fields))? {
            let Some((place, (name, want))) = key.and_then(|place| Some((place, fields.get(place)?))) else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            if seen & (1 << place) != 0 {
                return Err(A::Error::custom(format_args!("duplicate key {name:?}")));
            }
            seen |= 1 << place;
            entries.push(((*name).to_owned(), map.next_value_seed(self.child(want))?));
        }
        Ok(Value::Map(entries))
    }
}

impl<'de> Visitor<'de> for Pruned<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Float(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Value, A::Error> {
        let want = match self.want {
            All => &All,
            Each(want) => want,
            // It should have been a mapping, which its reader will say; its items say nothing.
            Fields(_) => {
                while sequence.next_element::<IgnoredAny>()?.is_some() {}
                return Ok(Value::List(Vec::new()));
            }
        };
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element_seed(self.child(want))? {
            items.push(item);
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        match self.want {
            Fields(fields) => self.fields(fields, map),
            Each(_) => {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Value::Map(Vec::new()))
            }
            All => {
                let mut entries: Vec<(String, Node)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
                    }
                    entries.push((key, map.next_value_seed(self.child(&All))?));
                }
                Ok(Value::Map(entries))
            }
        }
    }
}
