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
    let schema = of_kind(object);
    let validator = jsonschema::draft202012::new(&schema).expect("a schema");
    validator.iter_errors(object).map(|error| format!("{}: {error}", error.instance_path())).collect()
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
