//! Collections of which a changed copy shares all but a few parts with the one before: what snapshots are
//! made of. A part is copied only when somebody else still has it.

mod chunks;
mod set;
mod table;

pub(crate) use chunks::Chunks;
pub(crate) use set::Set;
pub(crate) use table::{Table, key_of_ip};
