//! The chart's values: each is in the schema, does something, and is refused where it cannot work.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;

use deploy_tests::render::{helm, pod};
use deploy_tests::tools;
use serde_json::{Value, json};

fn chart(file: &str) -> String {
    fs::read_to_string(tools::repository().join("deploy/helm/sluice").join(file)).unwrap()
}

/// The paths of all values that the schema has, `a.b.c`. What it leaves open inside (maps, lists) is one value.
fn known() -> BTreeSet<String> {
    fn walk(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
        match schema["properties"].as_object() {
            Some(fields) => fields.iter().for_each(|(name, field)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                walk(field, &path, found);
            }),
            None => drop(found.insert(path.to_owned())),
        }
    }
    let schema: Value = serde_json::from_str(&chart("values.schema.json")).unwrap();
    let mut found = BTreeSet::new();
    walk(&schema, "", &mut found);
    // Helm's own, for charts that have this one as a part.
    assert!(found.remove("global"));
    found
}

fn default_of(path: &str) -> Value {
    let values: Value = serde_saphyr::from_str(&chart("values.yaml")).unwrap();
    let pointer = format!("/{}", path.replace('.', "/"));
    values.pointer(&pointer).unwrap_or_else(|| panic!("{path} is not in values.yaml")).clone()
}

fn render(sets: &[String]) -> Result<Vec<Value>, String> {
    let arguments: Vec<&str> = sets.iter().flat_map(|set| ["--set-json", set]).collect();
    helm(&arguments)
}

const MONITOR: &str = r#"admin.address="0.0.0.0",metrics.serviceMonitor.enabled=true"#;
const RULE: &str = "metrics.prometheusRule.enabled=true";
const HUBBLE: &str = "hubble.enabled=true";

/// Another value than the default, and what else must be set for it to matter.
const CHANGES: [(&str, &str, &str); 33] = [
    ("admin.address", r#""0.0.0.0""#, ""),
    ("admin.port", "9999", ""),
    ("affinity", r#"{"nodeAffinity":{}}"#, ""),
    ("cleanup", "true", ""),
    ("config", r#"{"log":{"filter":"debug"}}"#, ""),
    ("dnsPolicy", r#""ClusterFirstWithHostNet""#, ""),
    (
        "extraVolumeMounts",
        r#"[{"name":"a","mountPath":"/a"}]"#,
        r#"extraVolumes=[{"name":"a","emptyDir":{}}]"#,
    ),
    ("extraVolumes", r#"[{"name":"a","emptyDir":{}}]"#, ""),
    ("hubble.enabled", "true", ""),
    ("hubble.mutualTls", "false", HUBBLE),
    ("hubble.port", "4245", HUBBLE),
    ("hubble.tlsSecret", r#""another""#, HUBBLE),
    ("image.digest", r#""sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef""#, ""),
    ("image.pullPolicy", r#""Always""#, ""),
    ("image.pullSecrets", r#"["7"]"#, ""),
    ("image.repository", r#""r.example:5000/sluice""#, ""),
    ("image.tag", r#""9.9""#, ""),
    ("maxUnavailable", r#""10%""#, ""),
    ("metrics.prometheusRule.enabled", "true", ""),
    ("metrics.prometheusRule.labels", r#"{"a":"b"}"#, RULE),
    ("metrics.serviceMonitor.enabled", "true", r#"admin.address="0.0.0.0""#),
    ("metrics.serviceMonitor.interval", r#""1m""#, MONITOR),
    ("metrics.serviceMonitor.labels", r#"{"a":"b"}"#, MONITOR),
    ("nodeSelector", r#"{"a":"b"}"#, ""),
    ("priorityClassName", r#""another""#, ""),
    ("records.hostPath", r#""/srv/records""#, r#"records.to="host""#),
    ("records.to", r#""host""#, ""),
    ("resources.limits", r#"{"memory":"2Gi"}"#, ""),
    ("resources.requests", r#"{"cpu":1.5}"#, ""),
    ("store.enabled", "true", ""),
    ("store.hostPath", r#""/srv/store""#, "store.enabled=true"),
    ("terminationGracePeriodSeconds", "60", ""),
    ("tolerations", "[]", ""),
];

#[test]
fn every_value_of_the_schema_has_a_default_and_changes_what_is_rendered() {
    let changed: BTreeSet<String> = CHANGES.iter().map(|(path, ..)| (*path).to_owned()).collect();
    assert_eq!(changed, known(), "a value that nobody reads, or that this test does not know");
    for (path, value, needs) in CHANGES {
        default_of(path);
        let before: Vec<String> =
            Some(needs).filter(|needs| !needs.is_empty()).map(str::to_owned).into_iter().collect();
        let after = [before.clone(), vec![format!("{path}={value}")]].concat();
        assert_ne!(render(&before).unwrap(), render(&after).unwrap(), "{path} does nothing");
    }
}

#[test]
fn every_value_of_the_file_is_in_the_schema() {
    let known = known();
    let is_known = |path: &str| known.iter().any(|one| path == one || path.starts_with(&format!("{one}.")));
    fn leaves(value: &Value, path: &str, found: &mut Vec<String>) {
        match value.as_object().filter(|map| !map.is_empty()) {
            Some(map) => map.iter().for_each(|(name, value)| {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                leaves(value, &path, found);
            }),
            None => found.push(path.to_owned()),
        }
    }
    let values: Value = serde_saphyr::from_str(&chart("values.yaml")).unwrap();
    let mut found = Vec::new();
    leaves(&values, "", &mut found);
    for path in found {
        assert!(is_known(&path), "{path}");
    }
}

#[test]
fn no_value_takes_one_of_another_type_and_the_refusal_names_it() {
    for path in known() {
        let wrong = match default_of(&path) {
            Value::String(_) => json!(7),
            Value::Bool(_) => json!("yes"),
            Value::Number(_) => json!("many"),
            Value::Array(_) => json!({}),
            Value::Object(_) => json!(["x"]),
            Value::Null => panic!("{path} has no default"),
        };
        let error = render(&[format!("{path}={wrong}")]).expect_err(&path);
        assert!(error.contains(&format!("/{}", path.replace('.', "/"))), "{path}: {error}");
    }
}

#[test]
fn values_that_cannot_work_together_or_at_all_are_refused() {
    for (values, message) in [
        (r#"image.digest="sha256:12""#, "/image/digest"),
        (r#"image.repository="REG/sluice""#, "/image/repository"),
        (r#"admin.address="999.1.1.1""#, "/admin/address"),
        (r#"admin.address="1:2""#, "/admin/address"),
        ("hubble.enabled=true,hubble.port=9093", "both 9093"),
        (r#"records.hostPath="records""#, "/records/hostPath"),
        (r#"records.hostPath="/var/log/../../etc""#, "/records/hostPath"),
        (r#"store.hostPath="/""#, "/store/hostPath"),
        (r#"store.hostPath="/var/lib: x""#, "/store/hostPath"),
        (r#"priorityClassName="High Priority""#, "/priorityClassName"),
        (r#"resources.limits={"memory":"1..5Gi"}"#, "/resources/limits/memory"),
        (r#"resources.limits={"memory":-1}"#, "/resources/limits/memory"),
        (r#"dnsPolicy="ClusterFirst""#, "/dnsPolicy"),
        (r#"extraVolumes=[{"emptyDir":{}}]"#, "/extraVolumes/0"),
        (r#"extraVolumes=[{"name":"config","emptyDir":{}}]"#, "/extraVolumes/0/name"),
        (r#"extraVolumeMounts=[{"name":"a","mountPath":"/a"}]"#, "not among extraVolumes"),
        (r#"extraVolumeMounts=[{"name":"a","mountPath":"/etc/sluice"}]"#, "/extraVolumeMounts/0/mountPath"),
        (r#"metrics.serviceMonitor.interval="often""#, "/metrics/serviceMonitor/interval"),
        (r#"metrics.serviceMonitor.labels={"a":1}"#, "/metrics/serviceMonitor/labels/a"),
        (r#"nodeSelector={"a":true}"#, "/nodeSelector/a"),
    ] {
        let error = render(&[values.to_owned()]).expect_err(values);
        assert!(error.contains(message), "{values}: {error}");
    }
    for address in ["127.0.0.1", "0.0.0.0", "10.0.0.1", "::", "::1", "fd00:1::a"] {
        assert!(render(&[format!("admin.address={address:?}")]).is_ok(), "{address}");
    }
}

#[test]
fn an_image_by_its_digest_is_that_image_and_volumes_are_where_they_are_mounted() {
    let digest = format!("sha256:{}", "a1".repeat(32));
    let objects = render(&[
        format!(r#"image.repository="r.example/sluice",image.tag="1",image.digest="{digest}""#),
        r#"extraVolumes=[{"name":"token","secret":{"secretName":"collector"}}]"#.to_owned(),
        r#"extraVolumeMounts=[{"name":"token","mountPath":"/etc/sluice-secrets","readOnly":true}]"#
            .to_owned(),
        "store.enabled=true".to_owned(),
    ])
    .unwrap();
    let pod = pod(&objects);
    let container = &pod["containers"][0];
    assert_eq!(container["image"], format!("r.example/sluice:1@{digest}"));
    let named = |list: &Value, name: &str| {
        list.as_array().unwrap().iter().find(|one| one["name"] == name).cloned().unwrap_or_default()
    };
    assert_eq!(named(&pod["volumes"], "token")["secret"]["secretName"], "collector");
    assert_eq!(named(&container["volumeMounts"], "token")["mountPath"], "/etc/sluice-secrets");
    // The store is written where its volume is, for nothing else can be.
    let data =
        container["args"].as_array().unwrap().iter().find_map(|word| word.as_str()?.strip_prefix("--data="));
    assert_eq!(named(&container["volumeMounts"], "store")["mountPath"], data.unwrap());
    assert_eq!(named(&pod["volumes"], "store")["hostPath"]["path"], "/var/lib/sluice");
}
