//! `husk run`: one VM, described by options.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use serde_json::{Value, json};

use super::balloon::parse_balloon;
use super::cmdline::default_cmdline;
use super::console::parse_console;
use super::cpus::parse_cpus;
use super::disk::parse_disk;
use super::fs::parse_fs;
use super::kernel::{NoHostKernel, host_kernel};
use super::log::LogArgs;
use super::memory::parse_memory;
use super::net::parse_net;
use super::pmem::parse_pmem;
use super::pod::PodArgs;
use super::reclaim::parse_reclaim;
use super::serve::working_directory;
use super::vsock::parse_vsock;
use crate::config::{
    BalloonConfig, BootProtocol, ConfigError, ConsoleConfig, ConsoleMode, CpusConfig, DiskConfig, FsConfig, Limits,
    MemoryConfig, NetConfig, OwnFiles, PayloadConfig, PmemConfig, Reclaim, RngConfig, RunOptions, VmConfig,
    VsockConfig,
};
use crate::control::check_outputs;
use crate::machine::{BuildError, net};
use crate::pod::{Pod, PodError};
use crate::seccomp::Mode;
use crate::terminal::{FileId, ProtectedFiles};

/// What the user asked for that cannot be. One line each.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// Values that make no VM.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A network device that cannot be made of its descriptors.
    #[error(transparent)]
    Net(#[from] BuildError),
    /// One descriptor for two pairs of queues.
    #[error("net: descriptor {0} is given twice, each pair of queues needs one of its own")]
    Descriptor(i32),
    /// What a node lets pods ask for, and no pod.
    #[error("--enable-annotations: there is no pod that it is about, --pod FILE names one")]
    NoPod,
    /// No kernel was named and none was found.
    #[error(transparent)]
    NoKernel(#[from] NoHostKernel),
    /// A file that makes no pod.
    #[error("pod {}", .path.display())]
    Pod {
        /// The file.
        path: PathBuf,
        /// Why.
        source: PodError,
    },
}

impl UsageError {
    /// Whether the user asked for what cannot be, and not for a file that cannot be read.
    pub fn is_usage(&self) -> bool {
        !matches!(self, Self::Pod { source, .. } if !source.is_read())
    }
}

/// The options of `husk run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Kernel: an ELF vmlinux or a bzImage [default: the host's own in /boot]
    ///
    /// Without this option husk boots the running host's kernel, /boot/vmlinuz-$(uname -r), or else the newest /boot/vmlinuz-*,
    /// and says so on standard error.
    #[arg(short, long, value_name = "FILE", help_heading = "What to boot")]
    pub kernel: Option<PathBuf>,

    /// Initial RAM file system
    #[arg(short, long, value_name = "FILE", help_heading = "What to boot")]
    pub initramfs: Option<PathBuf>,

    /// Kernel command line, passed verbatim [default: made to fit consoles and disks]
    ///
    /// The default names the consoles in use (console=ttyS0, console=hvc0), ends the VM at a reset or panic (reboot=k panic=-1), and,
    /// with a disk and no initramfs, mounts the first disk (root=/dev/vda, ro or rw).
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, help_heading = "What to boot")]
    pub cmdline: Option<String>,

    /// How the kernel is entered [default: pvh where the kernel offers it, else linux64]
    #[arg(long, value_enum, value_name = "NAME", help_heading = "What to boot")]
    pub protocol: Option<BootProtocol>,

    /// The pod that it is made for.
    #[command(flatten)]
    pub pod: PodArgs,

    /// Number of vCPUs, or boot=N,max=N,...: those of the start, and as many as there may be [default: 1, or what --pod asks for]
    ///
    /// Keys:
    ///
    ///   boot=N               those of the start (default 1)
    ///   max=N                as many as there may be (default: as many as at the start)
    ///   core_scheduling=WHO  who may run on the other hardware threads of a core of the host while a vCPU runs on one:
    ///                        vm, other vCPUs of the VM (default), vcpu, nobody, or off, everybody
    #[arg(short, long, value_name = "N", value_parser = parse_cpus, verbatim_doc_comment, help_heading = "Machine")]
    #[arg(allow_negative_numbers = true)]
    pub cpus: Option<CpusConfig>,

    /// Guest memory, such as 512M, 2G or 1536MiB, or size=SIZE,hotplug=SIZE,... [default: 512M, or what --pod asks for]
    ///
    /// Keys:
    ///
    ///   size=SIZE           what the guest starts with (default 512M)
    ///   hotplug=SIZE        what may be added while it runs (default: nothing); costs nothing until then
    ///   method=NAME         how: acpi, virtio-mem, or auto, virtio-mem where the guest has a driver (default)
    ///   shared=on           a file that other processes can map; --fs with a socket turns it on
    ///   hugepages=on        from the host's reserved huge pages, set aside at the start
    ///   hugepage_size=SIZE  which of them, 2M or 1G (default 2M)
    ///   thp=off             no transparent huge pages
    ///   prefault=on         every page is allocated at the start
    ///   mergeable=on        equal pages may be merged with those of other processes (KSM)
    #[arg(short, long, value_name = "SIZE", value_parser = parse_memory, verbatim_doc_comment, help_heading = "Machine")]
    #[arg(allow_negative_numbers = true)]
    pub memory: Option<MemoryConfig>,

    /// Let the guest give memory back: size=SIZE,deflate_on_oom=on,free_page_reporting=on
    ///
    /// Keys:
    ///
    ///   size=SIZE               how much at the start (default 0)
    ///   deflate_on_oom=on       the guest takes it back before it ends a process for want of memory
    ///   free_page_reporting=on  the guest gives back what is free, without being asked
    #[arg(long, value_name = "KEYS", value_parser = parse_balloon, verbatim_doc_comment, help_heading = "Machine")]
    pub balloon: Option<BalloonConfig>,

    /// What the guest gives back though nobody asks for less: off, report, or idle=SECONDS[,keep=SIZE]
    ///
    ///   report          it reports what is free (free_page_reporting)
    ///   idle=SECONDS    what it has had free for so long goes into the balloon, and comes back when it runs short
    ///   keep=SIZE       but for so much (default 64M)
    #[arg(long, value_name = "POLICY", default_value = "off", value_parser = parse_reclaim, verbatim_doc_comment, help_heading = "Machine")]
    pub reclaim: Reclaim,

    /// Add a virtio disk, a raw image or a block device: path=FILE,readonly=on,...
    ///
    /// May be given several times: the disks are /dev/vda, /dev/vdb and so on. Keys:
    ///
    ///   path=FILE        the image or block device (needed)
    ///   readonly=on      the guest may only read
    ///   direct=on        bypass the host's page cache (O_DIRECT)
    ///   queues=N         virtqueues, 1 to 255 (default 1)
    ///   queue_size=N     entries of each, 16 to 1024 (default 128)
    ///   id=NAME          name; the guest reads 20 characters of it as serial number
    ///   discard=on       let the guest give space back to the host
    ///   io_uring=off     use plain reads and writes
    ///   bandwidth=N      bytes a second, read and written together
    ///   ops=N            requests a second
    ///
    /// A value with a comma in it is written in double quotes.
    #[arg(short, long = "disk", value_name = "KEYS", value_parser = parse_disk, verbatim_doc_comment, help_heading = "Machine")]
    pub disks: Vec<DiskConfig>,

    /// Add a network device on a tap of the host: tap=NAME,mac=MAC,... or fd=N,...
    ///
    /// May be given several times. husk configures no interface: address, state and MTU of the tap are its owner's. Keys:
    ///
    ///   tap=NAME         the tap; made, until husk ends, if there is none and this user may
    ///   fd=N             a tap that is already open; with several queues fd=N:M:...
    ///   mac=MAC          the guest's address (default: a random one)
    ///   queues=N         pairs of queues, 1 to 127 (default 1, or one a descriptor)
    ///   queue_size=N     entries of each, 16 to 1024 (default 256)
    ///   mtu=N            largest packet that the guest may send, 68 to 65535
    ///   id=NAME          the device's name
    ///   csum=off         no offloads at all
    ///   tso=off          no TCP segments larger than a packet
    ///   ufo=off          no UDP datagrams larger than a packet
    ///   bandwidth=N      bytes a second, in each direction
    ///   ops=N            packets a second, in each direction
    ///   backend=vhost    the host's kernel moves frames (/dev/vhost-net); without bandwidth and ops
    #[arg(long = "net", value_name = "KEYS", value_parser = parse_net, verbatim_doc_comment, help_heading = "Machine")]
    pub nets: Vec<NetConfig>,

    /// Add a folder of the host: tag=NAME,dir=DIR,... or, served by a vhost-user process such as virtiofsd, tag=NAME,socket=PATH,...
    ///
    /// May be given several times. Mounted in the guest by `mount -t virtiofs NAME DIR`. A process at a socket maps the guest's memory:
    /// then that is a file it can map. It listens already, or begins to within a second. Keys:
    ///
    ///   tag=NAME         the name to mount by, up to 36 bytes (needed)
    ///   dir=DIR          the folder, served by husk; nothing outside of it can be reached
    ///   socket=PATH      where the process listens that serves one; either this or dir is needed
    ///   queues=N         request queues, 1 to 254 (default 1; with dir up to one a vCPU)
    ///   queue_size=N     entries of each, 16 to 1024 (default 1024)
    ///   id=NAME          the device's name
    ///
    /// With dir:
    ///
    ///   readonly=on      nothing is changed through this share
    ///   cache=MODE       what the guest keeps: auto (default), never, always (nobody else changes the folder), metadata
    ///   writeback=on     the guest may hold back writes
    ///   direct_io=on     O_DIRECT of the guest is carried out on the host
    ///   mmap=on          with cache=never or metadata: files can be mapped shared; it takes Linux 6.6 in the guest
    ///   xattr=on         extended attributes
    ///   posix_acl=on     access control lists; needs xattr
    ///   submounts=off    mounts below the folder look like folders
    ///   locks=on         locks of the guest's files are locks of the host; who waits for one cannot be killed
    ///   security_label=on  what the guest makes gets the security label that it says; needs xattr
    ///   label=LABEL      SELinux label of what is made through the share
    ///   translate_uid=map:GUEST:HOST:COUNT  users of the host have other numbers in the guest; several, and other
    ///                    kinds (see --translate-uid of husk fs), are joined by +
    ///   translate_gid=map:GUEST:HOST:COUNT  groups, likewise
    ///
    /// A value with a comma in it is written in double quotes.
    #[arg(long = "fs", value_name = "KEYS", value_parser = parse_fs, verbatim_doc_comment, help_heading = "Machine")]
    pub shares: Vec<FsConfig>,

    /// Add persistent memory, a file that the guest reads and writes as memory: file=FILE,size=SIZE,...
    ///
    /// May be given several times: the devices are /dev/pmem0, /dev/pmem1 and so on. Keys:
    ///
    ///   file=FILE          a file or block device (needed)
    ///   size=SIZE          how much of it, a multiple of 2M (default: all)
    ///   discard_writes=on  the guest's writes stay in the VM and are lost with it
    ///   id=NAME            the device's name
    ///
    /// A value with a comma in it is written in double quotes.
    #[arg(long = "pmem", value_name = "KEYS", value_parser = parse_pmem, verbatim_doc_comment, help_heading = "Machine")]
    pub pmems: Vec<PmemConfig>,

    /// Connect sockets of the guest with Unix sockets of the host: cid=N,socket=PATH; or with its vsock: cid=N,backend=vhost
    ///
    /// A program that connects to PATH and writes "connect PORT" and a newline reaches the program of the guest that listens at that
    /// port; a program of the guest that connects to port P of context 2 reaches whoever listens at PATH_P. Keys:
    ///
    ///   cid=N            the guest's context, 3 or more (default 3)
    ///   socket=PATH      the socket that husk listens at (needed, but for vhost)
    ///   id=NAME          name of the device
    ///   backend=vhost    the host's kernel carries streams (/dev/vhost-vsock): programs of the host use AF_VSOCK and the guest's cid
    #[arg(long, value_name = "KEYS", value_parser = parse_vsock, verbatim_doc_comment, help_heading = "Machine")]
    pub vsock: Option<VsockConfig>,

    /// Serial port ttyS0: stdio, file=PATH, socket=PATH, pty, journald, null or off [default: stdio, or off when --console has stdio]
    ///
    ///   file=PATH,limit=SIZE,keep=N   a file of SIZE at most, and N beside it (default 1) that are used in turn: PATH, PATH.1, ...
    ///   socket=PATH                   whoever connects to PATH, one at a time, reads and types
    ///   pty                           a pseudo-terminal; husk says which
    ///   journald=NAME                 a line at a time, under NAME (default: the tag of the log, and -console)
    #[arg(long, value_name = "WHERE", value_parser = parse_console, verbatim_doc_comment, help_heading = "Machine")]
    pub serial: Option<ConsoleConfig>,

    /// Virtio console hvc0: stdio, file=PATH, socket=PATH, pty, journald, null or off, as --serial
    #[arg(long, value_name = "WHERE", value_parser = parse_console, default_value = "off", help_heading = "Machine")]
    pub console: ConsoleConfig,

    /// Host file that the guest's entropy comes from
    #[arg(long, value_name = "FILE", default_value = "/dev/urandom", help_heading = "Machine")]
    pub rng: PathBuf,

    /// Give the guest no entropy device
    #[arg(long, conflicts_with = "rng", help_heading = "Machine")]
    pub no_rng: bool,

    /// Let the guest report a kernel panic, which then ends husk with exit code 4
    #[arg(long, help_heading = "Machine")]
    pub pvpanic: bool,

    /// Serve the REST API on a Unix socket, as without run: PATH, path=PATH or fd=N
    ///
    /// Whoever may connect may resize, pause and end the VM, and add devices: see husk ctl.
    #[arg(long, value_name = "SOCKET", help_heading = "Observe")]
    pub api_socket: Option<OsString>,

    /// Serve figures for Prometheus, and nothing else, on a Unix socket: PATH, path=PATH or fd=N
    #[arg(long, value_name = "SOCKET", help_heading = "Observe")]
    pub metrics: Option<OsString>,

    /// Confine husk to the system calls that it needs
    #[arg(long, value_enum, value_name = "MODE", default_value_t = Mode::On, help_heading = "Observe")]
    pub seccomp: Mode,

    /// Write where the time went to FILE, as trace JSON for ui.perfetto.dev or chrome://tracing
    #[arg(long, value_name = "FILE", help_heading = "Observe")]
    pub boot_trace: Option<PathBuf>,

    /// Log more: -v for information, and a table of phases on standard error in the end, -vv to debug
    #[arg(short, long = "verbose", action = ArgAction::Count, help_heading = "Observe")]
    pub verbosity: u8,

    /// Where the log goes.
    #[command(flatten)]
    pub log: LogArgs,
}

impl RunArgs {
    /// Checks that log, standard output and standard error go to no file that the VM is made of, by whatever name: nothing can be
    /// written to it then, not even why. To be called before the log is opened.
    ///
    /// # Errors
    /// [`ConfigError::Overwritten`].
    pub fn check_own_outputs(&self) -> Result<(), ConfigError> {
        let (mut named, mut open) = (OwnFiles::new(working_directory()), ProtectedFiles::of_process());
        if let Some((option, path)) = self.log.file() {
            named.add(option, path);
            open.add(option, FileId::at(path));
        } else if open.is_empty() {
            return Ok(());
        }
        let config = VmConfig {
            payload: PayloadConfig {
                kernel: self.kernel.clone().or_else(|| host_kernel(Path::new("/")).ok()),
                initramfs: self.initramfs.clone(),
                ..PayloadConfig::default()
            },
            disks: self.disks.clone(),
            pmem: self.pmems.clone(),
            ..VmConfig::default()
        };
        config.validate_beside_files(&named)?;
        check_outputs(&config, &open)
    }

    /// The VM that these options describe, checked as far as the host does not matter, and how to run it.
    ///
    /// # Errors
    /// The first [`UsageError`].
    pub fn into_config(self) -> Result<(VmConfig, RunOptions), UsageError> {
        self.into_config_on(Path::new("/"))
    }

    /// As [`RunArgs::into_config`], on the host whose files lie under `root`.
    fn into_config_on(self, root: &Path) -> Result<(VmConfig, RunOptions), UsageError> {
        let kernel = match self.kernel {
            Some(kernel) => kernel,
            None => host_kernel(root)?,
        };
        let pod = self.pod.read(root)?;
        let (cpus, memory) = size(self.cpus, self.memory, pod.as_ref());
        let usual = if self.console.mode == ConsoleMode::Tty {
            ConsoleMode::Off
        } else {
            ConsoleMode::Tty
        };
        let mut config = VmConfig {
            cpus,
            memory: MemoryConfig {
                shared: memory.shared || self.shares.iter().any(|share| share.dir.is_none()),
                ..memory
            },
            payload: PayloadConfig {
                kernel: Some(kernel),
                cmdline: self.cmdline,
                initramfs: self.initramfs,
                ..PayloadConfig::default()
            },
            disks: self.disks,
            net: self.nets,
            fs: self.shares,
            pmem: self.pmems,
            vsock: self.vsock,
            balloon: self.balloon,
            rng: (!self.no_rng).then(|| RngConfig::from(self.rng)),
            serial: self.serial.unwrap_or(ConsoleConfig::new(usual)),
            console: self.console,
            pvpanic: self.pvpanic,
            ..VmConfig::default()
        };
        let containers = pod.as_ref().and_then(|pod| pod.list(config.cpus.boot_vcpus));
        if config.payload.cmdline.is_none() {
            let words = [Some(default_cmdline(&config)), pod.map(|pod| pod.kernel_params)];
            let words = words.into_iter().flatten().filter(|words| !words.is_empty());
            config.payload.cmdline = Some(words.collect::<Vec<_>>().join(" "));
        }
        self.reclaim.apply(&mut config);
        config.validate(Limits::ARCHITECTURE)?;
        check_descriptors(&config.net)?;
        let mut own_files = OwnFiles::new(working_directory());
        if let Some(path) = &self.boot_trace {
            own_files.add("--boot-trace", path);
        }
        config.validate_beside_files(&own_files)?;
        let options = RunOptions {
            own_files,
            protocol: self.protocol,
            boot_trace: self.boot_trace,
            verbosity: self.verbosity,
            seccomp: self.seccomp,
            containers: containers.map_or(Value::Null, |list| json!(list)),
            ..RunOptions::default()
        };
        Ok((config, options))
    }
}

/// Checks that there is a descriptor for each pair of queues, and no other has it.
fn check_descriptors(nets: &[NetConfig]) -> Result<(), UsageError> {
    let mut taken = BTreeSet::new();
    for net in nets {
        let descriptors = net.fds.as_deref().unwrap_or_default();
        net::check(net, descriptors.len())?;
        if let Some(twice) = descriptors.iter().find(|descriptor| !taken.insert(**descriptor)) {
            return Err(UsageError::Descriptor(*twice));
        }
    }
    Ok(())
}

/// What the options say, or else the pod, or else nobody.
fn size(cpus: Option<CpusConfig>, memory: Option<MemoryConfig>, pod: Option<&Pod>) -> (CpusConfig, MemoryConfig) {
    (
        cpus.or_else(|| Some(pod?.cpus.clone())).unwrap_or_default(),
        memory.or_else(|| Some(pod?.memory.clone())).unwrap_or_default(),
    )
}

#[cfg(test)]
#[path = "run_test.rs"]
mod tests;
