//! How a VM is put together: a list one can read from top to bottom.
//!
//! The order is that of architecture.md §4: memory slots before anything touches KVM's interrupt or
//! I/O buses, because a slot added later waits for them (Linux 6.18 and later: milliseconds); the
//! kernel is read on a thread of its own meanwhile.

use std::cell::OnceCell;
use std::error::Error;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, Scope, ScopedJoinHandle};
use std::time::Instant;

use husk_devices::power;
use husk_firmware::{
    CommandLine, Ecam, Initramfs, KernelImage, LoadError, Loaded, Payload, Platform, PowerRegisters, Protocol, layout,
    registers,
};
use husk_hotplug::Hotplug;
use husk_virtio::threads::Threads;
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::Machine;
use super::board::Board;
use super::cpu_slots::{self, CpuPlug};
use super::device::{Devices, SlotError};
use super::fips;
use super::populate::{Passed, populate};
use super::resize::{DimmPlug, MemoryParts, MemoryResize, Reclaim, Resizes, dimm_slots};
use super::stop::HoldState;
use crate::config::{BootProtocol, ConfigError, CpusConfig, Hotplug as MemoryHotplug, RunOptions, VmConfig};
use crate::cpus::Cpus;
use crate::kvm::{Kicker, Kvm, KvmError, Topology, Vcpu, Vm};
use crate::memory::{AddressSpace, MemoryError};
use crate::seccomp::{Mode, Role, SeccompError};
use crate::terminal::ProcessOutputs;
use crate::trace::Phase;

/// A payload below this is read sooner than a thread is started.
const WORTH_A_THREAD_BYTES: u64 = 256 << 10;

/// Why a VM could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// No kernel in the configuration.
    #[error("payload: no kernel given")]
    NoKernel,
    /// The configuration asks for what this host cannot give.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// KVM refused a step of building the machine.
    #[error(transparent)]
    Kvm(#[from] KvmError),
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// Kernel, initramfs, command line or tables.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The kernel command line.
    #[error(transparent)]
    CommandLine(#[from] husk_firmware::CommandLineError),
    /// A thread of the build could not be confined.
    #[error(transparent)]
    Seccomp(#[from] SeccompError),
    /// A device.
    #[error("{device}")]
    Device {
        /// Which one, as the configuration calls it.
        device: String,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// There is no PCI slot for a device.
    #[error("{device}")]
    Full {
        /// Which one, as the configuration calls it.
        device: String,
        /// Which slots there are.
        source: SlotError,
    },
    /// The host refused something small.
    #[error("cannot {what}")]
    Host {
        /// What was being done, in the infinitive.
        what: &'static str,
        /// The host's answer.
        source: io::Error,
    },
}

impl BuildError {
    /// An error of `device`.
    pub fn device(device: impl Into<String>, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self::Device {
            device: device.into(),
            source: source.into(),
        }
    }
}

pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> BuildError {
    move |source| BuildError::Host { what, source }
}

impl Machine {
    /// Builds the VM that `config` describes, up to its first instruction, with the descriptors in
    /// `passed`. `stdout` takes what a console in mode `Tty` prints; `threads` start what serves
    /// devices, and have the waker that is woken whenever the machine's owner should look after it.
    ///
    /// # Errors
    /// See [`BuildError`]. Nothing is left behind.
    pub fn build(
        config: &VmConfig,
        passed: &Passed,
        options: &RunOptions,
        outputs: &ProcessOutputs,
        threads: &Arc<dyn Threads>,
    ) -> Result<Self, BuildError> {
        let (trace, boot, max) = (&options.trace, config.cpus.boot_vcpus, config.cpus.max_vcpus);
        let kvm = Kvm::open()?;
        config.validate(kvm.limits())?;
        let (bytes, payload) = (payload_bytes(config), open_payload(config, options)?);
        trace.mark(Phase::KvmOpen);
        let vm = Arc::new(kvm.create_vm()?);
        trace.mark(Phase::VmCreate);
        let phys_bits = config.phys_bits(kvm.limits());
        let memory = AddressSpace::new(&config.memory, vm.clone(), phys_bits)?;
        trace.mark(Phase::Ram);

        // Nothing that the loader uses may move into the closure: on an error it would be dropped
        // before the loader is joined.
        let (cpus, dimms, devices, board, ended, handles) = thread::scope(|scope| -> Result<_, BuildError> {
            let ram = memory.guest().memory();
            let load = move || {
                let _span = trace.span(Phase::KernelLoad);
                payload.load(&ram)
            };
            let loading = Loading::begin(scope, bytes, options.seccomp, load)?;
            let ended = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(host("make an eventfd"))?;
            let board = Arc::new(Board::new(ended.try_clone().map_err(host("duplicate an eventfd"))?));
            board.set_memory(memory.clone());
            board.set_looker(threads.waker());
            let kicker = Kicker::install().map_err(host("install the signal that interrupts vCPUs"))?;
            let cpus = Cpus::prepare(&config.cpus, &board, kicker, options.seccomp, trace, &threads.waker())
                .map_err(host("start the vCPU threads"))?;

            vm.create_irqchip(max, layout::KVM_TSS)?;
            trace.mark(Phase::Irqchip);
            let topology = topology(&kvm, &config.cpus).with_phys_bits(phys_bits);
            let vcpus = create_vcpus(&vm, boot, &topology)?;
            trace.mark(Phase::Vcpus);
            let mut devices = Devices::new(board.clone(), vm.clone(), memory.guest(), threads.clone())?;
            let mut cpus = plug_cpus(&mut devices, &board, CpuPlug::new(cpus, vm.clone(), topology), boot)?;
            let dimms = plug_dimms(&mut devices, &board, config, &memory)?;
            let handles = populate(config, passed, &mut devices, &memory, outputs, options)?;
            trace.mark(Phase::Devices);

            let loaded = loading.end()?;
            trace.mark(Phase::KernelWait);
            write_tables(&memory, &devices, (boot, max), &loaded, vcpus.first())?;
            cpus.plug_mut().cpus.put(vcpus);
            trace.mark(Phase::Tables);
            Ok((cpus, dimms, devices, board, ended, handles))
        })?;
        let parts = memory_parts(config, &memory);
        let reclaim = config
            .balloon
            .as_ref()
            .and_then(|balloon| Reclaim::new(balloon, Instant::now()));
        if !kvm.is_hardware() {
            log::warn!(
                "this processor shows neither VMX nor SVM: KVM emulates the guest's kernel one instruction at a time, and a stock \
                 kernel fails or crawls (`husk check` says more)"
            );
        }
        Ok(Self {
            cpus,
            dimms,
            resizes: Resizes::new(
                MemoryResize::new(parts, memory.clone(), handles.blocks),
                handles.balloon,
                reclaim,
            ),
            hold_state: HoldState::Nothing,
            devices,
            board,
            ended,
            stdin_port: handles.stdin_port,
            chardevs: handles.chardevs,
            closing: Vec::new(),
            collecting: None,
            looking: None,
            vm,
            stats: OnceCell::new(),
            memory,
        })
    }
}

/// A payload on its way into RAM.
enum Loading<'scope> {
    /// On a thread of its own.
    OnThread(ScopedJoinHandle<'scope, Result<Loaded, BuildError>>),
    /// Already there, or not to be had.
    Done(Result<Loaded, BuildError>),
}

impl<'scope> Loading<'scope> {
    /// Loads `bytes` by calling `load`, on a thread of its own where that pays, confined as `seccomp` says.
    fn begin(
        scope: &'scope Scope<'scope, '_>,
        bytes: u64,
        seccomp: Mode,
        load: impl FnOnce() -> Result<Loaded, LoadError> + Send + 'scope,
    ) -> Result<Self, BuildError> {
        if bytes < WORTH_A_THREAD_BYTES {
            return Ok(Self::Done(load().map_err(BuildError::from)));
        }
        let load_confined = move || {
            seccomp.enter(Role::Loader)?;
            Ok(load()?)
        };
        let loader = thread::Builder::new().name("loader".into());
        Ok(Self::OnThread(
            loader
                .spawn_scoped(scope, load_confined)
                .map_err(host("start a thread"))?,
        ))
    }

    fn end(self) -> Result<Loaded, BuildError> {
        match self {
            Self::OnThread(loader) => loader.join().expect("a panic anywhere ends the process"),
            Self::Done(loaded) => loaded,
        }
    }
}

/// How much there is to load.
fn payload_bytes(config: &VmConfig) -> u64 {
    let files = [&config.payload.kernel, &config.payload.initramfs];
    let sizes = files
        .into_iter()
        .flatten()
        .filter_map(|path| path.metadata().ok())
        .map(|file| file.len());
    sizes.fold(0, u64::saturating_add)
}

fn open_payload(config: &VmConfig, options: &RunOptions) -> Result<Payload, BuildError> {
    let kernel = config.payload.kernel.as_ref().ok_or(BuildError::NoKernel)?;
    let cmdline = config.payload.cmdline.as_deref().unwrap_or_default();
    Ok(Payload {
        cmdline: CommandLine::new(fips::as_host(cmdline, Path::new("/")).into_owned())?,
        kernel: KernelImage::open(kernel).map_err(LoadError::from)?,
        initramfs: config
            .payload
            .initramfs
            .as_ref()
            .map(Initramfs::open)
            .transpose()
            .map_err(LoadError::from)?,
        protocol: options.protocol.map(|protocol| match protocol {
            BootProtocol::Pvh => Protocol::Pvh,
            BootProtocol::Linux64 => Protocol::Linux64,
        }),
    })
}

/// CPUID of every vCPU that there may ever be.
fn topology(kvm: &Kvm, cpus: &CpusConfig) -> Topology {
    let mut topology = kvm.topology(cpus.max_vcpus);
    if !cpus.nested {
        topology = topology.without_nesting();
    }
    if cpus.max_vcpus > cpus.boot_vcpus {
        topology = topology.without_cache_control();
    }
    topology
}

fn create_vcpus(vm: &Vm, count: u32, topology: &Topology) -> Result<Vec<Vcpu>, KvmError> {
    let create = |id| {
        let mut vcpu = vm.create_vcpu(id)?;
        vcpu.configure(topology)?;
        Ok(vcpu)
    };
    (0..count).map(create).collect()
}

/// The vCPU slots, of which the first `boot` are filled.
fn plug_cpus(devices: &mut Devices, board: &Board, plug: CpuPlug, boot: u32) -> Result<Hotplug<CpuPlug>, BuildError> {
    let slots = cpu_slots::slots(plug.cpus.max());
    let mut cpus = devices.hotplug_mut().bank(board, slots, plug)?;
    for slot in 0..boot {
        cpus.present(slot, ())
            .map_err(|e| BuildError::device("vCPU slots", e))?;
    }
    Ok(cpus)
}

/// The memory slots, where memory may come as DIMMs.
fn plug_dimms(
    devices: &mut Devices,
    board: &Board,
    config: &VmConfig,
    memory: &Arc<AddressSpace>,
) -> Result<Option<Hotplug<DimmPlug>>, BuildError> {
    if memory.reserve().is_none() || config.memory.hotplug() == MemoryHotplug::Blocks {
        return Ok(None);
    }
    let plug = DimmPlug::new(memory.clone(), devices.threads().waker());
    Ok(Some(devices.hotplug_mut().bank(board, dimm_slots(), plug)?))
}

fn memory_parts(config: &VmConfig, memory: &AddressSpace) -> MemoryParts {
    let blocks_only = config.memory.hotplug() == MemoryHotplug::Blocks;
    let reserve = memory.reserve();
    let unit = match reserve {
        Some(_) if blocks_only => memory.block_bytes(),
        Some(reserve) => reserve.unit,
        None => 1,
    };
    MemoryParts {
        boot_bytes: config.memory.size,
        more_bytes: reserve.and(config.memory.hotplug_size).unwrap_or_default(),
        unit,
        blocks_only,
    }
}

/// What the guest finds in RAM beside its kernel, and the first vCPU's registers.
fn write_tables(
    memory: &AddressSpace,
    devices: &Devices,
    (boot, max): (u32, u32),
    loaded: &Loaded,
    first: Option<&Vcpu>,
) -> Result<(), BuildError> {
    let (apic_ids, spare): (Vec<u32>, Vec<u32>) = ((0..boot).collect(), (boot..max).collect());
    let platform = Platform {
        ram: memory.boot_ranges(),
        apic_ids: &apic_ids,
        spare_apic_ids: &spare,
        ecam: Some(Ecam {
            base: layout::ECAM,
            end_bus: 0,
        }),
        power: PowerRegisters {
            sleep_control: layout::SLEEP_CONTROL_PORT,
            sleep_status: layout::SLEEP_STATUS_PORT,
            reset: layout::RESET_PORT,
            reset_value: power::RESET_VALUE,
        },
        aml: &devices.aml(),
    };
    let memory = memory.guest().memory();
    let entry = husk_firmware::describe(&memory, &platform, loaded)?;
    let first = first.expect("validated: at least one vCPU");
    let mut system = first.system_registers()?;
    registers::boot_sregs(&entry, &platform, &mut system);
    Ok(first.set_registers(&registers::boot_regs(&entry), &system)?)
}
