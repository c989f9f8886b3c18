//! The text of a JSON object → its members as they are written.
//!
//! Only for text that a parser of JSON has taken already: nothing here finds out what is wrong with it.

/// Every member in its order: the key, and the text of the value. Keys that stand twice stand twice here.
pub(super) fn members(object: &str) -> Vec<(String, &str)> {
    let mut found = Vec::new();
    let mut rest = object.trim_start().strip_prefix('{').unwrap_or_default().trim_start();
    while rest.starts_with('"') {
        let (key, after) = rest.split_at(extent(rest));
        let Some(after) = after.trim_start().strip_prefix(':') else { break };
        let after = after.trim_start();
        let (value, after) = after.split_at(extent(after));
        // A key that is text reads as text.
        found.push((serde_json::from_str(key).unwrap_or_default(), value.trim_end()));
        rest = after.trim_start().strip_prefix(',').unwrap_or_default().trim_start();
    }
    found
}

/// The first key that stands twice in an object; none in what is no object.
pub(super) fn twice(object: &str) -> Option<String> {
    let mut seen = std::collections::HashSet::new();
    members(object).into_iter().map(|(key, _)| key).find(|key| !seen.insert(key.clone()))
}

/// How many bytes the value takes that a text begins with.
fn extent(text: &str) -> usize {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for (index, byte) in text.bytes().enumerate() {
        if in_text {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    in_text = false;
                    if depth == 0 {
                        return index + 1;
                    }
                }
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' | b',' | b':' if depth == 0 => return index,
            b'}' | b']' => {
                depth -= 1;
                if depth == 0 {
                    return index + 1;
                }
            }
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn members_are_found_whatever_stands_in_them() {
        let text = r#" { "a" : 1.50 , "b\n":"}\",\"" ,"c":{"d":[1,{"e":2}]} , "a":[ ] } "#;
        let expected = [("a", "1.50"), ("b\n", r#""}\",\"""#), ("c", r#"{"d":[1,{"e":2}]}"#), ("a", "[ ]")];
        assert_eq!(members(text), expected.map(|(key, value)| (key.to_owned(), value)));
        assert_eq!(twice(text), Some("a".to_owned()));
        assert_eq!(members(" {} "), []);
        for text in ["7", "\"{\"", "[{\"a\":1,\"a\":1}]", "null", ""] {
            assert_eq!(twice(text), None, "{text}");
        }
    }

    fn json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r#"[a-c"\\{}\[\],: ]{0,6}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(r#"[a-c"\\{},:]{0,3}"#, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_members_are_those_of_a_parser(value in json(), pretty in any::<bool>()) {
            let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let text = text.unwrap();
            let found: Vec<(String, Value)> = members(&text)
                .into_iter()
                .map(|(key, value)| (key, serde_json::from_str(value).unwrap()))
                .collect();
            let expected: Vec<(String, Value)> =
                value.as_object().cloned().unwrap_or_default().into_iter().collect();
            prop_assert_eq!(found, expected);
            prop_assert_eq!(twice(&text), None);
        }
    }
}
