//! Records as flows, over the gRPC API that Hubble's CLI, Relay and UI speak: `observer.Observer` and `peer.Peer`.
//!
//! Every flow is made from a line of the records, from the store or live, and from nothing else. A client costs its
//! own thread and its own bounded row; one that reads too slowly is told what it has missed. Nothing here decides,
//! and nothing here is on a connection's way.
//!
//! The schema in `proto/` is our own writing with Hubble's public names and numbers; `generated/` is made from it.

mod config;
mod filter;
mod flow;
mod history;
mod hub;
mod identity;
mod mask;
mod observer;
mod peers;
pub mod proto;
mod selector;
mod server;
mod tls;

pub use config::{ConfigProblem, HubbleConfig, HubbleTls};
pub use peers::Nodes;
pub use server::{FlowApi, ServeError};
pub use tls::TlsError;
