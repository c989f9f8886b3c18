//! The API watch against a server that does everything a server may do.

#![expect(clippy::unwrap_used, reason = "a panic in a test is its failure report")]

mod absurd;
mod failures;
mod halfway;
mod hostile;
mod plain;
mod real;
mod reports;
mod scene;
mod strangers;
