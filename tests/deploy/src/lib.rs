//! What the checks of the deployment share: the real tools, what they render, the schemas it is held to, an API
//! server of discovery alone, and a container made from a pod's specification. A panic here is a test's failure
//! report.

pub mod api;
pub mod container;
pub mod render;
pub mod schema;
pub mod tools;
