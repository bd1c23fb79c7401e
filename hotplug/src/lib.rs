//! How a guest is told of hardware change, and how it answers.
//!
//! A vCPU, a memory block and a PCI device come and go in the same four steps: the host creates the unit
//! ([`Plug::create`]), the guest is told (an event waits in a [`bank::Bank`], a [`ged::GedNotifier`] raises the
//! interrupt), the guest answers (`_OST`, `_EJ0`, with which the outcome comes to an [`outcome::OutcomeReceiver`]), and
//! the host destroys what the guest let go ([`Plug::destroy`]). [`slot`] is the law of it, [`aml`] and [`ged`] are the
//! guest's side, and [`sizing`] says how large a pod should be in the first place.
//!
//! Section numbers refer to the *ACPI Specification*, release 6.5.

#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
#![cfg_attr(
    test,
    allow(
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        clippy::unwrap_used,
        reason = "a test that breaks its own arithmetic fails, as it should"
    )
)]

pub mod aml;
pub mod bank;
pub mod ged;
pub mod outcome;
mod plug;
pub mod sizing;
pub mod slot;

#[cfg(test)]
mod guest_test;

pub use plug::{Hotplug, HotplugError, Plug, PlugError};
