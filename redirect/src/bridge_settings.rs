//! The node's settings that stand in the way where pods share a bridge.
//!
//! `bridge-nf-call-iptables` shows frames that cross a bridge to iptables (br_netfilter): the proxy's connections
//! between pods then lose their socket on the way up, and pass unseen. A node without br_netfilter does not have
//! it, and needs nothing. `send_redirects` tells pods of the shorter way across the bridge, and takes the place of
//! the refusal that would be due: both share one limit per host (net/ipv4/route.c, `ip_rt_send_redirect`).
//!
//! Source: Documentation/networking/ip-sysctl.rst.

use std::fs;
use std::io;

/// One of the settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Setting {
    CallIptables,
    CallIp6tables,
    /// For all interfaces; an interface's own value counts as well.
    SendRedirects,
}

impl Setting {
    /// Those that let connections pass unseen.
    pub(crate) const HIDING: [Self; 2] = [Self::CallIptables, Self::CallIp6tables];

    /// What a person calls it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::CallIptables => "net.bridge.bridge-nf-call-iptables",
            Self::CallIp6tables => "net.bridge.bridge-nf-call-ip6tables",
            Self::SendRedirects => "net.ipv4.conf.all.send_redirects",
        }
    }

    fn path(self) -> String {
        format!("/proc/sys/{}", self.name().replace('.', "/"))
    }

    /// Whether it is on, in the network namespace of the calling thread.
    pub(crate) fn is_on(self) -> bool {
        is_on(&self.path())
    }

    /// Turns it on or off.
    pub(crate) fn set(self, on: bool) -> io::Result<()> {
        set(&self.path(), on)
    }
}

/// Whether an interface tells of shorter ways.
pub(crate) fn sends_redirects(interface: &str) -> bool {
    is_on(&own_path(interface))
}

/// Lets an interface tell of shorter ways, or not.
pub(crate) fn send_redirects(interface: &str, on: bool) -> io::Result<()> {
    set(&own_path(interface), on)
}

fn own_path(interface: &str) -> String {
    format!("/proc/sys/net/ipv4/conf/{interface}/send_redirects")
}

fn is_on(path: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|value| value.trim() != "0")
}

fn set(path: &str, on: bool) -> io::Result<()> {
    fs::write(path, if on { "1" } else { "0" })
}
