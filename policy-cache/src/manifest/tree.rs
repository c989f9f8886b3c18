//! Turns text into documents, each a tree of plain values.
//!
//! Lines cost time, so they are read only on request: a document that turns out to have problems is parsed
//! again with them. The limits of the YAML parser bound depth and alias expansion; a document's size is
//! bounded by its file.

use std::collections::HashSet;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{NonFiniteFloatPolicy, Options, Spanned};

/// The replayed events all aliases of one document may add. Manifests hardly use aliases at all.
const MAX_ALIAS_EVENTS: usize = 100_000;
/// How deep a document may nest.
const MAX_DEPTH: usize = 64;

/// A value, and the line of its document it stands on (from 1, 0 when lines were not read).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// A JSON value; mappings keep their order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    String(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

impl std::hash::Hash for Value {
    /// Equal trees hash alike. Lines are not part of it.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        std::mem::discriminant(self).hash(state);
        match self {
            Self::Null => {}
            Self::Bool(value) => value.hash(state),
            Self::Integer(value) => value.hash(state),
            Self::Float(value) => value.to_bits().hash(state),
            Self::String(value) => value.hash(state),
            Self::List(items) => {
                items.len().hash(state);
                items.iter().for_each(|item| item.value.hash(state));
            }
            Self::Map(entries) => {
                entries.len().hash(state);
                for (key, item) in entries {
                    key.hash(state);
                    item.value.hash(state);
                }
            }
        }
    }
}

/// One document of a file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Document<'t> {
    pub(crate) text: &'t str,
    /// From 1.
    pub(crate) number: usize,
    /// The lines of the file before it.
    pub(crate) lines_before: usize,
}

/// A document that is not YAML or JSON, or exceeds a limit.
#[derive(Debug)]
pub(crate) struct SyntaxError {
    /// The line of the document, from 1, where known.
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
}

/// Splits at document markers, which YAML 1.2.2, section 9.1.2 forbids inside any scalar.
pub(crate) fn split_yaml(text: &str) -> Vec<Document<'_>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut documents = Vec::new();
    let (mut start, mut lines_before, mut offset, mut number) = (0, 0, 0, 1);
    for (index, line) in text.split_inclusive('\n').enumerate() {
        if is_document_start(line) && index > 0 {
            let before = &text[start..offset];
            // What stands before the first marker counts as a document only when it says something.
            if number > 1 || !is_blank(before) {
                documents.push(Document { text: before, number, lines_before });
                number += 1;
            }
            (start, lines_before) = (offset, index);
        }
        offset += line.len();
    }
    documents.push(Document { text: &text[start..], number, lines_before });
    documents.retain(|document| !is_blank(document.text));
    documents
}

fn is_document_start(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

fn is_blank(text: &str) -> bool {
    text.lines().all(|line| {
        let line = line.trim();
        line.is_empty() || line.starts_with('#') || line == "---" || line == "..."
    })
}

/// Parses one YAML document without lines.
pub(crate) fn parse_yaml(text: &str) -> Result<Node, SyntaxError> {
    serde_saphyr::from_str_with_options::<Plain>(text, options()).map(|plain| plain.0).map_err(yaml_error)
}

/// Parses one YAML document with the line of every value.
pub(crate) fn parse_yaml_with_lines(text: &str) -> Result<Node, SyntaxError> {
    let mut options = options();
    options.strict_booleans = true;
    serde_saphyr::from_str_with_options::<Located>(text, options).map(|located| located.0).map_err(yaml_error)
}

/// Parses the JSON values of a file, which may follow one another.
pub(crate) fn parse_json(text: &str) -> Result<Vec<Node>, SyntaxError> {
    serde_json::Deserializer::from_str(text.strip_prefix('\u{feff}').unwrap_or(text))
        .into_iter::<Plain>()
        .map(|value| {
            value
                .map(|plain| plain.0)
                .map_err(|error| SyntaxError { line: Some(error.line()), message: json_message(&error) })
        })
        .collect()
}

/// The parser's words without its place.
fn json_message(error: &serde_json::Error) -> String {
    let place = format!(" at line {} column {}", error.line(), error.column());
    error.to_string().replace(&place, "")
}

fn options() -> Options {
    serde_saphyr::options! {
        with_snippet: false,
        emit_comments: false,
        non_finite_float_policy: NonFiniteFloatPolicy::PassThrough,
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
            max_documents: 2,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
    }
}

fn yaml_error(error: serde_saphyr::Error) -> SyntaxError {
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok());
    SyntaxError { line: line.filter(|line| *line > 0), message: super::words::message(&error) }
}

/// A tree without lines.
struct Plain(Node);
/// A tree with lines.
struct Located(Node);

impl From<Plain> for Node {
    fn from(plain: Plain) -> Self {
        plain.0
    }
}

impl From<Located> for Node {
    fn from(located: Located) -> Self {
        located.0
    }
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = deserializer.deserialize_any(TreeVisitor::<Plain>(std::marker::PhantomData))?;
        Ok(Self(Node { line: 0, value }))
    }
}

/// The value inside a [`Located`].
struct LocatedValue(Value);

impl<'de> Deserialize<'de> for LocatedValue {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor::<Located>(std::marker::PhantomData)).map(Self)
    }
}

impl<'de> Deserialize<'de> for Located {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<LocatedValue>::deserialize(deserializer)?;
        let line = usize::try_from(spanned.referenced.line()).unwrap_or_default();
        let value = match spanned.value.0 {
            Value::String(text) if spanned.defined.span().len() == text.len() as u64 => plain_scalar(text),
            value => value,
        };
        Ok(Self(Node { line, value }))
    }
}

/// An unquoted scalar as Kubernetes reads it: `yes` and `off` are booleans (YAML 1.1), while a lone `y` or
/// `n` stays the name it nearly always is.
fn plain_scalar(text: String) -> Value {
    match text.as_str() {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Value::Bool(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => Value::Bool(false),
        _ => Value::String(text),
    }
}

/// Builds a [`Value`] whose children are read as `N`.
struct TreeVisitor<N>(std::marker::PhantomData<N>);

impl<'de, N: Deserialize<'de> + Into<Node>> Visitor<'de> for TreeVisitor<N> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON can express")
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
        let mut items = Vec::new();
        while let Some(item) = sequence.next_element::<N>()? {
            items.push(item.into());
        }
        Ok(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        let mut seen = HashSet::new();
        while let Some((key, value)) = map.next_entry::<String, N>()? {
            if !seen.insert(key.clone()) {
                return Err(A::Error::custom(format_args!("duplicate key {key:?}")));
            }
            entries.push((key, value.into()));
        }
        Ok(Value::Map(entries))
    }
}
