//! What this process may do, bit by bit, whoever's it is.

use std::fs;

/// CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN, CAP_SYS_RESOURCE (include/uapi/linux/capability.h).
pub(crate) const NET_ADMIN: u8 = 12;
pub(crate) const NET_RAW: u8 = 13;
pub(crate) const SYS_ADMIN: u8 = 21;
pub(crate) const SYS_RESOURCE: u8 = 24;

/// A process's effective capabilities.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rights(pub(crate) u64);

impl Rights {
    /// Those of the calling thread; none where they cannot be read. Source: proc(5), /proc/pid/status, CapEff.
    pub(crate) fn own() -> Self {
        let bits = || {
            let status = fs::read_to_string("/proc/thread-self/status").ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        };
        Self(bits().unwrap_or_default())
    }

    /// Whether this capability is among them.
    pub(crate) fn has(self, capability: u8) -> bool {
        self.0 >> capability & 1 == 1
    }
}
