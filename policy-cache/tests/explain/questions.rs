//! One small cluster, one question a rule of explaining.

use std::path::Path;

use flow::Generation;
use policy_cache::{Explanation, Objects, Options, Question, compile, explain, parse};

const CLUSTER: &str = r#"
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {team: a}}}
- {apiVersion: v1, kind: Namespace, metadata: {name: ops, labels: {team: b}}}
- apiVersion: v1
  kind: Node
  metadata: {name: n1}
  spec: {podCIDRs: [10.1.0.0/24]}
  status: {addresses: [{type: InternalIP, address: 192.168.0.1}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: web, namespace: shop, labels: {app: web}}
  spec: {nodeName: n1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
  status: {phase: Running, podIP: 10.1.0.1}
- apiVersion: v1
  kind: Pod
  metadata: {name: client, namespace: shop, labels: {app: client, pod-template-hash: abc}}
  spec: {nodeName: n1}
  status: {phase: Running, podIP: 10.1.0.2, podIPs: [{ip: 10.1.0.2}, {ip: "fd00::2"}]}
- apiVersion: v1
  kind: Pod
  metadata: {name: shell, namespace: ops, labels: {app: web}}
  status: {phase: Running, podIP: 10.1.1.3}
- apiVersion: v1
  kind: Pod
  metadata: {name: bare, namespace: ops}
  status: {phase: Running, podIP: 10.1.1.4}
- apiVersion: v1
  kind: Pod
  metadata: {name: done, namespace: ops}
  status: {phase: Succeeded, podIP: 10.1.1.5}
- apiVersion: v1
  kind: Pod
  metadata: {name: six, namespace: ops}
  status: {phase: Running, podIP: "fd00::6"}
- apiVersion: v1
  kind: Service
  metadata: {name: front, namespace: shop}
  spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: http}]}
- apiVersion: v1
  kind: Service
  metadata: {name: unassigned, namespace: shop}
  spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}, {port: 53, protocol: UDP}]}
- apiVersion: v1
  kind: Service
  metadata: {name: empty, namespace: shop}
  spec: {clusterIP: 10.96.0.2, selector: {app: nobody}, ports: [{port: 80}]}
"#;

fn objects(policy_spec: &str) -> Objects {
    let policy = format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: shop}}, spec: {policy_spec}}}"
    );
    let policy = if policy_spec.is_empty() { "" } else { policy.as_str() };
    parse([(Path::new("c.yaml"), CLUSTER), (Path::new("p.yaml"), policy)]).unwrap()
}

fn ask(policy_spec: &str, question: &str) -> Result<Explanation, String> {
    let objects = objects(policy_spec);
    let snapshot = compile(&objects, &Options::default(), Generation(1));
    let words: Vec<&str> = question.split(' ').collect();
    let [source, destination, port] = words[..] else { panic!("{question}") };
    let question = Question::parse(source, destination, port).map_err(|error| error.to_string())?;
    explain(&objects, &snapshot, &question).map_err(|error| error.to_string())
}

#[track_caller]
fn says(policy_spec: &str, question: &str, lines: &[&str]) {
    let text = ask(policy_spec, question).unwrap().to_string();
    for line in lines {
        assert!(text.contains(line), "{policy_spec}\n{question}\nlacks {line:?}:\n{text}");
    }
}

#[test]
fn each_candidate_that_does_not_match_says_why() {
    let from = |peers: &str| format!("{{podSelector: {{}}, ingress: [{{from: [{peers}]}}]}}");
    let ports = |ports: &str| format!("{{podSelector: {{}}, ingress: [{{ports: [{ports}]}}]}}");
    let shell = "ops/shell shop/web 8080";
    let table = [
        (
            from("{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}"),
            shell,
            "namespaceSelector matches, podSelector lacks app=x (it has app=web)",
        ),
        (
            from("{namespaceSelector: {matchLabels: {team: a}}, podSelector: {matchLabels: {app: web}}}"),
            shell,
            "namespaceSelector lacks team=a (it has team=b), podSelector matches",
        ),
        (from("{podSelector: {}}"), shell, "own namespace shop, the pod is in ops"),
        (
            from("{namespaceSelector: {}, podSelector: {matchLabels: {role: x}}}"),
            shell,
            "podSelector lacks role=x",
        ),
        (
            from(
                "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [web]}]}}",
            ),
            shell,
            "has app=web, which app notin (web) excludes",
        ),
        (
            from(
                "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: role, operator: Exists}, {key: app, operator: DoesNotExist}]}}",
            ),
            shell,
            "lacks the label role and has app=web, where the label must be absent",
        ),
        (
            from(
                "{namespaceSelector: {}, podSelector: {matchExpressions: [{key: app, operator: In, values: [x, y]}]}}",
            ),
            shell,
            "lacks app in (x, y)",
        ),
        (from("{ipBlock: {cidr: 10.9.0.0/16}}"), shell, "ipBlock 10.9.0.0/16 does not contain 10.1.1.3"),
        (
            from("{ipBlock: {cidr: 10.1.0.0/16, except: [10.1.1.0/24]}}"),
            shell,
            "ipBlock 10.1.0.0/16 leaves out 10.1.1.0/24, which contains 10.1.1.3",
        ),
        (
            from("{namespaceSelector: {}}"),
            "8.8.8.8 shop/web 8080",
            "selectors match pods only, and 8.8.8.8 is no known pod or node",
        ),
        (ports("{port: 80}"), shell, "80/TCP is not 8080/TCP"),
        (ports("{port: 80, endPort: 90}"), shell, "80-90/TCP is not 8080/TCP"),
        (ports("{protocol: UDP}"), shell, "all of UDP is not 8080/TCP"),
        (ports("{port: web}"), shell, "shop/web has no port named web"),
        (
            ports("{port: http}"),
            "ops/shell shop/web 81",
            "named port http is 8080/TCP on shop/web, not 81/TCP",
        ),
        (ports("{port: http, protocol: UDP}"), shell, "named port http/UDP is 8080/TCP on shop/web"),
        (
            ports("{port: 80}"),
            "ops/shell shop/front 80",
            "80/TCP is the Service's port; rules see the pod's, 8080/TCP",
        ),
        ("{podSelector: {}}".to_owned(), shell, "it has no ingress rule, so it allows nothing"),
    ];
    for (policy, question, reason) in table {
        says(&policy, question, &[reason, ": DENIED"]);
    }
    says(
        "{podSelector: {}, policyTypes: [Egress], egress: [{ports: [{port: http}]}]}",
        "shop/client 8.8.8.8 8080",
        &["named port http is looked up on the destination, which is no pod"],
    );
}

#[test]
fn each_rule_that_matches_says_how() {
    let table = [
        ("{podSelector: {}, ingress: [{}]}", &["yes from: any peer", "yes ports: any port"][..]),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}], ports: [{port: http}]}]}",
            &["ipBlock 10.0.0.0/8 contains 10.1.1.3", "named port http is 8080/TCP on shop/web"],
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {}}], ports: [{port: 8000, endPort: 9000}]}]}",
            &["namespaceSelector matches", "8000-9000/TCP includes 8080/TCP", "(podSelector: app=web)"],
        ),
    ];
    for (policy, lines) in table {
        says(policy, "ops/shell shop/web 8080", lines);
        says(policy, "ops/shell shop/web 8080", &["spec.ingress[0] of NetworkPolicy/shop/p allows it"]);
    }
}

#[test]
fn sides_without_policies_say_why_there_are_none() {
    let closed = "{podSelector: {}, policyTypes: [Ingress, Egress]}";
    let table = [
        ("", "ops/shell shop/web 8080", "no NetworkPolicy isolates the pod for ingress"),
        (closed, "shop/web shop/web 1", "a pod always reaches itself"),
        (closed, "192.168.0.1 shop/web 1", "a pod's own node always reaches it"),
        (closed, "shop/web 192.168.0.1 1", "NetworkPolicy never closes a pod's way to its own node"),
        (closed, "shop/web 8.8.8.8 1", "no policy applies: 8.8.8.8 is no known pod or node"),
        (
            "{podSelector: {matchLabels: {app: client}}}",
            "ops/shell shop/web 8080",
            "1 other policy does not select it for ingress",
        ),
    ];
    for (policy, question, line) in table {
        says(policy, question, &[line]);
    }
}

#[test]
fn the_smallest_change_is_a_label_then_a_port_then_a_peer_then_a_rule_then_a_policy() {
    let table = [
        (
            "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {role: x}}}], ports: [{port: 8080}]}]}",
            "ops/shell shop/web 8080",
            "label pod ops/shell with role=x",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{port: 80}]}]}",
            "ops/shell shop/web 8080",
            r#"add to spec.ingress[0].ports: {"port":8080,"protocol":"TCP"}"#,
        ),
        (
            "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]}",
            "shop/client shop/web 8080",
            r#"add to spec.ingress[0].from: {"podSelector":{"matchLabels":{"app":"client"}}}"#,
        ),
        (
            "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}",
            "8.8.8.8 shop/web 8080",
            r#"add to spec.ingress[0].from: {"ipBlock":{"cidr":"8.8.8.8/32"}}"#,
        ),
        (
            "{podSelector: {}}",
            "ops/bare shop/web 8080",
            r#"add to spec.ingress: {"from":[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"ops"}},"podSelector":{}}],"ports":[{"port":8080,"protocol":"TCP"}]}"#,
        ),
        (
            "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 9.0.0.0/8}}, {ipBlock: {cidr: 8.0.0.0/8}}]}]}",
            "8.8.8.8 shop/web 8080",
            "remove from spec.ingress[0].from: item 1",
        ),
        (
            "{podSelector: {}, ingress: [{ports: [{port: 80}, {port: 8080}]}]}",
            "8.8.8.8 shop/web 8080",
            "remove from spec.ingress[0].ports: item 1",
        ),
        (
            "{podSelector: {}, ingress: [{}]}",
            "8.8.8.8 shop/web 8080",
            "in NetworkPolicy/shop/p remove spec.ingress[0]",
        ),
        (
            "",
            "8.8.8.8 shop/client 8080",
            r#"add NetworkPolicy/shop/deny-ingress, podSelector {"matchLabels":{"app":"client"}}, which closes all ingress"#,
        ),
    ];
    for (policy, question, change) in table {
        says(policy, question, &[change]);
    }
    for question in ["8.8.8.8 9.9.9.9 1", "shop/web shop/web 1"] {
        says("", question, &["no change of a label or a rule, and no new NetworkPolicy, can deny it"]);
    }
}

#[test]
fn a_service_is_explained_endpoint_by_endpoint_with_or_without_an_address() {
    for question in ["ops/shell shop/front 80", "ops/shell 10.96.0.1 80", "ops/shell shop/unassigned 80"] {
        says("", question, &["has 1 ready endpoint: ALLOWED", "10.1.0.1 (pod shop/web), port 8080/TCP"]);
    }
}

#[test]
fn what_cannot_be_answered_says_what_is_wrong() {
    let table = [
        ("web shop/web 80", "SRC: must be namespace/pod or an IP address, got \"web\""),
        (
            "shop/web a/b/c 80",
            "DST: must be namespace/pod, namespace/service or an IP address, got \"a/b/c\"",
        ),
        ("/web shop/web 80", "SRC: must be"),
        ("shop/web shop/ 80", "DST: must be"),
        ("shop/web 10.1.2 80", "DST: must be"),
        ("shop/none shop/web 80", "SRC: no pod shop/none in the manifests"),
        ("shop/web shop/none 80", "DST: no pod or Service shop/none in the manifests"),
        ("shop/front shop/web 80", "SRC: shop/front is a Service; connections come from pods"),
        ("ops/done shop/web 80", "SRC: pod ops/done has no address"),
        ("shop/web ops/done 80", "DST: pod ops/done has no address"),
        ("ops/six shop/web 80", "SRC and DST have no address of the same family"),
        ("ops/six shop/front 80", "SRC and DST have no address of the same family"),
        ("ops/shell shop/front 81", "service shop/front has no port 81/TCP; it has 80/TCP"),
        ("ops/shell shop/unassigned 80/UDP", "has no port 80/UDP; it has 80/TCP 53/UDP"),
        ("ops/shell shop/empty 80", "service shop/empty has no ready endpoint for port 80/TCP"),
        ("shop/web shop/web 0", "PORT: must be 1 to 65535"),
        ("shop/web shop/web 65536", "PORT: must be"),
        ("shop/web shop/web +80", "PORT: must be"),
        ("shop/web shop/web http", "PORT: must be"),
        ("shop/web shop/web 80/ICMP", "PORT: must be"),
        ("shop/web shop/web 80/", "PORT: must be"),
    ];
    for (question, message) in table {
        let error = ask("", question).unwrap_err();
        assert!(error.contains(message), "{question}: {error}");
    }
    assert!(ask("", "shop/web ops/shell 53/udp").is_ok());
}

/// The whole text, as it is printed.
#[test]
fn an_explanation_reads_as_a_whole() {
    let policy = "{podSelector: {matchLabels: {app: web}}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: b}}, podSelector: {matchLabels: {app: x}}}], ports: [{port: http}]}]}";
    let text = ask(policy, "ops/bare shop/web 8080").unwrap().to_string();
    let expected = "\
10.1.1.4 (pod ops/bare) to 10.1.0.1 (pod shop/web), port 8080/TCP: DENIED
  egress: allow, tier Default: no NetworkPolicy isolates the pod for egress
  ingress: deny, tier NetworkPolicy: isolated for ingress, and no rule allows it
    tier NetworkPolicy: decides
      NetworkPolicy/shop/p selects the pod (podSelector: app=web)
        spec.ingress[0], Allow: does not match
          no  from[0]: namespaceSelector matches, podSelector lacks app=x
          yes ports[0]: named port http is 8080/TCP on shop/web
  the smallest change to allow it:
    label pod ops/bare with app=x
";
    assert_eq!(text, expected);
}

/// A policy of the Admin or Baseline tier that speaks about every pod, above or below a closed namespace.
fn ask_tiers(kind: &str, more: &str, rules: &str, closed: bool, question: &str) -> String {
    let version = if kind == "ClusterNetworkPolicy" { "v1alpha2" } else { "v1alpha1" };
    let policy = format!(
        "{{apiVersion: policy.networking.k8s.io/{version}, kind: {kind}, metadata: {{name: default}}, spec: {{{more}subject: {{namespaces: {{}}}}, {rules}}}}}"
    );
    let closing = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: shop}, spec: {podSelector: {}}}";
    let closing = if closed { closing } else { "" };
    let texts = [("c.yaml", CLUSTER), ("t.yaml", policy.as_str()), ("p.yaml", closing)];
    let objects = parse(texts.map(|(path, text)| (Path::new(path), text))).unwrap();
    let snapshot = compile(&objects, &Options::default(), Generation(1));
    let words: Vec<&str> = question.split(' ').collect();
    let question = Question::parse(words[0], words[1], words[2]).unwrap();
    explain(&objects, &snapshot, &question).unwrap().to_string()
}

#[test]
fn each_tier_that_was_passed_is_told_and_the_one_that_decides_can_be_overruled() {
    let shell = "ops/shell shop/web 8080";
    let any = "[{namespaces: {}}]";
    let admin = ("ClusterNetworkPolicy", "tier: Admin, priority: 5, ");
    let baseline = ("BaselineAdminNetworkPolicy", "");
    let ingress = |action: &str| format!("ingress: [{{action: {action}, from: {any}}}]");
    let egress = |rule: &str| format!("egress: [{rule}]");
    type Row<'r> = ((&'r str, &'r str), String, bool, &'r str, &'r [&'r str]);
    let table: [Row<'_>; 9] = [
        (
            admin,
            ingress("Deny"),
            false,
            shell,
            &[
                "ingress: deny, tier Admin: spec.ingress[0] of ClusterNetworkPolicy/default denies it",
                "selects the pod (priority 5, subject: namespaces everything, pods everything)",
                r#"in ClusterNetworkPolicy/default insert before spec.ingress[0]: {"action":"Accept","from":[{"pods":"#,
                r#""protocols":[{"tcp":{"destinationPort":{"number":8080}}}]"#,
            ],
        ),
        (
            admin,
            ingress("Accept"),
            true,
            shell,
            &[
                ": ALLOWED",
                "tier Admin: spec.ingress[0] of ClusterNetworkPolicy/default allows it",
                r#"insert before spec.ingress[0]: {"action":"Deny""#,
            ],
        ),
        (
            admin,
            ingress("Pass"),
            true,
            shell,
            &[
                "tier Admin: spec.ingress[0] of ClusterNetworkPolicy/default passes it on to the next tier",
                "ingress: deny, tier NetworkPolicy: isolated for ingress",
            ],
        ),
        (
            baseline,
            ingress("Deny"),
            false,
            shell,
            &[
                "tier Baseline: spec.ingress[0] of BaselineAdminNetworkPolicy/default denies it",
                r#"{"action":"Allow","from":[{"pods":{"namespaceSelector""#,
                r#""ports":[{"portNumber":{"port":8080,"protocol":"TCP"}}]"#,
            ],
        ),
        (baseline, ingress("Allow"), true, shell, &["ingress: deny, tier NetworkPolicy"]),
        (
            admin,
            egress("{action: Deny, to: [{networks: [8.8.0.0/16]}]}"),
            false,
            "shop/web 8.8.8.8 53/UDP",
            &["networks 8.8.0.0/16 contains 8.8.8.8", r#""to":[{"networks":["8.8.8.8/32"]}]"#],
        ),
        (
            admin,
            egress("{action: Accept, to: [{domainNames: [example.com]}]}"),
            false,
            "shop/web 8.8.8.8 53",
            &[
                "8.8.8.8 is not known to be behind any of its domainNames",
                "tier Admin: no rule of it matches",
            ],
        ),
        (
            admin,
            egress("{action: Deny, to: [{nodes: {}}]}"),
            false,
            "shop/web 192.168.0.1 53",
            &["tier Admin: spec.egress[0] of ClusterNetworkPolicy/default denies it", "nodes matches"],
        ),
        (
            admin,
            egress("{action: Deny, to: [{nodes: {matchLabels: {a: b}}}]}"),
            false,
            "shop/web 8.8.8.8 53",
            &["nodes matches nodes' addresses only, and 8.8.8.8 is no known pod or node"],
        ),
    ];
    for ((kind, more), rules, closed, question, lines) in table {
        let text = ask_tiers(kind, more, &rules, closed, question);
        for line in lines {
            assert!(text.contains(line), "{rules}\n{question}\nlacks {line:?}:\n{text}");
        }
    }
}

/// Two pods on two of three nodes, behind Services with node ports and outside addresses.
const NODE_PORTS: &str = include_str!("../node_ports.yaml");

fn ask_node_ports(question: &str) -> Result<Explanation, String> {
    let text = format!("apiVersion: v1\nkind: List\nitems:\n{NODE_PORTS}");
    // A pod and a Service of one name.
    let more = "{apiVersion: v1, kind: Pod, metadata: {name: open, namespace: front}, status: {phase: Running, podIP: 10.9.1.9}}";
    let objects = parse([(Path::new("n.yaml"), text.as_str()), (Path::new("m.yaml"), more)]).unwrap();
    let snapshot = compile(&objects, &Options::default(), Generation(1));
    let words: Vec<&str> = question.split(' ').collect();
    let question = Question::parse(words[0], words[1], words[2]).map_err(|error| error.to_string())?;
    explain(&objects, &snapshot, &question).map_err(|error| error.to_string())
}

#[test]
fn whatever_leads_to_a_service_is_explained_endpoint_by_endpoint() {
    for destination in ["172.18.0.13 30090", "198.51.100.7 80", "198.51.100.8 80", "service/front/open 80"] {
        let explanation = ask_node_ports(&format!("203.0.113.10 {destination}")).unwrap();
        assert!(!explanation.is_allowed(), "{destination}");
        let text = explanation.to_string();
        assert!(
            text.starts_with("service front/open has 2 ready endpoints: DENIED"),
            "{destination}: {text}"
        );
        assert_eq!(
            text.contains("address of m3 in place of the client's"),
            destination.contains("30090"),
            "{text}"
        );
    }
    let local = |node: u8| ask_node_ports(&format!("203.0.113.10 172.18.0.1{node} 30091"));
    assert!(local(1).unwrap().is_allowed() && !local(2).unwrap().is_allowed());
    assert!(local(3).unwrap_err().ends_with("on m3 (externalTrafficPolicy: Local)"));
}

#[test]
fn a_pod_and_a_service_of_one_name_are_told_apart_by_their_kind() {
    let text =
        |destination: &str| ask_node_ports(&format!("203.0.113.10 {destination} 80")).unwrap().to_string();
    for destination in ["front/open", "pod/front/open"] {
        assert!(text(destination).contains("to 10.9.1.9 (pod front/open)"), "{destination}");
    }
    assert!(text("front/open").contains("service/front/open has it explained"));
    assert!(!text("pod/front/open").contains("note:"));
    for (question, message) in [
        ("service/front/open front/one 80", "connections come from pods"),
        ("203.0.113.10 pod/front/local 80", "no pod front/local"),
        ("203.0.113.10 service/front/one 80", "no Service front/one"),
        ("203.0.113.10 node/front/one 80", "DST: must be"),
    ] {
        let error = ask_node_ports(question).unwrap_err();
        assert!(error.contains(message), "{question}: {error}");
    }
}

#[test]
fn rules_of_tiers_are_told_with_their_names_and_in_the_words_of_their_kind() {
    let policy = |kind: &str, version: &str, spec: &str| {
        format!(
            "{{apiVersion: policy.networking.k8s.io/{version}, kind: {kind}, metadata: {{name: t}}, spec: {spec}}}"
        )
    };
    let rule =
        |action: &str| format!("{{name: \"web, for all\", action: {action}, from: [{{namespaces: {{}}}}]}}");
    let admin = policy(
        "AdminNetworkPolicy",
        "v1alpha1",
        &format!("{{priority: 1, subject: {{namespaces: {{}}}}, ingress: [{}]}}", rule("Allow")),
    );
    let cluster = policy(
        "ClusterNetworkPolicy",
        "v1alpha2",
        &format!(
            "{{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{}]}}",
            rule("Accept")
        ),
    );
    for (policy, word) in [(admin, "Allow"), (cluster, "Accept")] {
        let objects =
            parse([(Path::new("c.yaml"), CLUSTER), (Path::new("t.yaml"), policy.as_str())]).unwrap();
        let snapshot = compile(&objects, &Options::default(), Generation(1));
        let question = Question::parse("ops/shell", "shop/web", "8080").unwrap();
        let text = explain(&objects, &snapshot, &question).unwrap().to_string();
        assert!(text.contains(&format!("spec.ingress[0] (\"web, for all\"), {word}: matches")), "{text}");
        assert!(text.contains("spec.ingress[0] (\"web, for all\") of "), "{text}");
    }
}
