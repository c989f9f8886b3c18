//! Where the policy comes from: manifests or the Kubernetes API, told apart here and nowhere else.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use policy_cache::{
    Access, ApiConfig, ApiHandle, ApiSource, ApiStatus, KindStatus, ManifestSource, Options, SnapshotStore,
    SourceStatus, WatchHandle,
};

use crate::status::Source;

/// A list that lasts longer is told of.
const ENDLESS: Duration = Duration::from_secs(60);

/// Where the policy is to come from.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// Files and folders.
    Manifests(Vec<PathBuf>),
    /// The API server.
    Api(Access),
}

/// Where the policy comes from.
#[derive(Debug)]
pub(crate) enum Policies {
    /// Manifests that are watched, and what they are called.
    Manifests { watch: WatchHandle, places: Vec<String> },
    /// The API that is followed, and what it is called.
    Api { api: ApiHandle, place: String },
}

/// How the source does.
#[derive(Debug)]
pub(crate) struct Report {
    /// Whether the snapshot can be relied on, and if not, why.
    pub(crate) condition: Result<(), String>,
    /// When what is in force was last known to be right.
    pub(crate) confirmed: Option<SystemTime>,
    /// For the status.
    pub(crate) source: Source,
    /// How many objects of each kind are rejected.
    pub(crate) rejected: Vec<(&'static str, usize)>,
    /// What a person should know although everything holds.
    pub(crate) remark: Option<String>,
}

impl Policies {
    /// Opens the source. Of manifests the store then has a snapshot; of the API it will.
    pub(crate) fn open(
        origin: Origin,
        config: &ApiConfig,
        options: Options,
    ) -> anyhow::Result<(Self, SnapshotStore)> {
        match origin {
            Origin::Manifests(paths) => {
                let places = paths.iter().map(|path| path.display().to_string()).collect();
                let (source, store) = ManifestSource::open(&paths, options)?;
                Ok((Self::Manifests { watch: source.watch(), places }, store))
            }
            Origin::Api(access) => {
                let place = access.place();
                let (api, store) = ApiSource::start(access, config, options)?;
                Ok((Self::Api { api, place }, store))
            }
        }
    }

    /// Tells of the own node's interface addresses.
    pub(crate) fn set_own_addresses(&self, addresses: Vec<IpAddr>) {
        match self {
            Self::Manifests { watch, .. } => watch.set_own_addresses(addresses),
            Self::Api { api, .. } => api.set_own_addresses(addresses),
        }
    }

    /// How the API is followed; nothing when it is not.
    pub(crate) fn api(&self) -> Option<ApiStatus> {
        match self {
            Self::Manifests { .. } => None,
            Self::Api { api, .. } => Some(api.status()),
        }
    }

    /// How the source does.
    pub(crate) fn report(&self) -> Report {
        match self {
            Self::Manifests { watch, places } => {
                let status = watch.status();
                let source = Source::manifests(places.clone(), &status);
                Report {
                    condition: manifests_condition(&status),
                    confirmed: Some(status.last_success),
                    rejected: rejected(&source),
                    source,
                    remark: None,
                }
            }
            Self::Api { api, place } => {
                let status = api.status();
                let remark = api_remark(&status);
                let source = Source::api(place.clone(), &status, remark.clone());
                Report {
                    condition: api_condition(&status),
                    confirmed: status.age().and_then(|age| SystemTime::now().checked_sub(age)),
                    rejected: rejected(&source),
                    source,
                    remark,
                }
            }
        }
    }
}

/// Every kind with the number of its objects that are rejected; what cannot be told whose it is is not among them.
fn rejected(source: &Source) -> Vec<(&'static str, usize)> {
    const KINDS: [&str; 9] = [
        "Pod",
        "Namespace",
        "Node",
        "Service",
        "EndpointSlice",
        "NetworkPolicy",
        "ClusterNetworkPolicy",
        "AdminNetworkPolicy",
        "BaselineAdminNetworkPolicy",
    ];
    let objects: BTreeSet<&str> = source.rejected.iter().map(|rejected| rejected.object.as_str()).collect();
    let is_of = |object: &str, kind| object.split_once('/').is_some_and(|(found, _)| found == kind);
    KINDS.map(|kind| (kind, objects.iter().filter(|object| is_of(object, kind)).count())).into()
}

/// Rejected manifests leave the last good ones in force and are reported where they are rejected; a watch that looks
/// no more is another matter.
fn manifests_condition(status: &SourceStatus) -> Result<(), String> {
    if status.alive {
        Ok(())
    } else {
        Err("nobody looks at the manifests any more: their watch hangs".into())
    }
}

/// An API server that is gone does not end readiness: decisions go on from what it said last.
fn api_condition(status: &ApiStatus) -> Result<(), String> {
    if !status.alive {
        return Err("nobody follows the API any more: a thread of it has ended".to_owned());
    }
    if status.complete {
        return Ok(());
    }
    let missing = status.kinds.iter().filter(|kind| !kind.listed);
    let missing = by_reason(missing, |kinds, reason| match reason {
        Some(Reason::Error(error)) => format!("{kinds} ({error})"),
        Some(Reason::Endless(seconds)) => format!("{kinds} (for {seconds} s, and the list has not ended)"),
        None => kinds,
    });
    Err(format!("not listed by the API server yet: {missing}"))
}

/// Why what is known of a kind may not be all there is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reason<'s> {
    Error(&'s str),
    /// For so many seconds a list has been read that should have come to its end.
    Endless(u64),
}

impl<'s> Reason<'s> {
    fn of(kind: &'s KindStatus) -> Option<Self> {
        let endless = || kind.listing.filter(|lasting| *lasting >= ENDLESS).map(|lasting| lasting.as_secs());
        kind.error.as_deref().map(Self::Error).or_else(|| endless().map(Self::Endless))
    }
}

/// Says each reason once, with all the kinds it is about: mostly nine of them have the same.
fn by_reason<'s>(
    kinds: impl Iterator<Item = &'s KindStatus>,
    say: impl Fn(String, Option<Reason<'s>>) -> String,
) -> String {
    let mut groups: Vec<(Option<Reason<'s>>, Vec<&str>)> = Vec::new();
    for kind in kinds {
        let reason = Reason::of(kind);
        match groups.iter_mut().find(|(other, _)| *other == reason) {
            Some((_, names)) => names.push(kind.kind),
            None => groups.push((reason, vec![kind.kind])),
        }
    }
    let said: Vec<String> = groups.into_iter().map(|(reason, names)| say(names.join(", "), reason)).collect();
    said.join("; ")
}

/// Which kinds have not been heard of, and for how long.
fn api_remark(status: &ApiStatus) -> Option<String> {
    let is_known = |kind: &&KindStatus| match Reason::of(kind) {
        Some(Reason::Error(_)) => kind.age.is_some(),
        reason => reason.is_some(),
    };
    let failing: Vec<&KindStatus> = status.kinds.iter().filter(is_known).collect();
    let oldest = |error: &str| {
        let of_it = failing.iter().filter(|kind| kind.error.as_deref() == Some(error));
        of_it.filter_map(|kind| kind.age).max().unwrap_or_default().as_secs()
    };
    let said = by_reason(failing.iter().copied(), |kinds, reason| match reason {
        Some(Reason::Error(error)) => format!("{kinds} last heard of {} s ago ({error})", oldest(error)),
        Some(Reason::Endless(seconds)) => format!("{kinds} listed for {seconds} s without an end"),
        None => kinds,
    });
    (!failing.is_empty()).then(|| format!("the last state stays in force: {said}"))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
