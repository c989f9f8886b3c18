//! Kustomizations and the chart → objects, rendered by the tools that users run.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use serde_json::{Map, Value, json};

use crate::tools;

/// The namespace that every page installs into.
pub const NAMESPACE: &str = "sluice-system";

/// What `kubectl kustomize` makes of a folder under `deploy/kustomize`.
///
/// # Panics
/// When it refuses.
pub fn kustomize(folder: &str) -> Vec<Value> {
    let home = tempfile::tempdir().expect("a folder");
    let path = tools::repository().join("deploy/kustomize").join(folder);
    documents(&succeeded(tools::kubectl(home.path()).arg("kustomize").arg(path)))
}

/// What `kubectl kustomize` makes of an overlay with components put on top, as a user's own kustomization would.
///
/// # Panics
/// When it refuses.
pub fn kustomize_with(overlay: &str, components: &[&str]) -> Vec<Value> {
    let home = tempfile::tempdir().expect("a folder");
    // Kustomize takes paths relative to the file that names them.
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().canonicalize().expect("a folder");
    let up = "../".repeat(place.components().count() - 1);
    let top = tools::repository().join("deploy/kustomize");
    let named =
        |path: String| format!("{up}{}", top.join(path).display().to_string().trim_start_matches('/'));
    let components: Vec<String> = components.iter().map(|name| named(format!("components/{name}"))).collect();
    let text = json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization",
        "resources": [named(format!("overlays/{overlay}"))], "components": components,
    });
    std::fs::write(folder.path().join("kustomization.yaml"), text.to_string()).expect("written");
    documents(&succeeded(tools::kubectl(home.path()).arg("kustomize").arg(folder.path())))
}

/// What `kubectl kustomize` makes of a kustomization that a page shows, in a folder of its own beside a `config.yaml`; the
/// repository is where the page has it, at `../sluice`.
///
/// # Panics
/// When it refuses.
pub fn kustomize_text(text: &str, config: &str) -> Vec<Value> {
    let home = tempfile::tempdir().expect("a folder");
    let top = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(tools::repository(), top.path().join("sluice")).expect("a link");
    let folder = top.path().join("own");
    std::fs::create_dir(&folder).expect("a folder");
    std::fs::write(folder.join("kustomization.yaml"), text).expect("written");
    std::fs::write(folder.join("config.yaml"), config).expect("written");
    documents(&succeeded(tools::kubectl(home.path()).arg("kustomize").arg(folder)))
}

/// What `helm template` makes of the chart with `arguments`, or what it says against them.
pub fn helm(arguments: &[&str]) -> Result<Vec<Value>, String> {
    let home = tempfile::tempdir().expect("a folder");
    let chart = tools::repository().join("deploy/helm/sluice");
    let mut command = tools::helm(home.path());
    command.current_dir(&chart).args(["template", "sluice", ".", "--namespace", NAMESPACE]).args(arguments);
    let output = command.output().expect("helm runs");
    if output.status.success() {
        Ok(documents(&String::from_utf8_lossy(&output.stdout)))
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The standard output of a command.
///
/// # Panics
/// When it fails.
pub fn succeeded(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().expect("the tool runs");
    assert!(status.success(), "{command:?}: {}", String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

fn documents(text: &str) -> Vec<Value> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).expect("YAML");
    documents.into_iter().filter(|document| !document.is_null()).collect()
}

/// The one object of a kind whose name begins so.
///
/// # Panics
/// When there is none, or several.
pub fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let found: Vec<&Value> = objects.iter().filter(|object| object["kind"] == kind).collect();
    assert_eq!(found.len(), 1, "{kind}");
    found[0]
}

/// The specification of the pods of the one DaemonSet.
pub fn pod(objects: &[Value]) -> &Value {
    &object(objects, "DaemonSet")["spec"]["template"]["spec"]
}

/// The configuration file of the one ConfigMap.
///
/// # Panics
/// When it has none.
pub fn config(objects: &[Value]) -> &str {
    object(objects, "ConfigMap")["data"]["config.yaml"].as_str().expect("a configuration")
}

/// Objects by kind, without what the two ways of packaging do differently by nature: labels and annotations of
/// bookkeeping, the hash in a ConfigMap's name, the form of its text, the pull policy that the API server would
/// set anyway, and the namespace's own object, which helm makes by `--create-namespace`.
pub fn substance(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let config_name = object(&objects, "ConfigMap")["metadata"]["name"].as_str().expect("a name").to_owned();
    let plain = config_name.rsplit_once('-').filter(|(_, hash)| hash.len() == 10).map(|(name, _)| name);
    let plain = plain.unwrap_or(&config_name).to_owned();
    let objects = objects.into_iter().filter(|object| object["kind"] != "Namespace");
    objects
        .map(|mut object| {
            if object["kind"] == "ConfigMap" {
                let text = object["data"]["config.yaml"].as_str().unwrap_or_default().to_owned();
                let parsed: Option<Value> = serde_saphyr::from_str(&text).expect("YAML");
                object["data"]["config.yaml"] = parsed.unwrap_or(json!({}));
            }
            strip(&mut object, &config_name, &plain);
            (object["kind"].as_str().unwrap_or_default().to_owned(), object)
        })
        .collect()
}

const BOOKKEEPING: [&str; 6] = [
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/version",
    "app.kubernetes.io/managed-by",
    "checksum/config",
    "imagePullPolicy",
];

fn strip(value: &mut Value, config_name: &str, plain: &str) {
    match value {
        Value::String(text) if text == config_name => *text = plain.to_owned(),
        Value::Array(items) => items.iter_mut().for_each(|item| strip(item, config_name, plain)),
        Value::Object(map) => {
            map.retain(|key, _| !BOOKKEEPING.contains(&key.as_str()));
            map.values_mut().for_each(|value| strip(value, config_name, plain));
            map.retain(|key, value| {
                key != "annotations" || value.as_object().is_none_or(|map: &Map<_, _>| !map.is_empty())
            });
        }
        _ => {}
    }
}
