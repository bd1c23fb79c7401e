//! The place of a function that can be taken out while others still refer to the place.

use std::io;

use super::{BarRange, ConfigSpace, Identity, PciFunction};
use crate::bus::Effect;

/// A function in its place, or the place once the function is gone.
///
/// The root, the windows of BARs and a vCPU in the middle of an access refer to the place, each for
/// as long as it takes. The function is dropped by whoever takes it out, and nowhere else: by the
/// last reference it would be dropped on any thread, also on a vCPU's, which is not allowed what
/// the end of a device needs.
///
/// An access that comes late finds nothing: all ones are read, writes are dropped, nothing is decoded.
#[derive(Debug)]
pub struct Removable<F>(Place<F>);

#[derive(Debug)]
enum Place<F> {
    Filled(F),
    Vacant(ConfigSpace),
}

impl<F> Removable<F> {
    /// `function` in its place.
    pub fn new(function: F) -> Self {
        Self(Place::Filled(function))
    }

    /// The function, unless it is gone.
    pub fn get(&mut self) -> Option<&mut F> {
        match &mut self.0 {
            Place::Filled(function) => Some(function),
            Place::Vacant(_) => None,
        }
    }

    /// Takes the function out. Nobody reaches it through this place afterwards.
    pub fn take(&mut self) -> Option<F> {
        let nothing = ConfigSpace::new(&Identity::default());
        match std::mem::replace(&mut self.0, Place::Vacant(nothing)) {
            Place::Filled(function) => Some(function),
            Place::Vacant(_) => None,
        }
    }
}

impl<F: PciFunction> PciFunction for Removable<F> {
    fn config(&self) -> &ConfigSpace {
        match &self.0 {
            Place::Filled(function) => function.config(),
            Place::Vacant(nothing) => nothing,
        }
    }

    fn config_mut(&mut self) -> &mut ConfigSpace {
        match &mut self.0 {
            Place::Filled(function) => function.config_mut(),
            Place::Vacant(nothing) => nothing,
        }
    }

    fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        match self.get() {
            Some(function) => function.read_config(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Effect {
        self.get()
            .map_or(Effect::None, |function| function.write_config(offset, data))
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        match self.get() {
            Some(function) => function.read_bar(bar, offset, data),
            None => data.fill(0xff),
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) -> Effect {
        self.get()
            .map_or(Effect::None, |function| function.write_bar(bar, offset, data))
    }

    fn decoded(&self) -> Vec<BarRange> {
        match &self.0 {
            Place::Filled(function) => function.decoded(),
            Place::Vacant(_) => Vec::new(),
        }
    }

    fn bar_moved(&mut self, bar: u8, to: Option<u64>) -> io::Result<()> {
        self.get().map_or(Ok(()), |function| function.bar_moved(bar, to))
    }
}
