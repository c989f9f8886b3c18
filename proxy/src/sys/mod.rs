//! System calls of the datapath. Functions take or own descriptors and cite their manual page; nothing here
//! knows of policies or connections.

pub(crate) mod conntrack;
pub(crate) mod descriptors;
pub(crate) mod diag;
pub(crate) mod icmp;
pub(crate) mod nfqueue;
pub(crate) mod pipe;
pub(crate) mod readiness;
pub(crate) mod tcp;
pub(crate) mod tracked;
