//! Which devices a VM has: the list, from what every machine has to what its configuration asks for.

use std::collections::BTreeMap;
use std::error::Error;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use husk_devices::debug_port::DebugPort;
use husk_devices::i8042::I8042;
use husk_devices::lock;
use husk_devices::power::{self, Power};
use husk_devices::pvpanic::{self, PvPanic};
use husk_devices::serial::{self, Serial};
use husk_firmware::layout;
use husk_virtio::balloon::{Balloon, BalloonHandle, BalloonTarget};
use husk_virtio::block::{Block, BlockConfig};
use husk_virtio::console::Console;
use husk_virtio::device::VirtioDevice;
use husk_virtio::mem::{Mem, MemConfig, MemHandle};
use husk_virtio::rng::Rng;
use husk_virtio::threads::Threads;

use super::build::BuildError;
use super::device::Devices;
use super::output::{Output, check_files, open_output};
use super::port_input::{AttachablePort, PortInput};
use super::tail::Tail;
use crate::config::{BalloonConfig, ConsoleConfig, ConsoleMode, DiskConfig, NewDevice, RunOptions, VmConfig};
use crate::memory::{AddressSpace, Blocks};
use crate::terminal::{Chardev, FileId, ProcessOutputs, window_size};

/// Window size of a console that has no terminal.
const COLUMNS_ROWS: (u16, u16) = (80, 24);

/// Descriptors that clients have passed for devices, by the device's name. They stay for as long as
/// the device is configured.
pub type Passed = BTreeMap<String, Vec<OwnedFd>>;

/// What of the devices the machine keeps in hand.
#[derive(Default)]
pub struct Handles {
    /// What standard input types on, if anything.
    pub stdin_port: Option<PortInput>,
    /// What others attach to.
    pub chardevs: Vec<AttachablePort>,
    /// The virtio-mem device.
    pub blocks: Option<MemHandle>,
    /// The balloon.
    pub balloon: Option<BalloonHandle>,
}

/// Puts into `devices` what `config` asks for, observed as `options` say.
///
/// # Errors
/// [`BuildError::Device`], named as the configuration names it.
pub fn populate(
    config: &VmConfig,
    passed: &Passed,
    devices: &mut Devices,
    memory: &Arc<AddressSpace>,
    outputs: &ProcessOutputs,
    options: &RunOptions,
) -> Result<Handles, BuildError> {
    devices.add_ports(
        "power",
        layout::SLEEP_CONTROL_PORT,
        power::SIZE,
        shared(Power::default()),
        None,
    )?;
    let i8042_ports = u64::from(layout::I8042_PORT_LEN);
    devices.add_ports("i8042", layout::I8042_PORT, i8042_ports, shared(I8042), None)?;
    if options.trace.is_on() {
        let trace = options.trace.clone();
        let port = DebugPort::new(Box::new(move |byte| trace.guest_mark(byte)));
        devices.add_ports("debug port", layout::DEBUG_PORT, 1, shared(port), None)?;
    }
    if config.pvpanic {
        let aml = PvPanic::aml(layout::PVPANIC_PORT);
        devices.add_ports(
            "pvpanic",
            layout::PVPANIC_PORT,
            pvpanic::SIZE,
            shared(PvPanic::default()),
            Some(aml),
        )?;
    }
    let mut chardevs = Vec::new();
    let mut connect = |name, mode, chardev: Option<Chardev>, input| match chardev {
        Some(chardev) => {
            chardevs.push(AttachablePort::new(name, chardev, input));
            None
        }
        None => (mode == ConsoleMode::Tty).then_some(input),
    };
    let serial = add_serial(&config.serial, devices, outputs, &options.tail)?;
    let (serial, serial_files) = serial.map_or_else(Default::default, |Port { input, chardev, files }| {
        (connect("serial", config.serial.mode, chardev, input), files)
    });
    for device in config.devices() {
        let opened = open(&device, passed, memory, devices.threads())?;
        devices.add_virtio(device.id().unwrap_or(device.kind()), opened)?;
    }
    if let Some(rng) = &config.rng {
        let device = Rng::open(&rng.src).map_err(|e| BuildError::device(format!("rng {}", rng.src.display()), e))?;
        devices.add_virtio("__rng", Box::new(device))?;
    }
    let blocks = add_blocks(devices, memory)?;
    let balloon = config.balloon.as_ref();
    let balloon = balloon.map(|config| add_balloon(config, devices, memory)).transpose()?;
    let console = add_console(&config.console, devices, outputs, &options.tail)?;
    let (console, console_files) = console.map_or_else(Default::default, |Port { input, chardev, files }| {
        (connect("console", config.console.mode, chardev, input), files)
    });
    check_files(&config.serial, &config.console, [&serial_files, &console_files])?;
    Ok(Handles {
        stdin_port: serial.or(console),
        chardevs,
        blocks,
        balloon,
    })
}

/// The virtio-mem device, where memory may come in blocks.
fn add_blocks(devices: &mut Devices, memory: &Arc<AddressSpace>) -> Result<Option<MemHandle>, BuildError> {
    let Some((base, bytes)) = memory.reserve().and_then(|reserve| reserve.blocks) else {
        return Ok(None);
    };
    let block = memory.block_bytes();
    let failed = |error: Box<dyn Error + Send + Sync>| BuildError::device("virtio-mem", error);
    let blocks = Blocks::new(memory.clone(), base..base.saturating_add(bytes), block).map_err(|e| failed(e.into()))?;
    let config = MemConfig {
        base,
        region_bytes: bytes,
        block_bytes: block,
    };
    let waker = devices.threads().waker();
    let device = Mem::new(config, blocks, move || waker.wake_by_ref()).map_err(|e| failed(e.into()))?;
    let handle = device.handle();
    devices.add_virtio("__mem", Box::new(device))?;
    Ok(Some(handle))
}

fn add_balloon(
    config: &BalloonConfig,
    devices: &mut Devices,
    memory: &Arc<AddressSpace>,
) -> Result<BalloonHandle, BuildError> {
    let failed = |error: Box<dyn Error + Send + Sync>| BuildError::device("balloon", error);
    let waker = devices.threads().waker();
    let reports = config.free_page_reporting && !memory.has_huge_pages();
    if reports != config.free_page_reporting {
        log::warn!("balloon: free pages are not reported, since RAM is of huge pages, which are not given back");
    }
    let features = husk_virtio::balloon::BalloonConfig {
        deflate_on_oom: config.deflate_on_oom,
        free_page_reporting: reports,
    };
    let device = Balloon::new(features, memory.clone(), move || waker.wake_by_ref()).map_err(|e| failed(e.into()))?;
    let handle = device.handle();
    handle.set_target(BalloonTarget::new(config.size).map_err(|e| failed(e.into()))?);
    devices.add_virtio("__balloon", Box::new(device))?;
    Ok(handle)
}

fn shared<T>(device: T) -> Arc<Mutex<T>> {
    Arc::new(Mutex::new(device))
}

/// A port of the machine, as its host has it.
struct Port {
    input: PortInput,
    chardev: Option<Chardev>,
    files: Vec<Option<FileId>>,
}

fn add_serial(
    config: &ConsoleConfig,
    devices: &mut Devices,
    outputs: &ProcessOutputs,
    tail: &Tail,
) -> Result<Option<Port>, BuildError> {
    let Some(Output {
        output,
        chardev,
        backlog,
        files,
    }) = open_output("serial", config, outputs)?
    else {
        return Ok(None);
    };
    let irq = devices
        .line(layout::COM1_GSI)
        .map_err(|e| BuildError::device("serial", e))?;
    let port = Serial::new(irq, tail.wrap(output));
    if let Some(backlog) = backlog {
        backlog.count_lost_in(port.metrics().tx_lost_bytes.clone());
    }
    let port = shared(port);
    let aml = Serial::aml(layout::COM1_PORT, layout::COM1_GSI);
    devices.add_ports("serial", layout::COM1_PORT, serial::SIZE, port.clone(), Some(aml))?;
    devices.show_counters("__serial", lock(&port).metrics());
    let input = PortInput::Serial(port);
    Ok(Some(Port { input, chardev, files }))
}

fn add_console(
    config: &ConsoleConfig,
    devices: &mut Devices,
    outputs: &ProcessOutputs,
    tail: &Tail,
) -> Result<Option<Port>, BuildError> {
    let Some(Output {
        output,
        chardev,
        backlog,
        files,
    }) = open_output("console", config, outputs)?
    else {
        return Ok(None);
    };
    let (columns, rows) = match (config.mode, window_size()) {
        (ConsoleMode::Tty, Some(window)) => (window.columns, window.rows),
        _ => COLUMNS_ROWS,
    };
    let console = Console::new(columns, rows, tail.wrap(output)).map_err(|e| BuildError::device("console", e))?;
    if let Some(backlog) = backlog {
        backlog.count_lost_in(console.metrics().tx_dropped_bytes.clone());
    }
    let handle = console.handle();
    devices.add_virtio("__console", Box::new(console))?;
    let input = PortInput::Console(handle);
    Ok(Some(Port { input, chardev, files }))
}

/// Makes the device that is asked for, at boot or later. What it needs of `passed` it duplicates;
/// what confines its own threads is `threads`.
///
/// # Errors
/// [`BuildError::Device`], named as the configuration names it.
pub fn open(
    device: &NewDevice,
    passed: &Passed,
    memory: &Arc<AddressSpace>,
    threads: &Arc<dyn Threads>,
) -> Result<Box<dyn VirtioDevice>, BuildError> {
    let device: Box<dyn VirtioDevice> = match device {
        NewDevice::Disk(disk) => Box::new(open_disk(disk)?),
        NewDevice::Net(config) => {
            let descriptors = config.id.as_ref().and_then(|id| passed.get(id));
            super::net::open(config, descriptors.map_or(&[], Vec::as_slice), &memory.shared())?
        }
        NewDevice::Fs(config) => super::fs::open(config, memory.shared(), threads)?,
        NewDevice::Pmem(config) => Box::new(super::pmem::open(config, memory)?),
        NewDevice::Vsock(config) => super::vsock::open(config, &memory.shared(), threads)?,
    };
    if let Some(listener) = device.memory_listener() {
        memory.listen(&listener);
    }
    Ok(device)
}

fn open_disk(config: &DiskConfig) -> Result<Block, BuildError> {
    let block = Block::open(BlockConfig {
        path: config.path.clone(),
        readonly: config.readonly,
        direct: config.direct,
        queues: config.num_queues,
        queue_size: config.queue_size,
        discard: config.sparse,
        io_uring: !config.disable_io_uring,
        limits: config.rate_limiter_config.map(super::net::limits).unwrap_or_default(),
        serial: config.serial_number(),
    });
    block.map_err(|e| BuildError::device(format!("disk {}", config.path.display()), e))
}

#[cfg(test)]
mod tests {
    use husk_devices::error_chain;

    use super::*;

    /// Of the device and of its file: both are in the first part of the line.
    #[test]
    fn the_image_that_a_disk_cannot_have_is_named_once_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let (missing, empty) = (folder.path().join("missing"), folder.path().join("empty"));
        std::fs::write(&empty, "").unwrap();
        for (path, why) in [
            (missing, "cannot open it: No such file or directory (os error 2)"),
            (empty, "it is empty: a disk has at least one byte"),
            (
                folder.path().into(),
                "it is a directory: only regular files and block devices are allowed",
            ),
        ] {
            let error = open_disk(&DiskConfig::new(&path)).err().unwrap();
            assert_eq!(error_chain(&error), format!("disk {}: {why}", path.display()));
        }
    }
}
