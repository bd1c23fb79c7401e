//! The header of every packet (virtio 1.2 §5.10.6, `struct virtio_vsock_hdr`), little-endian.
//!
//! | offset | width | field       | meaning                                                 |
//! |--------|-------|-------------|---------------------------------------------------------|
//! | 0      | 8     | `src_cid`   | context of the sender                                   |
//! | 8      | 8     | `dst_cid`   | context of the receiver                                 |
//! | 16     | 4     | `src_port`  | port of the sender                                      |
//! | 20     | 4     | `dst_port`  | port of the receiver                                    |
//! | 24     | 4     | `len`       | bytes of payload that follow                            |
//! | 28     | 2     | `type`      | 1 for streams                                           |
//! | 30     | 2     | `op`        | see [`Op`]                                              |
//! | 32     | 4     | `flags`     | of `SHUTDOWN`: 1 receives no more, 2 sends no more      |
//! | 36     | 4     | `buf_alloc` | bytes of buffer that the sender has for this stream     |
//! | 40     | 4     | `fwd_cnt`   | bytes that have left that buffer so far, modulo 2^32    |

/// Size of a header.
pub(super) const HEADER_BYTES: usize = 44;
/// `VIRTIO_VSOCK_TYPE_STREAM` (virtio 1.2 §5.10.6).
pub(super) const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE` (virtio 1.2 §5.10.6.6.1): the sender of this packet receives no more.
pub(super) const SHUTDOWN_RECEIVE: u32 = 1 << 0;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of this packet sends no more.
pub(super) const SHUTDOWN_SEND: u32 = 1 << 1;
/// Both of them.
pub(super) const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;
/// The host's context identifier (virtio 1.2 §5.10.4).
pub(super) const HOST_CID: u64 = 2;

/// What a packet is for (virtio 1.2 §5.10.6, `enum`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Op {
    /// Opens a stream.
    Request = 1,
    /// Accepts one.
    Response = 2,
    /// Ends or refuses one.
    Reset = 3,
    /// Half-closes one.
    Shutdown = 4,
    /// Carries data.
    Data = 5,
    /// Tells `buf_alloc` and `fwd_cnt`.
    CreditUpdate = 6,
    /// Asks for them.
    CreditRequest = 7,
}

impl Op {
    /// The operation of a number from the wire.
    pub fn new(number: u16) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header in host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// Reads a header.
    pub fn parse(bytes: &[u8; HEADER_BYTES]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// The header as it goes over the wire.
    pub fn bytes(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        let fields: [&[u8]; 10] = [
            &self.src_cid.to_le_bytes(),
            &self.dst_cid.to_le_bytes(),
            &self.src_port.to_le_bytes(),
            &self.dst_port.to_le_bytes(),
            &self.len.to_le_bytes(),
            &self.kind.to_le_bytes(),
            &self.op.to_le_bytes(),
            &self.flags.to_le_bytes(),
            &self.buf_alloc.to_le_bytes(),
            &self.fwd_cnt.to_le_bytes(),
        ];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    /// The packet that answers this one with `op` and says nothing else.
    pub fn answer(&self, op: Op) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: op as u16,
            ..Self::default()
        }
    }
}

/// The fields of a header, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let Some((field, rest)) = self.0.split_first_chunk() else {
            return [0; N];
        };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_has_the_layout_of_the_specification() {
        let bytes: [u8; HEADER_BYTES] = std::array::from_fn(|n| u8::try_from(n).unwrap());
        let header = Header::parse(&bytes);
        assert_eq!(header.bytes(), bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!((header.src_port, header.dst_port), (0x1312_1110, 0x1716_1514));
        assert_eq!((header.len, header.kind, header.op), (0x1b1a_1918, 0x1d1c, 0x1f1e));
        assert_eq!(
            (header.flags, header.buf_alloc, header.fwd_cnt),
            (0x2322_2120, 0x2726_2524, 0x2b2a_2928)
        );
    }

    #[test]
    fn operations_have_their_numbers() {
        for number in 0..=u16::MAX {
            let op = Op::new(number);
            assert_eq!(op.is_some(), (1..=7).contains(&number));
            assert!(op.is_none_or(|op| op as u16 == number));
        }
    }
}
