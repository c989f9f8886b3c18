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
    let missing: Vec<String> = status
        .kinds
        .iter()
        .filter(|kind| !kind.listed)
        .map(|kind| match (&kind.error, endless(kind)) {
            (Some(error), _) => format!("{} ({error})", kind.kind),
            (None, Some(seconds)) => format!("{} (for {seconds} s, and the list has not ended)", kind.kind),
            (None, None) => kind.kind.to_owned(),
        })
        .collect();
    Err(format!("not listed by the API server yet: {}", missing.join(", ")))
}

/// For how many seconds a list has been read that should have come to its end.
fn endless(kind: &KindStatus) -> Option<u64> {
    kind.listing.filter(|lasting| *lasting >= ENDLESS).map(|lasting| lasting.as_secs())
}

/// Which kinds have not been heard of, and for how long.
fn api_remark(status: &ApiStatus) -> Option<String> {
    let failing: Vec<String> = status
        .kinds
        .iter()
        .filter_map(|kind| match (&kind.error, endless(kind)) {
            (Some(error), _) => {
                Some(format!("{} last heard of {} s ago ({error})", kind.kind, kind.age?.as_secs()))
            }
            (None, Some(seconds)) => {
                Some(format!("{} has been listed for {seconds} s without an end", kind.kind))
            }
            (None, None) => None,
        })
        .collect();
    (!failing.is_empty()).then(|| format!("the last state stays in force: {}", failing.join(", ")))
}

#[cfg(test)]
#[path = "source_tests.rs"]
mod tests;
