//! Messages of the front-end, byte by byte (Vhost-user Protocol, "Message Specification"). Numbers
//! are in the host's byte order.
//!
//! | offset | bytes | field                                                                |
//! |--------|-------|----------------------------------------------------------------------|
//! | 0      | 4     | request                                                              |
//! | 4      | 4     | flags: bits 1:0 version, always 1; bit 2 answer; bit 3 answer wanted |
//! | 8      | 4     | size of the payload                                                  |
//! | 12     | size  | payload                                                              |
//!
//! Every answer that husk asks for has a payload of 8 bytes: a number, 0 for success where nothing
//! else was asked, or a ring's index and position.

/// Length of a header.
pub(super) const HEADER_BYTES: usize = 12;
/// Length of every answer's payload.
pub(super) const ANSWER_BYTES: usize = 8;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_ANSWER: u32 = 1 << 2;
const FLAG_ANSWER_WANTED: u32 = 1 << 3;

/// `VHOST_USER_F_PROTOCOL_FEATURES`: in the place of a virtio feature bit that is reserved for it.
pub(super) const F_PROTOCOL_FEATURES: u64 = 1 << 30;
/// `VHOST_USER_PROTOCOL_F_MQ`: the number of rings can be asked for.
pub(super) const PROTOCOL_F_MQ: u64 = 1 << 0;
/// `VHOST_USER_PROTOCOL_F_REPLY_ACK`: success and failure of any request can be asked for.
pub(super) const PROTOCOL_F_REPLY_ACK: u64 = 1 << 3;
/// `VHOST_USER_PROTOCOL_F_CONFIGURE_MEM_SLOTS`: memory comes and goes region by region.
pub(super) const PROTOCOL_F_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// What a front-end asks for ("Front-end message types"), as far as husk does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    GetMaxMemSlots = 36,
    AddMemReg = 37,
    RemMemReg = 38,
}

/// A header to send.
pub(super) fn header(request: Request, answer_wanted: bool, payload: &[u8]) -> [u8; HEADER_BYTES] {
    let flags = VERSION | if answer_wanted { FLAG_ANSWER_WANTED } else { 0 };
    let size = u32::try_from(payload.len()).expect("payloads are a few hundred bytes");
    let mut bytes = [0; HEADER_BYTES];
    for (to, word) in bytes.chunks_exact_mut(4).zip([request as u32, flags, size]) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// A header that came: request, flags, size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}

impl Answer {
    /// Takes a header apart.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// Whether it announces the answer to `request`.
    pub fn is_to(self, request: Request) -> bool {
        self.request == request as u32
            && self.flags & (VERSION_MASK | FLAG_ANSWER) == VERSION | FLAG_ANSWER
            && usize::try_from(self.size) == Ok(ANSWER_BYTES)
    }
}

/// A vring's index and a number ("A vring state description"); the answer to `GetVringBase` has the same form.
pub(super) fn vring_state(index: u16, number: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    let words = [u32::from(index), number];
    for (to, word) in bytes.chunks_exact_mut(4).zip(words) {
        to.copy_from_slice(&word.to_ne_bytes());
    }
    bytes
}

/// Index and number of a vring state.
pub(super) fn parse_vring_state(bytes: [u8; 8]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = bytes;
    (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]))
}

/// Where a ring is ("A vring address description"): addresses of this process. Nothing is logged.
pub(super) fn vring_address(index: u16, descriptors: u64, used: u64, available: u64) -> Vec<u8> {
    let mut bytes = vring_state(index, 0).to_vec();
    for address in [descriptors, used, available, 0] {
        bytes.extend_from_slice(&address.to_ne_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_the_one_asked_for_or_none() {
        let answer = |request, flags, size| Answer { request, flags, size };
        assert!(answer(17, 0b0101, 8).is_to(Request::GetQueueNum));
        for wrong in [
            answer(16, 0b0101, 8),
            answer(17, 0b0001, 8),
            answer(17, 0b0110, 8),
            answer(17, 0b0101, 9),
            answer(17, 0b0101, u32::MAX),
        ] {
            assert!(!wrong.is_to(Request::GetQueueNum), "{wrong:?}");
        }
    }

    #[test]
    fn headers_and_states_are_what_they_were_made_of() {
        let header = header(Request::AddMemReg, true, &[0; 40]);
        let expected = Answer {
            request: 37,
            flags: 0b1001,
            size: 40,
        };
        assert_eq!(Answer::parse(&header), expected);
        assert_eq!(parse_vring_state(vring_state(3, 70000)), (3, 70000));
        assert_eq!(vring_address(1, 2, 3, 4).len(), 40);
    }
}
