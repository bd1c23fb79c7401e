//! A request of the driver, taken apart and checked (virtio 1.2 §5.2.6).
//!
//! | part | direction | bytes |
//! |---|---|---|
//! | `type` | device-readable | 4 |
//! | `reserved` | device-readable | 4 |
//! | `sector` | device-readable | 8 |
//! | `data` | readable for writes, discards and zeroes; writable for reads and the identification | any |
//! | `status` | device-writable, the last byte of the chain | 1 |
//!
//! The parts may lie in descriptors of any size (virtio 1.2 §2.7.4.1). Everything is read from guest memory once.

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};

use super::ID_BYTES;
use super::image::{Image, SECTOR_BYTES};
use crate::ring::{Chain, Reader};

/// Bytes before the data.
pub(super) const HEADER_BYTES: usize = 16;
/// Bytes after the data.
pub(super) const STATUS_BYTES: usize = 1;

/// Most sectors of one discarded range, 1 TiB: whole pages, and the host only changes its book-keeping.
pub(super) const MAX_DISCARD_SECTORS: u32 = 1 << 31;
/// Most ranges of one discard.
pub(super) const MAX_DISCARD_RANGES: u32 = 32;
/// Most sectors of one zeroed range, 32 MiB: where the host has no quick way they are written.
pub(super) const MAX_ZERO_SECTORS: u32 = 1 << 16;
/// Most ranges of one write-zeroes request.
pub(super) const MAX_ZERO_RANGES: u32 = 1;

/// `status` (virtio 1.2 §5.2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// `VIRTIO_BLK_S_OK`
    Ok,
    /// `VIRTIO_BLK_S_IOERR`
    IoError,
    /// `VIRTIO_BLK_S_UNSUPP`
    Unsupported,
}

impl Status {
    /// The byte that the driver reads.
    pub fn byte(self) -> u8 {
        let value = match self {
            Self::Ok => VIRTIO_BLK_S_OK,
            Self::IoError => VIRTIO_BLK_S_IOERR,
            Self::Unsupported => VIRTIO_BLK_S_UNSUPP,
        };
        u8::try_from(value).expect("status values are 0 to 2")
    }
}

/// A range of the image in bytes, inside the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    /// First byte: a multiple of 512.
    pub offset: u64,
    /// Length: a multiple of 512.
    pub len: u64,
}

/// A range to be zeroed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ZeroExtent {
    /// Where.
    pub extent: Extent,
    /// Whether its space may be freed.
    pub unmap: bool,
}

/// What the driver wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Fill the writable bytes before the status from the image.
    Read(Extent),
    /// Copy the readable bytes after the header into the image.
    Write(Extent),
    /// Make completed writes stable.
    Flush,
    /// Fill the first 20 writable bytes with the serial number.
    GetId,
    /// Forget these ranges.
    Discard(Vec<Extent>),
    /// Make these ranges read as zeros.
    WriteZeroes(Vec<ZeroExtent>),
}

impl Request {
    /// Bytes of the image that are read or written, as the rate limiter counts them. Zeroes may
    /// have to be written; a range that is discarded moves none.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::Read(extent) | Self::Write(extent) => extent.len,
            Self::WriteZeroes(extents) => extents
                .iter()
                .fold(0, |bytes: u64, zero| bytes.saturating_add(zero.extent.len)),
            Self::Flush | Self::GetId | Self::Discard(_) => 0,
        }
    }
}

/// What a request is checked against.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Sectors of the disk.
    pub sectors: u64,
    /// No request may change the image.
    pub readonly: bool,
    /// `VIRTIO_BLK_F_DISCARD` is offered.
    pub discard: bool,
}

impl Limits {
    /// The limits of a disk on `image`.
    pub fn of(image: &Image) -> Self {
        Self {
            sectors: image.sectors(),
            readonly: image.readonly(),
            discard: image.discard(),
        }
    }

    /// `count` sectors from `sector` on as bytes, if the disk has them all.
    fn extent(self, sector: u64, count: u64) -> Option<Extent> {
        if sector.checked_add(count)? > self.sectors {
            return None;
        }
        Some(Extent {
            offset: sector.checked_mul(SECTOR_BYTES.into())?,
            len: count.checked_mul(SECTOR_BYTES.into())?,
        })
    }

    /// `len` bytes from `sector` on, if they are whole sectors.
    fn data(self, sector: u64, len: usize) -> Option<Extent> {
        let len = u64::try_from(len).ok()?;
        let unit = u64::from(SECTOR_BYTES);
        if !len.is_multiple_of(unit) {
            return None;
        }
        self.extent(sector, len.checked_div(unit)?)
    }
}

/// Takes `chain` apart. The caller has seen to it that there is a status byte.
///
/// # Errors
/// The status to answer with, where the request is not one that this disk carries out.
pub(super) fn parse(chain: &Chain, limits: Limits) -> Result<Request, Status> {
    let mut reader = chain.reader();
    let header = reader.read_obj::<[u8; HEADER_BYTES]>().map_err(|_| Status::IoError)?;
    let (kind, sector) = split_header(header);
    let given = reader.available_bytes();
    let wanted = chain.writer().available_bytes().saturating_sub(STATUS_BYTES);
    match kind {
        VIRTIO_BLK_T_IN if given == 0 => limits.data(sector, wanted).map(Request::Read).ok_or(Status::IoError),
        VIRTIO_BLK_T_GET_ID if given == 0 && wanted >= ID_BYTES => Ok(Request::GetId),
        VIRTIO_BLK_T_FLUSH if given == 0 && wanted == 0 => Ok(Request::Flush),
        // Data in the wrong direction; and a read-only disk is not written, however (virtio 1.2 §5.2.6.2).
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_GET_ID | VIRTIO_BLK_T_FLUSH => Err(Status::IoError),
        VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if limits.readonly || wanted > 0 => {
            Err(Status::IoError)
        }
        VIRTIO_BLK_T_OUT => limits.data(sector, given).map(Request::Write).ok_or(Status::IoError),
        VIRTIO_BLK_T_DISCARD if limits.discard => discard(&mut reader, limits),
        VIRTIO_BLK_T_WRITE_ZEROES => write_zeroes(&mut reader, limits),
        _ => Err(Status::Unsupported),
    }
}

fn split_header(header: [u8; HEADER_BYTES]) -> (u32, u64) {
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    (u32::from_le_bytes([t0, t1, t2, t3]), u64::from_le_bytes(sector))
}

fn discard(reader: &mut Reader<'_>, limits: Limits) -> Result<Request, Status> {
    let segments = segments(reader, MAX_DISCARD_RANGES)?;
    let extents = segments.iter().map(|segment| match segment.flags {
        0 => segment.extent(limits, MAX_DISCARD_SECTORS),
        _ => Err(Status::Unsupported),
    });
    extents.collect::<Result<_, _>>().map(Request::Discard)
}

fn write_zeroes(reader: &mut Reader<'_>, limits: Limits) -> Result<Request, Status> {
    let segments = segments(reader, MAX_ZERO_RANGES)?;
    let extents = segments.iter().map(|segment| match segment.flags {
        0 | VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP => Ok(ZeroExtent {
            extent: segment.extent(limits, MAX_ZERO_SECTORS)?,
            unmap: segment.flags != 0,
        }),
        _ => Err(Status::Unsupported),
    });
    extents.collect::<Result<_, _>>().map(Request::WriteZeroes)
}

/// `struct virtio_blk_discard_write_zeroes` (virtio 1.2 §5.2.6): sector, number of sectors, flags.
struct Segment {
    sector: u64,
    count: u32,
    flags: u32,
}

impl Segment {
    const BYTES: usize = 16;

    fn read(reader: &mut Reader<'_>) -> Option<Self> {
        let bytes = reader.read_obj::<[u8; Self::BYTES]>().ok()?;
        let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, flags @ ..] = bytes;
        Some(Self {
            sector: u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
            count: u32::from_le_bytes([c0, c1, c2, c3]),
            flags: u32::from_le_bytes(flags),
        })
    }

    fn extent(&self, limits: Limits, most: u32) -> Result<Extent, Status> {
        if self.count > most {
            return Err(Status::IoError);
        }
        limits.extent(self.sector, self.count.into()).ok_or(Status::IoError)
    }
}

/// Reads the segments that make up all of the data: at least one and at most `most`.
fn segments(reader: &mut Reader<'_>, most: u32) -> Result<Vec<Segment>, Status> {
    let len = reader.available_bytes();
    let count = len / Segment::BYTES;
    let fits = u32::try_from(count).is_ok_and(|count| (1..=most).contains(&count));
    if !len.is_multiple_of(Segment::BYTES) || !fits {
        return Err(Status::IoError);
    }
    (0..count)
        .map(|_| Segment::read(reader).ok_or(Status::IoError))
        .collect()
}

#[cfg(test)]
#[path = "request_test.rs"]
mod tests;
