//! Whether the node speaks IPv6, and whether it carries some that rules without IPv6 do not see.
//!
//! The listener is on `lo`, so that is where IPv6 has to be on. Source: Documentation/networking/ip-sysctl.rst.

use std::fs;

const SETTINGS: &str = "/proc/sys/net/ipv6/conf";

/// Whether the loopback device speaks IPv6; false with `ipv6.disable=1` and with `disable_ipv6` set.
pub(crate) fn is_on() -> bool {
    is_enabled("lo")
}

/// Why, where the rules are without IPv6, connections by it pass unseen; `None` when the node forwards none.
pub(crate) fn passes_unseen() -> Option<String> {
    // What is not forwarded ends on the node itself, to which every pod may speak.
    read("all", "forwarding").filter(|value| value != "0")?;
    let interface = interfaces().find(|name| is_enabled(name))?;
    Some(if is_on() {
        format!(
            "IPv6 is on, on {interface} too, and was off when Sluice started: connections by it pass unseen; start \
             Sluice again"
        )
    } else {
        format!(
            "IPv6 is off on lo and on on {interface}, and is forwarded: connections by it pass unseen; set \
             net.ipv6.conf.lo.disable_ipv6 to 0 and start Sluice again, or net.ipv6.conf.all.forwarding to 0"
        )
    })
}

fn interfaces() -> impl Iterator<Item = String> {
    let names = fs::read_dir(SETTINGS).into_iter().flatten().flatten();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| !matches!(name.as_str(), "all" | "default" | "lo"))
}

fn is_enabled(interface: &str) -> bool {
    read(interface, "disable_ipv6").is_some_and(|value| value == "0")
}

fn read(interface: &str, setting: &str) -> Option<String> {
    Some(fs::read_to_string(format!("{SETTINGS}/{interface}/{setting}")).ok()?.trim().to_owned())
}
