//! Settings of this node under which pods' connections cannot be carried.

use std::fs;

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
    ]
    .into_iter()
    .filter_map(|(found, problem)| found.then_some(problem))
    .collect();
    if problems.is_empty() { Ok(()) } else { Err(problems.join("; ")) }
}

/// A setting of the network namespace of this process; `None` where the kernel does not have it.
fn read(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/{name}")).ok()?.trim().parse().ok()
}
