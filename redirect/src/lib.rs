//! Turns the interception a node wants, as a value, into kernel state: one nftables table replaced in one
//! transaction, one routing rule and one route per address family, and, where the kernel has no nft `queue`,
//! one iptables chain.
//!
//! [`ruleset()`] and [`delta`] are pure: no clock, no I/O, no lock. [`Redirect::start`] applies and keeps what
//! they say; [`cleanup()`] takes it away. Nothing outside the table `inet sluice`, the configured mark bits,
//! routing table and rule, and the chain `SLUICE-GATE` is changed.

mod accounting;
mod cleanup;
mod config;
mod datagrams;
mod first_packet;
mod gate;
mod guard;
mod kernel;
mod listing;
mod marks;
mod nfnetlink;
mod pods;
mod probe;
mod routes;
mod ruleset;
mod tool;

pub use cleanup::{CleanupError, CleanupErrors, CleanupReport, cleanup};
pub use config::{BackendChoice, ConfigProblem, FailMode, Icmp, RedirectConfig};
pub use guard::{GuardEnded, Health, Redirect, RedirectHandle};
pub use kernel::InstallError;
pub use marks::{Marks, MarksError};
pub use pods::{LocalPods, delta};
pub use probe::{Capabilities, MissingPart, MissingParts, probe};
pub use routes::RouteError;
pub use ruleset::{CreatedBases, GateBackend, GateScripts, RedirectSpec, Ruleset, ruleset};
pub use tool::ToolError;
