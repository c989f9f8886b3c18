//! The vocabulary of Sluice: who talks to whom, what was decided, how it ended.
//!
//! Every other crate speaks in these types. Only the standard library is used, nothing here performs I/O
//! and nothing consults a clock.

mod address;
mod endpoint;
mod labels;
mod name;
mod outcome;
mod uid;
mod verdict;

pub use address::{ClientAddr, DialedAddr, OrigDst, Protocol, Tuple, UpstreamSource, canonical_ip};
pub use endpoint::{Endpoint, Owner, Pod, Service, Workload};
pub use labels::Labels;
pub use name::PodName;
pub use outcome::{EndCause, Outcome};
pub use uid::Uid;
pub use verdict::{
    Decision, Generation, Policies, PolicyKind, PolicyRef, Reason, SideVerdict, Tier, Verdict,
};
