//! husk: a KVM virtual machine monitor for pods.
//!
//! This crate owns the process: KVM, threads, the command line. What a guest finds in RAM is
//! `husk-firmware`'s, what sits on its buses `husk-devices`' and `husk-virtio`'s. The library is
//! the program's; its API serves the program and the tests.

pub mod api;
mod background;
pub mod check;
pub mod cli;
pub mod config;
pub mod control;
mod cpu_time;
pub mod cpus;
pub mod ctl;
mod event_limit;
pub mod events;
pub mod explain;
pub mod fatal;
pub mod fleet;
pub mod fs;
pub mod gather;
pub mod install;
pub mod kvm;
pub mod log;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod overhead;
pub mod pod;
mod process;
mod procfs;
pub mod regular_file;
pub mod seccomp;
pub mod spawner;
#[cfg(test)]
#[path = "subprocess_test.rs"]
mod subprocess;
pub mod terminal;
pub mod trace;
mod trim;
pub mod wakeup;
