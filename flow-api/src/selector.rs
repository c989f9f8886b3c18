//! Label selectors as Kubernetes writes them, over labels with a source in front: `app=web,tier in (a,b),!k8s:old`.

/// Requirements that must all hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    /// Any, when it is left out.
    source: Option<String>,
    key: String,
    needs: Needs,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Needs {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Selector {
    /// Reads a selector; the error says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let parts = parts(text).ok_or_else(|| format!("label selector {text:?}: a bracket is missing"))?;
        parts
            .into_iter()
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(|part| {
                requirement(part).ok_or_else(|| format!("label selector {text:?}: cannot read {part:?}"))
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// True when labels such as `k8s:app=web` satisfy it.
    pub(crate) fn matches(&self, labels: &[String]) -> bool {
        self.0.iter().all(|requirement| requirement.holds(labels))
    }
}

/// What stands between commas outside of brackets; `None` when a bracket has no other.
fn parts(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut is_inside) = (Vec::new(), 0, false);
    for (at, letter) in text.char_indices() {
        match letter {
            '(' if is_inside => return None,
            '(' => is_inside = true,
            ')' if !is_inside => return None,
            ')' => is_inside = false,
            ',' if !is_inside => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!is_inside).then_some(parts)
}

fn requirement(part: &str) -> Option<Requirement> {
    if let Some(key) = part.strip_prefix('!') {
        return named(key.trim(), Needs::Absent);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return named(key.trim(), Needs::NotIn(vec![value.trim().to_owned()]));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return named(key.trim(), Needs::In(vec![value.trim().to_owned()]));
    }
    let Some((key, rest)) = part.split_once(char::is_whitespace) else { return named(part, Needs::Exists) };
    let (word, list) = rest.trim_start().split_once('(')?;
    let values = list.strip_suffix(')')?.split(',').map(|value| value.trim().to_owned()).collect();
    match word.trim() {
        "in" => named(key, Needs::In(values)),
        "notin" => named(key, Needs::NotIn(values)),
        _ => None,
    }
}

fn named(key: &str, needs: Needs) -> Option<Requirement> {
    let (source, key) = match key.split_once(':') {
        Some(("any", key)) => (None, key),
        Some((source, key)) => (Some(source.to_owned()), key),
        None => (None, key),
    };
    let is_key = |letter: char| letter.is_ascii_alphanumeric() || "-_./".contains(letter);
    let is_sound = !key.is_empty() && key.chars().all(is_key);
    is_sound.then(|| Requirement { source, key: key.to_owned(), needs })
}

impl Requirement {
    fn holds(&self, labels: &[String]) -> bool {
        let mut found = labels.iter().filter_map(|label| self.value(label));
        match &self.needs {
            Needs::Exists => found.next().is_some(),
            Needs::Absent => found.next().is_none(),
            Needs::In(values) => found.any(|found| values.iter().any(|value| value == found)),
            Needs::NotIn(values) => !found.any(|found| values.iter().any(|value| value == found)),
        }
    }

    /// The value of a label with this key.
    fn value<'l>(&self, label: &'l str) -> Option<&'l str> {
        let (source, pair) = label.split_once(':')?;
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is_of_source = self.source.as_ref().is_none_or(|wanted| wanted == source);
        (is_of_source && key == self.key).then_some(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels() -> Vec<String> {
        ["k8s:app=web", "k8s:io.kubernetes.pod.namespace=shop", "reserved:host"].map(str::to_owned).to_vec()
    }

    #[test]
    fn selectors_mean_what_kubernetes_means_by_them() {
        for (selector, expected) in [
            ("", true),
            ("app", true),
            ("app=web", true),
            ("app==web", true),
            ("k8s:app=web", true),
            ("any:app=web", true),
            ("container:app=web", false),
            ("app=api", false),
            ("app!=web", false),
            ("app != api", true),
            ("tier!=web", true),
            ("!tier", true),
            ("!app", false),
            ("app in (api, web)", true),
            ("app in (api)", false),
            ("app notin (api,web)", false),
            ("tier notin (a)", true),
            ("reserved:host", true),
            ("reserved:world", false),
            ("app=web,io.kubernetes.pod.namespace in (shop,front)", true),
            ("app=web,tier", false),
        ] {
            assert_eq!(Selector::parse(selector).unwrap().matches(&labels()), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for selector in
            ["app in web", "app in (web", "app in (web))", "in (a)", "=web", "a b", "a\u{0}=b", "((", "!"]
        {
            assert!(Selector::parse(selector).is_err(), "{selector}");
        }
    }
}
