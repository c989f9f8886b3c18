//! Reads Pods, Namespaces, Nodes, Services and EndpointSlices, only the fields that decide.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::fields::{self, Name};
use super::misspelt;
use super::policy;
use super::reader::{Cursor, Findings};
use super::tree::Value;
use crate::objects::{
    EndpointSlice, NamedPort, Namespace, Node, Phase, Pod, Service, ServicePort, TargetPort,
};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// What `clusterIP` says for a headless Service.
const HEADLESS: &str = "None";

pub(crate) fn namespace(object: &Cursor, name: Name, findings: &mut Findings) -> Namespace {
    Namespace { name: name.name, labels: fields::metadata_labels(object, findings) }
}

pub(crate) fn pod(object: &Cursor, name: Name, findings: &mut Findings) -> Pod {
    let labels = fields::metadata_labels(object, findings);
    let metadata = object.get("metadata");
    let text = |key: &str, findings: &mut Findings| {
        metadata
            .as_ref()
            .and_then(|metadata| metadata.get_string(key, findings))
            .unwrap_or_default()
            .to_owned()
    };
    let mut pod = Pod {
        namespace: name.namespace,
        name: name.name,
        uid: text("uid", findings),
        labels,
        node: None,
        owner: metadata.as_ref().and_then(|metadata| controller(metadata, findings)),
        host_network: false,
        phase: Phase::Other,
        deleting: !text("deletionTimestamp", findings).is_empty(),
        created: text("creationTimestamp", findings),
        ready: None,
        ips: BTreeSet::new(),
        host_ips: BTreeSet::new(),
        named_ports: Vec::new(),
    };
    if let Some(spec) = object.get_map("spec", findings) {
        pod_spec(&spec, &mut pod, findings);
    }
    if let Some(status) = object.get_map("status", findings) {
        pod_status(&status, &mut pod, findings);
    }
    pod
}

fn pod_spec(spec: &Cursor, pod: &mut Pod, findings: &mut Findings) {
    misspelt::report(spec, &misspelt::POD_SPEC, findings);
    pod.host_network = spec.get("hostNetwork").and_then(|field| field.boolean(findings)).unwrap_or_default();
    pod.node = spec.get_string("nodeName", findings).filter(|node| !node.is_empty()).map(str::to_owned);
    if let Some(list) = spec.get("containers") {
        for container in list.items(findings) {
            misspelt::report(&container, &misspelt::CONTAINER, findings);
            named_ports(&container, pod, findings);
        }
    }
    if let Some(list) = spec.get("initContainers") {
        for container in list.items(findings) {
            misspelt::report(&container, &misspelt::CONTAINER, findings);
            // Only a restartable init container (a sidecar, KEP-753) runs beside the containers.
            if container.get_string("restartPolicy", findings) == Some("Always") {
                named_ports(&container, pod, findings);
            }
        }
    }
    pod.named_ports.sort();
    pod.named_ports.dedup();
}

fn named_ports(container: &Cursor, pod: &mut Pod, findings: &mut Findings) {
    if let Some(list) = container.get("ports") {
        pod.named_ports.extend(fields::container_ports(&list, findings));
    }
}

fn pod_status(status: &Cursor, pod: &mut Pod, findings: &mut Findings) {
    misspelt::report(status, &misspelt::POD_STATUS, findings);
    pod.phase = match status.get_string("phase", findings) {
        Some("Running") => Phase::Running,
        Some("Succeeded" | "Failed") => Phase::Finished,
        None | Some("" | "Pending" | "Unknown") => Phase::Other,
        Some(_) => Phase::Strange,
    };
    pod.ips = addresses(status, "podIP", "podIPs", findings);
    pod.host_ips = addresses(status, "hostIP", "hostIPs", findings);
    if let Some(list) = status.get("conditions") {
        for condition in list.items(findings) {
            if condition.get_string("type", findings) == Some("Ready") {
                pod.ready = Some(condition.get_string("status", findings) == Some("True"));
            }
        }
    }
}

/// The address `one` and the `ip` of each item of `many`.
fn addresses(status: &Cursor, one: &str, many: &str, findings: &mut Findings) -> BTreeSet<IpAddr> {
    let mut found = BTreeSet::new();
    found.extend(fields::optional_address(status, one, findings));
    if let Some(list) = status.get(many) {
        for item in list.items(findings) {
            if !item.is_map() {
                findings.report(&item, "must be a mapping with an ip");
            }
            found.extend(fields::optional_address(&item, "ip", findings));
        }
    }
    found
}

fn controller(metadata: &Cursor, findings: &mut Findings) -> Option<(String, String)> {
    let list = metadata.get("ownerReferences")?;
    let mut controller = None;
    for item in list.items(findings) {
        if item.get("controller").and_then(|field| field.boolean(findings)) == Some(true) {
            let kind = item.get_string("kind", findings);
            let name = item.get_string("name", findings);
            controller = kind.zip(name).map(|(kind, name)| (kind.to_owned(), name.to_owned()));
        }
    }
    controller
}

pub(crate) fn node(object: &Cursor, name: Name, findings: &mut Findings) -> Node {
    let mut node = Node {
        name: name.name,
        labels: fields::metadata_labels(object, findings),
        addresses: BTreeSet::new(),
        pod_cidrs: BTreeSet::new(),
    };
    if let Some(spec) = object.get_map("spec", findings) {
        misspelt::report(&spec, &misspelt::NODE_SPEC, findings);
        if let Some(field) = spec.get("podCIDR")
            && !matches!(&field.node().value, Value::String(text) if text.is_empty())
        {
            node.pod_cidrs.extend(policy::cidr(&field, findings));
        }
        if let Some(list) = spec.get("podCIDRs") {
            for item in list.items(findings) {
                node.pod_cidrs.extend(policy::cidr(&item, findings));
            }
        }
    }
    if let Some(status) = object.get_map("status", findings) {
        misspelt::report(&status, &misspelt::NODE_STATUS, findings);
        if let Some(list) = status.get("addresses") {
            for item in list.items(findings) {
                node.addresses.extend(node_address(&item, findings));
            }
        }
    }
    node
}

/// Host names and DNS names are no addresses.
fn node_address(item: &Cursor, findings: &mut Findings) -> Option<IpAddr> {
    match item.get_string("type", findings)? {
        "InternalIP" | "ExternalIP" => fields::optional_address(item, "address", findings),
        _ => None,
    }
}

pub(crate) fn service(object: &Cursor, name: Name, findings: &mut Findings) -> Service {
    let mut service = Service {
        namespace: name.namespace,
        name: name.name,
        cluster_ips: BTreeSet::new(),
        outside_ips: BTreeSet::new(),
        is_headless: false,
        keeps_to_node: false,
        selector: Default::default(),
        ports: Vec::new(),
    };
    if let Some(status) = object.get_map("status", findings)
        && let Some(balancer) = status.get_map("loadBalancer", findings)
        && let Some(list) = balancer.get("ingress")
    {
        for item in list.items(findings) {
            // One that is reached by a host name has no address.
            service.outside_ips.extend(fields::optional_address(&item, "ip", findings));
        }
    }
    let Some(spec) = object.get_map("spec", findings) else { return service };
    misspelt::report(&spec, &misspelt::SERVICE_SPEC, findings);
    if let Some(list) = spec.get("externalIPs") {
        for item in list.items(findings) {
            service.outside_ips.extend(fields::address(&item, findings));
        }
    }
    service.keeps_to_node = spec.get_string("externalTrafficPolicy", findings) == Some("Local");
    let mut cluster_ip = |field: &Cursor, findings: &mut Findings| match field.string(findings) {
        None | Some("") => {}
        Some(HEADLESS) => service.is_headless = true,
        Some(_) => service.cluster_ips.extend(fields::address(field, findings)),
    };
    if let Some(field) = spec.get("clusterIP") {
        cluster_ip(&field, findings);
    }
    if let Some(list) = spec.get("clusterIPs") {
        for item in list.items(findings) {
            cluster_ip(&item, findings);
        }
    }
    if let Some(map) = spec.get("selector") {
        service.selector = fields::labels(&map, findings);
    }
    if let Some(list) = spec.get("ports") {
        for item in list.items(findings) {
            service.ports.extend(service_port(&item, findings));
        }
    }
    service
}

fn service_port(item: &Cursor, findings: &mut Findings) -> Option<ServicePort> {
    misspelt::report(item, &misspelt::SERVICE_PORT, findings);
    let name = item.get_string("name", findings).unwrap_or_default().to_owned();
    let protocol = fields::protocol(item, findings);
    let Some(field) = item.get("port") else {
        findings.missing(item, "port");
        return None;
    };
    let port = fields::port_number(&field, findings)?;
    let target = match item.get("targetPort") {
        None => TargetPort::Number(port),
        Some(field) if matches!(field.node().value, Value::String(_)) => {
            TargetPort::Named(fields::port_name(&field, findings)?)
        }
        // Zero is what an absent target port becomes in some clients' output.
        Some(field) if matches!(field.node().value, Value::Integer(0)) => TargetPort::Number(port),
        Some(field) => TargetPort::Number(fields::port_number(&field, findings)?),
    };
    let node_port = match item.get("nodePort") {
        None => None,
        Some(field) if matches!(field.node().value, Value::Integer(0)) => None,
        Some(field) => Some(fields::port_number(&field, findings)?),
    };
    Some(ServicePort { name, protocol: protocol?, port, target, node_port })
}

pub(crate) fn endpoint_slice(object: &Cursor, name: Name, findings: &mut Findings) -> EndpointSlice {
    let labels = fields::metadata_labels(object, findings);
    let mut slice = EndpointSlice {
        namespace: name.namespace,
        name: name.name,
        service: labels.get(SERVICE_NAME_LABEL).cloned(),
        ready: Vec::new(),
        ports: Vec::new(),
    };
    if let Some(list) = object.get("ports") {
        for item in list.items(findings) {
            slice.ports.extend(slice_port(&item, findings));
        }
    }
    // Host names are no addresses.
    if object.get_string("addressType", findings) == Some("FQDN") {
        return slice;
    }
    if let Some(list) = object.get("endpoints") {
        for endpoint in list.items(findings) {
            // An unknown condition counts as ready (k8s.io/api/discovery/v1).
            misspelt::report(&endpoint, &misspelt::ENDPOINT, findings);
            let conditions = endpoint.get_map("conditions", findings);
            if let Some(conditions) = &conditions {
                misspelt::report(conditions, &misspelt::ENDPOINT_CONDITIONS, findings);
            }
            let ready = conditions
                .and_then(|conditions| conditions.get("ready").map(|field| field.boolean(findings)))
                .flatten()
                .unwrap_or(true);
            let Some(addresses) = endpoint.get("addresses") else { continue };
            for item in addresses.items(findings) {
                let address = fields::address(&item, findings);
                slice.ready.extend(address.filter(|_| ready));
            }
        }
    }
    slice
}

fn slice_port(item: &Cursor, findings: &mut Findings) -> Option<NamedPort> {
    misspelt::report(item, &misspelt::SLICE_PORT, findings);
    let name = item.get_string("name", findings).unwrap_or_default().to_owned();
    let protocol = fields::protocol(item, findings);
    let number = fields::port_number(&item.get("port")?, findings)?;
    Some(NamedPort { name, protocol: protocol?, number })
}
