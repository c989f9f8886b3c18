//! What the datapath tests share: a small cluster with Sluice on its node, and ways to see what the two ends
//! of a connection see.

pub mod ends;
pub mod pattern;
pub mod procfs;
pub mod stage;
pub mod syn;
