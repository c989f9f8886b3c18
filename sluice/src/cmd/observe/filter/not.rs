//! `--not` before a filter, in the arguments of the command line before anything else reads them.

use std::ffi::{OsStr, OsString};

use super::Filters;

/// Turns `--not --port 80` into `--port !80`, and `--not --port=80` into `--port=!80`, in the arguments of a command
/// that takes filters. What follows `--` is somebody else's.
pub(crate) fn with_not(arguments: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut arguments = arguments.into_iter();
    let mut turned: Vec<OsString> = arguments.by_ref().take(2).collect();
    if !turned.get(1).is_some_and(|command| ["observe", "top", "graph"].iter().any(|one| command == one)) {
        return turned.into_iter().chain(arguments).collect();
    }
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            turned.push(argument);
            turned.extend(arguments);
            return turned;
        }
        if argument != "--not" {
            turned.push(argument);
            continue;
        }
        match arguments.next() {
            Some(flag) if flag.to_str().is_some_and(can_be_turned_around) => {
                turned.extend(turned_around(&flag, &mut arguments));
            }
            // Said to be missing once the arguments are read.
            other => turned.extend(std::iter::once(argument).chain(other)),
        }
    }
    turned
}

/// True for the flags of filters that have a value which may be one that must not match.
fn can_be_turned_around(flag: &str) -> bool {
    const OTHERS: [&str; 3] = ["not", "min-duration", "min-bytes"];

    let flag = flag.split('=').next().unwrap_or_default();
    let filters = <Filters as clap::Args>::augment_args(clap::Command::new("filters"));
    filters.get_arguments().any(|argument| {
        let long = argument.get_long().filter(|long| !OTHERS.contains(long));
        let is_short = argument.get_short().is_some_and(|short| flag == format!("-{short}"));
        long.is_some_and(|long| is_short || flag.strip_prefix("--") == Some(long))
    })
}

fn turned_around(flag: &OsStr, arguments: &mut impl Iterator<Item = OsString>) -> Vec<OsString> {
    if let Some((flag, value)) = flag.to_str().and_then(|flag| flag.split_once('=')) {
        return vec![format!("{flag}=!{value}").into()];
    }
    let value = arguments.next().map(|value| {
        let mut not = OsString::from("!");
        not.push(value);
        not
    });
    std::iter::once(flag.to_owned()).chain(value).collect()
}
