//! Discards and zeroes (virtio 1.2 §5.2.6), by the quickest way that the host has.
//!
//! | asked for | first | then |
//! |---|---|---|
//! | discard | `PUNCH_HOLE` | `VIRTIO_BLK_S_UNSUPP` |
//! | zeroes that may unmap | `PUNCH_HOLE` | as below |
//! | zeroes | `ZERO_RANGE` | zeros are written |

use std::collections::VecDeque;
use std::io;
use std::iter;

use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};

use super::engine::{OP_BYTES, Op};
use super::image::{Image, Route};
use super::job::Step;
use super::request::{Extent, Status, ZeroExtent};
use super::scratch::Scratch;
use crate::iovecs::{Iovecs, pieces};

/// How a range is made to read as zeros, or forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// Free the space; the range reads as zeros. If that cannot be, the request is not supported.
    Discard,
    /// Free the space; if that cannot be, zero.
    Punch,
    /// Zero and keep the space; if that cannot be, write.
    Zero,
    /// Write zeros.
    Write,
}

/// A discard or write-zeroes request under way: one range after the other.
pub(super) struct Zeroing {
    todo: VecDeque<(Extent, Way)>,
    /// The ranges must be on stable storage before the request completes.
    sync: bool,
}

impl Zeroing {
    /// Forgets `extents`, as far as they cover whole allocation units of the image: a discard is a hint.
    pub fn discard(extents: &[Extent], image: &Image) -> Self {
        let unit = image.allocation_unit();
        let whole = extents.iter().filter_map(|extent| {
            let start = extent.offset.checked_next_multiple_of(unit)?;
            let end = extent.offset.checked_add(extent.len)?;
            let len = end.checked_sub(end.checked_rem(unit)?)?.checked_sub(start)?;
            Some((Extent { offset: start, len }, Way::Discard))
        });
        Self::of(whole, false)
    }

    /// Makes `extents` read as zeros; with `stable`, also after a crash of the host.
    pub fn zeroes(extents: &[ZeroExtent], image: &Image, stable: bool) -> Self {
        let ways = extents.iter().map(|zero| match zero.unmap && image.discard() {
            true => (zero.extent, Way::Punch),
            false => (zero.extent, Way::Zero),
        });
        Self::of(ways, stable)
    }

    fn of(ranges: impl Iterator<Item = (Extent, Way)>, sync: bool) -> Self {
        let todo = ranges.filter(|(extent, _)| extent.len > 0).collect();
        Self { todo, sync }
    }

    /// What to do next.
    pub fn step<'a>(&mut self, image: &'a Image, scratch: &mut Scratch, buffers: &'a mut Iovecs) -> Step<'a> {
        let file = image.file();
        let Some(&(extent, way)) = self.todo.front() else {
            return match self.sync {
                true => Step::Run(Op::Sync { file }),
                false => Step::Done(Status::Ok),
            };
        };
        let mode = match way {
            Way::Discard | Way::Punch => FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
            Way::Zero => FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
            Way::Write => return write(extent, image, scratch, buffers),
        };
        let Extent { offset, len } = extent;
        Step::Run(Op::Allocate {
            file,
            mode,
            offset,
            len,
        })
    }

    /// Takes the result of the operation that [`Zeroing::step`] asked for.
    ///
    /// # Errors
    /// The status to answer the request with.
    pub fn complete(&mut self, result: io::Result<usize>) -> Result<(), Status> {
        let Some((extent, way)) = self.todo.front_mut() else {
            self.sync = false;
            return result.map(drop).map_err(|_| Status::IoError);
        };
        match (result, *way) {
            (Ok(0), Way::Write) => return Err(Status::IoError),
            (Ok(written), Way::Write) => {
                let written = u64::try_from(written).unwrap_or(u64::MAX).min(extent.len);
                extent.offset = extent.offset.saturating_add(written);
                extent.len = extent.len.saturating_sub(written);
                if extent.len > 0 {
                    return Ok(());
                }
            }
            (Ok(_), _) => {}
            (Err(error), Way::Discard) if is_unsupported(&error) => return Err(Status::Unsupported),
            (Err(error), Way::Punch) if is_unsupported(&error) => {
                *way = Way::Zero;
                return Ok(());
            }
            (Err(error), Way::Zero) if is_unsupported(&error) => {
                *way = Way::Write;
                return Ok(());
            }
            (Err(_), _) => return Err(Status::IoError),
        }
        self.todo.pop_front();
        Ok(())
    }
}

/// Writes zeros over as much of `extent` as one operation can.
fn write<'a>(extent: Extent, image: &'a Image, scratch: &mut Scratch, buffers: &'a mut Iovecs) -> Step<'a> {
    let Ok(zeros) = scratch.zeros() else {
        return Step::Done(Status::IoError);
    };
    let Extent { offset, len } = extent;
    let len = usize::try_from(len).expect("usize has 64 bits").min(OP_BYTES);
    buffers.fill(pieces(iter::repeat_n(zeros, len.div_ceil(zeros.len().max(1))), 0, len));
    // The zeros keep any alignment, so either route will do.
    let (Route::Cached(file) | Route::Direct(file, _)) = image.route(offset, len);
    Step::Run(Op::Write { file, buffers, offset })
}

/// Whether the host cannot do this at all, or not for a range that is not in whole blocks (`EINVAL`).
fn is_unsupported(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL | libc::ENODEV)
    )
}
