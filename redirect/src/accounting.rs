//! The node's setting by which conntrack counts packets and bytes, for the records of datagram flows.
//!
//! Source: Documentation/networking/nf_conntrack-sysctl.rst. Entries are counted from their beginning or not at
//! all, so a change concerns new flows only.

use std::fs;
use std::io;

const SETTING: &str = "/proc/sys/net/netfilter/nf_conntrack_acct";

/// What a person calls it.
pub(crate) const NAME: &str = "net.netfilter.nf_conntrack_acct";

/// Whether it is on, in the network namespace of the calling thread.
pub(crate) fn is_on() -> bool {
    fs::read_to_string(SETTING).is_ok_and(|value| value.trim() == "1")
}

/// Turns it on in the network namespace of the calling thread. True when it was off.
pub(crate) fn enable() -> io::Result<bool> {
    if is_on() {
        return Ok(false);
    }
    fs::write(SETTING, "1").map(|()| true)
}

/// Turns it off again.
pub(crate) fn disable() -> io::Result<()> {
    fs::write(SETTING, "0")
}
