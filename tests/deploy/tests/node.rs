//! The shipped pods on a node: run by a container runtime with exactly the rights their manifests give them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking, in its helpers too")]

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use deploy_tests::container::{Container, Mount};
use deploy_tests::render;
use lab::{Netns, wait_until};
use serde_json::{Value, json};
use suite::stage::{ALLOWED, DENIED, LIMIT, Stage};

/// The agent's container, reading the stage's manifests in place of the API.
fn agent(stage: &Stage, pod: &Value, container: &Value) -> Container {
    agent_with(stage, pod, container, &[])
}

/// The same, with more mounts.
fn agent_with(stage: &Stage, pod: &Value, container: &Value, more: &[Mount]) -> Container {
    let own: Vec<String> =
        container["args"].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect();
    let mut arguments: Vec<&str> = own.iter().map(String::as_str).collect();
    arguments[1] = "--node=node1";
    arguments.push("--manifests=/manifests");
    let config = config_folder(stage, "agent", "log: {format: json}\n");
    let own = [mount(stage.cluster.manifest_folder(), "/manifests"), mount(config, "/etc/sluice")];
    let mounts = [&own, more].concat();
    Container::start(stage.cluster.node("node1").unwrap(), pod, container, Some(&arguments), &mounts)
}

fn mount(from: impl Into<PathBuf>, to: &str) -> Mount {
    (from.into(), to.to_owned(), false)
}

fn config_folder(stage: &Stage, name: &str, text: &str) -> PathBuf {
    let folder = stage.cluster.folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("config.yaml"), text).unwrap();
    folder
}

/// Status and body of a GET from inside the node.
fn get(netns: &Netns, host: &str, port: &Value, path: &str) -> Option<(String, String)> {
    let command =
        format!("exec 3<>/dev/tcp/{host}/{port} && printf 'GET {path} HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3");
    let output = netns.command("timeout").args(["5", "bash", "-c", &command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.to_owned(), body.to_owned()))
}

fn probe(netns: &Netns, probe: &Value) -> bool {
    let http = &probe["httpGet"];
    let answer = get(netns, http["host"].as_str().unwrap(), &http["port"], http["path"].as_str().unwrap());
    answer.is_some_and(|(code, _)| code == "200")
}

/// Everything on a node that Sluice could change, by what shows it. Counters, dates and the number of connections
/// the kernel remembers are no settings.
fn traces(netns: &Netns) -> BTreeMap<String, String> {
    let mut traces = BTreeMap::new();
    for command in [
        "nft -s list ruleset",
        "ip -4 rule",
        "ip -6 rule",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip -d link",
        "iptables-save",
        "ip6tables-save",
    ] {
        let mut words = command.split(' ');
        let output = netns.command(words.next().unwrap()).args(words).output().unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let lines: Vec<&str> = lines.map(|line| line.split(" [").next().unwrap()).collect();
        traces.insert(command.to_owned(), lines.join("\n"));
    }
    traces.insert("sysctl".to_owned(), settings(netns));
    traces
}

fn settings(netns: &Netns) -> String {
    let output = netns.command("sysctl").args(["-a", "--pattern", "^net[.]"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let lasting = |line: &&str| !line.contains("nf_conntrack_count");
    let lines: Vec<&str> = text.lines().filter(lasting).collect();
    assert!(lines.len() > 500, "{}", lines.len());
    lines.join("\n")
}

/// The traces once the kernel has given every link its own address: until then a node changes by itself.
fn settled_traces(netns: &Netns) -> BTreeMap<String, String> {
    let lines = |command: &str| {
        let output = netns.command("ip").args(command.split(' ')).output().unwrap();
        String::from_utf8_lossy(&output.stdout).lines().count()
    };
    let links = lines("-o link show up");
    let settled = || lines("-o -6 addr show scope link -tentative") == links - 1;
    assert!(wait_until(LIMIT, settled), "{links} links");
    traces(netns)
}

/// Fails with the lines that differ.
fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    for (what, before) in before {
        let gone: Vec<&str> =
            before.lines().filter(|line| !after[what].lines().any(|other| other == *line)).collect();
        let new: Vec<&str> =
            after[what].lines().filter(|line| !before.lines().any(|other| other == *line)).collect();
        assert_eq!((gone, new), (vec![], vec![]), "{what}: gone, new");
        assert!(before == &after[what], "{what}: the order has changed");
    }
}

#[test]
fn the_agents_container_enforces_with_no_right_beyond_those_its_manifest_names() {
    let objects = render::kustomize("overlays/generic");
    let (pod, container) = (render::pod(&objects), &render::pod(&objects)["containers"][0]);
    assert_eq!(container["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN", "NET_RAW"]));
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let _servers = [server.serve(ALLOWED).unwrap(), server.serve(DENIED).unwrap()];
    let mut agent = agent(&stage, pod, container);
    for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert!(wait_until(LIMIT, || probe(node, &container[name])), "{name}: {}", agent.stderr());
    }
    let connect = |port| client.netns().connect(server.at(port), LIMIT).map_err(|error| error.kind());
    drop(connect(ALLOWED).unwrap());
    assert_eq!(connect(DENIED).unwrap_err(), ErrorKind::ConnectionRefused);
    let written = |action: &str| agent.stdout().contains(&format!("\"action\":\"connection-{action}\""));
    assert!(wait_until(LIMIT, || written("ended") && written("denied")), "{}", agent.stdout());
    let logged = agent.stderr();
    assert!(!logged.contains("\"level\":\"WARN\"") && !logged.contains("\"level\":\"ERROR\""), "{logged}");

    agent.signal("TERM");
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert_eq!(agent.wait_exit(grace), Some(0), "{}", agent.stderr());
}

#[test]
fn the_store_on_the_host_is_written_with_these_rights_and_answers_the_next_agent() {
    let objects = render::kustomize_with("generic", &["store-on-host"]);
    let (pod, container) = (render::pod(&objects), &render::pod(&objects)["containers"][0]);
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let (client, server) = (stage.pod("client"), stage.pod("server"));
    let _servers = [server.serve(ALLOWED).unwrap(), server.serve(DENIED).unwrap()];
    // As the kubelet makes a hostPath: of root, and nobody else may write there.
    let folder = stage.cluster.folder().join("store");
    fs::create_dir(&folder).unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    let store = volumes.iter().find(|volume| volume["name"] == "store").unwrap();
    assert_eq!(store["hostPath"]["type"], "DirectoryOrCreate");
    let mounted = [(folder, "/var/lib/sluice".to_owned(), true)];
    let observed = || {
        let mut command = node.command(lab::sluice_binary().unwrap());
        let output = command.args(["observe", "--since", "5m", "-o", "json"]).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    };
    let tells = |action: &str| observed().contains(&format!("\"action\":\"connection-{action}\""));
    for round in 0..2 {
        let mut agent = agent_with(&stage, pod, container, &mounted);
        assert!(wait_until(LIMIT, || probe(node, &container["readinessProbe"])), "{}", agent.stderr());
        if round == 0 {
            drop(client.netns().connect(server.at(ALLOWED), LIMIT).unwrap());
            assert!(client.netns().connect(server.at(DENIED), LIMIT).is_err());
        }
        let told = wait_until(LIMIT, || tells("ended") && tells("denied"));
        assert!(told, "round {round}: {} {}", observed(), agent.stderr());
        agent.signal("TERM");
        assert_eq!(agent.wait_exit(LIMIT), Some(0), "{}", agent.stderr());
    }
}

#[test]
fn each_capability_is_needed_and_its_lack_is_told() {
    let objects = render::kustomize("overlays/generic");
    let pod = render::pod(&objects);
    let without = |kept: &str| {
        let mut container = pod["containers"][0].clone();
        container["securityContext"]["capabilities"]["add"] = json!([kept]);
        container
    };
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let before = settled_traces(node);

    let mut no_admin = agent(&stage, pod, &without("NET_RAW"));
    assert_eq!(no_admin.wait_exit(LIMIT), Some(2), "{}", no_admin.stderr());
    assert!(no_admin.stderr().contains("CAP_NET_ADMIN"), "{}", no_admin.stderr());
    assert_same(&before, &traces(node));

    // Unreachable destinations would look refused: ICMP errors come by a raw socket.
    let no_raw = agent(&stage, pod, &without("NET_ADMIN"));
    assert!(wait_until(LIMIT, || no_raw.stderr().contains("CAP_NET_RAW")), "{}", no_raw.stderr());
}

#[test]
fn after_the_cleanup_container_the_node_is_byte_for_byte_as_it_was() {
    let stage = Stage::without_sluice("").unwrap();
    let node = stage.cluster.node("node1").unwrap();
    let before = settled_traces(node);
    let objects = render::kustomize("overlays/generic");
    let (pod, container) = (render::pod(&objects), &render::pod(&objects)["containers"][0]);
    let mut agent = agent(&stage, pod, container);
    assert!(wait_until(LIMIT, || probe(node, &container["readinessProbe"])), "{}", agent.stderr());
    assert!(traces(node) != before);

    // As long as an agent puts its rules back, the node is not clean, and the pod must not say so.
    let mut early = cleanup(&stage);
    assert_eq!(early.wait_exit(LIMIT), Some(2), "{}", early.stdout());
    assert!(early.stderr().contains("stop it first"), "{}", early.stderr());
    let back = || {
        let traces = traces(node);
        traces["nft -s list ruleset"].contains("table inet sluice")
            && traces["ip -4 rule"].contains("lookup 1093")
    };
    assert!(wait_until(LIMIT, back), "{}", agent.stderr());

    agent.signal("KILL");
    agent.wait_exit(LIMIT);
    let mut late = cleanup(&stage);
    assert_eq!(late.wait_exit(LIMIT), Some(0), "{}", late.stderr());
    assert!(late.stdout().contains("removed nft table inet sluice"), "{}", late.stdout());
    assert_same(&before, &traces(node));
    let mut again = cleanup(&stage);
    assert_eq!(again.wait_exit(LIMIT), Some(0), "{}", again.stderr());
    assert_eq!(again.stdout().trim(), "nothing to remove");
}

fn cleanup(stage: &Stage) -> Container {
    let objects = render::kustomize("cleanup");
    let pod = render::pod(&objects);
    let config = config_folder(stage, "cleanup", render::config(&objects));
    let mounts = [mount(config, "/etc/sluice")];
    Container::start(stage.cluster.node("node1").unwrap(), pod, &pod["initContainers"][0], None, &mounts)
}

#[test]
fn the_container_that_says_that_a_node_is_clean_has_no_rights_and_goes_on() {
    let objects = render::kustomize("cleanup");
    let pod = render::pod(&objects);
    let netns = Netns::create("clean").unwrap();
    let mut clean = Container::start(&netns, pod, &pod["containers"][0], None, &[]);
    assert_eq!(clean.wait_exit(Duration::from_secs(1)), None, "{}", clean.stderr());
    assert!(Path::new("/run/netns").join(netns.name()).exists());
}
