//! The `interception:` key of the configuration: whose connections are intercepted besides those of isolated pods,
//! which are intercepted always.

use std::collections::{BTreeMap, BTreeSet};

use flow::Labels;
use serde::{Deserialize, Serialize};

use crate::objects::{Operator, Requirement, Selector};

/// Whose connections are intercepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Interception {
    /// Those of every pod.
    #[default]
    All,
    /// Those of pods to which some policy may deny something. Connections between others are not recorded.
    Isolated,
    /// Those of isolated pods, and of all pods in namespaces with these labels.
    NamespaceSelector(NamespaceSelector),
}

/// A label selector, as Kubernetes writes it; an empty one selects every namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct NamespaceSelector {
    /// Labels that must be there with these values.
    pub match_labels: BTreeMap<String, String>,
    /// More requirements. All must hold.
    pub match_expressions: Vec<Expression>,
}

/// A requirement of a label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Expression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// For `In` and `NotIn`.
    pub values: Vec<String>,
}

/// Something in it that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScopeProblem {
    /// The path below `interception`.
    pub field: String,
    /// The value, as written.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl Interception {
    /// Everything that is wrong with it; empty when it can be used.
    pub fn validate(&self) -> Vec<ScopeProblem> {
        let Self::NamespaceSelector(selector) = self else { return Vec::new() };
        let mut problems = Vec::new();
        let mut report = |field: String, value: &str, problem| {
            problems.push(ScopeProblem { field, value: value.to_owned(), problem });
        };
        for (key, value) in &selector.match_labels {
            if !is_key(key) {
                report("namespaceSelector.matchLabels".to_owned(), key, "is no key of a label");
            }
            if !is_value(value) {
                report(format!("namespaceSelector.matchLabels.{key}"), value, "is no value of a label");
            }
        }
        for (index, expression) in selector.match_expressions.iter().enumerate() {
            let path = |field: &str| format!("namespaceSelector.matchExpressions[{index}].{field}");
            if !is_key(&expression.key) {
                report(path("key"), &expression.key, "is no key of a label");
            }
            match (expression.operator.as_str(), expression.values.is_empty()) {
                ("In" | "NotIn", true) => report(path("values"), "[]", "In and NotIn need values"),
                ("Exists" | "DoesNotExist", false) => {
                    report(
                        path("values"),
                        &expression.values.join(","),
                        "Exists and DoesNotExist take no values",
                    );
                }
                ("In" | "NotIn" | "Exists" | "DoesNotExist", _) => {}
                (other, _) => report(path("operator"), other, "must be In, NotIn, Exists or DoesNotExist"),
            }
            for value in expression.values.iter().filter(|value| !is_value(value)) {
                report(path("values"), value, "is no value of a label");
            }
        }
        problems
    }

    /// What asks a namespace's labels whether its pods are intercepted without being isolated.
    pub(crate) fn test(&self) -> impl Fn(&Labels) -> bool + use<> {
        let selector = match self {
            Self::All => Some(Selector::default()),
            Self::Isolated => None,
            Self::NamespaceSelector(selector) => Some(selector.compiled()),
        };
        move |labels| selector.as_ref().is_some_and(|selector| selector.selects(labels))
    }
}

impl NamespaceSelector {
    /// A requirement that was not validated holds for nothing.
    fn compiled(&self) -> Selector {
        let one = |value: &String| -> BTreeSet<String> { [value.clone()].into() };
        let labels = self
            .match_labels
            .iter()
            .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In(one(value)) });
        let expressions = self.match_expressions.iter().map(|Expression { key, operator, values }| {
            let values: BTreeSet<String> = values.iter().cloned().collect();
            let operator = match operator.as_str() {
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => Operator::In(values),
            };
            Requirement { key: key.clone(), operator }
        });
        Selector { requirements: labels.chain(expressions).collect() }
    }
}

/// Source: apimachinery's validation.IsQualifiedName.
fn is_key(key: &str) -> bool {
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    let is_domain = |prefix: &str| {
        (1..=253).contains(&prefix.len())
            && prefix.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.'))
    };
    !name.is_empty() && is_value(name) && prefix.is_none_or(is_domain)
}

/// Source: apimachinery's validation.IsValidLabelValue.
fn is_value(value: &str) -> bool {
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    value.len() <= 63
        && value.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && ends(value.chars().next())
        && ends(value.chars().last())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: serde_json::Value) -> Interception {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn namespaces_are_in_scope_by_their_labels() {
        let shop: Labels = [("team", "shop")].into_iter().collect();
        let none = Labels::default();
        for (value, of_shop, of_none) in [
            (json!("all"), true, true),
            (json!("isolated"), false, false),
            (json!({"namespaceSelector": {}}), true, true),
            (json!({"namespaceSelector": {"matchLabels": {"team": "shop"}}}), true, false),
            (
                json!({"namespaceSelector": {"matchExpressions": [{"key": "team", "operator": "DoesNotExist"}]}}),
                false,
                true,
            ),
            (
                json!({"namespaceSelector": {"matchExpressions": [
                    {"key": "team", "operator": "NotIn", "values": ["x"]}, {"key": "team", "operator": "Exists"}]}}),
                true,
                false,
            ),
        ] {
            let interception = read(value);
            assert_eq!(interception.validate(), []);
            let test = interception.test();
            assert_eq!((test(&shop), test(&none)), (of_shop, of_none), "{interception:?}");
        }
    }

    #[test]
    fn every_problem_of_a_selector_is_told_at_once() {
        let interception = read(json!({"namespaceSelector": {
        "matchLabels": {"a b": "c", "d": "-"},
        "matchExpressions": [
            {"key": "e", "operator": "In"},
            {"key": "", "operator": "Exists", "values": ["f"]},
            {"key": "g", "operator": "Equals"},
        ]}}));
        let fields: Vec<String> = interception.validate().into_iter().map(|problem| problem.field).collect();
        assert_eq!(
            fields,
            [
                "namespaceSelector.matchLabels",
                "namespaceSelector.matchLabels.d",
                "namespaceSelector.matchExpressions[0].values",
                "namespaceSelector.matchExpressions[1].key",
                "namespaceSelector.matchExpressions[1].values",
                "namespaceSelector.matchExpressions[2].operator",
            ]
        );
    }
}
