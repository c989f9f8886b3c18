//! The kernel's settings and tables under /proc, of the network namespace of the calling thread.

use std::fs::File;
use std::io::{self, Read};

/// Settings are short; something else under the same name is not read whole.
const LONGEST_SETTING: u64 = 4 << 10;
const LONGEST_TABLE: u64 = 16 << 20;
/// TCP_LISTEN (include/net/tcp_states.h).
const LISTEN: &str = "0A";

/// A setting under /proc/sys by its path with slashes, such as `net/ipv4/ip_forward`; `None` where the kernel does
/// not have it or does not tell.
pub fn setting(path: &str) -> Option<String> {
    read(&format!("/proc/sys/{path}"), LONGEST_SETTING).map(|text| text.trim().to_owned())
}

/// Not /proc/self/net: that is the namespace of the process's first thread.
fn table(name: &str) -> String {
    read(&format!("/proc/thread-self/net/{name}"), LONGEST_TABLE).unwrap_or_default()
}

fn read(path: &str, limit: u64) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path).ok()?.take(limit).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// The numbers of the netfilter queues that a program reads, in the network namespace of the calling thread; none
/// where the kernel does not tell, as it does to root only.
pub fn bound_queues() -> Vec<u16> {
    queues_read().unwrap_or_default()
}

/// The same, or why the kernel does not tell. One without queues has none that is read. Source: the first column of
/// /proc/net/netfilter/nfnetlink_queue (`seq_show` in nfnetlink_queue.c).
pub(super) fn queues_read() -> io::Result<Vec<u16>> {
    let mut text = Vec::new();
    match File::open("/proc/thread-self/net/netfilter/nfnetlink_queue") {
        Ok(file) => file.take(LONGEST_TABLE).read_to_end(&mut text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    Ok(queues(&String::from_utf8_lossy(&text)))
}

fn queues(text: &str) -> Vec<u16> {
    text.lines().filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
}

/// The tables of the older iptables that are in use in either family.
pub(super) fn legacy_tables() -> [Vec<String>; 2] {
    ["ip_tables_names", "ip6_tables_names"].map(|file| table(file).lines().map(str::to_owned).collect())
}

/// Ports on which something listens that a packet to 127.0.0.1 reaches.
pub(super) fn listening() -> Vec<u16> {
    listeners(&table("tcp"))
}

fn listeners(text: &str) -> Vec<u16> {
    // Addresses are written as the machine keeps them (proc(5), /proc/net/tcp).
    let loopback = format!("{:08X}", u32::from_ne_bytes([127, 0, 0, 1]));
    let port = |line: &str| {
        let mut fields = line.split_whitespace().skip(1);
        let (address, port) = fields.next()?.split_once(':')?;
        let listens = fields.nth(1)? == LISTEN && (address == loopback || address == "00000000");
        listens.then(|| u16::from_str_radix(port, 16).ok()).flatten()
    };
    text.lines().filter_map(port).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queues_and_listeners_are_read_and_nonsense_is_passed_over() {
        assert_eq!(queues(" 1093  12345     0 2 65531     0     0        0  1\n x\n\n70000 1\n"), [1093]);
        let tcp = "  sl  local_address rem_address   st\n   0: 0100007F:3AF5 00000000:0000 0A 00000000:0\n   \
                   1: 00000000:0016 00000000:0000 0A\n   2: 0100007F:0050 0200007F:1234 01\n 3: :: 0A\n4: 0200000A:0051 00000000:0000 0A\n";
        assert_eq!(listeners(tcp), [15093, 22]);
    }

    #[test]
    fn a_setting_that_is_not_there_is_none() {
        assert_eq!(setting("net/ipv4/no_such_setting"), None);
        assert!(setting("net/ipv4/ip_default_ttl").is_some());
    }
}
