//! The published schema: what it accepts and refuses, and that its fields are documented.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use serde_json::{Value, json};

use super::RECORD_SCHEMA;

/// Fails unless `line` keeps to the published schema. Every test that makes a line asks this.
pub(crate) fn assert_valid(line: &Value) {
    if let Err(faults) = faults(line) {
        panic!("not by the schema: {faults}\n{line:#}");
    }
}

fn faults(line: &Value) -> Result<(), String> {
    static COMPILED: OnceLock<(boon::Schemas, boon::SchemaIndex)> = OnceLock::new();
    let (schemas, index) = COMPILED.get_or_init(|| {
        let mut schemas = boon::Schemas::new();
        let mut compiler = boon::Compiler::new();
        compiler.enable_format_assertions();
        compiler.add_resource("record.schema.json", schema()).unwrap();
        let index = compiler.compile("record.schema.json", &mut schemas).unwrap();
        (schemas, index)
    });
    schemas.validate(line, *index).map_err(|error| format!("{error:#}"))
}

fn schema() -> Value {
    serde_json::from_str(RECORD_SCHEMA).unwrap()
}

/// The paths of all fields that hold values: `source.k8s.owner.kind`.
fn fields() -> BTreeSet<String> {
    fn walk(schema: &Value, node: &Value, path: &str, fields: &mut BTreeSet<String>) {
        let node = match node["$ref"].as_str() {
            Some(reference) => schema.pointer(reference.strip_prefix('#').unwrap()).unwrap(),
            None => node,
        };
        match node["properties"].as_object() {
            Some(properties) => {
                for (name, property) in properties {
                    let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                    walk(schema, property, &path, fields);
                }
            }
            None => {
                fields.insert(path.to_owned());
            }
        }
    }
    let schema = schema();
    let mut fields = BTreeSet::new();
    for kind in ["connection", "lost", "summary"] {
        walk(&schema, &schema["$defs"][kind], "", &mut fields);
    }
    fields
}

#[test]
fn every_field_of_the_schema_has_a_row_in_the_documentation_and_no_other_has() {
    let rows: BTreeSet<String> = include_str!("../FIELDS.md")
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .filter(|(_, cells)| cells.matches(" | ").count() == 2)
        .map(|(field, _)| field.to_owned())
        .collect();
    assert_eq!(rows, fields());
}

#[test]
fn every_cause_tier_and_reason_is_in_the_schema() {
    let schema = schema();
    let listed = |pointer: &str| -> BTreeSet<String> {
        let values = schema.pointer(pointer).unwrap()["enum"].as_array().unwrap();
        values.iter().map(|value| value.as_str().unwrap().to_owned()).collect()
    };
    let causes = flow::EndCause::ALL.iter().map(|cause| cause.as_str().to_owned()).collect();
    assert_eq!(listed("/$defs/connection/properties/sluice/properties/end_cause"), causes);
}

#[test]
fn a_line_with_an_unknown_field_or_without_a_known_one_is_refused() {
    let line = json!({
        "@timestamp": "2026-08-01T12:00:00.000000123Z", "ecs": {"version": "9.5.0"},
        "event": {
            "kind": "event", "category": ["network"], "type": ["info"], "action": "records-lost",
            "outcome": "failure", "sequence": 9, "reason": "queue-full",
        },
        "observer": {"name": "node-a", "product": "sluice"},
        "sluice": {"schema": 1, "lost": {"count": 2, "first": 8, "last": 9}},
    });
    assert_valid(&line);
    for (pointer, key, value) in [
        ("", "surprise", json!(1)),
        ("/sluice/lost", "surprise", json!(1)),
        ("/event", "reason", json!("no-such-reason")),
        ("/sluice", "schema", json!(2)),
        ("", "@timestamp", json!("yesterday")),
    ] {
        let mut changed = line.clone();
        changed.pointer_mut(pointer).unwrap()[key] = value;
        assert!(faults(&changed).is_err(), "{changed}");
    }
    let mut shortened = line;
    shortened["event"].as_object_mut().unwrap().remove("sequence");
    assert!(faults(&shortened).is_err());
}
