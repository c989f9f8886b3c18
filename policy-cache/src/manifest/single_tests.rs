use super::*;
use crate::compile::compile;
use crate::objects::{Event, Objects};
use crate::options::Options;
use crate::probe::Prober;

/// Three pods of two namespaces, and whatever `extra` adds.
fn cluster(extra: &[(Kind, String)]) -> (Objects, Vec<Reading>) {
    let mut objects = Objects::default();
    let namespaces = ["shop", "other"].map(|name| {
        (Kind::Namespace, format!(r#"{{"metadata":{{"name":"{name}","labels":{{"team":"{name}"}}}}}}"#))
    });
    let pods = [("shop", "web", "10.0.0.1"), ("shop", "db", "10.0.0.2"), ("other", "client", "10.0.0.3")]
        .map(|(namespace, name, ip)| {
            (
                Kind::Pod,
                format!(
                    r#"{{"metadata":{{"name":"{name}","namespace":"{namespace}","labels":{{"app":"{name}"}}}},
                    "spec":{{"nodeName":"n"}},"status":{{"phase":"Running","podIP":"{ip}"}}}}"#
                ),
            )
        });
    let mut readings = Vec::new();
    for (kind, json) in namespaces.iter().chain(&pods).chain(extra) {
        let reading = read_object(json.as_bytes(), Some(*kind));
        if let Some(object) = reading.object.clone() {
            objects.apply(Event::Put(object));
        }
        readings.push(reading);
    }
    (objects, readings.split_off(5))
}

fn allows(objects: &Objects, src: &str, dst: &str, port: u16) -> bool {
    let snapshot = compile(objects, &Options::default(), flow::Generation(1));
    let probe = format!(
        r#"{{"id":"x","src":{{"pod":"{src}"}},"dst":{{"pod":"{dst}"}},"port":{port},"protocol":"TCP"}}"#
    );
    let answer = Prober::new(objects, std::sync::Arc::new(snapshot)).answer(&probe);
    let line = serde_json::to_value(&answer).unwrap();
    match line["verdict"].as_str() {
        Some("allow") => true,
        Some("deny") => false,
        _ => panic!("{line}"),
    }
}

const NP: Kind = Kind::Policy(PolicyKind::NetworkPolicy);
const CNP: Kind = Kind::Policy(PolicyKind::ClusterNetworkPolicy);

fn np(name: &str, spec: &str) -> (Kind, String) {
    (NP, format!(r#"{{"metadata":{{"name":"{name}","namespace":"shop"}},"spec":{spec}}}"#))
}

fn cnp(name: &str, spec: &str) -> (Kind, String) {
    (CNP, format!(r#"{{"metadata":{{"name":"{name}"}},"spec":{spec}}}"#))
}

/// To shop/web and shop/db from other/client at 80 and 81, and from shop/web to other/client at 80.
fn table(policies: &[(Kind, String)]) -> [bool; 5] {
    let (objects, readings) = cluster(policies);
    for (reading, (_, json)) in readings.iter().zip(policies) {
        assert!(reading.object.is_some() && reading.key.is_some(), "{json}");
    }
    [
        allows(&objects, "other/client", "shop/web", 80),
        allows(&objects, "other/client", "shop/web", 81),
        allows(&objects, "other/client", "shop/db", 80),
        allows(&objects, "other/client", "shop/db", 81),
        allows(&objects, "shop/web", "other/client", 80),
    ]
}

const OPEN: [bool; 5] = [true; 5];
const SHOP_CLOSED: [bool; 5] = [false, false, false, false, false];

#[test]
fn a_broken_network_policy_isolates_what_it_selects_and_its_broken_rule_allows_nothing() {
    let from =
        |rules: &str| format!(r#"{{"podSelector":{{"matchLabels":{{"app":"web"}}}},"ingress":[{rules}]}}"#);
    let cases = [
        // One bad peer or port breaks its whole rule.
        (
            from(r#"{"from":[{"namespaceSelector":{}},{"ipBlock":{"cidr":"x"}}]}"#),
            [false, false, true, true, true],
        ),
        (from(r#"{"ports":[{"port":80},{"port":70000}]}"#), [false, false, true, true, true]),
        (from(r#"{"frm":[]}"#), [false, false, true, true, true]),
        (from(r#"{"ports":[{"port":80,"protocol":"ICMP"}]}"#), [false, false, true, true, true]),
        (from(r#""all""#), [false, false, true, true, true]),
        (
            from(
                r#"{"from":[{"namespaceSelector":{"matchExpressions":[{"key":"team","operator":"Near","values":["a"]}]}}]}"#,
            ),
            [false, false, true, true, true],
        ),
        // The others stay.
        (from(r#"{"ports":[{"port":0}]},{"ports":[{"port":81}]}"#), [false, true, true, true, true]),
        // What is no list has no rule.
        (r#"{"podSelector":{},"ingress":{}}"#.to_owned(), [false, false, false, false, true]),
        (r#"{"podSelector":{},"egress":"x"}"#.to_owned(), SHOP_CLOSED),
        // An unreadable selector: every pod of the namespace, and no rule is believed.
        (
            r#"{"podSelector":{"matchLabels":{"app":5}},"ingress":[{}]}"#.to_owned(),
            [false, false, false, false, true],
        ),
        (r#"{"podSelector":["x"],"ingress":[{}]}"#.to_owned(), [false, false, false, false, true]),
        // Unreadable policyTypes: both directions.
        (r#"{"podSelector":{},"policyTypes":["Sideways"]}"#.to_owned(), SHOP_CLOSED),
        (r#"{"podSelector":{},"policyTypes":"Ingress"}"#.to_owned(), SHOP_CLOSED),
        (
            r#"{"podSelector":{},"policyTypes":["Ingress",7],"ingress":[{}]}"#.to_owned(),
            [true, true, true, true, false],
        ),
        // A field that is not known may be any other, misspelt.
        (r#"{"podSelecter":{"matchLabels":{"app":"web"}},"ingress":[{}]}"#.to_owned(), SHOP_CLOSED),
        (
            r#"{"podSelector":{"matchLabels":{"app":"web"}},"egres":[]}"#.to_owned(),
            [false, false, true, true, false],
        ),
        (r#"17"#.to_owned(), SHOP_CLOSED),
    ];
    for (spec, expected) in cases {
        let policy = np("p", &spec);
        assert_eq!(table(std::slice::from_ref(&policy)), expected, "{spec}");
        let (_, readings) = cluster(&[policy]);
        assert!(!readings[0].problems.is_empty(), "{spec}");
        assert!(readings[0].problems[0].to_string().starts_with("NetworkPolicy/shop/p: "), "{spec}");
    }
    assert_eq!(table(&[np("p", r#"{"podSelector":{"matchLabels":{"app":"web"}},"ingress":[{}]}"#)]), OPEN);
}

#[test]
fn a_broken_rule_keeps_the_numbers_of_the_others() {
    let policy = np("p", r#"{"podSelector":{},"ingress":[{"ports":[{"port":0}]},{"ports":[{"port":81}]}]}"#);
    let (objects, _) = cluster(&[policy]);
    let snapshot = compile(&objects, &Options::default(), flow::Generation(1));
    let answer = Prober::new(&objects, std::sync::Arc::new(snapshot)).answer(
        r#"{"id":"x","src":{"pod":"other/client"},"dst":{"pod":"shop/web"},"port":81,"protocol":"TCP"}"#,
    );
    let line = serde_json::to_value(&answer).unwrap();
    assert_eq!(line["ingress"]["policies"][0], "NetworkPolicy/shop/p#1");
}

#[test]
fn in_a_broken_tier_policy_an_accept_matches_nothing_and_a_deny_or_pass_denies() {
    let closed_web = np("web", r#"{"podSelector":{"matchLabels":{"app":"web"}}}"#);
    let spec = |subject: &str, rule: &str| {
        format!(r#"{{"tier":"Admin","priority":10,"subject":{subject},"ingress":[{rule}]}}"#)
    };
    let web = r#"{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"web"}}}}"#;
    let accept_all = r#"{"action":"Accept","from":[{"namespaces":{}}]}"#;
    let shop_in_closed = [false, false, false, false, true];
    let web_closed = [false, false, true, true, true];
    let cases = [
        // Good ones first: that the table can tell.
        (spec(web, accept_all), OPEN),
        (spec(web, r#"{"action":"Deny","from":[{"namespaces":{"matchLabels":{"team":"x"}}}]}"#), web_closed),
        // A broken Accept.
        (spec(web, r#"{"action":"Accept","from":[{"namespaces":{"matchLabels":{"a b":"x"}}}]}"#), web_closed),
        (
            spec(
                web,
                r#"{"action":"Accept","from":[{"namespaces":{}}],"protocols":[{"tcp":{"destinationPort":{"number":0}}}]}"#,
            ),
            web_closed,
        ),
        (spec(web, r#"{"action":"Accept","from":[]}"#), web_closed),
        // An unreadable subject: nothing is accepted, what is denied is denied for all.
        (spec(r#"{"pods":7}"#, accept_all), web_closed),
        (
            spec(
                r#"{"pods":7}"#,
                r#"{"action":"Deny","from":[{"namespaces":{"matchLabels":{"team":"other"}}}]}"#,
            ),
            shop_in_closed,
        ),
        (
            spec(
                r#"{"pods":7}"#,
                r#"{"action":"Pass","from":[{"namespaces":{"matchLabels":{"team":"other"}}}]}"#,
            ),
            shop_in_closed,
        ),
        // An unreadable place in the order.
        (format!(r#"{{"tier":"Top","priority":1,"subject":{web},"ingress":[{accept_all}]}}"#), web_closed),
        (
            format!(r#"{{"tier":"Admin","priority":5000,"subject":{web},"ingress":[{accept_all}]}}"#),
            web_closed,
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(table(&[closed_web.clone(), cnp("c", &spec)]), expected, "{spec}");
    }
    let db = r#"{"pods":{"namespaceSelector":{},"podSelector":{"matchLabels":{"app":"db"}}}}"#;
    let db_closed = [true, true, false, false, true];
    let cases = [
        // A broken Deny or Pass, and a rule whose action is unknown.
        (spec(db, r#"{"action":"Deny","from":[{"namespaces":{"matchLabels":{"a b":"x"}}}]}"#), db_closed),
        (
            spec(
                db,
                r#"{"action":"Pass","from":[{"namespaces":{}}],"protocols":[{"tcp":{"destinationPort":{"number":0}}}]}"#,
            ),
            db_closed,
        ),
        (spec(db, r#"{"action":"Log","from":[{"namespaces":{}}]}"#), db_closed),
        (spec(db, r#""x""#), db_closed),
        // It denies what it could: its peers are known.
        (
            spec(
                db,
                r#"{"action":"Deny","from":[{"namespaces":{"matchLabels":{"team":"x"}}}],"protocols":7}"#,
            ),
            OPEN,
        ),
        (format!(r#"{{"tier":"Admin","priority":1,"subject":{db},"ingress":"x"}}"#), db_closed),
        (format!(r#"{{"tier":"Admin","priority":1,"subject":{db},"ingres":[],"egress":[]}}"#), db_closed),
        ("7".to_owned(), [false; 5]),
    ];
    for (spec, expected) in cases {
        assert_eq!(table(&[cnp("c", &spec)]), expected, "{spec}");
    }
}

#[test]
fn only_a_policy_comes_out_of_a_broken_object() {
    let cases: [(Kind, &str); 5] = [
        (Kind::Pod, r#"{"metadata":{"name":"a","namespace":"b"},"status":{"podIP":"x"}}"#),
        (Kind::Namespace, r#"{"metadata":{"name":"b","labels":{"a b":""}}}"#),
        (Kind::Node, r#"{"metadata":{"name":"n"},"spec":{"podCIDR":"x"}}"#),
        (Kind::Service, r#"{"metadata":{"name":"s","namespace":"b"},"spec":{"ports":[{"port":0}]}}"#),
        (Kind::EndpointSlice, r#"{"metadata":{"name":"s","namespace":"b"},"ports":[{"port":-1}]}"#),
    ];
    for (kind, json) in cases {
        let reading = read_object(json.as_bytes(), Some(kind));
        assert_eq!(reading.object, None, "{json}");
        assert_eq!(reading.key.map(|key| key.kind), Some(kind), "{json}");
        assert_eq!(reading.problems.len(), 1, "{json}");
    }
}

#[test]
fn json_that_breaks_off_still_says_whose_it_was() {
    let json = br#"{"metadata":{"namespace":"shop","name":"p"},"spec":{"podSelector":"#;
    let reading = read_object(json, Some(NP));
    assert_eq!(reading.key.unwrap().to_string(), "NetworkPolicy/shop/p");
    let Some(Object(Entity::NetworkPolicy(policy))) = reading.object else { panic!() };
    assert!(policy.pod_selector.is_everything());
    assert_eq!((policy.ingress, policy.egress), (Some(vec![]), Some(vec![])));
    let reading = read_object(br#"{"spec":{},"metadata":"#, Some(NP));
    assert_eq!((reading.key, reading.object), (None, None));
    assert_eq!(reading.problems.len(), 1);
}

#[test]
fn hostile_json_is_refused_within_bounds() {
    let deep = format!(
        r#"{{"metadata":{{"name":"p","namespace":"s"}},"spec":{}1{}}}"#,
        "[".repeat(500),
        "]".repeat(500)
    );
    let wide = format!(
        r#"{{"metadata":{{"name":"p","namespace":"s"}},"spec":[{}0]}}"#,
        "0,".repeat(prune::MAX_VALUES)
    );
    let twice = r#"{"metadata":{"name":"p","namespace":"s"},"spec":{},"spec":{}}"#.to_owned();
    for json in [deep, wide, twice] {
        let reading = read_object(json.as_bytes(), Some(NP));
        assert_eq!(reading.problems.len(), 1);
        assert!(reading.object.is_some());
    }
    // What is not read may be as deep as the parser bears, and costs nothing.
    let json = format!(
        r#"{{"metadata":{{"name":"p","namespace":"s","managedFields":[{}0]}}}}"#,
        "0,".repeat(prune::MAX_VALUES)
    );
    assert_eq!(read_object(json.as_bytes(), Some(Kind::Pod)).problems, []);
}

#[test]
fn pruning_leaves_what_manifests_say() {
    let json = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a","namespace":"b","uid":"u","labels":{"x":"y"},
        "managedFields":[{"manager":"m"}],"creationTimestamp":"2026-01-01T00:00:00Z",
        "ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"r","controller":true,"uid":"z"}]},
        "spec":{"nodeName":"n","hostNetwork":false,"volumes":[{"name":"v"}],
          "containers":[{"name":"c","env":[{"name":"e","value":"v"}],"ports":[{"name":"http","containerPort":80}]}],
          "initContainers":[{"name":"i","restartPolicy":"Always","ports":[{"name":"side","containerPort":81}]}]},
        "status":{"phase":"Running","podIP":"10.0.0.1","podIPs":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],"hostIP":"1.2.3.4",
          "hostIPs":[{"ip":"1.2.3.4"}],"conditions":[{"type":"Ready","status":"True","reason":"r"}]}}"#;
    let pruned = read_object(json.as_bytes(), Some(Kind::Pod));
    let whole = read_object(json.as_bytes(), None);
    assert_eq!(pruned, whole);
    assert!(pruned.object.is_some());
}

#[test]
fn pruning_a_service_leaves_every_way_to_it() {
    let json = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"a","namespace":"b"},
        "spec":{"type":"LoadBalancer","clusterIP":"10.1.0.1","clusterIPs":["10.1.0.1"],"externalIPs":["198.51.100.1"],
          "externalTrafficPolicy":"Local","internalTrafficPolicy":"Cluster","selector":{"app":"a"},
          "ports":[{"name":"http","port":80,"targetPort":8080,"nodePort":30080}]},
        "status":{"loadBalancer":{"ingress":[{"ip":"198.51.100.2","ipMode":"VIP"},{"hostname":"a.example"}]}}}"#;
    let pruned = read_object(json.as_bytes(), Some(Kind::Service));
    assert_eq!(pruned, read_object(json.as_bytes(), None));
    let Some(Object(Entity::Service(service))) = pruned.object else { panic!("{:?}", pruned.problems) };
    let outside: [std::net::IpAddr; 2] = ["198.51.100.1", "198.51.100.2"].map(|ip| ip.parse().unwrap());
    assert_eq!(service.outside_ips.into_iter().collect::<Vec<_>>(), outside);
}
