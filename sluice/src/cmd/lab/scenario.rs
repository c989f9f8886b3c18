//! The lab's pods and Services, and for every connection what a reader of the nine example policies expects:
//! written by hand, computed by nothing.

use lab::{Cluster, ClusterBuilder, PodSpec, ServiceSpec, Transport};

macro_rules! example {
    ($name:literal) => {
        ($name, include_str!(concat!("../../../../deploy/examples/", $name)))
    };
}

/// The example policies as shipped, by file name.
pub(super) const EXAMPLES: [(&str, &str); 9] = [
    example!("01-deny-all-traffic-to-an-app.yaml"),
    example!("02-limit-traffic-to-an-app.yaml"),
    example!("03-deny-all-traffic-in-a-namespace.yaml"),
    example!("04-deny-traffic-from-other-namespaces.yaml"),
    example!("05-allow-traffic-from-all-namespaces.yaml"),
    example!("06-allow-traffic-from-a-namespace.yaml"),
    example!("07-allow-traffic-from-some-pods-in-another-namespace.yaml"),
    example!("08-allow-traffic-only-to-a-port.yaml"),
    example!("09-allow-traffic-from-external-clients.yaml"),
];

/// The namespaces that the example files declare themselves.
const DECLARED_BY_EXAMPLES: [&str; 9] =
    ["vault", "books", "locked", "team-a", "commons", "reports", "billing", "sensors", "front"];

/// The port on which the external host serves.
pub(super) const EXTERNAL_PORT: u16 = 80;

/// The pair for the throughput measurement: two pods of one node, no policy selects the server.
pub(super) const BULK_FROM: &str = "dev/impostor";
/// See [`BULK_FROM`].
pub(super) const BULK_TO: (&str, u16) = ("vault/web", 80);

/// What a client dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A pod's own address.
    Pod { pod: &'static str, port: u16 },
    /// A Service's ClusterIP, with the one pod behind it.
    Service { service: &'static str, port: u16, backend: &'static str },
    /// A node's address and NodePort, with the one pod behind it.
    NodePort { node: &'static str, port: u16, backend: &'static str },
    /// The host outside the cluster.
    External,
}

/// What is to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Expect {
    /// Connected, and answered.
    Allowed,
    /// Refused by policy.
    Denied,
    /// Allowed by policy; nobody listens.
    Closed,
}

/// Who decides, and so which record is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// These policies, a matching rule with its number.
    Policies(&'static [&'static str]),
    /// No policy isolates an end in the direction concerned.
    NoPolicy,
    /// A pod's own node: not intercepted, so without a record.
    OwnNode,
}

/// One connection of the table.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    /// The number of the example it belongs to; 0 for none.
    pub(super) example: usize,
    /// A pod, a node or `external`.
    pub(super) from: &'static str,
    pub(super) to: Target,
    pub(super) transport: Transport,
    pub(super) expect: Expect,
    pub(super) rule: Rule,
}

use Expect::{Allowed, Closed, Denied};
use Rule::{NoPolicy, OwnNode, Policies};

const fn case(example: usize, from: &'static str, to: Target, expect: Expect, rule: Rule) -> Case {
    Case { example, from, to, transport: Transport::Tcp, expect, rule }
}

/// The same by UDP.
const fn udp(example: usize, from: &'static str, to: Target, expect: Expect, rule: Rule) -> Case {
    Case { example, from, to, transport: Transport::Udp, expect, rule }
}

const fn pod(pod: &'static str, port: u16) -> Target {
    Target::Pod { pod, port }
}

const fn service(service: &'static str, port: u16, backend: &'static str) -> Target {
    Target::Service { service, port, backend }
}

const fn node_port(node: &'static str, port: u16, backend: &'static str) -> Target {
    Target::NodePort { node, port, backend }
}

/// The truth table. Rows of one example stand together; each has some that are allowed and some that are not.
pub(super) const CASES: &[Case] = &[
    case(1, "prod/worker", pod("vault/db", 5432), Denied, Policies(&["vault/deny-all-to-db"])),
    case(1, "vault/web", pod("vault/db", 5432), Denied, Policies(&["vault/deny-all-to-db"])),
    case(1, "prod/worker", pod("vault/web", 80), Allowed, NoPolicy),
    case(1, "vault/db", pod("vault/web", 80), Allowed, NoPolicy),
    case(1, "prod/worker", pod("vault/web", 81), Closed, NoPolicy),
    udp(1, "prod/worker", pod("vault/db", 53), Denied, Policies(&["vault/deny-all-to-db"])),
    udp(1, "prod/worker", pod("vault/web", 53), Allowed, NoPolicy),
    udp(1, "prod/worker", pod("vault/web", 54), Closed, NoPolicy),
    case(
        2,
        "books/shop",
        service("books/api", 80, "books/api"),
        Allowed,
        Policies(&["books/api-from-books#0"]),
    ),
    case(2, "books/visitor", pod("books/api", 8080), Denied, Policies(&["books/api-from-books"])),
    case(
        2,
        "dev/impostor",
        service("books/api", 80, "books/api"),
        Denied,
        Policies(&["books/api-from-books"]),
    ),
    case(3, "locked/a", pod("locked/b", 80), Denied, Policies(&["locked/default-deny"])),
    case(3, "prod/worker", pod("locked/a", 80), Denied, Policies(&["locked/default-deny"])),
    case(3, "locked/a", pod("vault/web", 80), Allowed, NoPolicy),
    udp(3, "vault/web", pod("locked/b", 53), Denied, Policies(&["locked/default-deny"])),
    case(3, "node1", pod("locked/a", 80), Allowed, OwnNode),
    case(3, "node2", pod("locked/a", 80), Denied, Policies(&["locked/default-deny"])),
    case(
        4,
        "team-a/client",
        service("team-a/web", 80, "team-a/server"),
        Allowed,
        Policies(&["team-a/same-namespace-only#0"]),
    ),
    case(4, "dev/impostor", pod("team-a/server", 80), Denied, Policies(&["team-a/same-namespace-only"])),
    case(
        5,
        "dev/impostor",
        service("commons/web", 80, "commons/web"),
        Allowed,
        Policies(&["commons/web-from-every-namespace#0"]),
    ),
    case(
        5,
        "prod/worker",
        pod("commons/web", 80),
        Allowed,
        Policies(&["commons/web-from-every-namespace#0"]),
    ),
    udp(
        5,
        "dev/impostor",
        service("commons/web", 53, "commons/web"),
        Allowed,
        Policies(&["commons/web-from-every-namespace#0"]),
    ),
    case(
        5,
        "external",
        node_port("node1", 30005, "commons/web"),
        Denied,
        Policies(&["commons/web-from-every-namespace"]),
    ),
    case(6, "prod/worker", pod("reports/db", 5432), Allowed, Policies(&["reports/db-from-production#0"])),
    case(6, "dev/impostor", pod("reports/db", 5432), Denied, Policies(&["reports/db-from-production"])),
    case(7, "ops/monitor", pod("billing/api", 8080), Allowed, Policies(&["billing/api-from-monitoring#0"])),
    case(7, "ops/shell", pod("billing/api", 8080), Denied, Policies(&["billing/api-from-monitoring"])),
    case(7, "dev/impostor", pod("billing/api", 8080), Denied, Policies(&["billing/api-from-monitoring"])),
    case(
        8,
        "sensors/collector",
        pod("sensors/gauge", 5000),
        Allowed,
        Policies(&["sensors/gauge-metrics-only#0"]),
    ),
    case(
        8,
        "sensors/collector",
        pod("sensors/gauge", 8000),
        Denied,
        Policies(&["sensors/gauge-metrics-only"]),
    ),
    // The rule speaks of TCP.
    udp(
        8,
        "sensors/collector",
        pod("sensors/gauge", 5000),
        Denied,
        Policies(&["sensors/gauge-metrics-only"]),
    ),
    case(8, "prod/worker", pod("sensors/gauge", 5000), Denied, Policies(&["sensors/gauge-metrics-only"])),
    case(
        9,
        "external",
        node_port("node1", 30080, "front/web"),
        Allowed,
        Policies(&["front/web-from-everywhere#0"]),
    ),
    case(
        9,
        "prod/worker",
        service("front/web", 80, "front/web"),
        Allowed,
        Policies(&["front/web-from-everywhere#0"]),
    ),
    case(
        9,
        "external",
        node_port("node1", 30090, "front/web"),
        Denied,
        Policies(&["front/default-deny", "front/web-from-everywhere"]),
    ),
    case(
        9,
        "ops/monitor",
        pod("front/web", 9090),
        Denied,
        Policies(&["front/default-deny", "front/web-from-everywhere"]),
    ),
    case(0, "prod/worker", Target::External, Allowed, NoPolicy),
    udp(0, "prod/worker", Target::External, Allowed, NoPolicy),
];

/// Where each server of the lab listens.
pub(super) const SERVERS: &[(&str, &[u16])] = &[
    ("vault/db", &[5432]),
    ("vault/web", &[80]),
    ("books/api", &[8080]),
    ("locked/a", &[80]),
    ("locked/b", &[80]),
    ("team-a/server", &[80]),
    ("commons/web", &[80]),
    ("reports/db", &[5432]),
    ("billing/api", &[8080]),
    ("sensors/gauge", &[5000, 8000]),
    ("front/web", &[8080, 9090]),
];

/// Where each UDP server of the lab listens.
pub(super) const UDP_SERVERS: &[(&str, &[u16])] = &[
    ("vault/db", &[53]),
    ("vault/web", &[53]),
    ("locked/b", &[53]),
    ("commons/web", &[53]),
    ("sensors/gauge", &[5000]),
];

/// The cluster, on two nodes so that every example is met within a node and across.
pub(super) fn cluster() -> ClusterBuilder {
    let on = |node: &str, name: &str| PodSpec::new(name).on(node);
    let builder = Cluster::builder()
        .nodes(2)
        .namespace("prod", &[("purpose", "production")])
        .namespace("dev", &[("purpose", "testing")])
        .namespace("ops", &[("team", "operations")])
        .pod(on("node1", "prod/worker").label("app", "worker").deployment("worker"))
        // Has the labels that the policies of others ask for, in a namespace that they do not mean.
        .pod(on("node2", "dev/impostor").label("app", "books").label("type", "monitoring"))
        .pod(on("node2", "ops/monitor").label("type", "monitoring"))
        .pod(on("node1", "ops/shell").label("type", "shell"))
        .pod(on("node1", "vault/db").label("app", "db").port("sql", 5432))
        .pod(on("node2", "vault/web").label("app", "web").port("http", 80))
        .pod(on("node1", "books/api").label("app", "books").label("role", "api").port("http", 8080))
        .pod(on("node2", "books/shop").label("app", "books").label("role", "shop"))
        .pod(on("node1", "books/visitor").label("app", "visitor"))
        .pod(on("node1", "locked/a").port("http", 80))
        .pod(on("node2", "locked/b").port("http", 80))
        .pod(on("node2", "team-a/server").label("app", "server").port("http", 80))
        .pod(on("node1", "team-a/client").label("app", "client"))
        .pod(on("node1", "commons/web").label("app", "web").port("http", 80))
        .pod(on("node2", "reports/db").label("app", "db").port("sql", 5432))
        .pod(on("node1", "billing/api").label("app", "api").port("http", 8080))
        .pod(on("node2", "sensors/gauge").label("app", "gauge").port("metrics", 5000).port("http", 8000))
        .pod(on("node1", "sensors/collector").label("role", "collector"))
        .pod(on("node1", "front/web").label("app", "web").port("http", 8080).port("debug", 9090))
        .service(ServiceSpec::new("books/api").selector("role", "api").port("http", 80, "http"))
        .service(ServiceSpec::new("team-a/web").selector("app", "server").port("http", 80, "http"))
        .service(
            ServiceSpec::new("commons/web")
                .selector("app", "web")
                .port("http", 80, "http")
                .node_port(30005)
                .port_of(Transport::Udp, "dns", 53, 53),
        )
        .service(
            ServiceSpec::new("front/web")
                .selector("app", "web")
                .port("http", 80, "http")
                .node_port(30080)
                .port("debug", 9090, "debug")
                .node_port(30090),
        );
    DECLARED_BY_EXAMPLES.iter().fold(builder, |builder, name| builder.namespace_declared_elsewhere(name))
}

impl Target {
    /// The pod that is to answer; none outside the cluster.
    pub(super) fn backend(self) -> Option<&'static str> {
        match self {
            Self::Pod { pod, .. } => Some(pod),
            Self::Service { backend, .. } | Self::NodePort { backend, .. } => Some(backend),
            Self::External => None,
        }
    }

    /// As the table names it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Pod { pod, .. } => pod.to_owned(),
            Self::Service { service, .. } => format!("service {service}"),
            Self::NodePort { node, .. } => format!("{node} (NodePort)"),
            Self::External => "external".to_owned(),
        }
    }

    /// The port that is dialled.
    pub(super) fn port(self) -> u16 {
        match self {
            Self::Pod { port, .. } | Self::Service { port, .. } | Self::NodePort { port, .. } => port,
            Self::External => EXTERNAL_PORT,
        }
    }
}

impl Expect {
    /// As the table names it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Denied => "denied",
            Self::Closed => "closed",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    fn documents() -> Vec<Value> {
        EXAMPLES
            .iter()
            .flat_map(|(name, text)| serde_saphyr::from_multiple::<Value>(text).expect(name))
            .collect()
    }

    fn names(kind: &str) -> BTreeSet<String> {
        let of_kind = documents().into_iter().filter(|document| document["kind"] == kind);
        of_kind
            .map(|document| {
                let metadata = &document["metadata"];
                let name = metadata["name"].as_str().unwrap();
                metadata["namespace"].as_str().map_or(name.to_owned(), |ns| format!("{ns}/{name}"))
            })
            .collect()
    }

    #[test]
    fn every_example_has_connections_that_pass_and_connections_that_do_not() {
        for example in 1..=EXAMPLES.len() {
            let rows: Vec<&Case> = CASES.iter().filter(|case| case.example == example).collect();
            assert!(rows.iter().any(|case| case.expect == Allowed), "{example}");
            assert!(rows.iter().any(|case| case.expect == Denied), "{example}");
        }
    }

    #[test]
    fn every_policy_shipped_decides_a_connection_and_every_policy_named_is_shipped() {
        let shipped = names("NetworkPolicy");
        let named: BTreeSet<String> = CASES
            .iter()
            .filter_map(|case| match case.rule {
                Policies(policies) => Some(policies),
                NoPolicy | OwnNode => None,
            })
            .flatten()
            .map(|policy| policy.split('#').next().unwrap().to_owned())
            .collect();
        assert_eq!(shipped, named);
    }

    #[test]
    fn each_example_declares_the_namespace_of_its_policies_and_no_other() {
        for (name, text) in EXAMPLES {
            let documents: Vec<Value> = serde_saphyr::from_multiple(text).unwrap();
            let namespace = &documents[0]["metadata"]["name"];
            assert_eq!(documents[0]["kind"], "Namespace", "{name}");
            assert!(documents[1..].iter().all(|d| d["metadata"]["namespace"] == *namespace), "{name}");
        }
        let declared: BTreeSet<String> = DECLARED_BY_EXAMPLES.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names("Namespace"), declared);
    }
}
