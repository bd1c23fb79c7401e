//! What precedes every frame in a virtqueue: `struct virtio_net_hdr` (virtio 1.2 §5.1.6).
//!
//! | offset | bytes | field | meaning for a frame that the driver sends |
//! |---|---|---|---|
//! | 0 | 1 | `flags` | 1: the checksum is to be completed |
//! | 1 | 1 | `gso_type` | 0 one frame, 1 TCP/IPv4, 3 UDP fragments, 4 TCP/IPv6, 5 UDP datagrams; plus 0x80: ECN |
//! | 2 | 2 | `hdr_len` | a hint: bytes of all headers |
//! | 4 | 2 | `gso_size` | payload of each segment |
//! | 6 | 2 | `csum_start` | where the checksum begins |
//! | 8 | 2 | `csum_offset` | where it goes, from there |
//! | 10 | 2 | `num_buffers` | for received frames: chains that the frame takes |
//!
//! The host's kernel reads the same structure in front of what is written to a tap. It defends
//! itself; this only keeps it from being asked what was not agreed on, and from work out of all
//! proportion.

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_UFO,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE,
    VIRTIO_NET_HDR_GSO_TCPV4, VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP, VIRTIO_NET_HDR_GSO_UDP_L4,
};

use super::features::has;

/// Offset of `flags`.
pub(super) const FLAGS: usize = 0;
/// Bytes of the header with `VIRTIO_F_VERSION_1`.
pub const HEADER_BYTES: usize = 12;
/// Offset of `num_buffers`.
pub(super) const NUM_BUFFERS: usize = 10;
/// The longest frame: an IP packet of 64 KiB less one in an Ethernet frame with two VLAN tags.
pub const MAX_FRAME_BYTES: usize = 65535 + 14 + 2 * 4;
/// The shortest frame: an Ethernet header.
pub const MIN_FRAME_BYTES: usize = 14;
/// The smallest TCP segment: Linux's least MSS, 48, filled with 40 bytes of options.
const MIN_TCP_SEGMENT: u16 = 8;

/// Why a frame of the driver is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderError {
    /// Shorter than its headers, or longer than any frame.
    Length,
    /// Asks for an offload that was not agreed on or does not exist.
    Feature,
    /// The checksum would lie outside the frame.
    Checksum,
    /// Segments of next to nothing.
    SegmentSize,
}

/// Checks the header of a frame of `frame_bytes` that the driver sends, with `features` agreed on.
/// Returns the header to send: fields that mean nothing here are 0.
///
/// # Errors
/// The first [`HeaderError`]. The frame must not be sent.
pub fn check(header: [u8; HEADER_BYTES], frame_bytes: usize, features: u64) -> Result<[u8; HEADER_BYTES], HeaderError> {
    let [flags, gso, hl0, hl1, gs0, gs1, cs0, cs1, co0, co1, _, _] = header;
    if !(MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame_bytes) {
        return Err(HeaderError::Length);
    }
    let mut out = [0; HEADER_BYTES];
    if u32::from(flags) & VIRTIO_NET_HDR_F_NEEDS_CSUM != 0 {
        if !has(features, VIRTIO_NET_F_CSUM) {
            return Err(HeaderError::Feature);
        }
        let end = u32::from(u16::from_le_bytes([cs0, cs1]))
            .saturating_add(u16::from_le_bytes([co0, co1]).into())
            .saturating_add(2);
        if usize::try_from(end).map_or(true, |end| end > frame_bytes) {
            return Err(HeaderError::Checksum);
        }
        out = [1, 0, 0, 0, 0, 0, cs0, cs1, co0, co1, 0, 0];
    }
    if u32::from(gso) == VIRTIO_NET_HDR_GSO_NONE {
        return Ok(out);
    }
    check_segments(gso, u16::from_le_bytes([gs0, gs1]), features)?;
    let hint = u16::from_le_bytes([hl0, hl1]);
    let hint = if usize::from(hint) > frame_bytes { 0 } else { hint };
    let [hl0, hl1] = hint.to_le_bytes();
    let [flags, _, _, _, _, _, rest @ ..] = out;
    let [cs0, cs1, co0, co1, _, _] = rest;
    Ok([flags, gso, hl0, hl1, gs0, gs1, cs0, cs1, co0, co1, 0, 0])
}

/// The beginning of a frame, for [`exceeds`]: its header, both addresses, two VLAN tags and what follows them.
pub(super) const BEGINNING_BYTES: usize = HEADER_BYTES + MIN_FRAME_BYTES + 2 * TAG_BYTES;
/// Bytes of a VLAN tag (IEEE 802.1Q), and the kinds there are: C-tag and S-tag.
const TAG_BYTES: usize = 4;
const TAGS: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// Whether a frame of `frame_bytes` that `begins` so is longer than a link of `mtu` carries: what
/// will be segmented may be. An Ethernet header and VLAN tags do not count.
pub(super) fn exceeds(begins: &[u8; BEGINNING_BYTES], frame_bytes: usize, mtu: u16) -> bool {
    let [_, gso, ..] = begins;
    let kind = |offset: usize| {
        begins
            .get(HEADER_BYTES.saturating_add(offset)..)
            .and_then(|kind| kind.first_chunk())
    };
    let is_tag = |offset| kind(offset).is_some_and(|kind| TAGS.contains(kind));
    let tags = match (is_tag(12), is_tag(12 + TAG_BYTES)) {
        (false, _) => 0,
        (true, false) => TAG_BYTES,
        (true, true) => 2 * TAG_BYTES,
    };
    let longest = usize::from(mtu).saturating_add(MIN_FRAME_BYTES).saturating_add(tags);
    u32::from(*gso) & !VIRTIO_NET_HDR_GSO_ECN == VIRTIO_NET_HDR_GSO_NONE && frame_bytes > longest
}

fn check_segments(gso: u8, size: u16, features: u64) -> Result<(), HeaderError> {
    let gso = u32::from(gso);
    let (feature, least) = match gso & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 => (VIRTIO_NET_F_HOST_TSO4, MIN_TCP_SEGMENT),
        VIRTIO_NET_HDR_GSO_TCPV6 => (VIRTIO_NET_F_HOST_TSO6, MIN_TCP_SEGMENT),
        VIRTIO_NET_HDR_GSO_UDP => (VIRTIO_NET_F_HOST_UFO, MIN_TCP_SEGMENT),
        VIRTIO_NET_HDR_GSO_UDP_L4 => (VIRTIO_NET_F_HOST_USO, 1),
        _ => return Err(HeaderError::Feature),
    };
    let ecn = gso & VIRTIO_NET_HDR_GSO_ECN != 0;
    if !has(features, feature) || (ecn && !has(features, VIRTIO_NET_F_HOST_ECN)) {
        return Err(HeaderError::Feature);
    }
    if size < least {
        return Err(HeaderError::SegmentSize);
    }
    Ok(())
}

#[cfg(test)]
#[path = "header_test.rs"]
mod tests;
