//! Turns `nft -j list table` into what can be compared: the rules without handles and counts, and the sets'
//! elements as addresses.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use serde_json::Value;

use crate::bridges::QUIETED;
use crate::nfnetlink::Nfnetlink;
use crate::pods::{LocalPods, SetElements};
use crate::ruleset::{GATE_HOOKS, TABLE};
use crate::ruleset::{SENDERS, SYN_RATE};
use crate::spec::CreatedBases;
use crate::tool::{ToolError, nft};

/// What the kernel holds of our table.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Listing {
    /// Everything but the sets' elements: table, chains, rules in order, sets' types.
    pub(crate) shape: Vec<Value>,
    /// The sets' elements; `None` when one of them is not a plain address.
    pub(crate) elements: Option<SetElements>,
    /// The marker chains.
    pub(crate) created: CreatedBases,
}

/// Lists our table; `None` when there is none.
pub(crate) async fn list_table() -> Result<Option<Listing>, ToolError> {
    match nft(&["-j", "list", "table", "inet", TABLE], "").await {
        Ok(text) => Ok(parse(&text)),
        Err(ToolError::Failed { message, .. }) if message.contains("No such file or directory") => Ok(None),
        Err(ToolError::Failed { .. }) if !Nfnetlink::kernel_has_nf_tables() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Lists the table of the bridges, elements and all; `None` when there is none, or no such family.
pub(crate) async fn list_bridge_table() -> Option<Vec<Value>> {
    let text = nft(&["-j", "list", "table", "bridge", TABLE], "").await.ok()?;
    let mut listed = objects(&text);
    listed.retain(|object| object.get("metainfo").is_none());
    listed.iter_mut().for_each(forget_the_passing);
    (!listed.is_empty()).then_some(listed)
}

/// The bridges that a listed table keeps in mind for having told of shorter ways.
pub(crate) fn quieted(table: &[Value]) -> BTreeSet<String> {
    let chains = table.iter().filter_map(|object| object["chain"]["name"].as_str());
    chains.filter_map(|name| name.strip_prefix(QUIETED)).map(str::to_owned).collect()
}

/// Which of iptables' bases exist: table `mangle` of `family`, its chain `INPUT`, its chain `FORWARD`.
pub(crate) async fn mangle_exists(family: &str) -> Result<[bool; 3], ToolError> {
    let text = nft(&["-j", "list", "chains", family], "").await?;
    let tables = nft(&["-j", "list", "tables", family], "").await?;
    let has = |text: &str, kind: &str, key: &str, wanted: &str| {
        objects(text).iter().any(|object| {
            let object = &object[kind];
            object[key] == wanted && (kind == "table" || object["table"] == "mangle")
        })
    };
    let [input, forward] = GATE_HOOKS.map(|hook| has(&text, "chain", "name", hook));
    Ok([has(&tables, "table", "name", "mangle"), input, forward])
}

/// Tables and base chains of `family` by name, as nft shows them.
pub(crate) async fn base_chains(family: &str) -> Result<BTreeSet<(String, String)>, ToolError> {
    let text = nft(&["-j", "list", "chains", family], "").await?;
    let name = |object: &Value, key: &str| Some(object["chain"][key].as_str()?.to_owned());
    let chains = objects(&text);
    let based = chains.iter().filter(|object| object["chain"]["hook"].is_string());
    Ok(based.filter_map(|object| Some((name(object, "table")?, name(object, "name")?))).collect())
}

/// The names of the tables of `family`, as nft shows them.
pub(crate) async fn table_names(family: &str) -> Result<BTreeSet<String>, ToolError> {
    let tables = objects(&nft(&["-j", "list", "tables", family], "").await?);
    Ok(tables.iter().filter_map(|object| Some(object["table"]["name"].as_str()?.to_owned())).collect())
}

/// An element of a set of ranges; one of a single address is written as that address.
fn range(member: &Value) -> Option<IpNet> {
    if let Some(address) = member.as_str() {
        return address.parse::<IpAddr>().ok().map(IpNet::from);
    }
    let prefix = member.get("prefix")?;
    let length = prefix.get("len")?.as_u64()?.try_into().ok()?;
    IpNet::new(prefix.get("addr")?.as_str()?.parse().ok()?, length).ok()
}

fn objects(text: &str) -> Vec<Value> {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(mut document)) => match document.remove("nftables") {
            Some(Value::Array(objects)) => objects,
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

fn parse(text: &str) -> Option<Listing> {
    let mut shape = Vec::new();
    let mut pods = LocalPods::default();
    let mut links = BTreeSet::new();
    let mut plain = true;
    let mut created = CreatedBases::default();
    for mut object in objects(text) {
        if object.get("metainfo").is_some() {
            continue;
        }
        if let Some(set) = object.get_mut("set").and_then(Value::as_object_mut) {
            let members = match set.remove("elem") {
                Some(Value::Array(members)) => members,
                _ => Vec::new(),
            };
            let addresses: Option<Vec<IpAddr>> =
                members.iter().map(|member| member.as_str()?.parse().ok()).collect();
            match (set.get("name").and_then(Value::as_str), addresses) {
                // What clients do fills these sets.
                (Some(name), _) if name.starts_with(SYN_RATE) || name.starts_with(SENDERS) => {}
                (Some("pod_links"), _) => {
                    links.extend(members.iter().filter_map(Value::as_str).map(str::to_owned));
                    plain &= links.len() == members.len();
                }
                (Some("pod_ranges4" | "pod_ranges6"), _) => {
                    match members.iter().map(range).collect::<Option<Vec<IpNet>>>() {
                        Some(ranges) => pods.ranges.extend(ranges),
                        None => plain = false,
                    }
                }
                (Some("isolated4" | "isolated6"), Some(addresses)) => pods.isolated.extend(addresses),
                (Some("observed4" | "observed6"), Some(addresses)) => pods.observed.extend(addresses),
                (Some("passed4" | "passed6"), Some(addresses)) => pods.passed.extend(addresses),
                (Some(_), None) => plain = false,
                _ => {}
            }
        }
        if let Some(name) = object["chain"]["name"].as_str() {
            created.note(name);
        }
        forget_the_passing(&mut object);
        shape.push(object);
    }
    // An address in both sets would be told apart from the wanted one by the sets' sizes alone.
    let overlap = pods.isolated.intersection(&pods.observed).next().is_some()
        || pods.passed.iter().any(|pod| pods.isolated.contains(pod) || pods.observed.contains(pod));
    let elements = (plain && !overlap).then(|| SetElements { links, ..SetElements::of(&pods, true) });
    (!shape.is_empty()).then_some(Listing { shape, elements, created })
}

/// Handles change with every replacement, counts with every packet.
fn forget_the_passing(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for passing in ["handle", "packets", "bytes"] {
                fields.remove(passing);
            }
            fields.values_mut().for_each(forget_the_passing);
        }
        Value::Array(values) => values.iter_mut().for_each(forget_the_passing),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = r#"{"nftables": [{"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "sluice", "handle": 3}},
        {"set": {"family": "inet", "name": "isolated4", "table": "sluice", "type": "ipv4_addr", "handle": 7, "elem": ["10.0.0.1", "10.0.0.2"]}},
        {"set": {"family": "inet", "name": "observed6", "table": "sluice", "type": "ipv6_addr", "handle": 8}},
        {"rule": {"family": "inet", "table": "sluice", "chain": "closed", "handle": 12, "expr": [{"counter": {"packets": 5, "bytes": 300}}, {"drop": null}]}}]}"#;

    #[test]
    fn handles_and_counts_are_no_difference() {
        let later = LISTING.replace("\"handle\": 12", "\"handle\": 99").replace("300", "301");
        assert_eq!(parse(LISTING), parse(&later));
    }

    #[test]
    fn a_changed_rule_or_element_is_a_difference() {
        let listing = parse(LISTING).unwrap();
        assert_ne!(listing.shape, parse(&LISTING.replace("drop", "accept")).unwrap().shape);
        assert_ne!(listing.elements, parse(&LISTING.replace("10.0.0.2", "10.0.0.3")).unwrap().elements);
        assert_eq!(listing.shape, parse(&LISTING.replace("10.0.0.2", "10.0.0.3")).unwrap().shape);
    }

    #[test]
    fn ranges_are_read_as_prefixes_and_single_addresses() {
        let listing = r#"{"nftables": [{"set": {"family": "inet", "name": "pod_ranges4", "table": "sluice", "type": "ipv4_addr",
            "flags": ["interval"], "elem": [{"prefix": {"addr": "10.0.1.0", "len": 24}}, "10.9.9.9"]}}]}"#;
        let elements = parse(listing).unwrap().elements.unwrap();
        assert_eq!(
            elements.ranges4,
            ["10.0.1.0/24", "10.9.9.9/32"].map(|range| range.parse().unwrap()).into()
        );
        let odd = listing.replace(r#""10.9.9.9""#, r#"{"range": ["10.9.9.9", "10.9.9.11"]}"#);
        assert_eq!(parse(&odd).unwrap().elements, None);
    }

    #[test]
    fn elements_that_are_not_plain_addresses_are_a_difference() {
        let odd = LISTING.replace("\"10.0.0.2\"", r#"{"prefix": {"addr": "10.0.0.0", "len": 8}}"#);
        assert_eq!(parse(&odd).unwrap().elements, None);
    }
}
