//! `husk ctl SOCKET …`: asks a husk that serves the API.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Arg, ArgAction, Args, Subcommand, ValueHint};
use serde::Serialize;
use serde_json::{Value, json};

use super::disk::parse_disk;
use super::fs::parse_fs;
use super::pmem::parse_pmem;
use super::pod::PolicyArgs;
use super::size::parse_size;
use super::vsock::parse_vsock;
use super::{Code, answer, refuse, usage};
use crate::config::{DiskConfig, FsConfig, NetConfig, PmemConfig, VsockConfig};
use crate::ctl::resize::TargetSize;
use crate::ctl::{Action, Request};

/// More is no wait, but a mistake.
const MOST_SECONDS: f64 = 86_400.0;

/// The options of `husk ctl`.
#[derive(Args, Clone, Debug)]
pub struct CtlArgs {
    /// The socket at which husk serves the API
    #[arg(value_name = "SOCKET", value_hint = ValueHint::FilePath)]
    pub socket: PathBuf,

    /// Print JSON: for the commands that print something of that kind
    #[arg(long, global = true)]
    pub json: bool,

    /// Give up when husk does not answer for so long; by default for as long as it may take: 10 s, 70 s to add a device, 610 s to boot
    #[arg(long, global = true, value_name = "SECONDS", value_parser = parse_timeout)]
    #[arg(allow_negative_numbers = true)]
    pub timeout: Option<Duration>,

    /// What to ask.
    #[command(subcommand)]
    pub command: CtlCommand,
}

/// What a husk can be asked.
#[derive(Clone, Debug, Subcommand)]
pub enum CtlCommand {
    /// Show the VM: state, size, kernel, devices
    Info,
    /// Show that husk answers, its version and its process
    Ping,
    /// Hold the guest
    #[command(arg = no_json())]
    Pause,
    /// Let a held guest go on
    #[command(arg = no_json())]
    Resume,
    /// End the VM, and husk with it
    #[command(arg = no_json())]
    Shutdown {
        /// Keep husk, and the VM's configuration
        #[arg(long)]
        keep: bool,
    },
    /// Show what the devices have counted
    Counters,
    /// Show where driver and device stand in each virtqueue: for a device that stands still
    Queues,
    /// Show all figures, as a text for Prometheus
    #[command(arg = no_json())]
    Metrics,
    /// Show what has happened, and what happens, until husk ends
    Events {
        /// Only what has happened
        #[arg(long)]
        past: bool,
    },
    /// Show which lines husk logs, or have it log others from now on
    LogLevel {
        /// The least grave level
        #[arg(value_parser = ["error", "warn", "info", "debug", "trace"])]
        level: Option<String>,
    },
    /// Configure a VM: vm.create with a file as its body
    ///
    /// The file is what husk ctl SOCKET --json info shows as config, of which payload is enough; see docs/openapi.yaml. It is sent as it is:
    /// paths in it that do not begin with / begin where husk was started.
    #[command(arg = no_json())]
    Create {
        /// A JSON file
        #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
        file: PathBuf,
    },
    /// Boot the VM that is configured, and return when its guest runs
    #[command(arg = no_json())]
    Boot,
    /// End the guest and boot the VM again, with the size that it has now
    #[command(arg = no_json())]
    Reboot,
    /// End the VM and forget its configuration; husk stays
    #[command(arg = no_json())]
    Delete,
    /// Press the power button: a guest that heeds it powers itself off
    #[command(arg = no_json())]
    PowerButton,
    /// Add a disk, and show where the guest finds it: the keys of husk run --disk
    AddDisk {
        /// path=FILE,...
        #[arg(value_name = "KEYS", value_parser = placed(parse_disk))]
        disk: Box<DiskConfig>,
    },
    /// Add a network device on a tap of the host: the keys of husk run --net
    AddNet {
        /// tap=NAME,mac=MAC,...
        #[arg(value_name = "KEYS", value_parser = boxed(parse_tap))]
        net: Box<NetConfig>,
    },
    /// Add a folder of the host: the keys of husk run --fs
    AddFs {
        /// tag=NAME,dir=DIR,... or tag=NAME,socket=PATH,...
        #[arg(value_name = "KEYS", value_parser = placed(parse_fs))]
        share: Box<FsConfig>,
    },
    /// Add persistent memory: the keys of husk run --pmem
    AddPmem {
        /// file=FILE,size=SIZE,...
        #[arg(value_name = "KEYS", value_parser = placed(parse_pmem))]
        pmem: Box<PmemConfig>,
    },
    /// Add vsock: the keys of husk run --vsock
    AddVsock {
        /// cid=N,socket=PATH
        #[arg(value_name = "KEYS", value_parser = placed(parse_vsock))]
        vsock: Box<VsockConfig>,
    },
    /// Ask the guest to let go of a device, and take it away when it has
    #[command(arg = no_json())]
    Remove {
        /// The device's id
        #[arg(value_name = "ID", value_parser = clap::builder::NonEmptyStringValueParser::new())]
        id: String,
    },
    /// Ask for another size, and return when the guest has started the vCPUs and the memory is there
    ///
    /// A vCPU that the guest itself takes off-line after it has started it still counts as started. Less memory than
    /// the guest uses can kill it, unless it has a driver for a balloon: then it gives back what it says that it can
    /// spare.
    #[command(group = clap::ArgGroup::new("size").required(true).multiple(true))]
    Resize {
        /// vCPUs
        #[arg(long, value_name = "N", value_parser = parse_vcpus, group = "size", allow_negative_numbers = true)]
        vcpus: Option<u32>,
        /// Memory in all, such as 2G
        #[arg(long, value_name = "SIZE", value_parser = parse_memory, group = "size", allow_negative_numbers = true)]
        memory: Option<u64>,
        /// What the guest gives back of it for a while
        #[arg(long, value_name = "SIZE", value_parser = parse_size, group = "size", allow_negative_numbers = true)]
        balloon: Option<u64>,
        /// How long.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Resize the VM for a container that comes, changes or has ended
    ///
    /// The pod has what the VM had when its first container came, or what that one's annotations say, and on top of it
    /// what the containers ask for in linux.resources: CPU quotas are added up and rounded up, memory limits and huge
    /// pages are added up. A pod whose limits were announced to `husk run --pod` has them since its start: its
    /// containers are held against them, and not added. husk keeps the list of containers as long as the guest runs.
    #[command(subcommand)]
    Container(ContainerCommand),
}

/// Stands in place of the option that other commands share, in the help of one that has nothing to print as JSON.
fn no_json() -> Arg {
    Arg::new("json").long("json").action(ArgAction::SetTrue).hide(true)
}

/// What becomes of containers.
#[derive(Clone, Debug, Subcommand)]
pub enum ContainerCommand {
    /// Make room for a container, and return when it is there: start the container then
    ///
    /// If the room does not come, the container is not noted, and what came is given back.
    #[command(override_usage = "husk ctl <SOCKET> container add [OPTIONS] <ID> <FILE>")]
    Add(ContainerArgs),
    /// Give a container other limits
    #[command(override_usage = "husk ctl <SOCKET> container update [OPTIONS] <ID> <FILE>")]
    Update(ContainerArgs),
    /// Forget a container that has ended, and take back what it had
    ///
    /// Give the VM a balloon for this (--balloon size=0): a guest without one does not say what it can spare, and may
    /// be left with less memory than its other containers use.
    #[command(override_usage = "husk ctl <SOCKET> container remove [OPTIONS] <ID>")]
    Remove {
        /// The container's id
        #[arg(value_name = "ID", value_parser = parse_id)]
        id: String,
        /// How long.
        #[command(flatten)]
        wait: WaitArgs,
    },
    /// Show all containers and what they ask for
    #[command(override_usage = "husk ctl <SOCKET> container list [OPTIONS]")]
    List,
}

/// One container.
#[derive(Args, Clone, Debug)]
pub struct ContainerArgs {
    /// The container's id
    #[arg(value_name = "ID", value_parser = parse_id)]
    pub id: String,
    /// Its OCI config.json
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: PathBuf,
    /// What the node lets it ask for.
    #[command(flatten)]
    pub policy: PolicyArgs,
    /// How long.
    #[command(flatten)]
    pub wait: WaitArgs,
}

/// How long a size is waited for.
#[derive(Args, Clone, Copy, Debug)]
pub struct WaitArgs {
    /// Give up when the size is not there so long after it was asked for; 0: wait for husk's answer alone
    #[arg(long, value_name = "SECONDS", default_value = "10", value_parser = parse_seconds, allow_negative_numbers = true)]
    pub wait: Duration,
}

impl CtlCommand {
    /// Whether what it prints has a form as JSON, too: its help has the option then, and is without it by [`no_json`] otherwise.
    fn takes_json(&self) -> bool {
        match self {
            Self::Info
            | Self::Ping
            | Self::Counters
            | Self::Queues
            | Self::Events { .. }
            | Self::LogLevel { .. }
            | Self::AddDisk { .. }
            | Self::AddNet { .. }
            | Self::AddFs { .. }
            | Self::AddPmem { .. }
            | Self::AddVsock { .. }
            | Self::Resize { .. }
            | Self::Container(_) => true,
            Self::Pause
            | Self::Resume
            | Self::Shutdown { .. }
            | Self::Metrics
            | Self::Create { .. }
            | Self::Boot
            | Self::Reboot
            | Self::Delete
            | Self::PowerButton
            | Self::Remove { .. } => false,
        }
    }
}

impl From<CtlCommand> for Request {
    fn from(command: CtlCommand) -> Self {
        match command {
            CtlCommand::Info => Self::Info,
            CtlCommand::Ping => Self::Ping,
            CtlCommand::Pause => Self::Pause,
            CtlCommand::Resume => Self::Resume,
            CtlCommand::Shutdown { keep } => Self::Shutdown { keep },
            CtlCommand::Counters => Self::Counters,
            CtlCommand::Queues => Self::Queues,
            CtlCommand::Metrics => Self::Metrics,
            CtlCommand::Events { .. } => Self::Events,
            CtlCommand::LogLevel { level: None } => Self::LogLevel,
            CtlCommand::LogLevel { level: Some(level) } => Self::Do("vmm.set-log-level", Some(json!({"level": level}))),
            CtlCommand::Create { file } => Self::Create(file),
            CtlCommand::Boot => Self::Do("vm.boot", None),
            CtlCommand::Reboot => Self::Do("vm.reboot", None),
            CtlCommand::Delete => Self::Do("vm.delete", None),
            CtlCommand::PowerButton => Self::Do("vm.power-button", None),
            CtlCommand::AddDisk { disk } => Self::Do("vm.add-disk", body(&disk)),
            CtlCommand::AddNet { net } => Self::Do("vm.add-net", body(&net)),
            CtlCommand::AddFs { share } => Self::Do("vm.add-fs", body(&share)),
            CtlCommand::AddPmem { pmem } => Self::Do("vm.add-pmem", body(&pmem)),
            CtlCommand::AddVsock { vsock } => Self::Do("vm.add-vsock", body(&vsock)),
            CtlCommand::Remove { id } => Self::Do("vm.remove-device", Some(json!({"id": id}))),
            CtlCommand::Resize {
                vcpus,
                memory,
                balloon,
                wait,
            } => Self::Resize {
                wanted: TargetSize {
                    vcpus,
                    memory_bytes: memory,
                    balloon_bytes: balloon,
                },
                wait: wait.wait,
            },
            CtlCommand::Container(ContainerCommand::List) => Self::List,
            CtlCommand::Container(ContainerCommand::Add(args)) => args.request(Action::Add),
            CtlCommand::Container(ContainerCommand::Update(args)) => args.request(Action::Update),
            CtlCommand::Container(ContainerCommand::Remove { id, wait }) => Self::Container {
                id,
                action: Action::Remove,
                wait: wait.wait,
            },
        }
    }
}

impl ContainerArgs {
    fn request(self, action: fn(PathBuf, crate::pod::Policy) -> Action) -> Request {
        Request::Container {
            id: self.id,
            action: action(self.file, self.policy.policy()),
            wait: self.wait.wait,
        }
    }
}

/// What `parse` makes of an option, in a box: requests are small, devices are not.
fn boxed<T, E>(parse: fn(&str) -> Result<T, E>) -> impl Fn(&str) -> Result<Box<T>, E> + Clone {
    move |text| parse(text).map(Box::new)
}

/// As [`boxed`], with paths that mean to husk what they mean here: its working directory is another.
fn placed<T: Places, E: Display>(parse: fn(&str) -> Result<T, E>) -> impl Fn(&str) -> Result<Box<T>, String> + Clone {
    move |text| {
        let mut device = parse(text).map_err(|error| error.to_string())?;
        device.places().into_iter().try_for_each(make_absolute)?;
        Ok(Box::new(device))
    }
}

/// Makes `path`, unless it is none, one from the root of the file system.
fn make_absolute(path: &mut PathBuf) -> Result<(), String> {
    if !path.as_os_str().is_empty() {
        let made = std::path::absolute(&*path);
        *path = made.map_err(|error| format!("{}: where it begins is not known: {error}", path.display()))?;
    }
    Ok(())
}

/// The paths of a device.
trait Places {
    fn places(&mut self) -> Vec<&mut PathBuf>;
}

impl Places for DiskConfig {
    fn places(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.path]
    }
}

impl Places for FsConfig {
    fn places(&mut self) -> Vec<&mut PathBuf> {
        self.dir.iter_mut().chain([&mut self.socket]).collect()
    }
}

impl Places for PmemConfig {
    fn places(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.file]
    }
}

impl Places for VsockConfig {
    fn places(&mut self) -> Vec<&mut PathBuf> {
        vec![&mut self.socket]
    }
}

/// A device as the API takes it.
fn body(device: &impl Serialize) -> Option<Value> {
    Some(serde_json::to_value(device).expect("a configuration has a JSON form"))
}

/// As for husk run, but that this process's descriptors are not husk's.
fn parse_tap(text: &str) -> Result<NetConfig, String> {
    let net = super::net::parse_net(text).map_err(|error| error.to_string())?;
    if net.fds.is_some() {
        return Err("fd: a descriptor cannot be passed from here; allowed: tap=NAME".into());
    }
    Ok(net)
}

fn parse_vcpus(text: &str) -> Result<u32, &'static str> {
    let vcpus = text.parse().ok().filter(|vcpus| *vcpus > 0);
    vcpus.ok_or("allowed: a whole number from 1 up to what the VM may have")
}

fn parse_memory(text: &str) -> Result<u64, String> {
    match parse_size(text) {
        Ok(0) => Err("allowed: more than nothing".into()),
        other => other.map_err(|error| error.to_string()),
    }
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text
        .parse()
        .ok()
        .filter(|seconds| (0.0..=MOST_SECONDS).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("allowed: a number of seconds from 0 to {MOST_SECONDS}"))
}

pub(super) fn parse_timeout(text: &str) -> Result<Duration, String> {
    match parse_seconds(text) {
        Ok(Duration::ZERO) => Err("allowed: a number of seconds above 0".into()),
        other => other,
    }
}

/// As the OCI's runtimes have it; an id also is a word of ours in tables.
fn parse_id(text: &str) -> Result<String, &'static str> {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if (1..=255).contains(&text.len()) && text.bytes().all(is_allowed) {
        Ok(text.to_owned())
    } else {
        Err("allowed: up to 255 letters, digits, and any of _ + - .")
    }
}

/// Asks what `args` say. `of` is the command as its help is asked for.
pub(super) fn ctl(args: CtlArgs, of: impl Fn() -> Option<String>) -> Code {
    if args.json && !args.command.takes_json() {
        return usage(
            of().as_deref(),
            "--json: there is nothing to print that has such a form",
        );
    }
    if let CtlCommand::Events { past: false } = args.command {
        return events(&args.socket, args.timeout.unwrap_or(crate::ctl::PATIENCE), args.json);
    }
    let request = args.command.into();
    let patience = args.timeout.unwrap_or_else(|| crate::ctl::patience(&request));
    let asked = crate::ctl::ask(&args.socket, &request, patience, args.json);
    match asked {
        Ok(text) => answer(&text, Code::Success),
        Err(error) => refuse(of().as_deref(), error.is_usage(), &anyhow::Error::new(error)),
    }
}

/// Prints events as they come; JSON is an object a line.
fn events(socket: &Path, patience: Duration, as_json: bool) -> Code {
    let mut printed = Code::Success;
    let followed = crate::ctl::events::follow(socket, patience, |event| {
        let line = if as_json {
            format!("{}\n", event.line)
        } else {
            crate::ctl::events::row(&event.value)
        };
        printed = answer(&line, Code::Success);
        printed == Code::Success
    });
    match followed {
        Ok(()) => printed,
        Err(error) => refuse(None, false, &anyhow::Error::new(error)),
    }
}

#[cfg(test)]
#[path = "ctl_test.rs"]
mod tests;
