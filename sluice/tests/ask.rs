//! `sluice explain` and `sluice lint` as they are called: what they print and how they exit.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::process::{Command, Output};

const MANIFESTS: &str = r#"
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: shop, labels: {app: web}}, status: {phase: Running, podIP: 10.1.0.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: client, namespace: shop, labels: {app: client}}, status: {phase: Running, podIP: 10.1.0.2}}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  ingress:
  - ports: [{port: 80}]
"#;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.yaml"), text).unwrap();
        Self(folder)
    }

    fn path(&self) -> &str {
        self.0.path().to_str().unwrap()
    }
}

fn sluice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sluice")).args(arguments).output().unwrap()
}

fn code_and_text(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = sluice(arguments);
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

#[test]
fn explain_exits_by_its_verdict_wherever_the_question_stands() {
    let folder = Folder::new(MANIFESTS);
    let path = folder.path();
    let file = format!("{path}/a.yaml");
    let (code, text, _) = code_and_text(&["explain", "--manifests", path, "shop/client", "shop/web", "80"]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ALLOWED"), "{text}");
    let (code, text, _) =
        code_and_text(&["explain", "shop/client", "shop/web", "81/tcp", "--manifests", path, &file]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("DENIED"), "{text}");
    let (code, text, _) =
        code_and_text(&["explain", "--manifests", path, "-o", "json", "shop/client", "shop/web", "81"]);
    let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &answer["verdict"]), (Some(1), &"deny".into()));
    assert_eq!(
        answer["connections"][0]["change"]["operations"][0],
        serde_json::json!({
            "object": "NetworkPolicy/shop/web", "op": "add", "path": "/spec/ingress/0/ports/-",
            "value": {"port": 81, "protocol": "TCP"},
        })
    );
}

#[test]
fn explain_exits_with_2_on_bad_input() {
    let folder = Folder::new(MANIFESTS);
    let broken = Folder::new("kind: [");
    let (good, bad) = (folder.path(), broken.path());
    let table: [(&[&str], &str); 8] = [
        (&["--manifests", good, "shop/client", "shop/web"], "SRC DST PORT"),
        (&["--manifests", good], "SRC DST PORT"),
        (&["--manifests", good, "shop/none", "shop/web", "80"], "no pod shop/none"),
        (&["--manifests", good, "shop/client", "shop/web", "0"], "PORT: must be"),
        (&["--manifests", good, "shop/client", "web", "80"], "DST: must be"),
        (&["--manifests", bad, "10.0.0.1", "10.0.0.2", "80"], "a.yaml:"),
        (&["--manifests", "/nowhere/at/all", "10.0.0.1", "10.0.0.2", "80"], "/nowhere/at/all"),
        (&["10.0.0.1", "10.0.0.2", "80"], "--manifests"),
    ];
    for (arguments, message) in table {
        let (code, text, error) = code_and_text(&[&["explain"], arguments].concat());
        assert_eq!((code, text.as_str()), (Some(2), ""), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

#[test]
fn lint_exits_by_what_it_found() {
    let folder = Folder::new(MANIFESTS);
    assert_eq!(
        code_and_text(&["lint", "--manifests", folder.path()]),
        (Some(0), String::new(), String::new())
    );
    let found = Folder::new(&MANIFESTS.replace("- ports: [{port: 80}]", "- ports: [{port: http}]"));
    let (code, text, _) = code_and_text(&["lint", "--manifests", found.path()]);
    assert_eq!(code, Some(1));
    let place = "a.yaml:14: document 4: NetworkPolicy/shop/web: spec.ingress[0].ports[0]: ";
    assert!(text.contains(place) && text.ends_with("[unknown-port-name]\n"), "{text}");
    let (code, text, _) = code_and_text(&["lint", "--manifests", found.path(), "-o", "json"]);
    let report: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &report["findings"][0]["line"]), (Some(1), &14.into()));
    assert_eq!(report["findings"].as_array().unwrap().len(), 1);
}

#[test]
fn what_was_passed_over_is_said_on_standard_error() {
    let other = "---\n{apiVersion: v1, kind: Secret}\n---\n{apiVersion: apps/v1, kind: Deployment}\n";
    let folder = Folder::new(&format!("{MANIFESTS}{other}"));
    let path = folder.path();
    let probes = folder.0.path().join("probes");
    std::fs::write(&probes, "").unwrap();
    let both = "note: passed over, for they decide nothing: 1 apps/v1/Deployment, 1 v1/Secret\n";
    let question = ["explain", "--manifests", path, "shop/client", "shop/web", "80"];
    assert_eq!(code_and_text(&question).2, both);
    let probes = probes.to_str().unwrap();
    assert_eq!(code_and_text(&["verdict", "--manifests", path, "--probes", probes]).2, both);
    // Lint looks into the templates of workloads.
    let secret = "note: passed over, for they decide nothing: 1 v1/Secret\n";
    assert_eq!(code_and_text(&["lint", "--manifests", path]).2, secret);
}

#[test]
fn lint_exits_with_2_on_bad_input() {
    let broken = Folder::new("kind: [");
    let table: [(&[&str], &str); 4] = [
        (&["--manifests", broken.path()], "a.yaml:"),
        (&["--manifests", "/nowhere/at/all"], "/nowhere/at/all"),
        (&[], "--manifests"),
        (&["--manifests", broken.path(), "-o", "xml"], "xml"),
    ];
    for (arguments, message) in table {
        let (code, text, error) = code_and_text(&[&["lint"], arguments].concat());
        assert_eq!((code, text.as_str()), (Some(2), ""), "{arguments:?}: {error}");
        assert!(error.contains(message), "{arguments:?}: {error}");
    }
}

#[test]
fn a_folder_without_manifests_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    std::fs::write(folder.path().join("base.yaml.txt"), MANIFESTS).unwrap();
    let calls: [&[&str]; 3] = [
        &["lint", "--manifests", path],
        &["verdict", "--manifests", path, "--probes", "/dev/null"],
        &["explain", "--manifests", path, "shop/client", "shop/web", "80"],
    ];
    for arguments in calls {
        let (code, text, error) = code_and_text(arguments);
        assert_eq!((code, text.as_str()), (Some(2), ""), "{arguments:?}: {error}");
        let told = format!(
            "no manifests in {path}; passed over, for they end in neither .yaml, .yml nor .json: {path}/base.yaml.txt\n"
        );
        assert_eq!(error, told, "{arguments:?}");
    }
}

#[test]
fn verdict_and_explain_decide_as_the_nodes_configuration_says() {
    let folder = Folder::new(
        "{apiVersion: v1, kind: Node, metadata: {name: n1}, status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}\n---\n\
         {apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {nodeName: n1}, status: {phase: Running, podIP: 10.0.0.1}}\n---\n\
         {apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {podSelector: {}, policyTypes: [Egress]}}\n",
    );
    let files = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let probes = file(
        "probes",
        "{\"id\":1,\"src\":{\"pod\":\"default/a\"},\"dst\":{\"ip\":\"192.0.2.1\"},\"port\":80}\n",
    );
    for (config, verdict) in [("{}", "allow"), ("policy: {own_node_egress: policy}", "deny")] {
        let config = file("config.yaml", config);
        let (_, answer, error) = code_and_text(&[
            "verdict",
            "--manifests",
            folder.path(),
            "--probes",
            &probes,
            "--config",
            &config,
        ]);
        assert!(answer.starts_with(&format!("{{\"id\":1,\"verdict\":\"{verdict}\"")), "{answer}{error}");
        let (code, ..) = code_and_text(&[
            "explain",
            "--manifests",
            folder.path(),
            "--config",
            &config,
            "default/a",
            "192.0.2.1",
            "80",
        ]);
        assert_eq!(code, Some(i32::from(verdict == "deny")));
    }
    let wrong = file("config.yaml", "polcy: {}");
    let (code, _, error) =
        code_and_text(&["verdict", "--manifests", folder.path(), "--probes", &probes, "--config", &wrong]);
    assert!(code == Some(2) && error.contains("config.yaml:1:1: unknown field `polcy`"), "{error}");
}

#[test]
fn verdict_says_how_many_probes_it_could_not_decide_and_where_they_stand() {
    let folder = Folder::new(MANIFESTS);
    let probes = folder.0.path().join("probes");
    let good = r#"{"src":{"pod":"shop/client"},"dst":{"pod":"shop/web"},"port":80}"#;
    std::fs::write(&probes, format!("{good}\n\n{{\"id\":2}}\nnonsense\n{good}\n")).unwrap();
    let (code, text, error) =
        code_and_text(&["verdict", "--manifests", folder.path(), "--probes", probes.to_str().unwrap()]);
    assert_eq!(code, Some(2));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1], r#"{"id":2,"line":3,"error":"port: required"}"#);
    assert_eq!(lines[2], r#"{"id":null,"line":4,"error":"not a JSON object: expected ident at column 2"}"#);
    assert_eq!(error, "sluice: 2 of 4 probes could not be decided; their answers say why\n");
}

#[test]
fn a_node_that_nothing_names_is_told_by_verdict_and_explain() {
    let folder = Folder::new(MANIFESTS);
    let probes = folder.0.path().join("probes");
    std::fs::write(&probes, r#"{"src":{"pod":"shop/client"},"dst":{"pod":"shop/web"},"port":80}"#).unwrap();
    // The folder's other file is no manifest.
    let file = format!("{}/a.yaml", folder.path());
    let asked = |node: &str| {
        let verdict = ["verdict", "--node", node, "--probes", probes.to_str().unwrap(), "--manifests", &file];
        let explain = ["explain", "--node", node, "--manifests", &file, "shop/client", "shop/web", "80"];
        [code_and_text(&verdict), code_and_text(&explain)]
    };
    for (code, text, said) in asked("n\u{1b}[2Jx") {
        assert_eq!(code, Some(0), "{text}{said}");
        assert!(said.contains("note: --node n\\u{1b}[2Jx: no Node is called so"), "{said}");
        assert!(!said.contains('\u{1b}') && said.lines().count() == 1, "{said:?}");
    }
    let named = MANIFESTS.replace("status: {phase", "spec: {nodeName: n1}, status: {phase");
    std::fs::write(&file, named).unwrap();
    for (_, text, said) in asked("n1") {
        assert_eq!(said, "", "{text}");
    }
}

#[test]
fn names_of_files_and_words_of_the_command_line_steer_no_terminal() {
    let folder = Folder::new(MANIFESTS);
    std::fs::write(folder.0.path().join("\u{1b}[2Jb.txt"), "x").unwrap();
    std::fs::write(folder.0.path().join("\u{1b}]0;x\u{7}c.yaml"), "apiVersion: v1\nkind: Pod\n").unwrap();
    let missing = format!("{}/\u{1b}[31mgone", folder.path());
    let runs: [&[&str]; 4] = [
        &["lint", "--manifests", folder.path()],
        &["explain", "--manifests", folder.path(), "shop/client", "shop/web", "80"],
        &["explain", "--manifests", &missing, "shop/client", "shop/web", "80"],
        &["explain", "--manifests", folder.path(), "\u{1b}[31mx", "shop/web", "80"],
    ];
    for arguments in runs {
        let (code, text, said) = code_and_text(arguments);
        assert_eq!(code, Some(2), "{text}{said}");
        let told = format!("{text}{said}");
        assert!(!told.is_empty() && !told.contains(|c: char| c.is_control() && c != '\n'), "{told:?}");
    }
    let findings = Folder::new(MANIFESTS);
    let nobody = MANIFESTS
        .replace("podSelector: {matchLabels: {app: web}}", "podSelector: {matchLabels: {app: gone}}");
    std::fs::remove_file(findings.0.path().join("a.yaml")).unwrap();
    std::fs::write(findings.0.path().join("\u{1b}[2Ja.yaml"), nobody).unwrap();
    let (code, text, said) = code_and_text(&["lint", "--manifests", findings.path()]);
    assert_eq!(code, Some(1), "{text}{said}");
    assert!(text.contains("\\u{1b}[2Ja.yaml") && !text.contains('\u{1b}'), "{text:?}");
}
