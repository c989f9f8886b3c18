//! What stands around the items of a list → the list's version, and where the next page begins; or that it is no list.

use super::items::Items;
use super::request::{self, Failure};
use crate::objects::Kind;

/// Of a list, or of the mark that ends a streamed one.
pub(crate) const UNVERSIONED: &str = "the list does not say of which version it is";

/// Whether a watch can begin there: 0 is any version, and an empty one the newest, and both would miss what happened
/// since the list.
pub(crate) fn is_version(version: &str) -> bool {
    !matches!(version, "" | "0")
}

/// The list's version, and where the next page begins when there is one. Without `items`, or when it says that it is
/// something else, an answer is no list: it would take away everything there is.
pub(crate) fn end_of_page(items: Items, kind: Kind) -> Result<(String, Option<String>), Failure> {
    #[derive(serde::Deserialize)]
    struct Page {
        #[serde(default)]
        kind: Option<String>,
        metadata: Metadata,
        // Not an Option, for which a field that is missing is one that is null.
        items: serde_json::Value,
    }
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Metadata {
        resource_version: String,
        #[serde(default)]
        r#continue: String,
    }
    let around = items.finish().map_err(|error| Failure::broken(error.to_string()))?;
    let page: Page = serde_json::from_slice(&around).map_err(|error| {
        Failure::broken(format!("the list cannot be read: {}", request::short(&error.to_string())))
    })?;
    if !(page.items.is_null() || page.items.is_array()) {
        return Err(Failure::broken("the list cannot be read: its items are no list"));
    }
    let of_kind = |found: &str| found == "List" || found.strip_suffix("List") == Some(kind.as_str());
    if let Some(found) = page.kind.filter(|found| !of_kind(found)) {
        let (found, kind) = (request::short(&found), kind.as_str());
        return Err(Failure::broken(format!("the answer is a {found:?} and no list of {kind}")));
    }
    if !is_version(&page.metadata.resource_version) {
        return Err(Failure::broken(UNVERSIONED));
    }
    let token = page.metadata.r#continue;
    Ok((page.metadata.resource_version, (!token.is_empty()).then_some(token)))
}
