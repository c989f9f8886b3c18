//! The interception for kernels whose nf_tables has no `tproxy`: chains of our own in iptables' tables, sets of
//! ipset. Either variant of iptables will do.
//!
//! iptables has no place behind the translation of destinations where TPROXY may stand. So a SYN is handed to the
//! listener *before* it (`mangle` PREROUTING, -150): TPROXY only gives the packet a socket; translation at -100
//! still rewrites its destination, the gate at INPUT sees the backend, and the accepted socket has the backend's
//! address. What the rules cannot know there is which pod a translated address leads to. They ask once more where
//! it is known, in `mangle` FORWARD: a SYN that comes there to or from a pod of this node was handed to nobody,
//! and is held like the first datagram of a flow; an accepted one is the kernel's to carry.
//!
//! TPROXY drops when nobody listens. That is what closed pods need. For open ones a queue that passes packets on
//! when nobody reads it (`raw` PREROUTING) tells whether a process is there.

mod classify;
mod rules;
mod script;
mod sets;
mod tables;
mod tools;

pub(crate) use rules::{Stale, Version, restore_script};
pub(crate) use sets::replace_script;
pub(crate) use tables::{Look, Noted, Seen, Xtables, noted, remove_all};
pub(crate) use tools::missing_parts;

/// A variant of the iptables tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IptablesVariant {
    /// Over nf_tables.
    Nft,
    /// Over the kernel's older interface, ip_tables.
    Legacy,
}

impl IptablesVariant {
    /// As a part of the tools' names: `iptables-nft-restore`.
    pub fn word(self) -> &'static str {
        match self {
            Self::Nft => "nft",
            Self::Legacy => "legacy",
        }
    }
}

/// What the names of our chains begin with.
pub(crate) const CHAIN_PREFIX: &str = "SLUICE-";
/// What the names of our sets begin with.
pub(crate) const SET_PREFIX: &str = "sluice-";
