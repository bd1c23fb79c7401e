//! The debug port, I/O port 0x80 of the PC: what is written there is a mark of how far the guest has come.
//!
//! | offset | bytes | R/W | meaning |
//! |---|---|---|---|
//! | 0 | 1 | W | mark |

use crate::bus::{BusDevice, Effect};

/// Hands each mark to a sink, which notes the time and does little else: it runs on the vCPU thread.
pub struct DebugPort {
    sink: Box<dyn FnMut(u8) + Send>,
}

impl DebugPort {
    /// A debug port whose marks go to `sink`.
    pub fn new(sink: Box<dyn FnMut(u8) + Send>) -> Self {
        Self { sink }
    }
}

impl BusDevice for DebugPort {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write(&mut self, offset: u64, data: &[u8]) -> Effect {
        if let (0, Some(mark)) = (offset, data.first()) {
            (self.sink)(*mark);
        }
        Effect::None
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn only_writes_to_the_port_itself_are_marks() {
        let (sender, marks) = mpsc::channel();
        let mut port = DebugPort::new(Box::new(move |mark| sender.send(mark).unwrap()));
        assert_eq!(port.write(0, &[0x41]), Effect::None);
        assert_eq!(port.write(1, &[0x42]), Effect::None);
        assert_eq!(port.write(0, &[]), Effect::None);
        let mut data = [0; 4];
        port.read(0, &mut data);
        assert_eq!((data, marks.try_iter().collect::<Vec<_>>()), ([0xff; 4], vec![0x41]));
    }
}
