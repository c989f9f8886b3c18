//! Turns the interception a node wants, as a value, into kernel state: one nftables table replaced in one
//! transaction, one routing rule and one route per address family, and, where the kernel has no nft `queue`,
//! one iptables chain. Where pods share a bridge, a second table brings their frames up to the first. On kernels
//! whose nf_tables has no `tproxy`, chains of iptables and sets of ipset take the first table's place (`xtables`).
//!
//! [`ruleset()`] and [`delta`] are pure: no clock, no I/O, no lock. [`Redirect::start`] applies and keeps what
//! they say; [`cleanup()`] takes it away. Nothing outside the tables `inet sluice` and `bridge sluice`, the
//! configured mark bits, routing table and rule, the chains `SLUICE-…`, the sets `sluice-…` and the settings that
//! the configuration names is changed.

mod accounting;
mod bridge_settings;
mod bridges;
mod bypass;
mod cleanup;
mod config;
mod datagrams;
mod first_packet;
mod gate;
mod guard;
mod ipv6;
mod kept;
mod kernel;
mod links;
mod listing;
mod marks;
mod nfnetlink;
mod other_ends;
mod overlays;
mod owners;
mod pod_links;
mod pods;
mod probe;
mod routes;
mod ruleset;
mod spec;
pub mod survey;
mod tool;
mod xtables;

pub use bridges::{HardwareAddr, PodBridge};
pub use bypass::{Bypass, Bypassed};
pub use cleanup::{CleanupError, CleanupErrors, CleanupReport, cleanup};
pub use config::{BackendChoice, ConfigProblem, FailMode, Icmp, RedirectConfig};
pub use guard::{GuardEnded, Health, Redirect, RedirectHandle};
pub use kernel::InstallError;
pub use links::{fits_any, pod_bridges};
pub use marks::{Marks, MarksError};
pub use overlays::Overlays;
pub use owners::Owners;
pub use pods::{LocalPods, delta};
pub use probe::{Capabilities, MissingPart, MissingParts, probe, probe_for};
pub use routes::RouteError;
pub use ruleset::{GateScripts, IptablesScripts, Ruleset, ruleset};
pub use spec::{CreatedBases, GateBackend, RedirectSpec};
pub use tool::ToolError;
pub use xtables::IptablesVariant;
