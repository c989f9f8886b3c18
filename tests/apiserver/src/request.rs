//! A request's path and query → what it wants.

use std::collections::HashMap;

use crate::store::COLLECTIONS;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A collection over all namespaces.
    Collection(&'static str),
    /// One object of a cluster-scoped collection, by its name.
    Object(&'static str, String),
    /// The status of one.
    Status(&'static str, String),
    /// The Events of a namespace.
    Events(String),
    /// The versions of an API group.
    Group(String),
    /// The collections of a group and version.
    Version(String),
    /// Anything else.
    Other,
}

pub(crate) fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let object = |group: &str, version: &str, plural: &str| collection(&format!("{group}/{version}"), plural);
    let (version, plural) = match parts.as_slice() {
        ["apis", "events.k8s.io", "v1", "namespaces", namespace, "events"] => {
            return Target::Events((*namespace).to_owned());
        }
        ["apis", group, version, plural, name, "status"] => {
            let plural = object(group, version, plural);
            return plural.map_or(Target::Other, |plural| Target::Status(plural, (*name).to_owned()));
        }
        ["apis", group, version, plural, name] => {
            let plural = object(group, version, plural);
            return plural.map_or(Target::Other, |plural| Target::Object(plural, (*name).to_owned()));
        }
        ["api", version, plural] => ((*version).to_owned(), *plural),
        ["apis", group, version, plural] => (format!("{group}/{version}"), *plural),
        ["apis", group, version] => return Target::Version(format!("{group}/{version}")),
        ["apis", group] => return Target::Group((*group).to_owned()),
        _ => return Target::Other,
    };
    collection(&version, plural).map_or(Target::Other, Target::Collection)
}

fn collection(version: &str, plural: &str) -> Option<&'static str> {
    let found = COLLECTIONS.iter().find(|(known, group, _)| *known == plural && *group == version);
    found.map(|(known, ..)| *known)
}

pub(crate) fn query(text: &str) -> HashMap<String, String> {
    text.split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), decode(value)))
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let digit = |byte: Option<u8>| byte.and_then(|byte| char::from(byte).to_digit(16));
        bytes.push(match byte {
            b'%' => match (digit(rest.next()), digit(rest.next())) {
                (Some(high), Some(low)) => u8::try_from(high * 16 + low).unwrap_or(b'?'),
                _ => b'?',
            },
            byte => byte,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_apart() {
        assert_eq!(target("/api/v1/pods"), Target::Collection("pods"));
        assert_eq!(
            target("/apis/networking.k8s.io/v1/networkpolicies"),
            Target::Collection("networkpolicies")
        );
        assert_eq!(target("/apis/networking.k8s.io/v1beta1/networkpolicies"), Target::Other);
        assert_eq!(
            target("/apis/policy.networking.k8s.io"),
            Target::Group("policy.networking.k8s.io".into())
        );
        assert_eq!(query("a=x%20y&b=1")["a"], "x y");
    }
}
