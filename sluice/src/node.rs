//! What of this node keeps its pods from being enforced: settings under which connections cannot be carried or pass by
//! the rules, and a name that is no node's.

use std::fs;

use policy_cache::Snapshot;

/// How many names of other nodes are told.
const MAX_NAMES: usize = 5;

/// The node's settings that stand in the way, each with its remedy; `Ok` when none does.
///
/// Source: Documentation/networking/ip-sysctl.rst.
pub(crate) fn check() -> Result<(), String> {
    let problems: Vec<&str> = [
        (
            read("net/ipv4/tcp_fwmark_accept") == Some(1),
            "net.ipv4.tcp_fwmark_accept=1 gives accepted connections the mark of their SYN, and routes their \
             answers to this node; set it to 0",
        ),
        (
            read("net/ipv4/tcp_syncookies") == Some(2),
            "net.ipv4.tcp_syncookies=2 answers every SYN with a cookie, and such connections never reach the \
             proxy; set it to 1",
        ),
        (
            read("net/ipv4/conf/all/accept_source_route") == Some(1),
            "net.ipv4.conf.all.accept_source_route=1 lets a pod write the way of its packets into them: the rules see \
             where they go first, and not whom they reach; set it to 0",
        ),
        (
            read("net/ipv6/conf/all/seg6_enabled") == Some(1),
            "net.ipv6.conf.all.seg6_enabled=1 lets a pod write the way of its packets into them: the rules see where \
             they go first, and not whom they reach; set it to 0",
        ),
        (
            read("net/ipv6/conf/all/rpl_seg_enabled") == Some(1),
            "net.ipv6.conf.all.rpl_seg_enabled=1 lets a pod write the way of its packets into them: the rules see \
             where they go first, and not whom they reach; set it to 0",
        ),
    ]
    .into_iter()
    .filter_map(|(found, problem)| found.then_some(problem))
    .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// Whether the policy's source names this node at all. One that it does not name has no pods, by mistake or not, and
/// all would pass unseen.
pub(crate) fn named(name: &str, snapshot: &Snapshot) -> Result<(), String> {
    if snapshot.knows_own_node() {
        return Ok(());
    }
    let nodes = snapshot.nodes();
    let mut others: Vec<&str> = nodes.keys().map(|other| &**other).filter(|other| *other != name).collect();
    let more = others.len().saturating_sub(MAX_NAMES);
    others.truncate(MAX_NAMES);
    let others = match (others.is_empty(), more) {
        (true, _) => "none is named at all".to_owned(),
        (false, 0) => format!("the nodes are {}", others.join(", ")),
        (false, _) => format!("the nodes are {} and {more} more", others.join(", ")),
    };
    Err(format!(
        "nothing is enforced for anybody: no Node is called {name:?} and no pod's spec.nodeName says so ({others}); \
         --node takes the node's name in Kubernetes"
    ))
}

/// A setting of the network namespace of this process; `None` where the kernel does not have it.
fn read(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}
