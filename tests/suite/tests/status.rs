//! `sluice status` of a running agent: what it tells is what is so.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use lab::{sluice_binary, wait_until};
use serde_json::Value;
use suite::ends::Dialer;
use suite::stage::{DENIED, LIMIT, Stage};

/// The exit code and the output of `sluice status` on the node.
fn status(stage: &Stage, arguments: &[&str]) -> (Option<i32>, String) {
    let node = stage.cluster.node("node1").unwrap();
    let output = node.command(sluice_binary().unwrap()).arg("status").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code(), text + &String::from_utf8_lossy(&output.stderr))
}

fn json(stage: &Stage) -> Value {
    let (_, text) = status(stage, &["-o", "json"]);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[test]
fn a_ready_node_tells_its_pods_objects_connections_and_records() {
    let stage = Stage::new("").unwrap();
    let (client, plain, server) = (stage.pod("client"), stage.pod("plain"), stage.pod("server"));
    let live = Dialer::new(client, plain, plain.at(7_001), LIMIT).unwrap().pair().unwrap();
    assert!(client.netns().connect(server.at(DENIED), LIMIT).is_err());

    let mut seen = Value::Null;
    let told = wait_until(LIMIT, || {
        seen = json(&stage);
        seen["records"]["written"] == 2 && seen["source"]["kind"] == "manifests"
    });
    assert!(told, "{seen}");
    assert_eq!((&seen["node"], &seen["ready"]), (&"node1".into(), &true.into()));
    assert_eq!(seen["pods"], serde_json::json!({"isolated": 1, "observed": 3}));
    assert_eq!((&seen["objects"]["Pod"], &seen["objects"]["NetworkPolicy"]), (&4.into(), &1.into()));
    let connections = &seen["connections"];
    let [live_now, opened, denied] = ["live", "opened", "denied"].map(|name| connections[name].as_u64());
    assert_eq!((live_now, opened, denied), (Some(1), Some(1), Some(1)), "{seen}");
    assert_eq!(seen["process"]["pid"], stage.sluice().pid());
    assert_eq!(seen["enforcement"]["rules_installed"], true);
    assert!(["nft", "nft-nfqueue"].contains(&seen["enforcement"]["backend"].as_str().unwrap()));
    assert!(seen["versions"]["nft"].as_str().is_some_and(|version| version.starts_with('1')), "{seen}");

    let (code, text) = status(&stage, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.starts_with("node1        ready\n"), "{text}");
    assert!(text.contains("1 isolated, 3 observed") && text.contains("2 written, 0 lost"), "{text}");
    drop(live);
}

#[test]
fn a_node_that_is_not_ready_names_each_reason_and_exits_with_1() {
    let stage = Stage::new("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    node.netns().sysctl("net.ipv4.tcp_fwmark_accept", "1").unwrap();
    let mut seen = (None, String::new());
    let told = wait_until(LIMIT, || {
        seen = status(&stage, &[]);
        seen.0 == Some(1)
    });
    assert!(told, "{seen:?}");
    assert!(
        seen.1.starts_with("node1        NOT READY\n  node       net.ipv4.tcp_fwmark_accept=1"),
        "{seen:?}"
    );
    assert!(seen.1.contains("in order     gate, rules, snapshot"), "{seen:?}");
}

#[test]
fn refused_manifests_are_told_by_name_while_the_node_stays_ready() {
    let stage = Stage::new("").unwrap();
    let broken = suite::stage::POLICY.replace("endPort: 8999", "endPort: 1");
    stage.cluster.write_policy("policy.yaml", &broken).unwrap();
    let mut seen = Value::Null;
    let told = wait_until(LIMIT, || {
        seen = json(&stage);
        seen["source"]["failing_for_s"].is_number()
    });
    assert!(told, "{seen}");
    let rejected = &seen["source"]["rejected"][0];
    assert_eq!(rejected["object"], "NetworkPolicy/default/server");
    assert!(rejected["problem"].as_str().unwrap().contains("endPort"), "{seen}");
    let (code, text) = status(&stage, &[]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("FAILING for") && text.contains("NetworkPolicy/default/server"), "{text}");
}
