//! Every rule of NetworkPolicy's semantics, one test each, over one small cluster.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;

use flow::{Endpoint, Generation, Protocol, Reason, Tuple, Verdict};
use policy_cache::{
    Event, Kind, LocalPods, ObjectKey, Options, OwnNodeEgress, Prober, Snapshot, compile, parse,
};
use serde_json::Value;

const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: b, kubernetes.io/metadata.name: wrong}}}
- apiVersion: v1
  kind: Node
  metadata: {name: n1}
  spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, "fd00:1::/64"]}
  status: {addresses: [{type: InternalIP, address: 192.168.0.1}, {type: Hostname, address: n1}]}
- apiVersion: v1
  kind: Node
  metadata: {name: n2}
  spec: {podCIDRs: [10.244.2.0/24, "fd00:2::/64"]}
  status: {addresses: [{type: InternalIP, address: 192.168.0.2}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: shop, labels: {app: web}}
  spec:
    nodeName: n1
    containers:
    - {name: a, ports: [{name: http, containerPort: 80}, {name: dns, containerPort: 53, protocol: UDP}]}
    initContainers:
    - {name: sidecar, restartPolicy: Always, ports: [{name: metrics, containerPort: 9090}]}
    - {name: once, ports: [{name: setup, containerPort: 7070}]}
  status: {phase: Running, podIP: 10.244.1.10, podIPs: [{ip: 10.244.1.10}, {ip: "fd00:1::10"}], hostIP: 192.168.0.1}
- apiVersion: v1
  kind: Pod
  metadata: {name: client, namespace: shop, labels: {app: client}}
  spec: {nodeName: n1}
  status: {phase: Running, podIP: 10.244.1.11, podIPs: [{ip: 10.244.1.11}, {ip: "fd00:1::11"}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: other, namespace: shop, labels: {app: other, tier: x}}
  spec: {nodeName: n2, containers: [{name: a, ports: [{name: http, containerPort: 8080}]}]}
  status: {phase: Running, podIP: 10.244.2.12}
- apiVersion: v1
  kind: Pod
  metadata: {name: client, namespace: ops, labels: {app: client}}
  spec: {nodeName: n2}
  status: {phase: Running, podIP: 10.244.2.20}
- apiVersion: v1
  kind: Pod
  metadata: {name: host, namespace: shop, labels: {app: client}}
  spec: {nodeName: n2, hostNetwork: true, containers: [{name: a, ports: [{name: http, containerPort: 80}]}]}
  status: {phase: Running, podIP: 192.168.0.2, hostIP: 192.168.0.2}
- apiVersion: v1
  kind: Pod
  metadata: {name: plain}
  status: {phase: Running, podIP: 10.244.2.30}
- apiVersion: v1
  kind: Service
  metadata: {name: web, namespace: shop}
  spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 8080, targetPort: http, nodePort: 30080}]}
"#;

struct Cluster {
    snapshot: Arc<Snapshot>,
    prober: Prober,
}

impl Cluster {
    fn new(extra: &str, options: &Options) -> Self {
        let texts = [(Path::new("cluster.yaml"), CLUSTER), (Path::new("extra.yaml"), extra)];
        let objects = parse(texts).unwrap_or_else(|error| panic!("{error}\n{extra}"));
        let snapshot = Arc::new(compile(&objects, options, Generation(7)));
        Self { prober: Prober::new(&objects, Arc::clone(&snapshot)), snapshot }
    }

    /// The cluster with policies in namespace shop, each a name and a spec in flow style.
    fn with_policies(policies: &[(&str, &str)]) -> Self {
        Self::new(&manifests("shop", policies), &Options::default())
    }

    fn ask(&self, probe: &str) -> Value {
        let parts: Vec<&str> = probe.split_whitespace().collect();
        let [source, destination, port] = parts[..] else { panic!("{probe}") };
        let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        let end = |text: &str| match text.parse::<IpAddr>() {
            Ok(ip) => format!("{{\"ip\":\"{ip}\"}}"),
            Err(_) => format!("{{\"pod\":\"{text}\"}}"),
        };
        let (source, destination) = (end(source), end(destination));
        let line = format!(
            r#"{{"id":"x","src":{source},"dst":{destination},"port":{port},"protocol":"{protocol}"}}"#
        );
        serde_json::to_value(self.prober.answer(&line)).unwrap()
    }

    #[track_caller]
    fn expect(&self, verdict: &str, probes: &[&str]) -> &Self {
        for probe in probes {
            let answer = self.ask(probe);
            assert_eq!(answer["verdict"], verdict, "{probe}: {answer}");
        }
        self
    }

    #[track_caller]
    fn allows(&self, probes: &[&str]) -> &Self {
        self.expect("allow", probes)
    }

    #[track_caller]
    fn denies(&self, probes: &[&str]) -> &Self {
        self.expect("deny", probes)
    }
}

fn manifests(namespace: &str, policies: &[(&str, &str)]) -> String {
    let document = |(name, spec): &(&str, &str)| {
        format!(
            "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        )
    };
    policies.iter().map(document).collect()
}

#[test]
fn without_policies_everything_is_allowed() {
    let cluster = Cluster::with_policies(&[]);
    cluster.allows(&["shop/client shop/web 80", "8.8.8.8 shop/web 1/UDP", "shop/web 8.8.8.8 53/SCTP"]);
    assert_eq!(cluster.ask("shop/client shop/web 80")["ingress"]["reason"], "not-isolated");
}

#[test]
fn both_sides_must_allow_and_both_are_always_evaluated() {
    let cluster = Cluster::with_policies(&[
        ("in", "{podSelector: {matchLabels: {app: web}}}"),
        ("out", "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress]}"),
    ]);
    let answer = cluster.ask("shop/client shop/web 80");
    assert_eq!(answer["verdict"], "deny");
    for (side, policy) in [("ingress", "NetworkPolicy/shop/in"), ("egress", "NetworkPolicy/shop/out")] {
        assert_eq!(answer[side]["verdict"], "deny");
        assert_eq!(answer[side]["tier"], "NetworkPolicy");
        assert_eq!(answer[side]["reason"], "no-rule-matched");
        assert_eq!(answer[side]["policies"], serde_json::json!([policy]));
    }
    let answer = cluster.ask("shop/client shop/other 80");
    assert_eq!((&answer["verdict"], &answer["ingress"]["verdict"]), (&"deny".into(), &"allow".into()));
    let answer = cluster.ask("ops/client shop/web 80");
    assert_eq!((&answer["verdict"], &answer["egress"]["verdict"]), (&"deny".into(), &"allow".into()));
}

#[test]
fn policies_add_up_and_the_matching_rule_is_named() {
    let cluster = Cluster::with_policies(&[
        (
            "b",
            "{podSelector: {}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {matchLabels: {app: client}}}]}]}",
        ),
        ("a", "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}"),
    ]);
    cluster
        .allows(&["ops/client shop/web 80", "shop/client shop/web 81"])
        .denies(&["ops/client shop/web 81"]);
    let side = |probe: &str| cluster.ask(probe)["ingress"]["policies"].clone();
    assert_eq!(side("ops/client shop/web 80"), serde_json::json!(["NetworkPolicy/shop/a#0"]));
    assert_eq!(side("shop/client shop/web 81"), serde_json::json!(["NetworkPolicy/shop/b#1"]));
    assert_eq!(
        side("ops/client shop/web 81"),
        serde_json::json!(["NetworkPolicy/shop/a", "NetworkPolicy/shop/b"])
    );
}

#[test]
fn absent_policy_types_mean_ingress_and_egress_only_with_egress_rules() {
    Cluster::with_policies(&[("p", "{podSelector: {matchLabels: {app: web}}}")])
        .denies(&["shop/client shop/web 80"])
        .allows(&["shop/web shop/client 80"]);
    Cluster::with_policies(&[("p", "{podSelector: {matchLabels: {app: web}}, egress: []}")])
        .allows(&["shop/web shop/client 80"]);
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {matchLabels: {app: web}}, policyTypes: [], egress: [{ports: [{port: 1}]}]}",
    )])
    .denies(&["shop/web shop/client 80", "shop/client shop/web 80"])
    .allows(&["shop/web shop/client 1"]);
}

#[test]
fn an_empty_spec_isolates_ingress_of_the_whole_namespace() {
    for spec in ["{}", "null", "{podSelector: null}"] {
        Cluster::with_policies(&[("p", spec)])
            .denies(&["shop/client shop/web 80", "ops/client shop/other 1"])
            .allows(&["shop/web ops/client 80", "shop/web 8.8.8.8 80"]);
    }
}

#[test]
fn rules_of_an_unlisted_direction_are_dead() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 1}]}]}",
    )])
    .allows(&["ops/client shop/web 80"])
    .denies(&["shop/web ops/client 80"]);
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, policyTypes: [Ingress], egress: [{ports: [{port: 1}]}]}",
    )])
    .allows(&["shop/web ops/client 80"]);
}

#[test]
fn no_rules_allow_nothing_and_an_empty_rule_allows_all() {
    for ingress in ["[]", "null"] {
        Cluster::with_policies(&[("p", &format!("{{podSelector: {{}}, ingress: {ingress}}}"))])
            .denies(&["shop/client shop/web 80"]);
    }
    for rule in ["{}", "null", "{from: [], ports: []}", "{from: null, ports: null}"] {
        Cluster::with_policies(&[("p", &format!("{{podSelector: {{}}, ingress: [{rule}]}}"))])
            .allows(&["shop/client shop/web 80/UDP", "8.8.8.8 shop/web 80/SCTP"]);
    }
}

#[test]
fn an_empty_port_is_all_of_tcp() {
    for port in ["{}", "null", "{port: null}", "{protocol: TCP}"] {
        Cluster::with_policies(&[("p", &format!("{{podSelector: {{}}, ingress: [{{ports: [{port}]}}]}}"))])
            .allows(&["shop/client shop/web 1", "shop/client shop/web 65535"])
            .denies(&["shop/client shop/web 1/UDP", "shop/client shop/web 1/SCTP"]);
    }
}

#[test]
fn ports_match_by_protocol_and_inclusive_range() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 90, endPort: 92}, {port: 53, protocol: UDP}, {port: 7, endPort: 7}]}]}",
    )])
    .allows(&["shop/client shop/web 80", "shop/client shop/web 90", "shop/client shop/web 92"])
    .allows(&["shop/client shop/web 53/UDP", "shop/client shop/web 7"])
    .denies(&["shop/client shop/web 80/UDP", "shop/client shop/web 89", "shop/client shop/web 93"])
    .denies(&["shop/client shop/web 53", "shop/client shop/web 8"]);
}

#[test]
fn named_ports_resolve_on_the_destination_pod_by_protocol() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{ports: [{port: http}, {port: dns, protocol: UDP}, {port: dns}, {port: nobody-has-it}]}]}",
    )])
    .allows(&["shop/client shop/web 80", "shop/client shop/other 8080", "shop/client shop/web 53/UDP"])
    .denies(&["shop/client shop/web 8080", "shop/client shop/other 80", "shop/client shop/web 53"])
    .denies(&["shop/client shop/web 80/UDP", "shop/other shop/client 80"]);
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
    )])
    .allows(&["shop/client shop/web 80", "shop/client shop/other 8080"])
    .denies(&["shop/client shop/other 80", "shop/client 8.8.8.8 80", "shop/client 192.168.0.2 80"]);
}

#[test]
fn ports_of_restartable_init_containers_count_and_of_others_do_not() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{ports: [{port: metrics}, {port: setup}]}]}",
    )])
    .allows(&["shop/client shop/web 9090"])
    .denies(&["shop/client shop/web 7070"]);
}

#[test]
fn a_lone_pod_selector_means_the_policys_own_namespace() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )])
    .allows(&["shop/client shop/web 80"])
    .denies(&["ops/client shop/web 80", "shop/other shop/web 80"]);
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}")])
        .allows(&["shop/other shop/web 80"])
        .denies(&["ops/client shop/web 80", "8.8.8.8 shop/web 80"]);
}

#[test]
fn both_selectors_in_one_peer_must_hold_and_in_two_peers_either() {
    let both = "{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: client}}}";
    Cluster::with_policies(&[("p", &format!("{{podSelector: {{}}, ingress: [{{from: [{both}]}}]}}"))])
        .allows(&["ops/client shop/web 80"])
        .denies(&["shop/client shop/web 80", "default/plain shop/web 80"]);
    let either = "{namespaceSelector: {matchLabels: {team: b}}}, {podSelector: {matchLabels: {app: client}}}";
    Cluster::with_policies(&[("p", &format!("{{podSelector: {{}}, ingress: [{{from: [{either}]}}]}}"))])
        .allows(&["ops/client shop/web 80", "shop/client shop/web 80"])
        .denies(&["shop/other shop/web 80", "default/plain shop/web 80"]);
}

#[test]
fn an_empty_namespace_selector_is_every_pod_and_no_external_address() {
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}")])
        .allows(&["ops/client shop/web 80", "default/plain shop/web 80", "shop/client shop/web 80"])
        .denies(&["8.8.8.8 shop/web 80", "192.168.0.2 shop/web 80", "10.244.2.99 shop/web 80"]);
}

#[test]
fn namespaces_always_carry_their_name_as_a_label() {
    for (namespace, source) in [("default", "default/plain"), ("ops", "ops/client")] {
        Cluster::with_policies(&[(
            "p",
            &format!("{{podSelector: {{}}, ingress: [{{from: [{{namespaceSelector: {{matchLabels: {{kubernetes.io/metadata.name: {namespace}}}}}}}]}}]}}"),
        )])
        .allows(&[&format!("{source} shop/web 80")])
        .denies(&["shop/client shop/web 80"]);
    }
}

#[test]
fn every_operator_and_an_absent_key() {
    let table = [
        ("{key: tier, operator: In, values: [x, y]}", true, false),
        ("{key: tier, operator: NotIn, values: [x]}", false, true),
        ("{key: tier, operator: NotIn, values: [z]}", true, true),
        ("{key: tier, operator: Exists}", true, false),
        ("{key: tier, operator: DoesNotExist}", false, true),
        ("{key: tier, operator: Exists, values: []}", true, false),
    ];
    for (expression, other, client) in table {
        let cluster = Cluster::with_policies(&[(
            "p",
            &format!(
                "{{podSelector: {{matchLabels: {{app: web}}}}, ingress: [{{from: [{{podSelector: {{matchExpressions: [{expression}]}}}}]}}]}}"
            ),
        )]);
        let verdict = |allowed| if allowed { "allow" } else { "deny" };
        cluster.expect(verdict(other), &["shop/other shop/web 80"]);
        cluster.expect(verdict(client), &["shop/client shop/web 80"]);
    }
}

#[test]
fn ip_blocks_match_pods_too_and_exceptions_are_left_out() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.0/24]}}]}]}",
    )])
    .allows(&["10.1.2.3 shop/web 80", "shop/client shop/web 80"])
    .denies(&["shop/other shop/web 80", "10.244.2.200 shop/web 80", "11.0.0.1 shop/web 80"]);
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.244.2.0/24]}}, {ipBlock: {cidr: 10.244.2.12/32}}]}]}",
    )])
    .allows(&["shop/other shop/web 80"]);
}

#[test]
fn all_of_ipv4_excludes_ipv6_and_host_bits_are_masked() {
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}")])
        .allows(&["8.8.8.8 shop/web 80"])
        .denies(&["2001:db8::1 shop/web 80"]);
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '::/0'}}]}]}")])
        .allows(&["2001:db8::1 shop/web 80"])
        .denies(&["8.8.8.8 shop/web 80"]);
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 8.8.8.9/24}}]}]}")])
        .allows(&["8.8.8.255 shop/web 80"])
        .denies(&["8.8.9.0 shop/web 80"]);
}

#[test]
fn addresses_compare_as_numbers_not_text() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '2001:DB8:0:0::/64'}}, {ipBlock: {cidr: '::ffff:9.9.9.0/120'}}]}]}",
    )])
    .allows(&["2001:db8::0001 shop/web 80", "9.9.9.9 shop/web 80", "::ffff:9.9.9.1 shop/web 80"])
    .denies(&["2001:db8:0:1::1 shop/web 80", "9.9.8.9 shop/web 80"]);
}

#[test]
fn a_pod_always_reaches_its_own_address() {
    let cluster = Cluster::with_policies(&[("p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")]);
    cluster.allows(&["shop/web shop/web 80", "fd00:1::10 shop/web 80"]);
    assert_eq!(cluster.ask("shop/web shop/web 80")["egress"]["reason"], "own-address");
}

#[test]
fn a_service_that_leads_back_to_the_same_pod_is_exempt() {
    let cluster = Cluster::with_policies(&[("p", "{podSelector: {}, policyTypes: [Ingress, Egress]}")]);
    cluster.allows(&["shop/web 10.96.0.1 8080"]).denies(&["shop/client 10.96.0.1 8080"]);
}

#[test]
fn the_own_node_always_reaches_its_pods_and_another_node_does_not() {
    let cluster = Cluster::with_policies(&[("p", "{podSelector: {}}")]);
    cluster
        .allows(&["192.168.0.1 shop/web 80", "192.168.0.2 shop/other 80", "shop/host shop/other 80"])
        .denies(&["192.168.0.2 shop/web 80", "192.168.0.1 shop/other 80", "shop/host shop/web 80"]);
    assert_eq!(cluster.ask("192.168.0.1 shop/web 80")["ingress"]["reason"], "own-node");
    assert_eq!(
        cluster.ask("192.168.0.1 shop/web 80")["egress"],
        serde_json::json!({"verdict": "allow", "reason": "not-applicable"})
    );
}

#[test]
fn the_own_interfaces_are_the_own_node() {
    let own_addresses = vec!["10.244.1.1".parse().unwrap(), "::ffff:10.244.1.0".parse().unwrap()];
    let options = Options { node: Some("n1".to_owned()), own_addresses, ..Options::default() };
    let cluster = Cluster::new(&manifests("shop", &[("p", "{podSelector: {}}")]), &options);
    cluster
        .allows(&["10.244.1.1 shop/web 80", "10.244.1.0 shop/web 80", "10.244.2.0 shop/other 80"])
        .denies(&["10.244.2.0 shop/web 80", "10.244.1.1 shop/other 80"]);
    let own = cluster.snapshot.endpoint("10.244.1.1".parse().unwrap());
    assert_eq!(own, Endpoint::Node { name: "n1".into(), own: true });
    let other = cluster.snapshot.endpoint("10.244.2.0".parse().unwrap());
    assert_eq!(other, Endpoint::Node { name: "n2".into(), own: false });
}

#[test]
fn egress_to_the_own_node_is_denied_only_when_asked_for() {
    let policies = manifests("shop", &[("p", "{podSelector: {}, policyTypes: [Egress]}")]);
    let cluster = Cluster::new(&policies, &Options::default());
    cluster.allows(&["shop/web 192.168.0.1 10250"]).denies(&["shop/web 192.168.0.2 10250"]);
    assert_eq!(cluster.ask("shop/web 192.168.0.1 10250")["egress"]["reason"], "own-node");
    let options = Options { own_node_egress: OwnNodeEgress::Policy, ..Options::default() };
    Cluster::new(&policies, &options).denies(&["shop/web 192.168.0.1 10250"]);
    let open =
        manifests("shop", &[("p", "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 192.168.0.1/32}}]}]}")]);
    Cluster::new(&open, &options).allows(&["shop/web 192.168.0.1 10250"]);
}

#[test]
fn host_network_pods_are_node_addresses_and_never_selected() {
    let select = "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}";
    Cluster::with_policies(&[("p", select)]).denies(&["shop/host shop/web 80"]);
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 192.168.0.2/32}}]}]}",
    )])
    .allows(&["shop/host shop/web 80"]);
    let cluster = Cluster::with_policies(&[("p", "{podSelector: {}}")]);
    cluster.allows(&["ops/client shop/host 80"]);
    assert_eq!(cluster.ask("ops/client shop/host 80")["ingress"]["reason"], "not-applicable");
}

#[test]
fn an_unknown_address_of_the_own_pod_range_is_refused() {
    let options = Options { node: Some("n1".to_owned()), ..Options::default() };
    let cluster = Cluster::new("", &options);
    cluster
        .denies(&["10.244.1.77 ops/client 80", "ops/client 10.244.1.77 80", "fd00:1::77 2001:db8::1 80"])
        .denies(&["10.244.1.77 8.8.8.8 80", "10.244.1.77 10.244.1.77 80"])
        .allows(&["10.244.2.77 ops/client 80"]);
    let answer = cluster.ask("ops/client 10.244.1.77 80");
    for side in ["egress", "ingress"] {
        assert_eq!(answer[side]["reason"], "unknown-local-pod");
        assert_eq!(answer[side]["verdict"], "deny");
    }
    assert_eq!(cluster.snapshot.endpoint("10.244.1.77".parse().unwrap()), Endpoint::UnknownLocal);
}

fn pod(name: &str, status: &str, metadata: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{app: {name}}}{metadata}}}\nspec: {{nodeName: n1}}\nstatus: {{{status}}}\n"
    )
}

#[track_caller]
fn holder(pods: &[String], ip: &str) -> Option<String> {
    let cluster = Cluster::new(&pods.concat(), &Options::default());
    cluster.snapshot.endpoint(ip.parse().unwrap()).pod().map(|pod| pod.name.to_string())
}

#[test]
fn finished_pods_have_no_identity() {
    for phase in ["Succeeded", "Failed"] {
        let pods = [pod("job", &format!("phase: {phase}, podIP: 10.244.1.50"), "")];
        assert_eq!(holder(&pods, "10.244.1.50"), None);
    }
    for phase in ["Running", "Pending", "Unknown"] {
        let pods = [pod("job", &format!("phase: {phase}, podIP: 10.244.1.50"), "")];
        assert_eq!(holder(&pods, "10.244.1.50").as_deref(), Some("job"), "{phase}");
    }
}

#[test]
fn a_running_pod_that_has_the_address_wins_whatever_the_order() {
    let running = "phase: Running, podIP: 10.244.1.50";
    let deleted = ", deletionTimestamp: '2026-01-01T00:00:00Z'";
    let losers = [
        ("phase: Succeeded, podIP: 10.244.1.50", ""),
        ("phase: Failed, podIP: 10.244.1.50", ""),
        ("phase: Pending, podIP: 10.244.1.50", ""),
        ("phase: Running, podIP: 10.244.1.50", deleted),
    ];
    for (status, metadata) in losers {
        for (winner, loser) in [("a", "z"), ("z", "a")] {
            let pods = [pod(winner, running, ""), pod(loser, status, metadata)];
            assert_eq!(holder(&pods, "10.244.1.50").as_deref(), Some(winner), "{status}{metadata}");
        }
    }
}

#[test]
fn a_pod_being_deleted_keeps_its_address_while_it_runs() {
    let pods =
        [pod("a", "phase: Running, podIP: 10.244.1.50", ", deletionTimestamp: '2026-01-01T00:00:00Z'")];
    assert_eq!(holder(&pods, "10.244.1.50").as_deref(), Some("a"));
}

#[test]
fn both_addresses_of_a_dual_stack_pod_are_the_pod() {
    let cluster = Cluster::with_policies(&[]);
    for ip in ["10.244.1.10", "fd00:1::10", "::ffff:10.244.1.10"] {
        let endpoint = cluster.snapshot.endpoint(ip.parse().unwrap());
        assert_eq!(endpoint.pod().map(|pod| &*pod.name), Some("web"), "{ip}");
    }
}

#[test]
fn a_probe_by_address_is_the_pod_that_has_it() {
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}]}]}",
    )])
    .allows(&["10.244.1.11 10.244.1.10 80", "fd00:1::11 fd00:1::10 80"])
    .denies(&["10.244.2.12 10.244.1.10 80"]);
}

#[test]
fn local_pods_are_those_of_the_own_node_by_whether_a_policy_selects_them() {
    let policies =
        manifests("shop", &[("p", "{podSelector: {matchLabels: {app: web}}, policyTypes: [Egress]}")]);
    let options = Options { node: Some("n1".to_owned()), ..Options::default() };
    let cluster = Cluster::new(&policies, &options);
    let set = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
    let expected = LocalPods {
        isolated: set(&["10.244.1.10", "fd00:1::10"]),
        observed: set(&["10.244.1.11", "fd00:1::11"]),
    };
    assert_eq!(cluster.snapshot.local_pods(), expected);
    let pod = cluster.snapshot.endpoint("10.244.1.10".parse().unwrap());
    assert!(pod.pod().is_some_and(|pod| pod.local && pod.node.as_deref() == Some("n1")));
}

#[test]
fn in_cluster_are_pods_and_pod_ranges() {
    let cluster = Cluster::new(&pod("far", "phase: Running, podIP: 172.16.0.9", ""), &Options::default());
    let inside = |ip: &str| cluster.snapshot.in_cluster(ip.parse().unwrap());
    assert!(inside("10.244.1.99") && inside("fd00:2::99") && inside("172.16.0.9"));
    assert!(!inside("172.16.0.8") && !inside("192.168.0.1") && !inside("10.96.0.1"));
}

#[test]
fn services_are_found_by_cluster_ip_and_by_node_port() {
    let cluster = Cluster::with_policies(&[]);
    let at = |dialed: &str, protocol| {
        cluster.snapshot.service_at(dialed.parse().unwrap(), protocol).map(|service| service.name.to_string())
    };
    assert_eq!(at("10.96.0.1:8080", Protocol::Tcp).as_deref(), Some("web"));
    assert_eq!(at("192.168.0.2:30080", Protocol::Tcp).as_deref(), Some("web"));
    for dialed in
        ["10.96.0.1:80", "10.96.0.2:8080", "192.168.0.9:30080", "10.244.1.10:8080", "192.168.0.2:8080"]
    {
        assert_eq!(at(dialed, Protocol::Tcp), None, "{dialed}");
    }
    assert_eq!(at("10.96.0.1:8080", Protocol::Udp), None);
}

#[test]
fn services_are_found_by_addresses_outside_the_cluster_which_they_may_share() {
    let service = |name: &str, port: u16, spec: &str, status: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
             spec: {{ports: [{{port: {port}, nodePort: {}}}], {spec}}}\nstatus: {{loadBalancer: {{{status}}}}}\n---\n",
            30_000 + port
        )
    };
    let balancer = "ingress: [{ip: 198.51.100.1}, {ip: '2001:db8::1'}, {hostname: a.example}]";
    // The last one claims a node's address.
    let services = [
        service("first", 81, "clusterIP: 10.96.1.1", balancer),
        service("second", 82, "clusterIP: 10.96.1.2", balancer),
        service("third", 83, "externalIPs: [192.168.0.2]", ""),
    ];
    let texts = services.concat();
    let objects = parse([(Path::new("c.yaml"), CLUSTER), (Path::new("s.yaml"), texts.as_str())]).unwrap();
    let mut cluster = policy_cache::Cluster::new(Options::default());
    let first = ObjectKey { kind: Kind::Service, namespace: "shop".to_owned(), name: "first".to_owned() };
    for object in objects.objects() {
        cluster.apply(Event::Put(object));
    }
    let at = |snapshot: &Snapshot, dialed: &str| {
        let service = snapshot.service_at(dialed.parse().unwrap(), Protocol::Tcp)?;
        assert_eq!(service.address, dialed.parse().unwrap());
        Some(service.name.to_string())
    };
    let table = [
        ("198.51.100.1:81", Some("first")),
        ("[2001:db8::1]:81", Some("first")),
        ("198.51.100.1:82", Some("second")),
        ("198.51.100.1:83", None),
        ("198.51.100.2:81", None),
        ("192.168.0.2:83", Some("third")),
        ("192.168.0.2:30083", Some("third")),
        ("192.168.0.2:30080", Some("web")),
    ];
    for snapshot in [cluster.snapshot(), compile(&objects, &Options::default(), Generation(7))] {
        for (dialed, name) in table {
            assert_eq!(at(&snapshot, dialed).as_deref(), name, "{dialed}");
        }
    }
    cluster.apply(Event::Delete(first));
    let snapshot = cluster.snapshot();
    assert_eq!(at(&snapshot, "198.51.100.1:81"), None);
    assert_eq!(at(&snapshot, "198.51.100.1:82").as_deref(), Some("second"));
}

#[test]
fn owners_are_named_by_their_deployment() {
    let reference = |kind: &str, name: &str| {
        format!(
            ", uid: u-1, ownerReferences: [{{kind: Other, name: o}}, {{kind: {kind}, name: {name}, controller: true}}]"
        )
    };
    let hash = pod("a", "podIP: 10.244.1.50", &reference("ReplicaSet", "shop-web-5d9c"))
        .replace("labels: {app: a}", "labels: {pod-template-hash: 5d9c}");
    let table = [
        (hash, "Deployment", "shop-web"),
        (pod("a", "podIP: 10.244.1.50", &reference("ReplicaSet", "alone")), "ReplicaSet", "alone"),
        (pod("a", "podIP: 10.244.1.50", &reference("StatefulSet", "db")), "StatefulSet", "db"),
    ];
    for (manifest, kind, name) in table {
        let cluster = Cluster::new(&manifest, &Options::default());
        let Endpoint::Pod(pod) = cluster.snapshot.endpoint("10.244.1.50".parse().unwrap()) else { panic!() };
        let owner = pod.owner.as_ref().unwrap();
        assert_eq!((&*owner.kind, &*owner.name, pod.uid.to_string().as_str()), (kind, name, "u-1"));
    }
}

#[test]
fn a_flow_identified_by_another_snapshot_is_identified_again() {
    let old = Cluster::with_policies(&[]).snapshot;
    let texts = [(Path::new("c.yaml"), CLUSTER)];
    let new = compile(&parse(texts).unwrap(), &Options::default(), Generation(8));
    let tuple = Tuple::tcp("10.244.1.11:999".parse().unwrap(), "10.244.1.10:80".parse().unwrap());
    let decision = new.decide(&old.identify(&tuple));
    assert_eq!((decision.generation, decision.verdict()), (Generation(8), Verdict::Allow));
    assert_eq!(decision.ingress.reason, Reason::NotIsolated);
}

#[test]
fn an_isolated_pod_with_an_allowed_peer_on_one_port_only_is_cut_off_elsewhere() {
    // Peers and ports of one rule must both match; two rules do not lend each other halves.
    Cluster::with_policies(&[(
        "p",
        "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: 80}]}, {from: [{namespaceSelector: {matchLabels: {team: b}}}], ports: [{port: 81}]}]}",
    )])
    .allows(&["shop/client shop/web 80", "ops/client shop/web 81"])
    .denies(&["shop/client shop/web 81", "ops/client shop/web 80"]);
}

// What probes may ask, and what they get for an answer.

#[test]
fn bad_probes_get_an_error_with_their_id() {
    let cluster = Cluster::with_policies(&[]);
    let table = [
        (
            r#"{"id":"a","src":{"pod":"shop/none"},"dst":{"pod":"shop/web"},"port":80}"#,
            "unknown pod shop/none",
        ),
        (r#"{"id":"a","src":{"pod":"web"},"dst":{"pod":"shop/web"},"port":80}"#, "unknown pod web"),
        (
            r#"{"id":"a","src":{"ip":"1.2.3"},"dst":{"pod":"shop/web"},"port":80}"#,
            "src: must be an IP address",
        ),
        (
            r#"{"id":"a","src":{"ip":"1.2.3.4","pod":"a/b"},"dst":{"pod":"shop/web"},"port":80}"#,
            "src: must be",
        ),
        (r#"{"id":"a","src":"shop/web","dst":{"pod":"shop/web"},"port":80}"#, "src: must be"),
        (r#"{"id":"a","dst":{"pod":"shop/web"},"port":80}"#, "src: required"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"port":80}"#, "dst: required"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"}}"#, "port: required"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":0}"#, "port: must be"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":65536}"#, "port: must be"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":-1}"#, "port: must be"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":1.5}"#, "port: must be"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":"80"}"#, "port: must be"),
        (
            r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"pod":"shop/web"},"port":80,"protocol":"tcp"}"#,
            "protocol",
        ),
        (r#"{"id":"a","src":{"ip":"fd00::1"},"dst":{"ip":"10.0.0.1"},"port":80}"#, "same family"),
        (r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"ip":"10.96.0.1"},"port":1}"#, "no port 1/TCP"),
        (
            r#"{"id":"a","src":{"pod":"shop/web"},"dst":{"ip":"10.96.0.1"},"port":8080,"protocol":"UDP"}"#,
            "8080/UDP",
        ),
    ];
    for (line, message) in table {
        let answer = serde_json::to_value(cluster.prober.answer(line)).unwrap();
        assert_eq!(answer["id"], "a", "{line}");
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(message)), "{line}: {answer}");
        assert_eq!(answer.as_object().map(|object| object.len()), Some(2));
    }
    for line in ["nonsense", "[]", "{\"id\":1", "7"] {
        let answer = cluster.prober.answer(line);
        assert!(answer.is_failed() && serde_json::to_value(&answer).unwrap()["id"].is_null(), "{line}");
    }
}

#[test]
fn a_service_is_asked_of_every_ready_endpoint_and_one_denial_denies() {
    let slices = r#"
apiVersion: v1
kind: Service
metadata: {name: mixed, namespace: shop}
spec: {clusterIP: 10.96.0.9, ports: [{name: p, port: 5}, {name: q, port: 6}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: mixed-1, namespace: shop, labels: {kubernetes.io/service-name: mixed}}
addressType: IPv4
ports: [{name: p, port: 80}]
endpoints:
- {addresses: [10.244.1.10], conditions: {ready: true}}
- {addresses: [10.244.2.12]}
- {addresses: [10.244.1.11], conditions: {ready: false}}
"#;
    let open = Cluster::new(slices, &Options::default());
    let answer = open.ask("ops/client 10.96.0.9 5");
    let pods: Vec<_> = answer["endpoints"].as_array().unwrap().iter().map(|e| e["pod"].clone()).collect();
    assert_eq!(pods, ["shop/web", "shop/other"]);
    assert_eq!((&answer["verdict"], &answer["service"]), (&"allow".into(), &"shop/mixed".into()));
    let answer = open.ask("ops/client 10.96.0.9 6");
    assert!(answer["error"].as_str().unwrap().contains("no ready endpoint"), "{answer}");

    let policy = manifests("shop", &[("p", "{podSelector: {matchLabels: {app: other}}}")]);
    let answer =
        Cluster::new(&format!("{slices}{policy}"), &Options::default()).ask("ops/client 10.96.0.9 5");
    assert_eq!(answer["verdict"], "deny");
    assert_eq!(answer["ingress"]["policies"], serde_json::json!(["NetworkPolicy/shop/p"]));
    let verdicts: Vec<_> =
        answer["endpoints"].as_array().unwrap().iter().map(|e| e["verdict"].clone()).collect();
    assert_eq!(verdicts, ["allow", "deny"]);
}

#[test]
fn ports_of_a_policy_are_pod_ports_never_service_ports() {
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}")])
        .allows(&["ops/client 10.96.0.1 8080"]);
    Cluster::with_policies(&[("p", "{podSelector: {}, ingress: [{ports: [{port: 8080}]}]}")])
        .denies(&["ops/client 10.96.0.1 8080"]);
}

/// Two pods on two of three nodes, behind Services with node ports and outside addresses.
const NODE_PORTS: &str = include_str!("node_ports.yaml");

fn node_ports() -> Cluster {
    Cluster::new(&format!("apiVersion: v1\nkind: List\nitems:\n{NODE_PORTS}"), &Options::default())
}

fn endpoints(answer: &Value) -> Vec<&str> {
    answer["endpoints"].as_array().into_iter().flatten().map(|one| one["pod"].as_str().unwrap()).collect()
}

#[test]
fn whatever_leads_to_a_service_from_outside_is_asked_of_its_endpoints() {
    let cluster = node_ports();
    for destination in ["172.18.0.11 30090", "172.18.0.13 30090", "198.51.100.7 80", "198.51.100.8 80"] {
        let answer = cluster.ask(&format!("203.0.113.10 {destination}"));
        assert_eq!(endpoints(&answer), ["front/one", "front/two"], "{destination}: {answer}");
        assert_eq!(answer["service"], "front/open");
        assert_eq!(answer["verdict"], "deny", "one of them is closed");
        assert_eq!(answer["ingress"]["policies"], serde_json::json!(["NetworkPolicy/front/closed"]));
    }
    // Another port of the same addresses, and another protocol, lead to no Service.
    for destination in ["172.18.0.11 80", "172.18.0.11 30090/UDP", "198.51.100.7 30090", "198.51.100.9 80"] {
        let answer = cluster.ask(&format!("203.0.113.10 {destination}"));
        assert!(answer["service"].is_null() && answer["verdict"] == "allow", "{destination}: {answer}");
    }
}

#[test]
fn a_node_port_of_external_traffic_policy_local_leads_to_that_nodes_endpoints() {
    let cluster = node_ports();
    for (node, pod, verdict) in [("172.18.0.11", "front/one", "allow"), ("172.18.0.12", "front/two", "deny")]
    {
        let answer = cluster.ask(&format!("203.0.113.10 {node} 30091"));
        assert_eq!((endpoints(&answer), &answer["verdict"]), (vec![pod], &verdict.into()), "{answer}");
    }
    let answer = cluster.ask("203.0.113.10 172.18.0.13 30091");
    let error = answer["error"].as_str().unwrap();
    assert!(error.ends_with("30091/TCP on m3 (externalTrafficPolicy: Local)"), "{error}");
    // Clients of the cluster itself are led to all of them.
    let answer = cluster.ask("front/one 172.18.0.12 30091");
    assert_eq!(endpoints(&answer), ["front/one", "front/two"]);
}

#[test]
fn a_destination_may_be_a_service_by_its_name() {
    let cluster = node_ports();
    let ask = |source: &str, destination: &str, port: u16| -> Value {
        let line = format!(r#"{{"id":1,"src":{source},"dst":{destination},"port":{port}}}"#);
        serde_json::to_value(cluster.prober.answer(&line)).unwrap()
    };
    let outside = r#"{"ip":"203.0.113.10"}"#;
    let answer = ask(outside, r#"{"service":"front/open"}"#, 80);
    assert_eq!(endpoints(&answer), ["front/one", "front/two"]);
    let by_address = ask(outside, r#"{"ip":"10.97.0.1"}"#, 80);
    assert_eq!(answer, by_address);
    for (source, destination, port, message) in [
        (outside, r#"{"service":"front/none"}"#, 80, "dst: unknown service front/none"),
        (outside, r#"{"service":"front/open"}"#, 81, "service front/open has no port 81/TCP"),
        (outside, r#"{"service":"open"}"#, 80, "dst: unknown service open"),
        (outside, r#"{"service":7}"#, 80, "dst: must be"),
        (outside, r#"{"service":"front/open","pod":"front/one"}"#, 80, "dst.pod: unknown key"),
        (r#"{"service":"front/open"}"#, outside, 80, "src: is a service; connections come from pods"),
        (r#"{"ip":"fd00::1"}"#, r#"{"service":"front/open"}"#, 80, "same family"),
    ] {
        let answer = ask(source, destination, port);
        let error = answer["error"].as_str().unwrap_or_default();
        assert!(error.contains(message), "{source} {destination}: {answer}");
    }
}

/// Source: the Kubernetes documentation, "Headless Services": no cluster IP, no proxying; DNS gives the endpoints.
#[test]
fn who_dials_a_headless_service_sends_to_the_port_that_he_dialled() {
    let cluster = Cluster::new(
        r#"
apiVersion: v1
kind: Pod
metadata: {name: back, namespace: shop, labels: {app: back}}
status: {phase: Running, podIP: 10.244.1.77}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, selector: {app: back}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: usual, namespace: shop}
spec: {clusterIP: 10.96.7.7, selector: {app: back}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: back, namespace: shop}
spec: {podSelector: {matchLabels: {app: back}}, ingress: [{ports: [{port: 8080}]}]}
"#,
        &Options::default(),
    );
    for (service, verdict) in [("headless", "deny"), ("usual", "allow")] {
        let line = format!(
            r#"{{"id":1,"src":{{"ip":"203.0.113.10"}},"dst":{{"service":"shop/{service}"}},"port":80}}"#
        );
        let answer = serde_json::to_value(cluster.prober.answer(&line)).unwrap();
        assert_eq!(answer["verdict"], verdict, "{answer}");
    }
}
