//! Feature bits: which a VMM is offered, and what they are called.
//!
//! What belongs here: the bits of virtio 1.2 (section 6, and those of the rpmsg device) as numbers
//! and names. What does not: what an accepted feature changes (the rings), and which bits a
//! firmware's table has.

use super::device::{RING_F_EVENT_IDX, RING_F_INDIRECT};
use super::rpmsg::{VIRTIO_ID_RPMSG, VIRTIO_RPMSG_F_NS};

/// `VIRTIO_F_VERSION_1`.
const F_VERSION_1: u64 = 1 << 32;

/// The bits that a virtio device may have of its own; all others belong to ring and transport.
const DEVICE_BITS: u32 = 24;

/// The bits of ring and transport.
const NAMES: [(u32, &str); 14] = [
    (24, "NOTIFY_ON_EMPTY"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
    (41, "ADMIN_VQ"),
];

/// What a VMM is offered of an rpmsg device whose firmware offers `of_firmware`, without what
/// vhost-user itself needs. Without `announce` the name service is not passed on.
///
/// Buffer sizes of the firmware's own (VIRTIO_RPMSG_F_BUFSZ) are not relayed, so of the bits that
/// rpmsg has, only the name service is.
pub fn offered(of_firmware: u32, announce: bool) -> u64 {
    let of_device = if announce { VIRTIO_RPMSG_F_NS } else { 0 };
    with_ring_features(u64::from(of_firmware) & of_device)
}

/// Device features, and those of the rings between a guest and rprocd.
pub(super) fn with_ring_features(of_device: u64) -> u64 {
    F_VERSION_1 | RING_F_EVENT_IDX | RING_F_INDIRECT | of_device
}

/// Each bit that is set, as a name where it has one: virtio's, without the prefix.
pub fn feature_names(device_id: u32, features: u64) -> Vec<String> {
    let name = |bit: u32| {
        if bit < DEVICE_BITS {
            let is_ns = device_id == VIRTIO_ID_RPMSG && 1 << bit == VIRTIO_RPMSG_F_NS;
            return is_ns.then_some("rpmsg name service");
        }
        NAMES
            .iter()
            .find(|(of, _)| *of == bit)
            .map(|(_, name)| *name)
    };
    (0..u64::BITS)
        .filter(|bit| features & (1 << bit) != 0)
        .map(|bit| name(bit).map_or_else(|| format!("bit {bit}"), str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_named_and_those_without_a_name_are_numbered() {
        let names = feature_names(VIRTIO_ID_RPMSG, offered(u32::MAX, true) | 1 << 3 | 1 << 60);
        assert_eq!(
            names,
            [
                "rpmsg name service",
                "bit 3",
                "INDIRECT_DESC",
                "EVENT_IDX",
                "VERSION_1",
                "bit 60"
            ]
        );
        assert_eq!(feature_names(3, 1), ["bit 0"]);
        assert_eq!(feature_names(7, 0), [""; 0]);
    }

    #[test]
    fn the_name_service_is_offered_only_if_firmware_and_configuration_do() {
        for (firmware, announce) in [(1, false), (0, true), (u32::MAX - 1, true)] {
            assert_eq!(offered(firmware, announce), offered(0, false));
        }
        assert_eq!(offered(1, true), offered(0, false) | VIRTIO_RPMSG_F_NS);
    }
}
