//! The few questions to nf_tables that the `nft` command cannot put: the ruleset's generation, and removing a
//! table or chain only if it is empty. And whether conntrack answers at all.
//!
//! Message layouts: include/uapi/linux/netfilter/{nfnetlink,nf_tables,nfnetlink_conntrack}.h.

use std::io;

use netlink_sys::protocols::NETLINK_NETFILTER;
use netlink_sys::{Socket, SocketAddr};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET_STATS: u16 = 5;
const CTA_STATS_GLOBAL_ENTRIES: u16 = 1;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFT_MSG_DELTABLE: u16 = 2;
const NFT_MSG_DELCHAIN: u16 = 5;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// For deletions: refuse when there is something inside.
const NLM_F_NONREC: u16 = 0x100;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
const NLMSG_HEADER: usize = 16;
const NFGEN_HEADER: usize = 4;

/// False where the kernel says that it has no such part. What else keeps an answer away (rights, say) is no proof.
fn is_there<T>(asked: io::Result<T>) -> bool {
    let error = asked.err().and_then(|error| error.raw_os_error());
    !matches!(
        error,
        Some(nix::libc::EINVAL | nix::libc::EOPNOTSUPP | nix::libc::ENOENT | nix::libc::EPROTONOSUPPORT)
    )
}

/// An address family of iptables' tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// nft's word for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn number(self) -> u8 {
        match self {
            Self::V4 => NFPROTO_IPV4,
            Self::V6 => NFPROTO_IPV6,
        }
    }
}

/// A socket to nfnetlink, bound to the network namespace of the thread that made it.
pub(crate) struct Nfnetlink {
    socket: Socket,
}

impl Nfnetlink {
    pub(crate) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        // The kernel answers within the send call, so an answer that is not there never comes.
        socket.set_non_blocking(true)?;
        Ok(Self { socket })
    }

    /// The generation of the namespace's ruleset: every committed transaction moves it by one.
    pub(crate) fn generation(&self) -> io::Result<u32> {
        self.send(&message((NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_GETGEN, NLM_F_REQUEST, 0, 0, &[]))?;
        let answer = self.receive()?;
        let malformed = || io::Error::new(io::ErrorKind::InvalidData, "malformed answer to NFT_MSG_GETGEN");
        match number16(&answer, 4).ok_or_else(malformed)? {
            NLMSG_ERROR => Err(error_of(&answer).err().unwrap_or_else(malformed)),
            kind if kind == (NFNL_SUBSYS_NFTABLES << 8) | NFT_MSG_NEWGEN => {
                let id = attribute(&answer[NLMSG_HEADER + NFGEN_HEADER..], NFTA_GEN_ID);
                let id: [u8; 4] = id.and_then(|id| id.try_into().ok()).ok_or_else(malformed)?;
                Ok(u32::from_be_bytes(id))
            }
            _ => Err(malformed()),
        }
    }

    /// Whether this kernel has nf_tables; asking makes it load the module.
    pub(crate) fn kernel_has_nf_tables() -> bool {
        is_there(Self::open().and_then(|netlink| netlink.generation()))
    }

    /// Whether this kernel tells of conntrack's entries by netlink; asking makes it load the module.
    pub(crate) fn kernel_has_ctnetlink() -> bool {
        is_there(Self::open().and_then(|netlink| netlink.conntrack_count()))
    }

    /// How many entries conntrack has in this namespace, which is the cheapest of its answers.
    fn conntrack_count(&self) -> io::Result<u32> {
        self.send(&message(
            (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_GET_STATS,
            NLM_F_REQUEST,
            0,
            0,
            &[],
        ))?;
        let answer = self.receive()?;
        let malformed =
            || io::Error::new(io::ErrorKind::InvalidData, "malformed answer to IPCTNL_MSG_CT_GET_STATS");
        match number16(&answer, 4).ok_or_else(malformed)? {
            NLMSG_ERROR => Err(error_of(&answer).err().unwrap_or_else(malformed)),
            _ => {
                let body = answer.get(NLMSG_HEADER + NFGEN_HEADER..).ok_or_else(malformed)?;
                let count: Option<[u8; 4]> =
                    attribute(body, CTA_STATS_GLOBAL_ENTRIES).and_then(|count| count.try_into().ok());
                count.map(u32::from_be_bytes).ok_or_else(malformed)
            }
        }
    }

    /// Removes `table` if it has no chains, sets or objects. Whether it is gone.
    pub(crate) fn remove_empty_table(&self, family: Family, table: &str) -> io::Result<bool> {
        self.remove(NFT_MSG_DELTABLE, family, &string_attribute(NFTA_TABLE_NAME, table))
    }

    /// Removes `chain` of `table` if it has no rules and nothing jumps there. Whether it is gone.
    pub(crate) fn remove_empty_chain(&self, family: Family, table: &str, chain: &str) -> io::Result<bool> {
        let mut attributes = string_attribute(NFTA_CHAIN_TABLE, table);
        attributes.extend(string_attribute(NFTA_CHAIN_NAME, chain));
        self.remove(NFT_MSG_DELCHAIN, family, &attributes)
    }

    fn remove(&self, kind: u16, family: Family, attributes: &[u8]) -> io::Result<bool> {
        let mut batch = message(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[]);
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind;
        let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_NONREC;
        batch.extend(message(kind, flags, family.number(), 0, attributes));
        batch.extend(message(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, NFNL_SUBSYS_NFTABLES, &[]));
        self.send(&batch)?;
        match error_of(&self.receive()?) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // What an earlier, failed exchange may have left.
        while self.socket.recv_from_full().is_ok() {}
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop)
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        Ok(self.socket.recv_from_full()?.0)
    }
}

/// One message: nlmsghdr, nfgenmsg, attributes. `attributes` is a multiple of four bytes long.
fn message(kind: u16, flags: u16, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(NLMSG_HEADER + NFGEN_HEADER + attributes.len()).unwrap_or(u32::MAX);
    let mut bytes = Vec::with_capacity(NLMSG_HEADER + NFGEN_HEADER + attributes.len());
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend([family, 0]);
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

fn string_attribute(kind: u16, text: &str) -> Vec<u8> {
    let length = u16::try_from(4 + text.len() + 1).unwrap_or(u16::MAX);
    let mut bytes = Vec::new();
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(text.as_bytes());
    bytes.push(0);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(number16(bytes, 0)?);
        let kind = number16(bytes, 2)?;
        let value = bytes.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

fn number16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The outcome an NLMSG_ERROR message carries; success is error number 0.
fn error_of(answer: &[u8]) -> io::Result<()> {
    let number = answer.get(NLMSG_HEADER..NLMSG_HEADER + 4).and_then(|bytes| bytes.try_into().ok());
    match number.map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(number) => Err(io::Error::from_raw_os_error(-number)),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "short netlink answer")),
    }
}
