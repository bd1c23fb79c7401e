//! A host that fails when it is told to: the slots of KVM, and vCPUs, on paper.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use husk::kvm::KvmError;
use husk::machine::resize::Vcpus;
use husk::memory::Slots;
use husk_devices::memory::GuestRegionMmap;
use husk_hotplug::{Plug, PlugError};
use vm_memory::GuestMemoryRegion;

use super::VCPUS;

thread_local! {
    /// The thread may wait for nobody at present.
    static IS_MAIN: Cell<bool> = const { Cell::new(false) };
}

/// Does what the main thread does.
pub fn as_main<T>(act: impl FnOnce() -> T) -> T {
    IS_MAIN.set(true);
    let done = act();
    IS_MAIN.set(false);
    done
}

/// The slots of KVM.
#[derive(Default)]
pub struct Kvm {
    pub taken: Mutex<BTreeMap<u32, (u64, u64)>>,
    pub refuses: AtomicBool,
    pub keeps: AtomicBool,
}

impl Slots for Kvm {
    fn map(&self, slot: u32, region: &Arc<GuestRegionMmap>) -> Result<(), KvmError> {
        assert!(!IS_MAIN.get(), "the main thread adds slot {slot}");
        unless(&self.refuses)?;
        let (base, bytes) = (region.start_addr().0, region.len());
        let mut taken = self.taken.lock().unwrap();
        let apart = taken.values().all(|(at, len)| at + len <= base || base + bytes <= *at);
        assert!(apart, "{bytes} bytes at {base:#x} are there already");
        assert_eq!(taken.insert(slot, (base, bytes)), None, "slot {slot} is taken");
        Ok(())
    }

    fn unmap(&self, slot: u32) -> Result<(), KvmError> {
        assert!(!IS_MAIN.get(), "the main thread removes slot {slot}");
        unless(&self.keeps)?;
        self.taken.lock().unwrap().remove(&slot).expect("a slot in use");
        Ok(())
    }
}

fn unless(broken: &AtomicBool) -> Result<(), KvmError> {
    match broken.load(Ordering::Relaxed) {
        true => Err(KvmError::Refused {
            what: "do it".into(),
            source: io::ErrorKind::OutOfMemory.into(),
        }),
        false => Ok(()),
    }
}

/// vCPUs on paper.
#[derive(Default)]
pub struct Paper {
    pub there: BTreeSet<u32>,
    pub cannot_create: bool,
}

impl Plug for Paper {
    type Unit = ();

    fn create(&mut self, slot: u32, (): ()) -> Result<(), PlugError> {
        if self.cannot_create {
            return Err(PlugError {
                what: format!("add vCPU {slot}"),
                source: "the script says so".into(),
            });
        }
        assert!(self.there.insert(slot), "vCPU {slot} comes twice");
        Ok(())
    }

    fn destroy(&mut self, slot: u32) -> Result<(), PlugError> {
        assert_ne!(slot, 0, "the first vCPU is there for good");
        assert!(self.there.remove(&slot), "vCPU {slot} goes twice");
        Ok(())
    }
}

impl Vcpus for Paper {
    fn max(&self) -> u32 {
        VCPUS
    }

    fn is_online(&self, id: u32) -> bool {
        self.there.contains(&id)
    }

    fn is_starting(&self, _: u32) -> bool {
        false
    }
}
