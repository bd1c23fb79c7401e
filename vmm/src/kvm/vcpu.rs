//! One virtual CPU: its state before the first instruction, and the loop around `KVM_RUN` (KVM api.rst 4.10).

#![expect(
    unsafe_code,
    reason = "reading the members of kvm_run's union that kvm-ioctls does not hand out; kicks that write to kvm_run"
)]

use std::io;
use std::ptr;

use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_UNINITIALIZED, Msrs, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_run, kvm_sregs,
};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::kick::Armed;
use super::{Context, KvmError, Stats, Topology, stuck, tsc};

/// IA32_MISC_ENABLE and its bit "fast strings" (Intel SDM vol. 4).
const MSR_IA32_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// IA32_MTRR_DEF_TYPE: MTRRs on, default type write-back (Intel SDM vol. 3A §12.11.2.1).
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
const MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;
/// What a guest shares with KVM through its memory, and what INIT does not end: the clock, stolen
/// time, asynchronous page faults, ends of interrupts (KVM msr.rst). IA32_TSC_ADJUST with them
/// (Intel SDM vol. 3B §18.17.3).
const MSRS_OF_THE_GUEST: [u32; 5] = [0x4b56_4d01, 0x4b56_4d03, 0x4b56_4d02, 0x4b56_4d04, 0x3b];

/// What the guest touched that KVM could not answer itself.
#[derive(Debug)]
pub enum Port<'a> {
    /// `in`: fill the bytes.
    In(u16, &'a mut [u8]),
    /// `out`.
    Out(u16, &'a [u8]),
    /// Load from an address that is not RAM: fill the bytes.
    Load(u64, &'a mut [u8]),
    /// Store to an address that is not RAM.
    Store(u64, &'a [u8]),
    /// Any access to guest memory that the host has no page for. KVM does not always say where.
    Missing(Option<u64>),
    /// No access: the vCPU has used a second of processor time, or was kicked, and goes on. What may keep it for ever
    /// can be looked for, elsewhere.
    Look,
}

/// Why [`Vcpu::run`] came back.
#[derive(Debug)]
pub enum Exit {
    /// It was asked to stop.
    Stopped,
    /// The guest has begun to start it: it waits no longer in KVM (Intel SDM vol. 3A §9.4, INIT).
    Begun,
    /// Triple fault: what hardware turns into a reset (Intel SDM vol. 3A §6.15).
    TripleFault,
    /// KVM cannot go on with this vCPU.
    Failed(String),
}

/// A virtual CPU. Made on any thread, then run by one.
#[derive(Debug)]
pub struct Vcpu {
    id: u32,
    fd: VcpuFd,
    /// What one that may be unplugged goes back to; none of the first, which is there for good.
    power_on: Option<Box<PowerOn>>,
}

/// A vCPU as it is before the guest has started it.
#[derive(Debug)]
struct PowerOn {
    regs: kvm_regs,
    sregs: kvm_sregs,
    lapic: kvm_lapic_state,
}

impl Vcpu {
    pub(super) fn new(id: u32, fd: VcpuFd) -> Self {
        Self { id, fd, power_on: None }
    }

    /// Number of the vCPU; also its APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Gives the vCPU its CPUID and model-specific registers.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn configure(&mut self, topology: &Topology) -> Result<(), KvmError> {
        let id = self.id;
        let cpuid = topology.cpuid(id, self.fd.get_tsc_khz().ok().filter(|khz| *khz != 0));
        debug_assert!(cpuid.as_slice().len() <= KVM_MAX_CPUID_ENTRIES);
        self.fd
            .set_cpuid2(&cpuid)
            .or_refused(|| format!("set the CPUID of vCPU {id}"))?;
        self.set_start_msrs()?;
        if id != 0 {
            self.power_on = Some(Box::new(self.power_on_state()?));
        }
        Ok(())
    }

    /// Makes the vCPU, which does not run, ready to be started by a guest that runs:
    /// [configured](Vcpu::configure) if it is new, then brought to that state, also if it is there
    /// already: KVM learns of the local APIC of a vCPU that is made late when it is set (INIT would
    /// be lost otherwise).
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn prepare(&mut self, topology: &Topology) -> Result<(), KvmError> {
        if self.power_on.is_none() {
            self.configure(topology)?;
        }
        self.reset()
    }

    /// Brings a vCPU that does not run back to where it was before the guest started it for the
    /// first time: it waits for INIT and SIPI, nothing is pending, and nothing of it is shared with
    /// the guest's memory. Its CPUID stays.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    fn reset(&self) -> Result<(), KvmError> {
        let Some(power_on) = &self.power_on else { return Ok(()) };
        let what = || format!("reset vCPU {}", self.id);
        for index in MSRS_OF_THE_GUEST {
            let msr = kvm_msr_entry {
                index,
                ..Default::default()
            };
            let msr = Msrs::from_entries(&[msr]).expect("one entry fits any list");
            // What this host's KVM does not have, the guest has not used.
            let _ = self.fd.set_msrs(&msr);
        }
        self.set_start_msrs()?;
        self.fd.set_sregs(&power_on.sregs).or_refused(what)?;
        self.fd.set_regs(&power_on.regs).or_refused(what)?;
        // Before its state: KVM wants no timer armed on a vCPU that was not started.
        self.fd.set_lapic(&power_on.lapic).or_refused(what)?;
        let mut events = self.fd.get_vcpu_events().or_refused(what)?;
        events = kvm_bindings::kvm_vcpu_events {
            flags: events.flags,
            ..Default::default()
        };
        self.fd.set_vcpu_events(&events).or_refused(what)?;
        let waiting = kvm_mp_state {
            mp_state: KVM_MP_STATE_UNINITIALIZED,
        };
        self.fd.set_mp_state(waiting).or_refused(what)
    }

    fn power_on_state(&self) -> Result<PowerOn, KvmError> {
        let what = || format!("read the first state of vCPU {}", self.id);
        Ok(PowerOn {
            regs: self.fd.get_regs().or_refused(what)?,
            sregs: self.fd.get_sregs().or_refused(what)?,
            lapic: self.fd.get_lapic().or_refused(what)?,
        })
    }

    /// What KVM counts of the vCPU, which must not run at present; `None` where KVM does not.
    pub fn stats(&self) -> Option<Stats> {
        Stats::of(&self.fd)
            .inspect_err(|error| log::debug!("vCPU {}: no statistics: {error}", self.id))
            .ok()
    }

    /// How far the time stamp counter of the vCPU, which does not run at present, is from the
    /// host's; `None` where KVM does not say.
    pub fn tsc_offset(&self) -> Option<u64> {
        tsc::offset(&self.fd).ok()
    }

    /// Makes the time stamp counter of the vCPU, which does not run at present, agree with one that has `offset`.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn set_tsc_offset(&self, offset: u64) -> Result<(), KvmError> {
        tsc::set_offset(&self.fd, offset).map_err(|source| KvmError::Refused {
            what: format!("set the time stamp counter of vCPU {}", self.id),
            source,
        })
    }

    fn set_start_msrs(&self) -> Result<(), KvmError> {
        let id = self.id;
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = [
            msr(MSR_IA32_MISC_ENABLE, FAST_STRINGS),
            msr(MSR_MTRR_DEF_TYPE, MTRR_ENABLED_WRITE_BACK),
        ];
        let msrs = Msrs::from_entries(&msrs).expect("two entries fit any list");
        // A host that lacks one of them gives the guest the hardware's own default, which Linux copes with.
        self.fd
            .set_msrs(&msrs)
            .or_refused(|| format!("set model-specific registers of vCPU {id}"))?;
        Ok(())
    }

    /// The system registers as KVM has them now.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn system_registers(&self) -> Result<kvm_sregs, KvmError> {
        self.fd
            .get_sregs()
            .or_refused(|| format!("read the system registers of vCPU {}", self.id))
    }

    /// Places the vCPU at its first instruction.
    ///
    /// # Errors
    /// [`KvmError::Refused`].
    pub fn set_registers(&self, regs: &kvm_regs, sregs: &kvm_sregs) -> Result<(), KvmError> {
        self.fd
            .set_sregs(sregs)
            .or_refused(|| format!("set the system registers of vCPU {}", self.id))?;
        self.fd
            .set_regs(regs)
            .or_refused(|| format!("set the registers of vCPU {}", self.id))
    }

    /// Runs the guest until something ends it. `answer` serves what KVM cannot, and returns whether
    /// to go on; `stop` says whether to leave, and is asked before each entry.
    ///
    /// Called on the thread that a [`Kicker`](super::Kicker) aims at. A kick that comes after
    /// `stop` has been asked keeps the vCPU from entering, so whoever makes `stop` true and then
    /// kicks is not missed.
    pub fn run(&mut self, stop: impl Fn() -> bool, mut answer: impl FnMut(Port<'_>) -> bool) -> Exit {
        // SAFETY: dropped at the end of this function, which has the vCPU for itself until then.
        let armed = unsafe { Armed::new(&mut self.fd) };
        let shared = ptr::from_mut(self.fd.get_kvm_run());
        while !stop() {
            let go_on = match self.fd.run() {
                // A string instruction (`rep outsb`) comes as one exit with all of its elements,
                // each for the same port.
                Ok(VcpuExit::IoIn(port, data)) => data
                    .chunks_mut(io_width(shared))
                    .all(|element| answer(Port::In(port, element))),
                Ok(VcpuExit::IoOut(port, data)) => data
                    .chunks(io_width(shared))
                    .all(|element| answer(Port::Out(port, element))),
                Ok(VcpuExit::MmioRead(gpa, data)) => answer(Port::Load(gpa, data)),
                Ok(VcpuExit::MmioWrite(gpa, data)) => answer(Port::Store(gpa, data)),
                Ok(VcpuExit::MemoryFault { gpa, .. }) => answer(Port::Missing(Some(gpa))),
                Ok(VcpuExit::Shutdown) => return Exit::TripleFault,
                // Whoever kicks a vCPU to have it out of the guest does not mean a look.
                Ok(VcpuExit::Intr) => {
                    stuck::look(&self.fd);
                    stop() || answer(Port::Look)
                }
                Ok(VcpuExit::InternalError) => return Exit::Failed(self.internal_error()),
                Ok(VcpuExit::FailEntry(reason, cpu)) => {
                    return Exit::Failed(format!(
                        "the CPU refused to enter the guest: reason {reason:#x}, host CPU {cpu}"
                    ));
                }
                Ok(other) => return Exit::Failed(format!("unexpected exit {other:?}")),
                Err(errno) if errno.errno() == libc::EINTR => {
                    armed.clear();
                    stuck::look(&self.fd);
                    stop() || answer(Port::Look)
                }
                // A vCPU that the guest has not started waits in there, and comes out when it is.
                Err(errno) if errno.errno() == libc::EAGAIN => return Exit::Begun,
                // Linux before 6.8 does not say where (KVM api.rst, KVM_EXIT_MEMORY_FAULT).
                Err(errno) if errno.errno() == libc::EFAULT => answer(Port::Missing(None)),
                Err(errno) => {
                    let error = io::Error::from_raw_os_error(errno.errno());
                    return Exit::Failed(format!("KVM_RUN: {error}"));
                }
            };
            if !go_on {
                break;
            }
        }
        Exit::Stopped
    }

    /// Tells KVM that the host has stopped the vCPU for longer than the guest may notice: its clock
    /// then says so, and its watchdogs stay quiet (KVM api.rst 4.71 `KVM_KVMCLOCK_CTRL`). Called
    /// while the vCPU does not run.
    pub fn mark_stopped(&self) {
        // EINVAL: the guest does not use the clock, and has no such watchdog.
        if let Err(errno) = self.fd.kvmclock_ctrl() {
            log::debug!("vCPU {}: its clock cannot be told of the pause: {errno}", self.id);
        }
    }

    /// KVM's own account of `KVM_EXIT_INTERNAL_ERROR`, with the place in the guest.
    fn internal_error(&mut self) -> String {
        // SAFETY: `internal` is the member that KVM fills for this exit; all of its bytes are plain integers.
        let suberror = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal.suberror };
        let what = match suberror {
            1 => "it cannot emulate an instruction",
            2 => "an exception came while it delivered another event",
            3 => "an event could not be delivered",
            4 => "an unexpected hardware exit",
            _ => "unknown",
        };
        let rip = self
            .fd
            .get_regs()
            .map_or_else(|_| "?".into(), |regs| format!("{:#x}", regs.rip));
        format!(
            "KVM internal error {suberror}: {what}, at guest instruction {rip} (software-virtualised hosts: see `husk check`)"
        )
    }
}

/// Bytes of one element of the port access that `shared` reports: 1, 2 or 4.
fn io_width(shared: *const kvm_run) -> usize {
    // SAFETY: the mapping lives as long as the vCPU that `run` borrows; `io` is the member that KVM
    // fills for a port access, and no reference to this part of it exists.
    let width = unsafe { (&raw const (*shared).__bindgen_anon_1.io.size).read() };
    usize::from(width).max(1)
}
