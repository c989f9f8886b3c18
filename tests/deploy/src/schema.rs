//! Objects → what the published JSON schema of their kind has against them. Unknown fields count.

use std::fs;

use serde_json::{Value, json};

use crate::tools;

/// Where the schemas keep what they share.
const SHARED: &str = "/api/_definitions.json#/$defs/";

/// The problems, one line each.
///
/// # Panics
/// When there is no schema of such a kind.
pub fn problems(object: &Value) -> Vec<String> {
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.set_default_draft(boon::Draft::V2020_12);
    compiler.add_resource(NAME, of_kind(object)).expect("a schema");
    let schema = compiler.compile(NAME, &mut schemas).expect("a schema");
    let mut found = Vec::new();
    if let Err(error) = schemas.validate(object, schema) {
        leaves(&error, &mut found);
    }
    found
}

/// A name for the schema; nothing is fetched.
const NAME: &str = "memory:///kind.json";

/// The innermost problems: those around them only repeat that something inside is wrong.
fn leaves(error: &boon::ValidationError<'_, '_>, found: &mut Vec<String>) {
    if error.causes.is_empty() {
        found.push(format!("{}: {}", error.instance_location, error.kind));
    }
    error.causes.iter().for_each(|cause| leaves(cause, found));
}

fn of_kind(object: &Value) -> Value {
    let version = object["apiVersion"].as_str().unwrap_or_default();
    let kind = object["kind"].as_str().unwrap_or_default().to_lowercase();
    // rbac.authorization.k8s.io/v1 ClusterRole is in clusterrole-rbac-v1.json.
    let file = match version.split_once('/') {
        Some((group, version)) => {
            format!("{kind}-{}-{version}.json", group.split('.').next().unwrap_or_default())
        }
        None => format!("{kind}-{version}.json"),
    };
    let read = |name: &str| -> Value {
        let path = tools::tool("schemas").join(name);
        let text = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        serde_json::from_slice(&text).expect("JSON")
    };
    let mut schema = read(&file);
    schema["$defs"] = read("_definitions.json")["$defs"].take();
    local(&mut schema);
    // The published schemas let the two fields that name the type be null.
    schema["required"] = json!(["apiVersion", "kind", "metadata"]);
    schema
}

/// References to the shared file become references inside this one.
fn local(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(local),
        Value::Object(map) => {
            if let Some(Value::String(reference)) = map.get_mut("$ref")
                && let Some(name) = reference.strip_prefix(SHARED)
            {
                *reference = format!("#/$defs/{name}");
            }
            map.values_mut().for_each(local);
        }
        _ => {}
    }
}
