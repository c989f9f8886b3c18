//! One file per subcommand.

pub(crate) mod cleanup;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod graph;
pub(crate) mod lab;
pub(crate) mod lint;
pub(crate) mod observe;
pub(crate) mod rules;
pub(crate) mod run;
pub(crate) mod status;
pub(crate) mod top;
pub(crate) mod verdict;
