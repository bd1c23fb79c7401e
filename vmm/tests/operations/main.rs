//! Commands that take their time, on a guest of a few instructions: what is served meanwhile, and
//! how a thread that never stops is survived. Needs `/dev/kvm`.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod building;
mod devices_that_stay;
mod guests;
mod life;
mod opening;
#[path = "../process/mod.rs"]
mod process;
mod resizing;
mod stuck;
mod vcpus_that_stay;
