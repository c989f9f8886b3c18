//! What the kustomizations and the chart render: valid, equal, and fitting the agent that they start.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeSet;
use std::fs;
use std::process::{Command, Output};

use deploy_tests::render::{self, helm, kustomize, kustomize_with, object, pod, substance};
use deploy_tests::{api, container, schema, tools};
use flow::PolicyKind;
use policy_cache::Kind;
use serde_json::{Value, json};

/// Every way of packaging one thing: the kustomization and the arguments of helm.
fn packages() -> Vec<(String, Vec<Value>, Vec<Value>)> {
    let metrics = [
        "--set",
        "metrics.serviceMonitor.enabled=true,metrics.prometheusRule.enabled=true,admin.address=0.0.0.0",
    ];
    let package =
        |name: &str, objects, arguments: &[&str]| (name.to_owned(), objects, helm(arguments).unwrap());
    vec![
        package("generic", kustomize("overlays/generic"), &[]),
        package(
            "calico-no-policy",
            kustomize("overlays/calico-no-policy"),
            &["--values", "values-calico-no-policy.yaml"],
        ),
        package("aws-vpc-cni", kustomize("overlays/aws-vpc-cni"), &["--values", "values-aws-vpc-cni.yaml"]),
        package(
            "cleanup",
            kustomize("cleanup"),
            &["--set", "cleanup=true", "--set-json", "config={\"log\":null}"],
        ),
        package("metrics", kustomize_with("generic", &["metrics"]), &metrics),
        package("hubble", kustomize_with("generic", &["hubble"]), &["--set", "hubble.enabled=true"]),
        package("records", kustomize_with("generic", &["records-on-host"]), &["--set", "records.to=host"]),
        package("store", kustomize_with("generic", &["store-on-host"]), &["--set", "store.enabled=true"]),
    ]
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(lab::sluice_binary().unwrap()).args(arguments).output().unwrap()
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().map(|list| list.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

/// Every agent that is shipped in any form.
fn agents() -> Vec<(String, Vec<Value>)> {
    let both = packages().into_iter().filter(|(name, ..)| name != "cleanup");
    both.flat_map(|(name, kustomized, charted)| {
        [(format!("{name} by kustomize"), kustomized), (format!("{name} by helm"), charted)]
    })
    .collect()
}

#[test]
fn kustomize_and_helm_make_the_same_objects() {
    for (name, kustomized, charted) in packages() {
        let (kustomized, charted) = (substance(kustomized), substance(charted));
        assert_eq!(kustomized.keys().collect::<Vec<_>>(), charted.keys().collect::<Vec<_>>(), "{name}");
        for (kind, object) in &kustomized {
            if kind == "ConfigMap" && name == "cleanup" {
                continue;
            }
            let pretty = |value: &Value| serde_json::to_string_pretty(value).unwrap();
            assert_eq!(pretty(object), pretty(&charted[kind]), "{name}: {kind}");
        }
    }
}

#[test]
fn every_package_has_the_alerts_as_they_are_tested() {
    let file = fs::read_to_string(tools::repository().join("deploy/prometheus/alerts.yaml")).unwrap();
    let tested: Value = serde_saphyr::from_str(&file).unwrap();
    let (_, kustomized, charted) = packages().into_iter().find(|(name, ..)| name == "metrics").unwrap();
    for objects in [kustomized, charted] {
        assert_eq!(object(&objects, "PrometheusRule")["spec"], tested);
    }
}

#[test]
fn every_object_fits_the_schema_of_its_kind() {
    for (name, kustomized, charted) in packages() {
        let is_operator_s = |object: &&Value| object["apiVersion"] == "monitoring.coreos.com/v1";
        for object in kustomized.iter().chain(&charted).filter(|object| !is_operator_s(object)) {
            assert_eq!(schema::problems(object), Vec::<String>::new(), "{name}: {}", object["kind"]);
        }
    }
}

#[test]
fn the_schemas_find_a_misspelt_field_and_a_wrong_type() {
    let mut objects = kustomize("overlays/generic");
    let daemonset = objects.iter_mut().find(|object| object["kind"] == "DaemonSet").unwrap();
    daemonset["spec"]["template"]["spec"]["hostNetworks"] = json!(true);
    assert!(schema::problems(daemonset).iter().any(|problem| problem.contains("hostNetworks")));
    daemonset["spec"]["template"]["spec"].as_object_mut().unwrap().remove("hostNetworks");
    daemonset["spec"]["template"]["spec"]["hostNetwork"] = json!("yes");
    assert!(
        schema::problems(daemonset)
            .iter()
            .any(|problem| problem.starts_with("/spec/template/spec/hostNetwork"))
    );
}

#[test]
fn kubectl_takes_every_object_in_a_dry_run() {
    let server = api::Api::start();
    for (name, kustomized, charted) in packages() {
        for objects in [kustomized, charted] {
            let home = tempfile::tempdir().unwrap();
            let file = home.path().join("objects.yaml");
            let documents: Vec<String> = objects.iter().map(Value::to_string).collect();
            fs::write(&file, documents.join("\n---\n")).unwrap();
            let mut command = tools::kubectl(home.path());
            command.args(["--server", &server.url(), "apply", "--dry-run=client", "--filename"]).arg(&file);
            let said = render::succeeded(&mut command);
            assert_eq!(said.matches("created (dry run)").count(), objects.len(), "{name}: {said}");
        }
    }
}

#[test]
fn kubectl_refuses_in_a_dry_run_what_no_server_has() {
    let server = api::Api::start();
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("object.json");
    fs::write(&file, r#"{"apiVersion":"apps/v1","kind":"DaemonSets","metadata":{"name":"x"}}"#).unwrap();
    let mut command = tools::kubectl(home.path());
    command
        .args(["--server", &server.url(), "apply", "--validate=false", "--dry-run=client", "--filename"])
        .arg(&file);
    let output = command.output().unwrap();
    assert!(!output.status.success(), "{output:?}");
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("no matches for kind \"DaemonSets\""),
        "{output:?}"
    );
}

#[test]
fn helm_lints_the_chart_with_every_file_of_values() {
    for values in ["values.yaml", "values-calico-no-policy.yaml", "values-aws-vpc-cni.yaml"] {
        let home = tempfile::tempdir().unwrap();
        let mut command = tools::helm(home.path());
        command.current_dir(tools::repository().join("deploy/helm/sluice"));
        render::succeeded(command.args(["lint", "--strict", ".", "--values", values]));
    }
}

#[test]
fn helm_refuses_values_that_cannot_work_and_says_which() {
    for (values, message) in [
        ("imag.tag=1", "imag"),
        ("image.tag=a b", "/image/tag"),
        ("admin.address=localhost", "/admin/address"),
        ("admin.port=70000", "/admin/port"),
        ("records.to=elsewhere", "/records/to"),
        ("maxUnavailable=0", "/maxUnavailable"),
        ("maxUnavailable=101%", "/maxUnavailable"),
        ("config=7", "/config"),
        ("hubble.port=0", "/hubble/port"),
        ("hubble.tlsSecret=", "/hubble/tlsSecret"),
        ("cleanup=yes", "/cleanup"),
        ("metrics.serviceMonitor.enabled=true", "beyond loopback"),
        ("config.shutdown.drain_timeout_ms=40000", "terminationGracePeriodSeconds is 30"),
        ("terminationGracePeriodSeconds=24", "terminationGracePeriodSeconds is 24"),
    ] {
        let error = helm(&["--set", values]).expect_err(values);
        assert!(error.contains(message), "{values}: {error}");
    }
    assert!(helm(&["--set", "config.shutdown.drain_timeout_ms=0,terminationGracePeriodSeconds=5"]).is_ok());
}

#[test]
fn the_agent_takes_the_arguments_and_the_configuration_that_it_is_given() {
    for (name, objects) in agents() {
        let container = &pod(&objects)["containers"][0];
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("config.yaml");
        fs::write(&file, render::config(&objects)).unwrap();
        // What the kubelet does: $(NODE_NAME) from the environment, the ConfigMap mounted where the pod says.
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mounted =
            mounts.iter().find(|mount| mount["name"] == "config").unwrap()["mountPath"].as_str().unwrap();
        let words: Vec<String> = strings(&container["args"])
            .into_iter()
            .map(|word| word.replace("$(NODE_NAME)", "n1").replace(mounted, folder.path().to_str().unwrap()))
            .collect();
        assert!(words.iter().any(|word| word.contains(folder.path().to_str().unwrap())), "{name}: {words:?}");
        let mut words: Vec<&str> = words.iter().map(String::as_str).collect();
        words.push("--check-config");
        let output = sluice(&words);
        assert!(output.status.success(), "{name}: {output:?}");
        let names: Vec<&Value> =
            container["env"].as_array().unwrap().iter().map(|entry| &entry["name"]).collect();
        assert_eq!(names, ["NODE_NAME"], "{name}");
    }
}

#[test]
fn every_key_of_the_configuration_goes_through_helm_unharmed() {
    let example = tools::repository().join("deploy/config.example.yaml");
    let text = fs::read_to_string(&example).unwrap();
    let values: Value = serde_saphyr::from_str(&text).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (values_file, config_file) = (folder.path().join("values.yaml"), folder.path().join("config.yaml"));
    fs::write(&values_file, json!({"config": values}).to_string()).unwrap();
    let objects = helm(&["--values", values_file.to_str().unwrap()]).unwrap();
    fs::write(&config_file, render::config(&objects)).unwrap();
    let rendered: Value = serde_saphyr::from_str(render::config(&objects)).unwrap();
    assert_eq!(rendered, values);
    let output = sluice(&["run", "--check-config", "--config", config_file.to_str().unwrap()]);
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn a_change_of_the_configuration_rolls_the_daemonset() {
    let template =
        |arguments: &[&str]| object(&helm(arguments).unwrap(), "DaemonSet")["spec"]["template"].clone();
    assert_ne!(template(&[]), template(&["--set", "config.log.filter=debug"]));
    // Kustomize names the ConfigMap after its content.
    let config_of = |folder: &str| pod(&kustomize(folder))["volumes"][0]["configMap"]["name"].clone();
    assert_ne!(config_of("overlays/generic"), config_of("overlays/aws-vpc-cni"));
    let objects = kustomize("overlays/generic");
    assert_eq!(object(&objects, "ConfigMap")["metadata"]["name"], config_of("overlays/generic"));
}

#[test]
fn the_grace_period_covers_the_drain_and_the_records() {
    // The agent's defaults, which a test of its own holds to the example.
    let example = fs::read_to_string(tools::repository().join("deploy/config.example.yaml")).unwrap();
    let example: Value = serde_saphyr::from_str(&example).unwrap();
    for (name, objects) in agents() {
        let config: Value = serde_saphyr::from_str(render::config(&objects)).unwrap();
        let of = |key: &str| config["shutdown"][key].as_u64().or(example["shutdown"][key].as_u64()).unwrap();
        let grace = pod(&objects)["terminationGracePeriodSeconds"].as_u64().unwrap() * 1_000;
        assert!(of("drain_timeout_ms") + of("records_timeout_ms") + 2_000 <= grace, "{name}");
    }
}

/// Group and plural of a kind that the code reads. A new kind does not compile until it is here.
fn resource(kind: Kind) -> (&'static str, &'static str) {
    match kind {
        Kind::Namespace => ("", "namespaces"),
        Kind::Pod => ("", "pods"),
        Kind::Node => ("", "nodes"),
        Kind::Service => ("", "services"),
        Kind::EndpointSlice => ("discovery.k8s.io", "endpointslices"),
        Kind::Policy(PolicyKind::NetworkPolicy) => ("networking.k8s.io", "networkpolicies"),
        Kind::Policy(PolicyKind::ClusterNetworkPolicy) => {
            ("policy.networking.k8s.io", "clusternetworkpolicies")
        }
        Kind::Policy(PolicyKind::AdminNetworkPolicy) => ("policy.networking.k8s.io", "adminnetworkpolicies"),
        Kind::Policy(PolicyKind::BaselineAdminNetworkPolicy) => {
            ("policy.networking.k8s.io", "baselineadminnetworkpolicies")
        }
    }
}

const KINDS: [Kind; 9] = [
    Kind::Namespace,
    Kind::Pod,
    Kind::Node,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::Policy(PolicyKind::NetworkPolicy),
    Kind::Policy(PolicyKind::ClusterNetworkPolicy),
    Kind::Policy(PolicyKind::AdminNetworkPolicy),
    Kind::Policy(PolicyKind::BaselineAdminNetworkPolicy),
];

#[test]
fn the_role_lets_the_agent_read_every_kind_it_reads_and_nothing_more() {
    for (name, objects) in agents() {
        let mut granted = BTreeSet::new();
        for rule in object(&objects, "ClusterRole")["rules"].as_array().unwrap() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    granted.extend(strings(&rule["verbs"]).into_iter().map(|verb| (group, resource, verb)));
                }
            }
        }
        let mut needed = BTreeSet::from([
            ("policy.networking.k8s.io", "clusternetworkpolicies", "get"),
            ("policy.networking.k8s.io", "clusternetworkpolicies/status", "patch"),
            ("events.k8s.io", "events", "create"),
        ]);
        for (group, plural) in KINDS.map(resource) {
            needed.extend(["list", "watch"].map(|verb| (group, plural, verb)));
        }
        assert_eq!(granted, needed, "{name}");
        let account = &object(&objects, "ServiceAccount")["metadata"]["name"];
        let binding = object(&objects, "ClusterRoleBinding");
        assert_eq!(&binding["subjects"][0]["name"], account, "{name}");
        assert_eq!(binding["subjects"][0]["namespace"], render::NAMESPACE, "{name}");
        assert_eq!(&pod(&objects)["serviceAccountName"], account, "{name}");
    }
}

#[test]
fn no_container_has_rights_beyond_those_it_needs() {
    for (name, kustomized, charted) in packages() {
        for objects in [kustomized, charted] {
            let pod = pod(&objects);
            assert!(pod["hostPID"].is_null() && pod["hostIPC"].is_null(), "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            let containers = ["initContainers", "containers"].map(|key| pod[key].as_array().cloned());
            for container in containers.into_iter().flatten().flatten() {
                let security = &container["securityContext"];
                for (field, value) in [
                    ("privileged", false),
                    ("allowPrivilegeEscalation", false),
                    ("readOnlyRootFilesystem", true),
                ] {
                    assert_eq!(security[field], value, "{name}: {field}");
                }
                assert_eq!(security["capabilities"]["drop"], json!(["ALL"]), "{name}");
                let added = strings(&security["capabilities"]["add"]);
                let expected: &[&str] =
                    if security["runAsNonRoot"] == true { &[] } else { &["NET_ADMIN", "NET_RAW"] };
                assert_eq!(added, expected, "{name}");
            }
        }
    }
}

#[test]
fn the_namespace_admits_the_pods() {
    let objects = kustomize("overlays/generic");
    let labels = &object(&objects, "Namespace")["metadata"]["labels"];
    assert_eq!(labels["pod-security.kubernetes.io/enforce"], "privileged");
    assert_eq!(object(&objects, "Namespace")["metadata"]["name"], render::NAMESPACE);
}

#[test]
fn probes_ask_where_the_admin_api_listens() {
    for (name, objects) in agents() {
        let container = &pod(&objects)["containers"][0];
        let admin = strings(&container["args"]).into_iter().find_map(|word| word.strip_prefix("--admin="));
        let admin: std::net::SocketAddr = admin.unwrap().parse().unwrap();
        for probe in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let http = &container[probe]["httpGet"];
            assert_eq!(http["port"], admin.port(), "{name}");
            assert_eq!(http["host"], "127.0.0.1", "{name}");
            assert!(admin.ip().is_unspecified() || admin.ip().is_loopback(), "{name}");
        }
        assert_eq!(container["readinessProbe"]["httpGet"]["path"], "/readyz", "{name}");
        assert_eq!(container["ports"][0]["hostPort"], admin.port(), "{name}");
    }
    for (address, argument, host) in
        [("::", "--admin=[::]:9093", "::1"), ("10.0.0.1", "--admin=10.0.0.1:9093", "10.0.0.1")]
    {
        let objects = helm(&["--set", &format!("admin.address={address}")]).unwrap();
        let container = &pod(&objects)["containers"][0];
        assert!(strings(&container["args"]).contains(&argument), "{container}");
        assert_eq!(container["livenessProbe"]["httpGet"]["host"], host);
    }
}

#[test]
fn cleanup_waits_for_the_agent_to_leave_the_node() {
    let agents_port = |objects: &[Value]| pod(objects)["containers"][0]["ports"][0]["hostPort"].clone();
    let cleanup = helm(&["--set", "cleanup=true,admin.port=9999"]).unwrap();
    assert_eq!(agents_port(&cleanup), agents_port(&helm(&["--set", "admin.port=9999"]).unwrap()));
    assert_eq!(agents_port(&kustomize("cleanup")), agents_port(&kustomize("overlays/generic")));
    let arguments = strings(&pod(&kustomize("cleanup"))["initContainers"][0]["args"]).join(" ");
    assert_eq!(arguments, "cleanup --config=/etc/sluice/config.yaml");
}

#[test]
fn records_on_the_host_are_written_where_the_volume_is_mounted() {
    for objects in
        [kustomize_with("generic", &["records-on-host"]), helm(&["--set", "records.to=host"]).unwrap()]
    {
        let pod = pod(&objects);
        let container = &pod["containers"][0];
        let file =
            strings(&container["args"]).into_iter().find_map(|word| word.strip_prefix("--records=")).unwrap();
        let mounts = container["volumeMounts"].as_array().unwrap();
        let records = mounts.iter().find(|mount| mount["name"] == "records").unwrap();
        assert!(file.starts_with(&format!("{}/", records["mountPath"].as_str().unwrap())), "{file}");
        assert!(records["readOnly"].is_null());
        let volume = pod["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "records");
        assert_eq!(volume.unwrap()["hostPath"]["path"], "/var/log/sluice");
    }
}

#[test]
fn the_flow_api_has_its_certificates_and_its_service_leads_to_it() {
    for objects in [kustomize_with("generic", &["hubble"]), helm(&["--set", "hubble.enabled=true"]).unwrap()]
    {
        let config: Value = serde_saphyr::from_str(render::config(&objects)).unwrap();
        let hubble = &config["hubble"];
        let pod = pod(&objects);
        let container = &pod["containers"][0];
        let mounts = container["volumeMounts"].as_array().unwrap();
        let mount = mounts.iter().find(|mount| mount["name"] == "hubble").unwrap();
        for file in ["cert_file", "key_file", "client_ca_file"] {
            let file = hubble["tls"][file].as_str().unwrap();
            assert!(file.starts_with(&format!("{}/", mount["mountPath"].as_str().unwrap())), "{file}");
        }
        assert_eq!(mount["readOnly"], true);
        let port =
            container["ports"].as_array().unwrap().iter().find(|port| port["name"] == "hubble").unwrap();
        assert_eq!(hubble["listen"], format!("0.0.0.0:{}", port["containerPort"]));
        assert_eq!(object(&objects, "Service")["spec"]["ports"][0]["targetPort"], port["containerPort"]);
    }
    let config = |arguments: &[&str]| -> Value {
        serde_saphyr::from_str(render::config(&helm(arguments).unwrap())).unwrap()
    };
    assert!(
        config(&["--set", "hubble.enabled=true,hubble.mutualTls=false"])["hubble"]["tls"]["client_ca_file"]
            .is_null()
    );
    let named = config(&["--set", "hubble.enabled=true,config.hubble.cluster_name=east"]);
    assert_eq!(
        (&named["hubble"]["cluster_name"], &named["hubble"]["listen"]),
        (&json!("east"), &json!("0.0.0.0:4244"))
    );
}

#[test]
fn image_chart_and_program_agree_on_name_path_and_version() {
    let version = String::from_utf8(sluice(&["--version"]).stdout).unwrap();
    let version = version.trim().strip_prefix("sluice ").unwrap().to_owned();
    for (name, kustomized, charted) in packages() {
        for objects in [kustomized, charted] {
            let containers =
                ["initContainers", "containers"].map(|key| pod(&objects)[key].as_array().cloned());
            for container in containers.into_iter().flatten().flatten() {
                assert_eq!(container["image"], format!("sluice:{version}"), "{name}");
                assert!(
                    container["command"].is_null() || container["command"] == json!(["sleep", "infinity"])
                );
            }
        }
    }
    let dockerfile = fs::read_to_string(tools::repository().join("deploy/Dockerfile")).unwrap();
    let program = container::entry_point();
    assert!(dockerfile.contains(&format!("COPY --from=build /src/target/release/sluice {program}")));
    assert!(dockerfile.contains(&format!("-t sluice:{version} ")));
}
