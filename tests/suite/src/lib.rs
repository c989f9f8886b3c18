//! What the datapath tests share: clusters with Sluice on their nodes, connections seen from both ends, and
//! a look at the packets between them. A panic here is a test's failure report.

pub mod attempts;
pub mod carried;
pub mod cells;
pub mod ends;
pub mod enforced;
pub mod flows;
pub mod forged;
pub mod packets;
pub mod pattern;
pub mod procfs;
pub mod prometheus;
pub mod schema;
pub mod scraped;
pub mod sctp;
pub mod stage;
pub mod syn;
