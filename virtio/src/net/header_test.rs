use proptest::prelude::*;

use super::*;

const ALL: u64 = u64::MAX;
const TCP4: u8 = 1;

fn header(flags: u8, gso: u8, hdr_len: u16, gso_size: u16, start: u16, offset: u16) -> [u8; HEADER_BYTES] {
    let mut header = [flags, gso, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
    for (at, value) in [(2, hdr_len), (4, gso_size), (6, start), (8, offset)] {
        header[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }
    header
}

#[test]
fn a_plain_frame_needs_nothing_and_says_nothing() {
    let noise = header(0, 0, 9, 9, 9, 9);
    assert_eq!(check(noise, 60, 0), Ok([0; HEADER_BYTES]));
}

#[test]
fn a_segmented_frame_keeps_what_the_kernel_needs() {
    let sent = header(1, TCP4, 66, 1448, 34, 16);
    let mut expected = sent;
    expected[10..].fill(0);
    assert_eq!(check(sent, 60_000, ALL), Ok(expected));
}

#[test]
fn a_frame_has_the_length_of_one() {
    for (bytes, verdict) in [
        (0, Err(HeaderError::Length)),
        (13, Err(HeaderError::Length)),
        (14, Ok([0; HEADER_BYTES])),
        (MAX_FRAME_BYTES, Ok([0; HEADER_BYTES])),
        (MAX_FRAME_BYTES + 1, Err(HeaderError::Length)),
    ] {
        assert_eq!(check([0; HEADER_BYTES], bytes, 0), verdict, "{bytes}");
    }
}

#[test]
fn a_checksum_lies_inside_the_frame() {
    assert!(check(header(1, 0, 0, 0, 34, 16), 52, ALL).is_ok());
    assert_eq!(check(header(1, 0, 0, 0, 34, 16), 51, ALL), Err(HeaderError::Checksum));
    assert_eq!(
        check(header(1, 0, 0, 0, 0xffff, 0xffff), 1500, ALL),
        Err(HeaderError::Checksum)
    );
}

#[test]
fn segments_have_a_size_worth_the_work() {
    assert_eq!(
        check(header(1, TCP4, 54, 0, 34, 16), 1500, ALL),
        Err(HeaderError::SegmentSize)
    );
    assert_eq!(
        check(header(1, TCP4, 54, 1, 34, 16), 1500, ALL),
        Err(HeaderError::SegmentSize)
    );
    assert!(check(header(1, TCP4, 54, 0xffff, 34, 16), 1500, ALL).is_ok());
}

#[test]
fn only_what_was_agreed_on_may_be_asked_for() {
    assert_eq!(check(header(1, 0, 0, 0, 34, 16), 60, 0), Err(HeaderError::Feature));
    for (gso, feature) in [
        (1, VIRTIO_NET_F_HOST_TSO4),
        (4, VIRTIO_NET_F_HOST_TSO6),
        (3, VIRTIO_NET_F_HOST_UFO),
        (5, VIRTIO_NET_F_HOST_USO),
    ] {
        let sent = header(1, gso, 54, 1000, 34, 16);
        assert!(check(sent, 3000, ALL).is_ok());
        assert_eq!(check(sent, 3000, ALL & !(1 << feature)), Err(HeaderError::Feature));
    }
    let ecn = header(1, TCP4 | 0x80, 54, 1000, 34, 16);
    assert_eq!(
        check(ecn, 3000, ALL & !(1 << VIRTIO_NET_F_HOST_ECN)),
        Err(HeaderError::Feature)
    );
    for unknown in [2, 6, 0x7f, 0x80, 0xff] {
        assert_eq!(
            check(header(0, unknown, 0, 1000, 0, 0), 3000, ALL),
            Err(HeaderError::Feature)
        );
    }
}

#[test]
fn a_hint_that_cannot_be_true_is_dropped() {
    let checked = check(header(1, TCP4, 0xffff, 1000, 34, 16), 3000, ALL).unwrap();
    assert_eq!(checked[2..4], [0, 0]);
}

proptest! {
    /// What passes is what the host's kernel accepts (Linux `tun_get_user`,
    /// `virtio_net_hdr_to_skb`) as far as lengths go.
    #[test]
    fn whatever_passes_is_consistent(header: [u8; HEADER_BYTES], frame in 0usize..70_000, features: u64) {
        if let Ok(out) = check(header, frame, features) {
            let field = |at: usize| usize::from(u16::from_le_bytes([out[at], out[at + 1]]));
            prop_assert!((MIN_FRAME_BYTES..=MAX_FRAME_BYTES).contains(&frame));
            prop_assert!(field(2) <= frame);
            prop_assert!(out[0] == 0 || field(6) + field(8) + 2 <= frame);
            prop_assert!(out[1] == 0 || field(4) > 0);
            prop_assert_eq!(&out[10..], &[0, 0]);
        }
    }
}
