//! How often each endpoint of the API was asked, how it answered, and how long that took.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use crate::machine::Latency;

/// An endpoint, as a label: never what a client has made up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    /// One of this name.
    Named(&'static str),
    /// `vm.add-…` of this kind of device.
    Add(&'static str),
    /// There is no such path.
    Unknown,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) => f.write_str(name),
            Self::Add(kind) => write!(f, "vm.add-{kind}"),
            Self::Unknown => f.write_str("unknown"),
        }
    }
}

/// What clients have asked since the process began. Belongs to the thread of the API.
#[derive(Clone, Debug, Default)]
pub struct Calls(BTreeMap<(Endpoint, u16), Latency>);

impl Calls {
    /// A request was answered with `status`, so long after it had come.
    pub fn add(&mut self, endpoint: Endpoint, status: u16, took: Duration) {
        self.0.entry((endpoint, status)).or_default().add(took);
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Endpoint, u16, &Latency)> {
        self.0
            .iter()
            .map(|((endpoint, status), latency)| (*endpoint, *status, latency))
    }
}
