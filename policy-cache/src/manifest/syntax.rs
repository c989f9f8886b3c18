//! The syntax of names, labels and ports. Source: apimachinery's util/validation.

/// A DNS subdomain (RFC 1123), at most 253 characters: most object names.
pub(crate) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label_part)
}

/// A DNS label (RFC 1123), at most 63 characters: namespaces.
pub(crate) fn is_dns_label(text: &str) -> bool {
    text.len() <= 63 && is_label_part(text)
}

fn is_label_part(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    starts_and_ends(text, allowed) && text.bytes().all(|c| allowed(c) || c == b'-')
}

/// A label key: an optional DNS subdomain and a slash, then a qualified name.
pub(crate) fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified_name(name),
        None => is_qualified_name(text),
    }
}

/// A label value: empty, or a qualified name.
pub(crate) fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_qualified_name(text)
}

fn is_qualified_name(text: &str) -> bool {
    text.len() <= 63
        && starts_and_ends(text, |c| c.is_ascii_alphanumeric())
        && text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.'))
}

/// A port name (RFC 6335): up to 15 of a-z, 0-9 and single hyphens inside, with a letter among them.
pub(crate) fn is_port_name(text: &str) -> bool {
    text.len() <= 15
        && is_label_part(text)
        && !text.contains("--")
        && text.bytes().any(|c| c.is_ascii_lowercase())
}

/// A domain name of at least two labels, `*.` before it for every name below. Source: the pattern of
/// network-policy-api's DomainName.
pub(crate) fn is_domain_pattern(text: &str) -> bool {
    let name = text.strip_prefix("*.").unwrap_or(text);
    let name = name.strip_suffix('.').unwrap_or(name);
    // The pattern's first character comes from `A-z`, which is more than letters.
    let first = |c: u8| matches!(c, b'A'..=b'z') || c.is_ascii_digit();
    let label = |label: &str| match label.as_bytes() {
        [] => false,
        [only] => first(*only),
        [start, within @ .., end] => {
            first(*start)
                && end.is_ascii_alphanumeric()
                && within.iter().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_'))
        }
    };
    name.contains('.') && name.split('.').all(label)
}

fn starts_and_ends(text: &str, with: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|c| with(*c)) && bytes.last().is_some_and(|c| with(*c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_keys_and_values_are_what_the_api_server_takes() {
        for key in ["app", "a.b/c", "kubernetes.io/metadata.name", "A_b-c.9"] {
            assert!(is_label_key(key), "{key}");
        }
        let long = "a".repeat(64);
        for key in ["", "/a", "a/", "a/b/c", "-a", "a-", "A.b/c", "a b", "ä", long.as_str()] {
            assert!(!is_label_key(key), "{key}");
        }
        assert!(is_label_value("") && is_label_value("A.b_c-9"));
        assert!(!is_label_value("-") && !is_label_value("a/b") && !is_label_value(&long));
    }

    #[test]
    fn port_names_have_a_letter_and_at_most_fifteen_characters() {
        for name in ["http", "8080-a", "a", "abcdefghijklmno"] {
            assert!(is_port_name(name), "{name}");
        }
        for name in ["", "80", "-a", "a-", "a--b", "HTTP", "abcdefghijklmnop", "a_b"] {
            assert!(!is_port_name(name), "{name}");
        }
    }

    #[test]
    fn domain_patterns_have_two_labels_and_at_most_a_leading_star() {
        for name in ["example.com", "*.example.com", "A_b.c-d.io.", "1.2", "_dmarc.example.com"] {
            assert!(is_domain_pattern(name), "{name}");
        }
        for name in [
            "", ".", "com", "*.com", "*", "a.*.com", "*a.com", "a..b", "-a.b", "a-.b", "a.b..", "a b.c",
            "ä.b",
        ] {
            assert!(!is_domain_pattern(name), "{name}");
        }
    }

    #[test]
    fn object_names_are_dns_names() {
        assert!(is_subdomain("web-1.example") && is_dns_label("shop"));
        assert!(!is_subdomain("a..b") && !is_subdomain("") && !is_dns_label("a.b") && !is_dns_label("A"));
    }
}
