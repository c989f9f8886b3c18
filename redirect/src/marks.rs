//! Turns the configured mark mask into the six single bits the datapath speaks with.
//!
//! Packet marks are shared with kube-proxy and with network plugins, so every rule sets and matches one bit
//! and never writes the whole mark.

/// The bits of a packet mark that are Sluice's, one meaning each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Marks {
    /// The packet belongs to the proxy: it is routed to the local table.
    pub proxy: u32,
    /// `SO_MARK` of upstream sockets to pods: untracked in both directions. On a SYN that is on its way to the
    /// gate: it came in by an interface of pods. As a connection mark: a leg of the proxy.
    pub cluster: u32,
    /// `SO_MARK` of upstream sockets that stay in conntrack; also the connection mark of own-node legs. On a
    /// SYN that is on its way to the gate: its destination lies behind an interface of pods.
    pub tracked: u32,
    /// Set by the gate's verdict: answer the SYN with a TCP reset. As a connection mark: answer every packet so.
    pub reset: u32,
    /// Set by the gate's verdict: answer the SYN with ICMPv6 address unreachable, or in IPv4 a TCP reset. With rules
    /// of iptables, on a SYN before conntrack: is a process there; with `reset` beside it: yes.
    pub unreachable: u32,
    /// On a packet: a datagram without a judged flow, for the gate. On a connection: its flow was accepted.
    pub flow: u32,
    /// All bits the configuration gives to Sluice.
    pub mask: u32,
}

/// Why a mask cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("mark mask {mask:#x} has {bits} bits, six are needed")]
pub struct MarksError {
    /// The mask as configured.
    pub mask: u32,
    /// How many bits it has.
    pub bits: u32,
}

impl Marks {
    /// Takes the six lowest bits of `mask`, lowest first, in the order of the fields.
    pub fn from_mask(mask: u32) -> Result<Self, MarksError> {
        let mut rest = mask;
        let mut next = || {
            let bit = rest & rest.wrapping_neg();
            rest ^= bit;
            bit
        };
        let marks = Self {
            proxy: next(),
            cluster: next(),
            tracked: next(),
            reset: next(),
            unreachable: next(),
            flow: next(),
            mask,
        };
        if marks.flow == 0 {
            return Err(MarksError { mask, bits: mask.count_ones() });
        }
        Ok(marks)
    }

    /// The six bits in use, or'ed together.
    pub fn used(&self) -> u32 {
        self.proxy | self.cluster | self.tracked | self.reset | self.unreachable | self.flow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_taken_from_the_mask_lowest_first() {
        let marks = Marks::from_mask(0x7e).unwrap();
        assert_eq!(
            (marks.proxy, marks.cluster, marks.tracked, marks.reset, marks.unreachable, marks.flow),
            (0x02, 0x04, 0x08, 0x10, 0x20, 0x40)
        );
        let scattered = Marks::from_mask(0x8100_1490).unwrap();
        assert_eq!(scattered.proxy, 0x10);
        assert_eq!(scattered.flow, 0x8000_0000);
        assert_eq!(scattered.used(), 0x8100_1490);
    }

    #[test]
    fn bits_beyond_the_sixth_are_left_alone() {
        assert_eq!(Marks::from_mask(0xffff_ffff).unwrap().used(), 0x3f);
    }

    #[test]
    fn every_bit_is_single_and_inside_the_mask() {
        for mask in [0x3f_u32, 0x7e, 0xf500, 0xffff_0000, u32::MAX, 0xfc00_0000] {
            let marks = Marks::from_mask(mask).unwrap();
            let Marks { proxy, cluster, tracked, reset, unreachable, flow, .. } = marks;
            let bits = [proxy, cluster, tracked, reset, unreachable, flow];
            assert!(bits.iter().all(|bit| bit.count_ones() == 1 && bit & mask == *bit));
            assert_eq!(marks.used().count_ones(), 6);
        }
    }

    #[test]
    fn a_mask_of_fewer_than_six_bits_is_refused() {
        assert_eq!(Marks::from_mask(0x3e), Err(MarksError { mask: 0x3e, bits: 5 }));
        assert_eq!(Marks::from_mask(0), Err(MarksError { mask: 0, bits: 0 }));
    }
}
