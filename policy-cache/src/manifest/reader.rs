//! Reads fields out of a document's tree and remembers the path to each.
//!
//! A field that is absent or null reads as `None` without a word, one of the wrong type as `None` with a
//! problem. Nothing stops at the first problem.

use std::path::PathBuf;

use super::near;
use super::problem::{Problem, Problems};
use super::tree::{Node, Value};

/// How much of an offending value is quoted.
const MAX_QUOTED: usize = 80;
/// For how many unknown fields of a mapping it is asked what they were meant as.
pub(crate) const MAX_MEANT: usize = 100;

/// Where the problems of one object go.
#[derive(Debug)]
pub(crate) struct Findings {
    pub(crate) problems: Problems,
    pub(crate) file: PathBuf,
    pub(crate) document: usize,
    pub(crate) lines_before: usize,
    /// `Kind/namespace/name` of the object being read.
    pub(crate) object: String,
    /// Objects are held to strict field validation: they do not come from an API server, which has seen to that.
    pub(crate) strict: bool,
}

impl Findings {
    /// How many problems there are so far: more after a part was read than before means that it has some.
    pub(crate) fn count(&self) -> usize {
        self.problems.count()
    }

    /// Notes that the value at `at` is wrong.
    pub(crate) fn report(&mut self, at: &Cursor<'_, '_>, message: impl Into<String>) {
        let value = quoted(at.node);
        self.push(at, at.path(), value, message.into());
    }

    /// Notes that the field `key` of `at` should be there and is not.
    pub(crate) fn missing(&mut self, at: &Cursor<'_, '_>, key: &str) {
        let path = at.path();
        let field = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
        self.push(at, field, String::new(), "required".to_owned());
    }

    /// Notes that there is no such field. Its value is as it may be; the name is what is wrong.
    pub(crate) fn unknown(&mut self, at: &Cursor<'_, '_>, meant: Option<&str>) {
        let message = match meant {
            Some(meant) => format!("unknown field, did you mean {meant}?"),
            None => "unknown field".to_owned(),
        };
        self.push(at, at.path(), String::new(), message);
    }

    fn push(&mut self, at: &Cursor<'_, '_>, field: String, value: String, message: String) {
        self.problems.push(Problem {
            file: self.file.clone(),
            document: self.document,
            line: (at.node.line > 0).then(|| at.node.line + self.lines_before),
            object: self.object.clone(),
            field,
            value,
            message,
        });
    }
}

/// A place in a document's tree.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cursor<'n, 'p> {
    node: &'n Node,
    parent: Option<&'p Cursor<'n, 'p>>,
    step: Step<'n>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'n> {
    Root,
    Key(&'n str),
    Index(usize),
}

impl<'n, 'p> Cursor<'n, 'p> {
    /// The top of an object. Paths start below it.
    pub(crate) fn root(node: &'n Node) -> Self {
        Self { node, parent: None, step: Step::Root }
    }

    /// The child `key`, unless it is absent or null. A parent that is no mapping has no children: whoever
    /// reads it with `fields` has it reported.
    pub(crate) fn get<'c>(&'c self, key: &str) -> Option<Cursor<'n, 'c>>
    where
        'p: 'c,
    {
        let Value::Map(entries) = &self.node.value else { return None };
        let (key, node) = entries.iter().find(|(name, _)| name == key)?;
        let child = Cursor { node, parent: Some(self), step: Step::Key(key) };
        (!matches!(node.value, Value::Null)).then_some(child)
    }

    /// The child `key` as a mapping.
    pub(crate) fn get_map<'c>(&'c self, key: &str, findings: &mut Findings) -> Option<Cursor<'n, 'c>>
    where
        'p: 'c,
    {
        let child = self.get(key)?;
        if !matches!(child.node.value, Value::Map(_)) {
            findings.report(&child, "must be a mapping");
            return None;
        }
        Some(child)
    }

    /// Reports a value that is no mapping, and every field of it that is not in `known`: in a policy, a
    /// misspelt field read as an absent one would match everything.
    pub(crate) fn only(&self, known: &[&str], findings: &mut Findings) -> bool {
        if !self.is_map() {
            findings.report(self, "must be a mapping");
            return false;
        }
        self.report_unknown(known, &[], findings);
        true
    }

    /// Reports every field of a mapping that is not in `known`, with the known one that was likely meant. `elsewhere`:
    /// fields that belong at another place, with what stands before them there.
    pub(crate) fn report_unknown(
        &self,
        known: &[&str],
        elsewhere: &[(&str, &[&str])],
        findings: &mut Findings,
    ) {
        let mut unknown = self.entries().filter(|(key, _)| !known.contains(key)).peekable();
        if unknown.peek().is_none() {
            return;
        }
        // Asked once: a hostile mapping has a million fields.
        let is_missing = |name: &&str| !self.entries().any(|(own, _)| own == *name);
        let missing: Vec<&str> = known.iter().copied().filter(is_missing).collect();
        for (index, (key, child)) in unknown.enumerate() {
            let meant = (index < MAX_MEANT).then(|| meant(key, &missing, elsewhere)).flatten();
            findings.unknown(&child, meant.as_deref());
        }
    }

    /// The entries of a mapping.
    pub(crate) fn entries<'c>(&'c self) -> impl Iterator<Item = (&'n str, Cursor<'n, 'c>)>
    where
        'p: 'c,
    {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            _ => &[],
        };
        entries
            .iter()
            .map(move |(key, node)| (key.as_str(), Cursor { node, parent: Some(self), step: Step::Key(key) }))
    }

    /// The items of a list; a value that is no list is reported and has none.
    pub(crate) fn items<'c>(
        &'c self,
        findings: &mut Findings,
    ) -> impl Iterator<Item = Cursor<'n, 'c>> + use<'n, 'c, 'p>
    where
        'p: 'c,
    {
        let items = match &self.node.value {
            Value::List(items) => items.as_slice(),
            _ => {
                findings.report(self, "must be a list");
                &[]
            }
        };
        items.iter().enumerate().map(move |(index, node)| Cursor {
            node,
            parent: Some(self),
            step: Step::Index(index),
        })
    }

    pub(crate) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    pub(crate) fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    pub(crate) fn node(&self) -> &'n Node {
        self.node
    }

    /// The value as a string.
    pub(crate) fn string(&self, findings: &mut Findings) -> Option<&'n str> {
        let Value::String(text) = &self.node.value else {
            findings.report(self, "must be a string");
            return None;
        };
        Some(text)
    }

    /// The value as an integer.
    pub(crate) fn integer(&self, findings: &mut Findings) -> Option<i64> {
        let Value::Integer(number) = self.node.value else {
            findings.report(self, "must be an integer");
            return None;
        };
        Some(number)
    }

    /// The value as a boolean.
    pub(crate) fn boolean(&self, findings: &mut Findings) -> Option<bool> {
        let Value::Bool(value) = self.node.value else {
            findings.report(self, "must be true or false");
            return None;
        };
        Some(value)
    }

    /// The child `key` as a string.
    pub(crate) fn get_string(&self, key: &str, findings: &mut Findings) -> Option<&'n str> {
        self.get(key)?.string(findings)
    }

    /// The path from the object to here, as the API server writes it.
    pub(crate) fn path(&self) -> String {
        let mut path = self.parent.map(Cursor::path).unwrap_or_default();
        match self.step {
            Step::Root => {}
            Step::Key(key) if key.contains(['.', '/']) => path.push_str(&format!("[{key}]")),
            Step::Key(key) => {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(key);
            }
            Step::Index(index) => path.push_str(&format!("[{index}]")),
        }
        path
    }
}

/// The field that a key which is not known was likely meant as: one that is missing beside it, else one of elsewhere.
fn meant(key: &str, missing: &[&str], elsewhere: &[(&str, &[&str])]) -> Option<String> {
    if let Some(meant) = near::meant(key, missing.iter().copied()) {
        return Some(meant.to_owned());
    }
    elsewhere.iter().find_map(|(before, names)| {
        let same = names.iter().copied().find(|name| *name == key);
        let meant = same.or_else(|| near::meant(key, names.iter().copied()))?;
        Some(format!("{before}{meant}"))
    })
}

/// A value as JSON would write it, shortened.
fn quoted(node: &Node) -> String {
    let mut text = String::new();
    write_value(&node.value, &mut text);
    match text.char_indices().nth(MAX_QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

fn write_value(value: &Value, out: &mut String) {
    if out.len() > MAX_QUOTED * 4 {
        return;
    }
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(value) => out.push_str(&value.to_string()),
        Value::Integer(value) => out.push_str(&value.to_string()),
        // 80.0 is no 80.
        Value::Float(value) => out.push_str(&format!("{value:?}")),
        Value::String(value) => out.push_str(&format!("{value:?}")),
        Value::List(items) => {
            out.push('[');
            for (index, item) in items.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                write_value(&item.value, out);
            }
            out.push(']');
        }
        Value::Map(entries) => {
            out.push('{');
            for (index, (key, item)) in entries.iter().enumerate() {
                if index > 0 {
                    out.push(',');
                }
                out.push_str(&format!("{key:?}:"));
                write_value(&item.value, out);
            }
            out.push('}');
        }
    }
}
