//! The description of a VM to be started.

use std::ffi::OsString;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use husk_guest::{Step, step};
use tempfile::TempDir;

use crate::guest::{Ended, Guest, Streams};
use crate::pty::Pty;
use crate::{SHORT_BOOT, husk, kernel_file};

/// The variable that marks the VMM under test and whatever it starts: its value is unique to the test.
pub const VMM: &str = "HUSK_UNDER_TEST";

/// The form of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Image {
    /// Compressed, as distributions ship it.
    BzImage,
    /// `vmlinux`.
    Elf,
}

/// What the VMM's standard input and output are.
#[derive(Debug)]
pub enum Input {
    /// Pipes.
    Pipes,
    /// `/dev/null` for input, and a pipe for output.
    Nothing,
    /// A terminal whose other end the test holds.
    Terminal(Pty),
}

/// A VM to be. The defaults are kernel 6.12 as `vmlinux`, which needs no unpacking and so a fifth
/// less of an emulated boot, one processor, 256 MiB, the serial port on standard output.
#[derive(Debug)]
pub struct Boot {
    kernel: String,
    image: Image,
    initramfs: Option<&'static str>,
    steps: Vec<Step>,
    guest_console: &'static str,
    more_cmdline: String,
    input: Input,
    arguments: Vec<OsString>,
    serial: String,
    adjust: Option<fn(&mut Command)>,
    folder: TempDir,
}

impl Boot {
    /// A VM whose guest does `steps`.
    pub fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        Self {
            kernel: "6.12".into(),
            image: Image::Elf,
            initramfs: Some("initramfs.cpio"),
            steps: steps.into_iter().collect(),
            guest_console: "ttyS0",
            more_cmdline: String::new(),
            input: Input::Pipes,
            arguments: Vec::new(),
            serial: "stdio".into(),
            adjust: None,
            folder: tempfile::tempdir().unwrap_or_else(|error| panic!("no temporary folder: {error}")),
        }
    }

    /// Another kernel.
    pub fn kernel(mut self, kernel: &str, image: Image) -> Self {
        self.kernel = kernel.into();
        self.image = image;
        self
    }

    /// With a pod's user space: a shell with its tools, drivers of network and shared folders.
    pub fn pod_image(mut self) -> Self {
        self.initramfs = Some("pod.cpio");
        self
    }

    /// Without user space.
    pub fn no_initramfs(mut self) -> Self {
        self.initramfs = None;
        self
    }

    /// Another number of processors.
    pub fn cpus(self, cpus: u32) -> Self {
        self.arguments(["--cpus", &cpus.to_string()])
    }

    /// Another size of memory, as the command line takes it.
    pub fn memory(self, size: &str) -> Self {
        self.arguments(["--memory", size])
    }

    /// A disk.
    pub fn disk(self, path: &Path, options: &str) -> Self {
        self.arguments(["--disk", &format!("path={}{options}", path.display())])
    }

    /// Any other options.
    pub fn arguments<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.arguments.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// What else the kernel's command line ends with.
    pub fn cmdline(mut self, text: &str) -> Self {
        self.more_cmdline = format!(" {text}");
        self
    }

    /// What else the VMM's process is to have, such as another user.
    pub fn adjust(mut self, adjust: fn(&mut Command)) -> Self {
        self.adjust = Some(adjust);
        self
    }

    /// The serial port elsewhere.
    pub fn serial(mut self, place: &str) -> Self {
        self.serial = place.into();
        self
    }

    /// The guest answers on its virtio console, which is on standard output; the serial port is not.
    pub fn on_hvc0(self) -> Self {
        self.on_hvc0_at("stdio")
    }

    /// The guest answers on its virtio console, which leads to `place`; the serial port is not there.
    pub fn on_hvc0_at(self, place: &str) -> Self {
        let boot = self.serial("off").arguments(["--console", place]);
        Self {
            guest_console: "hvc0",
            ..boot
        }
    }

    /// The VMM on a terminal.
    pub fn terminal(mut self, pty: Pty) -> Self {
        self.input = Input::Terminal(pty);
        self
    }

    /// The VMM with `/dev/null` for its standard input, as services have it.
    pub fn no_input(mut self) -> Self {
        self.input = Input::Nothing;
        self
    }

    /// A folder that lives as long as the test's VM.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The kernel's command line.
    pub fn full_cmdline(&self) -> String {
        let (console, steps) = (self.guest_console, step::join(&self.steps));
        format!(
            "console={console} quiet panic=-1 {SHORT_BOOT} husk.console={console} husk.do={steps}{}",
            self.more_cmdline
        )
    }

    /// The command that starts the VMM.
    fn command(&self) -> Command {
        let image = match self.image {
            Image::BzImage => "vmlinuz",
            Image::Elf => "vmlinux",
        };
        let mut command = husk();
        command.arg("run").arg("--kernel").arg(kernel_file(&self.kernel, image));
        if let Some(image) = self.initramfs {
            command.arg("--initramfs").arg(kernel_file(&self.kernel, image));
        }
        command
            .args(["--serial", &self.serial])
            .arg("--cmdline")
            .arg(self.full_cmdline())
            .args(&self.arguments);
        command.env(VMM, self.folder.path()).current_dir(self.folder.path());
        if let Some(adjust) = self.adjust {
            adjust(&mut command);
        }
        command
    }

    /// Starts the VM.
    pub fn start(self) -> Guest {
        let mut command = self.command();
        command.stderr(Stdio::piped());
        let pty = match self.input {
            Input::Pipes => {
                command.stdin(Stdio::piped()).stdout(Stdio::piped());
                None
            }
            Input::Nothing => {
                command.stdin(Stdio::null()).stdout(Stdio::piped());
                None
            }
            Input::Terminal(pty) => {
                pty.give_to(&mut command);
                Some(pty)
            }
        };
        let shown = format!("{command:?}");
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {shown}: {error}"));
        // The parent's copies of the terminal end with the command, or the other end would never see it closed.
        drop(command);
        let streams = match pty {
            Some(pty) => pty.into_streams(),
            None => pipes(&mut child),
        };
        Guest::new(child, streams, shown, self.folder)
    }

    /// Starts the VM and waits for its end.
    pub fn run(self) -> Ended {
        self.start().wait()
    }
}

fn pipes(child: &mut std::process::Child) -> Streams {
    let output = child
        .stdout
        .take()
        .map(|pipe| File::from(std::os::fd::OwnedFd::from(pipe)));
    let input = child
        .stdin
        .take()
        .map(|pipe| File::from(std::os::fd::OwnedFd::from(pipe)));
    Streams {
        input,
        output,
        terminal: None,
    }
}
