//! What the YAML parser says → a user's words. Its own place is left out: whoever reports has one already.

use std::borrow::Cow;

use serde_saphyr::{Error, MessageFormatter, RenderOptions, SnippetMode, UserMessageFormatter};

/// The message of an error, without its place.
pub(crate) fn message(error: &Error) -> String {
    let mut options = RenderOptions::new(&PlainWords);
    options.snippets = SnippetMode::Off;
    let text = error.render_with_options(options);
    // What stands behind the first place are more places.
    match text.split_once(" at line ") {
        Some((message, _)) => message.to_owned(),
        None => text,
    }
}

struct PlainWords;

impl MessageFormatter for PlainWords {
    fn format_message<'e>(&self, error: &'e Error) -> Cow<'e, str> {
        match error {
            Error::AliasError { error, .. } => self.format_message(error),
            Error::DuplicateMappingKey { key: Some(key), .. } => {
                format!("the key {key} stands twice in one mapping").into()
            }
            Error::DuplicateMappingKey { key: None, .. } => "a key stands twice in one mapping".into(),
            Error::AliasReplayLimitExceeded { max_total_replayed_events: limit, .. } => {
                format!("aliases (*name) repeat more than {limit} values, too many to be meant").into()
            }
            Error::AliasReplayCounterOverflow { .. }
            | Error::AliasExpansionLimitExceeded { .. }
            | Error::AliasReplayStackDepthExceeded { .. } => {
                "aliases (*name) repeat too many values to be meant".into()
            }
            Error::UnknownAnchor { .. } => "an alias (*name) names no anchor (&name) before it".into(),
            Error::RecursiveReferencesRequireWeakTypes { .. } => {
                "an alias (*name) stands inside what it names".into()
            }
            Error::Budget { .. } => "nests too deeply, or is too large to be a manifest".into(),
            Error::ContainerEndMismatch { .. } => "a list or mapping ends that has not begun".into(),
            // A template's {{ value }} reads as a mapping for a key.
            Error::Unexpected { expected: "string scalar", .. } => {
                "a key must be a word (a template has to be rendered first)".into()
            }
            _ => UserMessageFormatter.format_message(error),
        }
    }
}
