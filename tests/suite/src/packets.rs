//! What crosses a namespace's doorstep, seen and disturbed through small nftables tables of the tests' own.

use lab::Netns;

/// Counts the connection attempts that reach a namespace.
#[derive(Debug)]
pub struct SynCount<'a>(&'a Netns);

impl<'a> SynCount<'a> {
    /// Counts from now on. Once per namespace.
    pub fn start(netns: &'a Netns) -> Self {
        let table = "table inet tap {\n counter syns { }\n chain in {\n type filter hook prerouting priority -400\n \
                     iifname != lo tcp flags & (syn | ack) == syn counter name syns\n }\n}\n";
        netns.nft(table).expect("count packets");
        Self(netns)
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        let output = self.0.command("nft").args(["-j", "list", "counter", "inet", "tap", "syns"]).output();
        let listing: serde_json::Value =
            serde_json::from_slice(&output.expect("nft").stdout).expect("nft's JSON");
        let objects = listing["nftables"].as_array().expect("a list");
        objects.iter().find_map(|object| object["counter"]["packets"].as_u64()).expect("the counter")
    }
}

/// Swallows connection attempts to a port of a namespace, as a firewall without manners does, until dropped.
#[derive(Debug)]
pub struct Hole<'a>(&'a Netns);

impl<'a> Hole<'a> {
    /// Opens the hole. One at a time per namespace.
    pub fn dig(netns: &'a Netns, port: u16) -> Self {
        let table = format!(
            "table inet hole {{\n chain in {{\n type filter hook prerouting priority -350\n \
             tcp dport {port} tcp flags & (syn | ack) == syn drop\n }}\n}}\n"
        );
        netns.nft(&table).expect("swallow packets");
        Self(netns)
    }
}

impl Drop for Hole<'_> {
    fn drop(&mut self) {
        // Together with the namespace it may be gone already.
        let _ = self.0.nft("delete table inet hole\n");
    }
}
