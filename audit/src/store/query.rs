//! What can be asked of a store.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use super::hints::Hints;

/// Values that each list of a [`StoreQuery`] may have.
pub const MOST_NAMED: usize = 100;

/// What of a store to read. Times are nanoseconds since 1970, both included. What is named adds up; the values of
/// one list, of [`MOST_NAMED`] at most, are alternatives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreQuery {
    /// Not before.
    pub since: i64,
    /// Not after.
    pub until: i64,
    /// Only records of a pod of one of these namespaces, at either end; empty is all.
    pub namespaces: Vec<String>,
    /// Only records of one of these pods, at either end; empty is all.
    pub pods: Vec<PodNamed>,
    /// Only records with an address of one of these blocks, at either end; empty is all.
    pub ips: Vec<IpBlock>,
    /// Only these actions, as `connection-denied`; empty is all.
    pub actions: Vec<String>,
    /// Only what ended by one of these causes, as `refused`; empty is all.
    pub causes: Vec<String>,
    /// Only what policy refused or cut.
    pub denied: bool,
    /// Lines of lost records as well, whatever is named.
    pub losses: bool,
    /// What blocks are passed over by.
    pub hints: Hints,
    /// From the newest record to the oldest.
    pub newest_first: bool,
}

/// Pods whose name begins so, in one namespace or in any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNamed {
    /// The namespace; `None` is any.
    pub namespace: Option<String>,
    /// How the pod's name begins.
    pub prefix: String,
}

impl Default for StoreQuery {
    fn default() -> Self {
        Self {
            since: i64::MIN,
            until: i64::MAX,
            namespaces: Vec::new(),
            pods: Vec::new(),
            ips: Vec::new(),
            actions: Vec::new(),
            causes: Vec::new(),
            denied: false,
            losses: false,
            hints: Hints::default(),
            newest_first: false,
        }
    }
}

impl PodNamed {
    pub(super) fn is(&self, namespace: &str, pod: &str) -> bool {
        pod.starts_with(&self.prefix) && self.namespace.as_deref().is_none_or(|named| named == namespace)
    }
}

/// An address, or a block of them. Bits behind the length do not matter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpBlock {
    network: IpAddr,
    length: u8,
}

impl IpBlock {
    /// `None` when the length is more than an address has bits.
    pub fn new(network: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(network)).then_some(Self { network, length })
    }

    /// Whether an address is in it. One of the other family never is.
    pub fn contains(&self, ip: IpAddr) -> bool {
        let (network, ip) = match (self.network, ip) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => {
                (u128::from(network.to_bits()), u128::from(ip.to_bits()))
            }
            (IpAddr::V6(network), IpAddr::V6(ip)) => (network.to_bits(), ip.to_bits()),
            _ => return false,
        };
        let ignored = u32::from(bits(self.network) - self.length);
        network.checked_shr(ignored).unwrap_or(0) == ip.checked_shr(ignored).unwrap_or(0)
    }
}

const fn bits(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

/// `10.0.0.1` or `10.0.0.0/8`.
impl FromStr for IpBlock {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) =
            text.split_once('/').map_or((text, None), |(before, after)| (before, Some(after)));
        let network: IpAddr = address.parse().map_err(|_| ())?;
        let length = length.map_or(Ok(bits(network)), str::parse).map_err(|_| ())?;
        Self::new(network, length).ok_or(())
    }
}

impl fmt::Display for IpBlock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}
