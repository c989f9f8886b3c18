//! Applies a change to manifests as a user would: JSON Patch (RFC 6902), `add` and `remove` only.

use policy_cache::Operation;
use serde_json::Value;

pub(crate) fn apply(objects: &mut Vec<Value>, operations: &[Operation]) {
    for operation in operations {
        if operation.op == "create" {
            objects.push(operation.value.clone());
            continue;
        }
        let object = objects.iter_mut().find(|object| name(object) == operation.object);
        let object = object.unwrap_or_else(|| panic!("no object {}", operation.object));
        let (parent, last) = operation.path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/").replace("~0", "~");
        let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("{operation:?}: no such place"));
        match (operation.op, parent) {
            ("add", Value::Object(map)) => drop(map.insert(last, operation.value.clone())),
            ("add", Value::Array(list)) if last == "-" => list.push(operation.value.clone()),
            ("add", Value::Array(list)) => list.insert(last.parse().unwrap(), operation.value.clone()),
            ("remove", Value::Array(list)) => drop(list.remove(last.parse().unwrap())),
            (_, parent) => panic!("{operation:?} on {parent}"),
        }
    }
}

fn name(object: &Value) -> String {
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    if ["ClusterNetworkPolicy", "AdminNetworkPolicy", "BaselineAdminNetworkPolicy"]
        .contains(&text(&object["kind"]).as_str())
    {
        return format!("{}/{}", text(&object["kind"]), text(&object["metadata"]["name"]));
    }
    format!("{}/{namespace}/{}", text(&object["kind"]), text(&object["metadata"]["name"]))
}
