//! The budget of pairs, and what is named.

use flow::{Labels, Owner, Pod, Uid, Workload};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

use super::*;

fn pod(namespace: &str, owner: Option<&str>, name: &str) -> Endpoint {
    let owner = owner.map(|name| Owner { kind: "Deployment".into(), name: name.into() });
    let workload =
        Workload { namespace: namespace.into(), labels: Labels::from_iter([("secret", "value")]), owner };
    Endpoint::Pod(Arc::new(Pod {
        workload: Arc::new(workload),
        name: name.into(),
        uid: Uid::default(),
        node: None,
        local: true,
    }))
}

fn pairs(named: Named, max_pairs: usize) -> Pairs {
    Pairs::new(&MetricsConfig { pairs: named, max_pairs })
}

fn open(pairs: &Pairs, source: &Endpoint, destination: &Endpoint, now: u64) {
    pairs.count((source, destination), now, |counts| {
        counts.opened.fetch_add(1, Ordering::Relaxed);
    });
}

fn scrape(pairs: &Pairs) -> String {
    let mut registry = Registry::default();
    registry.sub_registry_with_prefix("sluice").register_collector(Box::new(pairs.clone()));
    let mut text = String::new();
    encode(&mut text, &registry).unwrap();
    text
}

/// The samples of opened connections that are not 0, without the family's name.
fn opened(pairs: &Pairs) -> Vec<String> {
    let text = scrape(pairs);
    let samples = text.lines().filter_map(|line| line.strip_prefix("sluice_pair_connections_opened_total"));
    samples.filter(|sample| !sample.ends_with(" 0")).map(str::to_owned).collect()
}

#[test]
fn a_pair_is_named_as_closely_as_the_configuration_asks_and_no_closer() {
    let (web, lone) = (pod("shop", Some("web"), "web-1"), pod("lab", None, "lone"));
    let node = Endpoint::Node { name: "n1".into(), own: true };
    let series = |source: (&str, &str), destination: (&str, &str)| {
        format!(
            "{{source_namespace=\"{}\",source_workload=\"{}\",destination_namespace=\"{}\",\
             destination_workload=\"{}\"}} 1",
            source.0, source.1, destination.0, destination.1
        )
    };
    let table = [
        (Named::Namespaces, series(("shop", ""), ("lab", ""))),
        (Named::Workloads, series(("shop", "Deployment/web"), ("lab", "Pod"))),
        (Named::Pods, series(("shop", "Pod/web-1"), ("lab", "Pod/lone"))),
    ];
    for (named, expected) in table {
        let pairs = pairs(named, 10);
        open(&pairs, &web, &lone, 0);
        assert_eq!(opened(&pairs), [expected], "{named:?}");
        assert!(!scrape(&pairs).contains("value"), "a label's value");
        open(&pairs, &node, &Endpoint::External, 0);
        open(&pairs, &Endpoint::UnknownLocal, &Endpoint::External, 0);
        let all = opened(&pairs);
        assert!(all.contains(&series(("", "node"), ("", "external"))), "{all:?}");
        assert!(all.contains(&series(("", "unknown"), ("", "external"))), "{all:?}");
    }
    assert!(!scrape(&pairs(Named::Workloads, 10)).contains("web-1"));
    let off = pairs(Named::Off, 10);
    open(&off, &web, &lone, 0);
    assert_eq!(scrape(&off), "# EOF\n");
}

#[test]
fn beyond_the_budget_the_pair_other_takes_everything_and_sums_stay_right() {
    let pairs = pairs(Named::Pods, 3);
    let server = pod("shop", Some("web"), "web");
    for round in 0..2 {
        for client in 0..10 {
            open(&pairs, &pod("lab", None, &format!("c{client}")), &server, round);
        }
    }
    let opened = opened(&pairs);
    assert_eq!(opened.len(), 4, "{opened:?}");
    let count = |sample: &String| sample.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap();
    assert_eq!(opened.iter().map(count).sum::<u64>(), 20);
    let text = scrape(&pairs);
    let other = "{source_namespace=\"\",source_workload=\"other\",destination_namespace=\"\",\
                 destination_workload=\"other\"} 14\n";
    assert!(text.contains(other), "{text}");
    assert!(text.contains("sluice_pairs 3\n") && text.contains("sluice_pairs_limit 3\n"), "{text}");
    assert!(text.contains("sluice_pairs_beyond_limit_total 14\n"), "{text}");
}

#[test]
fn a_pair_at_which_nothing_happened_for_an_hour_gives_its_place_up() {
    let pairs = pairs(Named::Pods, 2);
    let [old, busy, new] = ["old", "busy", "new"].map(|name| pod("lab", None, name));
    open(&pairs, &old, &Endpoint::External, 100);
    open(&pairs, &busy, &Endpoint::External, 3_000);
    open(&pairs, &new, &Endpoint::External, 3_600);
    assert!(!scrape(&pairs).contains("Pod/new"));
    open(&pairs, &new, &Endpoint::External, 3_700);
    let text = scrape(&pairs);
    assert!(text.contains("Pod/new") && text.contains("Pod/busy") && !text.contains("Pod/old"), "{text}");
}

#[test]
fn the_pair_other_has_its_series_before_anything_happens() {
    let text = scrape(&pairs(Named::Workloads, 1));
    for family in ["connections_opened", "connections_closed", "connections_denied", "connections_failed"] {
        let start = format!("sluice_pair_{family}_total{{source_namespace=\"\",source_workload=\"other\"");
        assert!(text.contains(&start), "{text}");
    }
    assert_eq!(text.matches("sluice_pair_bytes_total{").count(), 2, "{text}");
}

#[test]
fn a_budget_of_nothing_and_one_without_end_are_refused() {
    for max_pairs in [0, 100_001] {
        let config = MetricsConfig { max_pairs, ..MetricsConfig::default() };
        assert_eq!(config.validate()[0].field, "max_pairs");
    }
    assert_eq!(MetricsConfig::default().validate(), []);
}
