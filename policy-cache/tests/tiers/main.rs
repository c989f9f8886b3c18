//! The rules of the Admin and the Baseline tier, one test each, and upstream's conformance cases by name.
#![expect(clippy::unwrap_used, reason = "a panic is the report of a failed test")]

mod changes;
mod cluster;
mod conformance;

use cluster::Cluster;
use policy_cache::{Options, OwnNodeEgress};

/// Subject: every pod.
fn cnp(tier: &str, priority: u16, rules: &str) -> String {
    format!("{{tier: {tier}, priority: {priority}, subject: {{namespaces: {{}}}}, {rules}}}")
}

const FROM_X: &str = "from: [{namespaces: {matchLabels: {ns: x}}}]";
const FROM_ALL: &str = "from: [{namespaces: {}}]";
const ISOLATE_Y: (&str, &str, &str) =
    ("NP", "y/isolate", "{podSelector: {}, policyTypes: [Ingress, Egress]}");

#[test]
fn admin_comes_before_network_policy_and_that_before_baseline() {
    let accept = cnp("Admin", 1, &format!("ingress: [{{action: Accept, {FROM_X}}}]"));
    let cluster = Cluster::new(&[("CNP", "p", &accept), ("NP", "y/isolate", "{podSelector: {}}")]);
    cluster.allows(&["x/a y/a 80"]).denies(&["z/a y/a 80"]);
    let side = &cluster.ask("x/a y/a 80")["ingress"];
    assert_eq!((&side["tier"], &side["policies"][0]), (&"Admin".into(), &"ClusterNetworkPolicy/p#0".into()));
    let deny = cnp("Baseline", 1, &format!("ingress: [{{action: Deny, {FROM_ALL}}}]"));
    let allow_z = "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}";
    let cluster = Cluster::new(&[("CNP", "p", &deny), ("NP", "y/allow", allow_z)]);
    cluster.allows(&["z/a y/a 80", "8.8.8.8 x/a 80"]).denies(&["x/a y/a 80", "z/a x/a 80"]);
    assert_eq!(cluster.ask("z/a x/a 80")["ingress"]["tier"], "Baseline");
}

#[test]
fn the_lower_priority_decides_then_the_name_then_the_order_of_rules() {
    let accept = |priority| cnp("Admin", priority, &format!("ingress: [{{action: Accept, {FROM_X}}}]"));
    let deny = |priority| cnp("Admin", priority, &format!("ingress: [{{action: Deny, {FROM_ALL}}}]"));
    Cluster::new(&[("CNP", "z", &accept(1)), ("CNP", "a", &deny(2))]).allows(&["x/a y/a 80"]);
    Cluster::new(&[("CNP", "z", &accept(2)), ("CNP", "a", &deny(1))]).denies(&["x/a y/a 80"]);
    Cluster::new(&[("CNP", "z", &accept(5)), ("CNP", "a", &deny(5))]).denies(&["x/a y/a 80"]);
    Cluster::new(&[("CNP", "a", &accept(5)), ("CNP", "z", &deny(5))]).allows(&["x/a y/a 80"]);
    let both = |first: &str, second: &str| {
        cnp(
            "Admin",
            1,
            &format!("ingress: [{{action: {first}, {FROM_X}}}, {{action: {second}, {FROM_ALL}}}]"),
        )
    };
    Cluster::new(&[("CNP", "p", &both("Accept", "Deny"))]).allows(&["x/a y/a 80"]).denies(&["z/a y/a 80"]);
    Cluster::new(&[("CNP", "p", &both("Deny", "Accept"))]).denies(&["x/a y/a 80"]).allows(&["z/a y/a 80"]);
}

#[test]
fn admin_network_policies_and_cluster_network_policies_share_the_admin_tier() {
    let deny = cnp("Admin", 10, &format!("ingress: [{{action: Deny, {FROM_ALL}}}]"));
    let allow = "{priority: 9, subject: {namespaces: {}}, ingress: [{action: Allow, from: [{namespaces: {matchLabels: {ns: x}}}], ports: [{portNumber: {port: 80}}]}]}";
    let cluster = Cluster::new(&[("CNP", "p", &deny), ("ANP", "p", allow)]);
    cluster.allows(&["x/a y/a 80"]).denies(&["x/a y/a 81", "x/a y/a 80/UDP", "z/a y/a 80"]);
    assert_eq!(cluster.ask("x/a y/a 80")["ingress"]["policies"][0], "AdminNetworkPolicy/p#0");
}

#[test]
fn a_baseline_admin_network_policy_comes_after_every_baseline_cluster_network_policy() {
    let deny = "{subject: {namespaces: {}}, ingress: [{action: Deny, from: [{namespaces: {}}]}]}";
    let accept = cnp("Baseline", 1000, &format!("ingress: [{{action: Accept, {FROM_X}}}]"));
    let cluster = Cluster::new(&[("BANP", "default", deny), ("CNP", "z", &accept)]);
    cluster.allows(&["x/a y/a 80"]).denies(&["z/a y/a 80"]);
    assert_eq!(cluster.ask("z/a y/a 80")["ingress"]["policies"][0], "BaselineAdminNetworkPolicy/default#0");
}

#[test]
fn pass_leaves_the_whole_tier() {
    let pass = cnp("Admin", 1, &format!("ingress: [{{action: Pass, {FROM_X}}}]"));
    let deny = cnp("Admin", 2, &format!("ingress: [{{action: Deny, {FROM_ALL}}}]"));
    let policies = [("CNP", "p", &*pass), ("CNP", "q", &*deny)];
    Cluster::new(&policies).allows(&["x/a y/a 80"]).denies(&["z/a y/a 80"]);
    Cluster::new(&[policies[0], policies[1], ISOLATE_Y]).denies(&["x/a y/a 80"]).allows(&["x/a z/a 80"]);
}

#[test]
fn a_cluster_network_policy_never_isolates_by_itself() {
    let accept = cnp("Admin", 1, &format!("ingress: [{{action: Accept, {FROM_X}}}], egress: []"));
    let cluster = Cluster::new(&[("CNP", "p", &accept)]);
    cluster.allows(&["z/a y/a 80", "y/a 8.8.8.8 53/UDP"]);
    assert_eq!(cluster.ask("z/a y/a 80")["ingress"]["reason"], "not-isolated");
}

#[test]
fn a_rule_with_an_unknown_peer_fails_closed() {
    for peer in ["{}", "{widgets: {}}", "{pods: null}"] {
        let rule = |action: &str| {
            let rules = format!(
                "ingress: [{{action: {action}, from: [{{namespaces: {{}}}}, {peer}], protocols: [{{tcp: {{destinationPort: {{number: 80}}}}}}]}}]"
            );
            cnp("Admin", 1, &rules)
        };
        Cluster::new(&[("CNP", "p", &rule("Accept")), ISOLATE_Y]).denies(&["x/a y/a 80"]);
        for action in ["Deny", "Pass"] {
            let cluster = Cluster::new(&[("CNP", "p", &rule(action))]);
            cluster.denies(&["x/a y/a 80", "8.8.8.8 x/a 99/SCTP"]);
            assert_eq!(cluster.ask("x/a y/a 80")["ingress"]["policies"][0], "ClusterNetworkPolicy/p#0");
        }
    }
}

#[test]
fn network_policy_hides_the_baseline_only_in_the_directions_in_which_it_isolates() {
    let rules = "ingress: [{action: Deny, from: [{namespaces: {}}]}], egress: [{action: Deny, to: [{namespaces: {}}]}]";
    let deny = format!(
        "{{tier: Baseline, priority: 1, subject: {{namespaces: {{matchLabels: {{ns: y}}}}}}, {rules}}}"
    );
    let ingress_only = ("NP", "y/open", "{podSelector: {}, ingress: [{}]}");
    Cluster::new(&[("CNP", "p", &deny), ingress_only]).allows(&["x/a y/a 80"]).denies(&["y/a x/a 80"]);
}

#[test]
fn networks_match_pods_too_and_keep_families_apart() {
    let deny = cnp("Admin", 1, "egress: [{action: Deny, to: [{networks: [0.0.0.0/0]}]}]");
    Cluster::new(&[("CNP", "p", &deny)])
        .denies(&["x/a y/a 80", "x/a 8.8.8.8 53/UDP"])
        .allows(&["fd00::1:1 fd00::2:1 80", "x/a 2001:db8::1 80"]);
}

#[test]
fn named_ports_match_the_name_with_any_protocol() {
    let deny = |name: &str| {
        cnp(
            "Admin",
            1,
            &format!(
                "ingress: [{{action: Deny, {FROM_ALL}, protocols: [{{destinationNamedPort: {name}}}]}}]"
            ),
        )
    };
    Cluster::new(&[("CNP", "p", &deny("serve-80-udp"))]).denies(&["x/a y/a 80/UDP"]).allows(&["x/a y/a 80"]);
    Cluster::new(&[("CNP", "p", &deny("serve-81-tcp"))]).denies(&["x/a y/a 81"]).allows(&["x/a y/a 80"]);
}

#[test]
fn node_peers_select_nodes_by_their_labels_and_no_pods() {
    let deny = cnp("Admin", 1, "egress: [{action: Deny, to: [{nodes: {matchLabels: {zone: west}}}]}]");
    Cluster::new(&[("CNP", "p", &deny)]).denies(&["x/a 192.168.0.2 80"]).allows(&[
        "x/a 192.168.0.1 80",
        "x/a y/c 80",
        "x/a 8.8.8.8 80",
    ]);
}

#[test]
fn domain_names_match_what_the_table_says_and_nothing_without_it() {
    let rules = "egress: [{action: Accept, to: [{domainNames: ['*.example.com']}]}, {action: Deny, to: [{networks: [0.0.0.0/0]}]}]";
    let policy = cnp("Admin", 1, rules);
    Cluster::new(&[("CNP", "p", &policy)]).denies(&["x/a 8.8.8.8 443"]);
    let names = [("www.Example.com.", "8.8.8.8"), ("example.com", "8.8.4.4")];
    Cluster::with(&[("CNP", "p", &policy)], &Options::default(), &names)
        .allows(&["x/a 8.8.8.8 443"])
        .denies(&["x/a 8.8.4.4 443"]);
    let denied = cnp("Admin", 1, "egress: [{action: Deny, to: [{domainNames: [example.com]}]}]");
    Cluster::new(&[("CNP", "p", &denied)]).denies(&["x/a 1.1.1.1 443"]);
}

#[test]
fn the_own_node_and_the_own_address_are_let_in_in_every_tier() {
    let rules = "ingress: [{action: Deny, from: [{}]}], egress: [{action: Deny, to: [{}]}]";
    let deny = cnp("Admin", 1, rules);
    let cluster = Cluster::new(&[("CNP", "p", &deny)]);
    cluster.allows(&["192.168.0.1 x/a 80", "x/a x/a 80"]).denies(&["192.168.0.2 x/a 80", "x/a y/a 80"]);
}

#[test]
fn egress_to_the_own_node_is_subject_to_all_but_network_policy() {
    let isolate = ("NP", "x/isolate", "{podSelector: {}, policyTypes: [Egress]}");
    for tier in ["Admin", "Baseline"] {
        let deny = cnp(tier, 1, "egress: [{action: Deny, to: [{nodes: {}}]}]");
        Cluster::new(&[("CNP", "p", &deny)]).denies(&["x/a 192.168.0.1 10250"]);
        let cluster = Cluster::new(&[("CNP", "p", &deny), isolate]);
        // Isolated by a NetworkPolicy, the pod no longer has a Baseline.
        cluster.expect(if tier == "Admin" { "deny" } else { "allow" }, &["x/a 192.168.0.1 10250"]);
    }
    Cluster::new(&[isolate]).allows(&["x/a 192.168.0.1 10250"]).denies(&["x/a 192.168.0.2 10250"]);
    let policy = Options { own_node_egress: OwnNodeEgress::Policy, ..Options::default() };
    Cluster::with(&[isolate], &policy, &[]).denies(&["x/a 192.168.0.1 10250"]);
}

#[test]
fn a_service_that_leads_back_is_exempt_from_network_policy_and_subject_to_the_tiers() {
    let isolate = ("NP", "x/isolate", "{podSelector: {}, policyTypes: [Ingress, Egress]}");
    Cluster::new(&[isolate]).allows(&["x/a 10.96.0.1 80"]).denies(&["x/b 10.96.0.1 80"]);
    let deny = cnp("Admin", 1, &format!("ingress: [{{action: Deny, {FROM_X}}}]"));
    Cluster::new(&[("CNP", "p", &deny)]).denies(&["x/a 10.96.0.1 80"]).allows(&["x/a x/a 80"]);
    // Where a snapshot serves a node, that is the only way such a flow is ever seen.
    let node = Options { node: Some("n1".to_owned()), ..Options::default() };
    Cluster::with(&[("CNP", "p", &deny)], &node, &[]).denies(&["x/a x/a 80"]);
}

#[test]
fn a_pod_that_a_rule_may_deny_counts_as_isolated_and_one_that_rules_only_accept_does_not() {
    let node = Options { node: Some("n1".to_owned()), ..Options::default() };
    let isolated = |action: &str| {
        let rules = format!("ingress: [{{action: {action}, from: [{{namespaces: {{}}}}]}}]");
        let spec = format!(
            "{{tier: Baseline, priority: 1, subject: {{pods: {{podSelector: {{matchLabels: {{pod: a}}}}}}}}, {rules}}}"
        );
        Cluster::with(&[("CNP", "p", &spec)], &node, &[]).local_pods().isolated.len()
    };
    assert_eq!(isolated("Deny"), 6);
    assert_eq!((isolated("Accept"), isolated("Pass")), (0, 0));
}

#[test]
fn a_changed_node_label_domain_name_or_priority_affects_those_it_touches() {
    let options = Options::default();
    let egress = |peer: &str, priority| {
        let rules = format!("egress: [{{action: Accept, to: [{peer}]}}]");
        format!(
            "{{tier: Admin, priority: {priority}, subject: {{pods: {{namespaceSelector: {{matchLabels: {{ns: x}}}}, podSelector: {{matchLabels: {{pod: a}}}}}}}}, {rules}}}"
        )
    };
    let affected = |old: &Cluster, new: &Cluster| {
        let addresses = new.affected_since(old).addresses().expect("everybody");
        let mut addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        addresses.sort();
        addresses
    };
    let nodes = egress("{nodes: {matchLabels: {zone: west}}}", 1);
    let cluster = Cluster::new(&[("CNP", "p", &nodes)]);
    let relabelled = Cluster::relabelled(&[("CNP", "p", &nodes)], "zone: east", "zone: west");
    assert_eq!(affected(&cluster, &relabelled), ["192.168.0.1"]);
    let moved = Cluster::new(&[("CNP", "p", &egress("{nodes: {matchLabels: {zone: west}}}", 2))]);
    assert_eq!(affected(&cluster, &moved), ["10.0.1.1", "fd00::1:1"]);
    let named = egress("{domainNames: [example.com]}", 1);
    let old = Cluster::with(&[("CNP", "p", &named)], &options, &[("example.com", "8.8.8.8")]);
    let new = Cluster::with(&[("CNP", "p", &named)], &options, &[("example.com", "9.9.9.9")]);
    assert_eq!(affected(&old, &new), ["8.8.8.8", "9.9.9.9"]);
}
