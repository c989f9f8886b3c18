//! The datapath: turns a pod's connection attempt into a refusal or a carried connection, and a record.

mod config;

pub use config::{ConfigProblem, DenyAction, PortRange, ProxyConfig};
