//! The emulated host: QEMU emulates a machine with SVM in software, a stock kernel boots in it, and
//! a command runs there.
//!
//! The kernel's console is the first serial port and goes to a file; the command's terminal is the
//! second, and is passed on as it comes. How it ended comes back on a disk of its own
//! ([`husk_guest::job`]).

use std::error::Error;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use husk_guest::job::{HEADER_BYTES, JOB_FILE, Job, Outcome};
use husk_tests::SHORT_BOOT;

use crate::build::Programs;
use crate::command::{command, find, output};
use crate::host::Host;
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};
use crate::stall::HostProgress;
use crate::watched::{self, Limits};
use crate::{images, packages, sys};

/// Free space on the command's writable disk.
const SCRATCH_MIB: u64 = 512;

/// What the command leaves in this folder of its disk comes back to who wants it.
const OUT: &str = "out";

/// Rows and columns of a terminal that does not know them.
const USUAL_WINDOW: (u16, u16) = (24, 80);

/// The host's kernel command line, but for [`SHORT_BOOT`]. Its TSC is this machine's, and the other
/// clocks are software that waits for its turn: they are no measure for it (`tsc=reliable`).
const KERNEL_COMMAND_LINE: &str = "console=ttyS0 panic=1 quiet mitigations=off tsc=reliable husk.role=host";

/// Makes the host's kernel have its clock interrupt at a steady rate. QEMU's SVM loses an interrupt
/// that a device raises in the moment of a world switch: it stays pending in the APIC until another
/// one comes. With the one-shot timers of a tickless kernel none ever might.
const PERIODIC_TICK: &str = " nohz=off highres=off";

/// Makes shared memory, as that of pods' guests, be in huge pages where husk advises so; private
/// memory is by default. In pages of 4 KiB a guest leaves for the host with each page that it
/// writes first: of a test that fills 300 MiB, two thirds of its time. Not in hosts whose time is
/// counted, which are as hosts of Debian are.
const SHARED_HUGE_PAGES: &str = " husk.shmem=advise";

/// The host's processor: all that QEMU can emulate, but for what is another thing in software than in hardware.
///
/// - `erms` has Linux copy and clear memory by `rep movsb` and `rep stosb`. QEMU does these a byte
///   at a time, and what Linux does without eight; each is an instruction where time is counted, so
///   that a copy would be at 1 GB/s there, and is at up to 8.
/// - `la57` has Linux use five levels of page tables, and KVM as many for its guests: a walk
///   through both reads 35 entries in the place of 24.
const PROCESSOR: &str = "max,-erms,-la57";

/// How time passes in the emulated host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Timing {
    /// As fast as one of this machine's processors can.
    #[default]
    Fast,
    /// One virtual nanosecond per instruction on one processor: clocks in the host count
    /// instructions, whatever else this machine does.
    Deterministic,
}

/// Who is at the command's terminal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Terminal {
    /// Nobody; output goes to the caller's closure.
    #[default]
    Captured,
    /// The user. Ctrl-C ends the emulated host.
    Shared,
    /// The user, and every key goes to the command.
    Given,
}

/// A command for the emulated host.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Program and arguments. `PATH` has `/work/bin` and busybox.
    pub command: Vec<String>,
    /// Environment beside `HUSK_LAB_DIR` and `HUSK_BIN`.
    pub env: Vec<(String, String)>,
    /// Files to put on the command's disk: path here, path below `/work`. Files in `bin/` are found by name.
    pub files: Vec<(PathBuf, String)>,
    /// How time passes.
    pub timing: Timing,
    /// The host's clock interrupts at a steady rate, also where time is counted: see
    /// [`PERIODIC_TICK`]. What sleeps there wakes at a tick.
    pub steady: bool,
    /// Who is at the terminal.
    pub terminal: Terminal,
    /// Where what the command leaves in `/work/out` comes back to. What was there before goes; the
    /// folder is there only if there is something in it.
    pub out: Option<PathBuf>,
    /// When to give up.
    pub timeout: Option<Duration>,
    /// What shows that the host gets on, for who wants it given up when it does not.
    pub progress: Option<Arc<HostProgress>>,
}

/// An emulated host that did not live to the end of its command.
#[derive(Debug)]
pub struct Lost {
    /// Why, in a line.
    pub why: String,
    /// The end of its console, and where all of it is.
    console: String,
}

impl Lost {
    /// Lost for this reason; `console` follows it in messages.
    pub fn new(why: String, console: String) -> Self {
        Self { why, console }
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.why, self.console)
    }
}

impl Error for Lost {}

/// Everything that booting the host takes, ready to use any number of times.
pub struct Emulator {
    lab: Lab,
    qemu: PathBuf,
    initramfs: PathBuf,
    disk: PathBuf,
    husk: PathBuf,
}

impl Emulator {
    /// Installs, fetches and builds what is missing.
    ///
    /// # Errors
    ///
    /// Something cannot be had; the message says what to do.
    pub fn prepare(lab: &Lab, programs: &Programs) -> Result<Self> {
        packages::ensure_tools(Host::Emulated)?;
        images::ensure_guests(lab, &programs.guest_init)?;
        Ok(Self {
            lab: lab.clone(),
            qemu: find("qemu-system-x86_64").context("qemu-system-x86_64 is not installed")?,
            initramfs: images::ensure_host(lab, &programs.guest_init)?,
            disk: images::ensure_host_disk(lab)?,
            husk: programs.husk.clone(),
        })
    }

    /// Boots the host, runs the command, and powers the host off; the command's exit code. `output`
    /// gets what the command writes, as it comes.
    ///
    /// # Errors
    ///
    /// The host did not come up, died, stood still, or did not end in time: it is [`Lost`].
    pub fn run(&self, request: &Request, output: &mut dyn FnMut(&[u8])) -> Result<i32> {
        let folder = self.lab.new_run()?;
        let console = folder.path().join("console.log");
        let results = folder.path().join("results.img");
        File::create(&results)?.set_len(HEADER_BYTES as u64)?;
        File::create(&console)?;
        let kept = (File::open(&results)?, File::open(&console)?);
        self.make_work_disk(request, folder.path())?;
        let work = File::open(folder.path().join("work.ext4"))?;
        let mut qemu = self.command(request, folder.path());
        // QEMU has opened everything when the first byte arrives: from then on nothing is left behind even by a kill.
        let mut folder = Some(folder);
        let mut remove_then_pass = |bytes: &[u8]| {
            drop(folder.take());
            output(bytes);
        };
        let limits = Limits {
            timeout: request.timeout,
            progress: request.progress.clone(),
        };
        let captured = request.terminal == Terminal::Captured;
        let ended = watched::run(&mut qemu, captured, &limits, &mut remove_then_pass);
        let exit = finish(ended, kept, &self.lab.path("host/last-console.log"))
            .with_context(|| format!("emulated host (`{}`)", request.command.join(" ")))?;
        if let Some(out) = &request.out {
            bring_back(work, out)?;
        }
        Ok(exit)
    }

    fn make_work_disk(&self, request: &Request, folder: &Path) -> Result<()> {
        let content = folder.join("work");
        let husk = (self.husk.clone(), "bin/husk".to_string());
        for (source, target) in request.files.iter().chain([&husk]) {
            let target = content.join(target);
            fs::create_dir_all(target.parent().context("a file needs a folder")?)?;
            fs::hard_link(source, &target)
                .or_else(|_| fs::copy(source, &target).map(drop))
                .with_context(|| format!("cannot copy {}", source.display()))?;
        }
        let mut env = vec![
            ("HUSK_LAB_DIR".to_string(), "/lab".to_string()),
            ("HUSK_BIN".into(), "/work/bin/husk".into()),
        ];
        env.extend(request.env.iter().cloned());
        let window = (request.terminal != Terminal::Captured).then(|| sys::window().unwrap_or(USUAL_WINDOW));
        let job = Job {
            command: request.command.clone(),
            env,
            window,
        };
        fs::create_dir(content.join(OUT))?;
        fs::write(content.join(JOB_FILE), serde_json::to_vec(&job)?)?;
        images::make_disk(&content, &folder.join("work.ext4"), SCRATCH_MIB)?;
        fs::remove_dir_all(&content)?;
        Ok(())
    }

    fn command(&self, request: &Request, folder: &Path) -> Command {
        let mut qemu = Command::new(&self.qemu);
        match request.timing {
            Timing::Fast => qemu.args(["-accel", "tcg,thread=single,tb-size=1024"]),
            Timing::Deterministic => qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off"]),
        };
        qemu.args(["-cpu", PROCESSOR]);
        let steady = request.steady || request.timing == Timing::Fast;
        let clock = if steady { PERIODIC_TICK } else { "" };
        qemu.args(["-smp", "1"]);
        qemu.args(["-M", "q35", "-m", "4096", "-display", "none", "-vga", "none"]);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        qemu.arg("-kernel")
            .arg(HOST_KERNEL.folder(&self.lab).join("vmlinux"))
            .arg("-initrd")
            .arg(&self.initramfs);
        let memory = match request.timing {
            Timing::Fast => SHARED_HUGE_PAGES,
            Timing::Deterministic => "",
        };
        let append = format!("{KERNEL_COMMAND_LINE} {SHORT_BOOT} 8250.nr_uarts=2{clock}{memory}");
        qemu.args(["-append", &append]);
        qemu.arg("-serial")
            .arg(with_path("file:", &folder.join("console.log"), ""));
        let signal = if request.terminal == Terminal::Given {
            "off"
        } else {
            "on"
        };
        qemu.args([
            "-chardev",
            &format!("stdio,id=terminal,signal={signal}"),
            "-serial",
            "chardev:terminal",
        ]);
        let disks = [
            (self.disk.clone(), ",readonly=on"),
            (folder.join("work.ext4"), ""),
            (folder.join("results.img"), ""),
        ];
        for (path, options) in disks {
            let options = format!("{options},format=raw,if=virtio,cache=unsafe");
            qemu.arg("-drive").arg(with_path("file=", &path, &options));
        }
        qemu
    }
}

/// Replaces `target` by the folder [`OUT`] of `disk`, an ext4 file system that nobody has mounted
/// any more; by nothing if that is empty.
fn bring_back(disk: File, target: &Path) -> Result<()> {
    if target.exists() {
        fs::remove_dir_all(target).with_context(|| format!("cannot replace {}", target.display()))?;
    }
    let parent = target.parent().context("a folder needs a parent")?;
    let part = tempfile::Builder::new().prefix(paths::PART).tempdir_in(parent)?;
    let debugfs = find("debugfs").context("debugfs is not installed")?;
    // By its descriptor: the file's name has gone. debugfs takes no quotes in a path, and a path of
    // the caller's may have spaces.
    let mut read = command(debugfs);
    read.args(["-R", "rdump /out .", "/dev/stdin"])
        .current_dir(part.path())
        .stdin(disk);
    output(&mut read).context("cannot read what the command left in out/")?;
    let out = part.path().join(OUT);
    if fs::read_dir(&out).is_ok_and(|mut files| files.next().is_some()) {
        fs::rename(&out, target)?;
    }
    Ok(())
}

/// A QEMU option that contains a path, in which a comma is written twice.
fn with_path(before: &str, path: &Path, after: &str) -> OsString {
    format!("{before}{}{after}", path.to_string_lossy().replace(',', ",,")).into()
}

/// Reads the results disk, or explains its absence by the host's console.
fn finish(ended: Result<()>, (mut results, console): (File, File), kept_console: &Path) -> Result<i32> {
    let mut header = vec![0; HEADER_BYTES];
    results.read_exact(&mut header)?;
    let text = header.split(|byte| *byte == 0).next().unwrap_or_default();
    let outcome: Option<Outcome> = serde_json::from_slice(text).ok();
    let Some(outcome) = outcome.filter(|_| ended.is_ok()) else {
        let said = watched::read_text(console);
        fs::write(kept_console, &said)?;
        let mut tail: Vec<&str> = said.lines().rev().take(25).collect();
        tail.reverse();
        let why = ended
            .err()
            .map_or_else(|| "died before the command ended".into(), |error| format!("{error:#}"));
        let console = format!(
            "the end of its console (all of it: {}):\n{}",
            kept_console.display(),
            tail.join("\n")
        );
        return Err(Lost::new(why, console).into());
    };
    if let Some(error) = outcome.error {
        bail!("{error}");
    }
    Ok(outcome.exit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_in_out_comes_back_and_replaces_what_came_before() {
        if find("mke2fs").is_none() || find("debugfs").is_none() {
            println!("skipped: needs mke2fs, debugfs");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        let (content, disk) = (folder.path().join("content"), folder.path().join("work.ext4"));
        let target = folder.path().join("what comes back");
        let made = |files: &[(&str, &str)]| {
            let _ = fs::remove_dir_all(&content);
            fs::create_dir_all(content.join("out/deep")).unwrap();
            for (name, text) in files {
                fs::write(content.join("out").join(name), text).unwrap();
            }
            images::make_disk(&content, &disk, 1).unwrap();
            let file = File::open(&disk).unwrap();
            fs::remove_file(&disk).unwrap();
            file
        };
        bring_back(made(&[("boot.json", "[]"), ("deep/a", "b")]), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("boot.json")).unwrap(), "[]");
        assert_eq!(fs::read_to_string(target.join("deep/a")).unwrap(), "b");
        bring_back(made(&[("other", "x")]), &target).unwrap();
        assert!(target.join("other").exists() && !target.join("boot.json").exists());
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            2,
            "nothing is left beside it"
        );
    }
}
