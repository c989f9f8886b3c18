//! Three namespaces x, y and z with three pods a, b and c each, and a table of who may reach whom.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use flow::Generation;
use policy_cache::{Affected, LocalPods, Options, Prober, Snapshot, compile, parse};
use serde_json::Value;

/// Pod `a` of `x` has 10.0.1.1 and fd00::1:1, `b` 10.0.1.2, and `a` of `y` 10.0.2.1; all run on node n1 but
/// the pods `c`, which run on n2. All serve 80 and 81 by TCP, UDP and SCTP, only the first by name.
pub(crate) fn base() -> String {
    let mut text = String::new();
    for (number, namespace) in (1..).zip(["x", "y", "z"]) {
        let labels = format!("{{ns: {namespace}}}");
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Namespace, metadata: {{name: {namespace}, labels: {labels}}}}}"
        );
        for (own, pod) in (1..).zip(["a", "b", "c"]) {
            let node = if pod == "c" { "n2" } else { "n1" };
            let ports = "[{name: serve-80-tcp, containerPort: 80}, {name: serve-81-tcp, containerPort: 81}, \
                 {name: serve-80-udp, containerPort: 80, protocol: UDP}]";
            let _ = writeln!(
                text,
                "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {pod}, namespace: {namespace}, labels: {{pod: {pod}}}}}, \
                 spec: {{nodeName: {node}, containers: [{{name: c, ports: {ports}}}]}}, \
                 status: {{phase: Running, podIP: 10.0.{number}.{own}, podIPs: [{{ip: 10.0.{number}.{own}}}, {{ip: \"fd00::{number}:{own}\"}}]}}}}"
            );
        }
    }
    for (name, ip, zone) in [("n1", "192.168.0.1", "east"), ("n2", "192.168.0.2", "west")] {
        let _ = writeln!(
            text,
            "---\n{{apiVersion: v1, kind: Node, metadata: {{name: {name}, labels: {{zone: {zone}}}}}, \
             status: {{addresses: [{{type: InternalIP, address: {ip}}}]}}}}"
        );
    }
    text.push_str(
        "---\n{apiVersion: v1, kind: Service, metadata: {name: a, namespace: x}, \
         spec: {clusterIP: 10.96.0.1, selector: {pod: a}, ports: [{port: 80}]}}\n",
    );
    text
}

/// A policy as a document: NP, CNP, ANP or BANP, its name (with a namespace where the kind has one), its spec.
pub(crate) fn policy(kind: &str, name: &str, spec: &str) -> String {
    let (kind, version) = match kind {
        "CNP" => ("ClusterNetworkPolicy", "policy.networking.k8s.io/v1alpha2"),
        "ANP" => ("AdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
        "BANP" => ("BaselineAdminNetworkPolicy", "policy.networking.k8s.io/v1alpha1"),
        _ => ("NetworkPolicy", "networking.k8s.io/v1"),
    };
    let metadata = match name.split_once('/') {
        Some((namespace, name)) => format!("{{name: {name}, namespace: {namespace}}}"),
        None => format!("{{name: {name}}}"),
    };
    format!("---\napiVersion: {version}\nkind: {kind}\nmetadata: {metadata}\nspec: {spec}\n")
}

/// `x/a y/b 80` or `x/a 8.8.8.8 53/UDP` as a line for `sluice verdict`.
pub(crate) fn probe_line(probe: &str) -> String {
    let [source, destination, port] = probe.split(' ').collect::<Vec<_>>()[..] else { panic!("{probe}") };
    let (port, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
    let end = |text: &str| {
        let key = if text.contains('/') { "pod" } else { "ip" };
        format!("{{\"{key}\":\"{text}\"}}")
    };
    format!(r#"{{"src":{},"dst":{},"port":{port},"protocol":"{protocol}"}}"#, end(source), end(destination))
}

pub(crate) struct Cluster {
    prober: Prober,
    snapshot: Arc<Snapshot>,
}

impl Cluster {
    /// With policies, each a kind, a name (with a namespace where the kind has one) and a spec.
    pub(crate) fn new(policies: &[(&str, &str, &str)]) -> Self {
        Self::with(policies, &Options::default(), &[])
    }

    /// The same after a change of some text of the objects.
    pub(crate) fn relabelled(policies: &[(&str, &str, &str)], from: &str, to: &str) -> Self {
        Self::build(base().replace(from, to), policies, &Options::default(), &[])
    }

    pub(crate) fn with(policies: &[(&str, &str, &str)], options: &Options, names: &[(&str, &str)]) -> Self {
        Self::build(base(), policies, options, names)
    }

    fn build(
        mut text: String,
        policies: &[(&str, &str, &str)],
        options: &Options,
        names: &[(&str, &str)],
    ) -> Self {
        for (kind, name, spec) in policies {
            text.push_str(&policy(kind, name, spec));
        }
        let mut objects =
            parse([(Path::new("c.yaml"), text.as_str())]).unwrap_or_else(|error| panic!("{error}"));
        for (name, ip) in names {
            objects.resolve(name, [ip.parse().unwrap()]);
        }
        let snapshot = Arc::new(compile(&objects, options, Generation(1)));
        Self { prober: Prober::new(&objects, Arc::clone(&snapshot)), snapshot }
    }

    pub(crate) fn affected_since(&self, older: &Self) -> Affected {
        self.snapshot.affected_since(&older.snapshot)
    }

    pub(crate) fn local_pods(&self) -> LocalPods {
        self.snapshot.local_pods()
    }

    /// A probe is `x/a y/b 80` or `x/a 8.8.8.8 53/UDP`.
    pub(crate) fn ask(&self, probe: &str) -> Value {
        serde_json::to_value(self.prober.answer(&probe_line(probe))).unwrap()
    }

    #[track_caller]
    pub(crate) fn allows(&self, probes: &[&str]) -> &Self {
        self.expect("allow", probes)
    }

    #[track_caller]
    pub(crate) fn denies(&self, probes: &[&str]) -> &Self {
        self.expect("deny", probes)
    }

    #[track_caller]
    pub(crate) fn expect(&self, verdict: &str, probes: &[&str]) -> &Self {
        for probe in probes {
            let answer = self.ask(probe);
            assert_eq!(answer["verdict"], verdict, "{probe}: {answer}");
        }
        self
    }
}
