//! The datapath: turns a pod's connection attempt into a refusal or a carried connection, and a record; and a
//! flow of datagrams into a refusal or a flow that the kernel carries, and a record.
//!
//! `connection.rs` is the life of one connection on one screen; each of its phases is a file. Invariants: an
//! error is never an allow; a connection is registered before the snapshot is read; one connection writes one
//! final record. This crate installs no rules and reads no files.

mod admit;
mod authorize;
mod config;
mod connect;
mod connection;
mod datagram;
mod datapath;
mod descriptors;
mod flows;
mod following;
mod gate;
mod held;
mod hello;
mod listener;
mod packet;
mod pairing;
mod pending;
mod pipes;
mod pump;
mod registry;
mod relay;
mod revoke;
#[cfg(feature = "stages")]
pub mod stages;
mod strays;
mod streams;
mod sys;
mod uncounted;
mod unknown;

pub use config::{ConfigProblem, DenyAction, PortRange, ProxyConfig};
pub use datapath::{DatapathOptions, DrainReport, Failure, Marks, Running, StartError};
pub use gate::GateError;
pub use listener::ListenError;
