//! Fuzz targets: everything that reads what a guest or a client wrote, and what must hold whatever that is.
//!
//! A target is a function of bytes that panics when something is wrong. But for `api`, `share` and
//! the back-end of `fs`, it runs on one thread and starts none, so that an input does the same each
//! time: queues are real, but a target wakes the device's handlers itself. `cargo lab fuzz` drives
//! the targets by libFuzzer; `cargo test` replays the seeds in `seeds/`, which are made by the
//! targets' own `seeds` functions.

#![allow(
    clippy::unwrap_used,
    reason = "what a target takes for granted and does not find is a finding"
)]

mod answers;
mod api;
mod balloon;
mod block;
mod board;
mod config;
mod console;
mod elf;
mod file;
mod fs;
mod guest;
mod hotplug;
mod http;
mod inert_device;
mod kernel;
mod mem;
mod net;
mod op;
mod pmem;
mod queue;
mod resize;
mod ring;
mod rng;
mod script;
mod share;
mod virtio_pci;
mod vsock;

/// Inputs to start from, each with a name.
pub type Seeds = Vec<(&'static str, Vec<u8>)>;

/// One entry point for arbitrary bytes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// What it is called on the command line; also its folder in `seeds/`.
    pub name: &'static str,
    /// Takes one input. Panics if something is wrong.
    pub run: fn(&[u8]),
    /// Inputs that are known to reach the interesting places.
    pub seeds: fn() -> Seeds,
}

/// All targets.
pub const TARGETS: &[Target] = &[
    target("api", api::run, api::seeds),
    target("balloon", balloon::run, balloon::seeds),
    target("block", block::run, block::seeds),
    target("board", board::run, board::seeds),
    target("config", config::run, config::seeds),
    target("console", console::run, console::seeds),
    target("fs", fs::run, fs::seeds),
    target("hotplug", hotplug::run, hotplug::seeds),
    target("http", http::run, http::seeds),
    target("kernel", kernel::run, kernel::seeds),
    target("mem", mem::run, mem::seeds),
    target("net", net::run, net::seeds),
    target("pmem", pmem::run, pmem::seeds),
    target("resize", resize::run, resize::seeds),
    target("ring", ring::run, ring::seeds),
    target("rng", rng::run, rng::seeds),
    target("share", share::run, share::seeds),
    target("virtio-pci", virtio_pci::run, virtio_pci::seeds),
    target("vsock", vsock::run, vsock::seeds),
];

const fn target(name: &'static str, run: fn(&[u8]), seeds: fn() -> Seeds) -> Target {
    Target { name, run, seeds }
}

/// The target called `name`.
pub fn find(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}
