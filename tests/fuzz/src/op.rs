//! What a driver can do to a device, as a script has it: one byte says what, its arguments follow.

use crate::script::{Recorder, Script};

/// Buffers of one chain.
const BUFFERS_MAX: usize = 12;

/// One thing that a driver does. `queue` counts modulo the number of queues.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<'a> {
    /// Makes a chain of buffers available.
    Chain(u8, Vec<Buffer<'a>>),
    /// The same by an indirect table (virtio 1.2 §2.7.5.3).
    Indirect(u8, Vec<Buffer<'a>>),
    /// Writes one descriptor as it is: queue, index, 16 bytes.
    Descriptor(u8, u16, [u8; 16]),
    /// Makes a head available, whatever is there.
    Offer(u8, u16),
    /// Sets the available ring's index.
    AvailableIndex(u8, u16),
    /// Sets the available ring's flags.
    AvailableFlags(u8, u16),
    /// Sets the available ring's `used_event`.
    UsedEvent(u8, u16),
    /// Writes anywhere in RAM.
    Write(u32, &'a [u8]),
    /// Rings a doorbell and lets the device work.
    Kick(u8),
    /// Lets the device work.
    Wake,
    /// Something on the host's side; the target reads its arguments.
    Host,
    /// Resets the device and sets it up again; the set-up follows.
    Restart,
    /// Reads configuration space: offset, width.
    ReadConfig(u16, usize),
    /// Writes to configuration space.
    WriteConfig(u16, &'a [u8]),
}

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer<'a> {
    /// Where it is.
    pub place: Place,
    /// How long it says it is, in bytes.
    pub len: u32,
    /// Whether the device writes it.
    pub write: bool,
    /// What the driver puts there first.
    pub payload: &'a [u8],
}

/// Where a buffer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a page of the buffers' area, or beyond.
    Slot(u8),
    /// Anywhere.
    Raw(u64),
}

/// A buffer that the device reads: `payload` at page `slot`.
pub fn readable(slot: u8, payload: &[u8]) -> Buffer<'_> {
    Buffer {
        place: Place::Slot(slot),
        len: u32::try_from(payload.len()).unwrap_or(u32::MAX),
        write: false,
        payload,
    }
}

/// A buffer of `len` bytes at page `slot` that the device writes.
pub fn writable(slot: u8, len: u16) -> Buffer<'static> {
    Buffer {
        place: Place::Slot(slot),
        len: len.into(),
        write: true,
        payload: &[],
    }
}

impl<'a> Op<'a> {
    /// The next thing to do.
    pub fn read(script: &mut Script<'a>) -> Option<Self> {
        Some(match script.u8()? & 0x0f {
            0 | 14 => Self::Chain(script.u8()?, buffers(script)?),
            1 => Self::Indirect(script.u8()?, buffers(script)?),
            2 => {
                let (queue, index) = (script.u8()?, script.u16()?);
                let raw = u128::from(script.u64()?) | u128::from(script.u64()?) << 64;
                Self::Descriptor(queue, index, raw.to_le_bytes())
            }
            3 => Self::Offer(script.u8()?, script.u16()?),
            4 => Self::AvailableIndex(script.u8()?, script.u16()?),
            5 => Self::AvailableFlags(script.u8()?, script.u16()?),
            6 => Self::UsedEvent(script.u8()?, script.u16()?),
            7 => Self::Write(script.u32()?, script.bytes()?),
            8 | 15 => Self::Kick(script.u8()?),
            9 => Self::Wake,
            10 => Self::Host,
            11 => Self::Restart,
            12 => Self::ReadConfig(script.u16()?, script.width()?),
            _ => Self::WriteConfig(script.u16()?, script.bytes()?),
        })
    }

    /// Writes what [`Op::read`] reads.
    pub fn write(&self, to: &mut Recorder) {
        match self {
            Self::Chain(queue, buffers) => record(to.u8(0).u8(*queue), buffers),
            Self::Indirect(queue, buffers) => record(to.u8(1).u8(*queue), buffers),
            Self::Descriptor(queue, index, raw) => to.u8(2).u8(*queue).u16(*index).raw(raw),
            Self::Offer(queue, head) => to.u8(3).u8(*queue).u16(*head),
            Self::AvailableIndex(queue, value) => to.u8(4).u8(*queue).u16(*value),
            Self::AvailableFlags(queue, value) => to.u8(5).u8(*queue).u16(*value),
            Self::UsedEvent(queue, value) => to.u8(6).u8(*queue).u16(*value),
            Self::Write(place, bytes) => to.u8(7).u32(*place).bytes(bytes),
            Self::Kick(queue) => to.u8(8).u8(*queue),
            Self::Wake => to.u8(9),
            Self::Host => to.u8(10),
            Self::Restart => to.u8(11),
            Self::ReadConfig(offset, width) => to.u8(12).u16(*offset).u8(match width {
                2 => 1,
                4 => 2,
                8 => 3,
                _ => 0,
            }),
            Self::WriteConfig(offset, data) => to.u8(13).u16(*offset).bytes(data),
        };
    }
}

/// A script that sets the device up with everything it offers and then does `ops`.
pub fn script(ops: &[Op<'_>]) -> Recorder {
    let mut to = Recorder::default();
    to.u8(1).u64(u64::MAX);
    ops.iter().for_each(|op| op.write(&mut to));
    to
}

/// Bits of the byte that begins a buffer.
const WRITE: u8 = 1 << 0;
const RAW: u8 = 1 << 1;
const LONG: u8 = 1 << 2;
const PAYLOAD: u8 = 1 << 3;

fn buffers<'a>(script: &mut Script<'a>) -> Option<Vec<Buffer<'a>>> {
    let count = usize::from(script.u8()?) % (BUFFERS_MAX + 1);
    (0..count).map(|_| buffer(script)).collect()
}

fn buffer<'a>(script: &mut Script<'a>) -> Option<Buffer<'a>> {
    let flags = script.u8()?;
    let place = if flags & RAW != 0 {
        Place::Raw(script.u64()?)
    } else {
        Place::Slot(script.u8()?)
    };
    let len = if flags & LONG != 0 {
        script.u32()?
    } else {
        script.u16()?.into()
    };
    let payload = if flags & PAYLOAD != 0 { script.bytes()? } else { &[] };
    Some(Buffer {
        place,
        len,
        write: flags & WRITE != 0,
        payload,
    })
}

fn record<'r>(to: &'r mut Recorder, buffers: &[Buffer<'_>]) -> &'r mut Recorder {
    to.u8(u8::try_from(buffers.len()).expect("seeds have short chains"));
    for buffer in buffers {
        let raw = matches!(buffer.place, Place::Raw(_));
        let long = u16::try_from(buffer.len).is_err();
        let payload = !buffer.payload.is_empty();
        to.u8(u8::from(buffer.write) | u8::from(raw) << 1 | u8::from(long) << 2 | u8::from(payload) << 3);
        match buffer.place {
            Place::Raw(gpa) => to.u64(gpa),
            Place::Slot(slot) => to.u8(slot),
        };
        match u16::try_from(buffer.len) {
            Ok(len) => to.u16(len),
            Err(_) => to.u32(buffer.len),
        };
        if payload {
            to.bytes(buffer.payload);
        }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_recorded_is_done() {
        let odd = Buffer {
            place: Place::Raw(u64::MAX),
            len: u32::MAX,
            write: true,
            payload: b"x",
        };
        let ops = [
            Op::Chain(1, vec![readable(2, b"abc"), writable(3, 4), odd]),
            Op::Indirect(0, vec![odd]),
            Op::Descriptor(4, 5, [6; 16]),
            Op::Offer(7, 8),
            Op::AvailableIndex(9, 10),
            Op::AvailableFlags(11, 12),
            Op::UsedEvent(13, 14),
            Op::Write(15, b"16"),
            Op::Kick(17),
            Op::Wake,
            Op::Host,
            Op::Restart,
            Op::ReadConfig(18, 8),
            Op::WriteConfig(19, b"20"),
        ];
        let mut recorder = Recorder::default();
        ops.iter().for_each(|op| op.write(&mut recorder));
        let input = recorder.take();
        let mut script = Script::new(&input);
        let read: Vec<_> = std::iter::from_fn(|| Op::read(&mut script)).collect();
        assert_eq!(read, ops);
    }
}
