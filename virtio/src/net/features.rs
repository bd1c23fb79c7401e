//! Which offloads there are, and what a tap must be told of them (virtio 1.2 §5.1.3, Linux `TUNSETOFFLOAD`).
//!
//! | feature of the guest | what the tap may hand over | needs |
//! |---|---|---|
//! | `VIRTIO_NET_F_GUEST_CSUM` | frames whose checksum is not complete | |
//! | `VIRTIO_NET_F_GUEST_TSO4`, `TSO6` | TCP segments of up to 64 KiB | `GUEST_CSUM` |
//! | `VIRTIO_NET_F_GUEST_ECN` | such segments with congestion marks | one of the two |
//! | `VIRTIO_NET_F_GUEST_UFO` | UDP datagrams of up to 64 KiB | `GUEST_CSUM` |
//! | `VIRTIO_NET_F_GUEST_USO4`, `USO6` | several UDP datagrams as one; only both together | `GUEST_CSUM` |
//!
//! The features of the host, `CSUM` and `HOST_…`, are the same the other way round; a tap always takes them.

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_UFO, TUN_F_USO4, TUN_F_USO6};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
    VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO, VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC,
    VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS,
};

use super::NetConfig;

/// What the guest may be handed, each with the tap's name for it.
const GUEST_OFFLOADS: [(u32, u32); 7] = [
    (VIRTIO_NET_F_GUEST_CSUM, TUN_F_CSUM),
    (VIRTIO_NET_F_GUEST_TSO4, TUN_F_TSO4),
    (VIRTIO_NET_F_GUEST_TSO6, TUN_F_TSO6),
    (VIRTIO_NET_F_GUEST_ECN, TUN_F_TSO_ECN),
    (VIRTIO_NET_F_GUEST_UFO, TUN_F_UFO),
    (VIRTIO_NET_F_GUEST_USO4, TUN_F_USO4),
    (VIRTIO_NET_F_GUEST_USO6, TUN_F_USO6),
];

/// Everything that a tap of a recent kernel can be told, and of one before 6.2.
pub(super) const TUN_WITH_USO: u32 = TUN_WITHOUT_USO | TUN_F_USO4 | TUN_F_USO6;
pub(super) const TUN_WITHOUT_USO: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN | TUN_F_UFO;

/// Whether feature number `bit` is among `features`.
pub(super) const fn has(features: u64, bit: u32) -> bool {
    features & mask(bit) != 0
}

const fn mask(bit: u32) -> u64 {
    1 << (bit & 63)
}

/// What a device offers that is configured so, on a tap that knows the offloads `tap` (`TUN_F_…`).
pub(super) fn offered(config: &NetConfig, tap: u32) -> u64 {
    let csum = config.offload_csum && tap & TUN_F_CSUM != 0;
    let tso = csum && config.offload_tso && tap & TUN_F_TSO4 != 0;
    let ufo = csum && config.offload_ufo && tap & TUN_F_UFO != 0;
    let uso = csum && config.offload_ufo && tap & TUN_F_USO4 != 0;
    [
        (VIRTIO_NET_F_MAC, true),
        (VIRTIO_NET_F_STATUS, true),
        (VIRTIO_NET_F_MRG_RXBUF, true),
        (VIRTIO_NET_F_CTRL_VQ, true),
        (VIRTIO_NET_F_CTRL_MAC_ADDR, true),
        (VIRTIO_NET_F_MTU, config.mtu.is_some()),
        (VIRTIO_NET_F_MQ, config.pairs > 1),
        (VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, csum),
        (VIRTIO_NET_F_CSUM, csum),
        (VIRTIO_NET_F_GUEST_CSUM, csum),
        (VIRTIO_NET_F_HOST_TSO4, tso),
        (VIRTIO_NET_F_HOST_TSO6, tso),
        (VIRTIO_NET_F_HOST_ECN, tso),
        (VIRTIO_NET_F_GUEST_TSO4, tso),
        (VIRTIO_NET_F_GUEST_TSO6, tso),
        (VIRTIO_NET_F_GUEST_ECN, tso),
        (VIRTIO_NET_F_HOST_UFO, ufo),
        (VIRTIO_NET_F_GUEST_UFO, ufo),
        (VIRTIO_NET_F_HOST_USO, uso),
        (VIRTIO_NET_F_GUEST_USO4, uso),
        (VIRTIO_NET_F_GUEST_USO6, uso),
    ]
    .into_iter()
    .filter(|(_, offered)| *offered)
    .fold(0, |features, (bit, _)| features | mask(bit))
}

/// All bits of [`GUEST_OFFLOADS`].
pub(super) fn guest_offloads() -> u64 {
    GUEST_OFFLOADS
        .into_iter()
        .fold(0, |all, (feature, _)| all | mask(feature))
}

/// What a tap is told when the guest takes `features`: nothing that needs another thing which is missing.
pub(super) fn tap_offloads(features: u64) -> u32 {
    let asked = GUEST_OFFLOADS
        .into_iter()
        .filter(|(feature, _)| has(features, *feature));
    let mut offloads = asked.fold(0, |all, (_, offload)| all | offload);
    if offloads & TUN_F_CSUM == 0 {
        return 0;
    }
    if offloads & (TUN_F_TSO4 | TUN_F_TSO6) == 0 {
        offloads &= !TUN_F_TSO_ECN;
    }
    let uso = TUN_F_USO4 | TUN_F_USO6;
    if offloads & uso != uso {
        offloads &= !uso;
    }
    offloads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_checksums_there_are_no_segments() {
        let config = NetConfig {
            offload_csum: false,
            ..NetConfig::new([2, 0, 0, 0, 0, 1])
        };
        let left = offered(&config, TUN_WITH_USO) & !offered(&config, 0);
        assert_eq!(left, 0);
        assert_eq!(tap_offloads(guest_offloads() & !mask(VIRTIO_NET_F_GUEST_CSUM)), 0);
    }

    #[test]
    fn each_switch_takes_its_own_features_away() {
        let all = NetConfig::new([2, 0, 0, 0, 0, 1]);
        let with = |config: &NetConfig, bit| has(offered(config, TUN_WITH_USO), bit);
        for bit in [VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_GUEST_UFO, VIRTIO_NET_F_HOST_USO] {
            assert!(with(&all, bit));
        }
        let no_tso = NetConfig {
            offload_tso: false,
            ..all.clone()
        };
        assert!(!with(&no_tso, VIRTIO_NET_F_GUEST_TSO4) && with(&no_tso, VIRTIO_NET_F_HOST_UFO));
        let no_ufo = NetConfig {
            offload_ufo: false,
            ..all.clone()
        };
        assert!(!with(&no_ufo, VIRTIO_NET_F_GUEST_USO4) && with(&no_ufo, VIRTIO_NET_F_HOST_TSO4));
        assert!(
            !has(offered(&all, TUN_WITHOUT_USO), VIRTIO_NET_F_HOST_USO),
            "an older kernel"
        );
    }

    #[test]
    fn a_tap_is_told_only_what_makes_sense_together() {
        let csum = mask(VIRTIO_NET_F_GUEST_CSUM);
        assert_eq!(tap_offloads(guest_offloads()), TUN_WITH_USO);
        assert_eq!(tap_offloads(csum | mask(VIRTIO_NET_F_GUEST_ECN)), TUN_F_CSUM);
        assert_eq!(tap_offloads(csum | mask(VIRTIO_NET_F_GUEST_USO4)), TUN_F_CSUM);
        assert_eq!(
            tap_offloads(csum | mask(VIRTIO_NET_F_GUEST_TSO4)),
            TUN_F_CSUM | TUN_F_TSO4
        );
    }
}
