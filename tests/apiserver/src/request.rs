//! A request's path and query → what it wants.

use std::collections::HashMap;

use crate::store::COLLECTIONS;

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A collection over all namespaces.
    Collection(&'static str),
    /// The versions of an API group.
    Group(String),
    /// The collections of a group and version.
    Version(String),
    /// Anything else, such as one object.
    Other,
}

pub(crate) fn target(path: &str) -> Target {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let (version, plural) = match parts.as_slice() {
        ["api", version, plural] => ((*version).to_owned(), *plural),
        ["apis", group, version, plural] => (format!("{group}/{version}"), *plural),
        ["apis", group, version] => return Target::Version(format!("{group}/{version}")),
        ["apis", group] => return Target::Group((*group).to_owned()),
        _ => return Target::Other,
    };
    COLLECTIONS
        .iter()
        .find(|(known, group, _)| *known == plural && *group == version)
        .map_or(Target::Other, |(known, ..)| Target::Collection(known))
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
