//! The emulated host: prepares a small Linux and runs one [`Job`] in it.

use std::fs::{self, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use husk_guest::job::{HEADER_BYTES, JOB_FILE, Job, Outcome};

use crate::{setup, sys};

const PATH: &str = "/work/bin:/bin";

/// Which shared memory is in huge pages (Documentation/admin-guide/mm/transhuge.rst): none, by default.
const SHMEM_ENABLED: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Runs the job and saves its outcome. `shmem` is what [`SHMEM_ENABLED`] is to be, if anything.
///
/// # Errors
///
/// The disk for it cannot be written. Every other failure is in the outcome.
pub fn run(shmem: Option<&str>) -> Result<()> {
    let outcome = match prepare(shmem).and_then(|_idle_vm| run_job()) {
        Ok(exit) => Outcome { exit, error: None },
        Err(error) => Outcome {
            exit: 1,
            error: Some(format!("{error:#}")),
        },
    };
    save(&outcome).context("cannot save the outcome")
}

fn prepare(shmem: Option<&str>) -> Result<[OwnedFd; 2]> {
    for folder in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(folder)?;
    }
    setup::mount("devpts", "/dev/pts", "devpts")?;
    for target in ["/dev/shm", "/tmp", "/run", "/root"] {
        setup::mount("tmpfs", target, "tmpfs")?;
    }
    setup::mount("cgroup2", "/sys/fs/cgroup", "cgroup2")?;
    setup::load_modules("/modules")?;
    for (device, target) in [("/dev/vda", "/lab"), ("/dev/vdb", "/work")] {
        setup::wait_for(device)?;
        fs::create_dir_all(target)?;
        sys::mount(device, target, "ext4", target == "/lab").with_context(|| format!("cannot mount {target}"))?;
    }
    Command::new("/bin/busybox")
        .args(["ip", "link", "set", "lo", "up"])
        .status()
        .context("cannot start busybox")?;
    // KVM and the scheduler rewrite their own code when the first VM, or the first vCPU with its
    // APIC disabled, comes and when the last one goes. QEMU's threads do not always agree on such
    // code in time, and the host dies of it. With a VM that stays, as on any host that runs pods
    // already, the code stays as well.
    let kvm = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .context("cannot open /dev/kvm")?;
    let idle = sys::idle_vm(&kvm).context("cannot make an idle VM")?;
    if let Some(mode) = shmem {
        fs::write(SHMEM_ENABLED, mode).with_context(|| format!("cannot write {mode} to {SHMEM_ENABLED}"))?;
    }
    Ok(idle)
}

fn run_job() -> Result<i32> {
    let text = fs::read(Path::new("/work").join(JOB_FILE)).context("no job")?;
    let job: Job = serde_json::from_slice(&text).context("a strange job")?;
    let terminal = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ttyS1")
        .context("cannot open /dev/ttyS1")?;
    match job.window {
        Some(size) => sys::set_window(&terminal, size)?,
        None => sys::set_line(&terminal, sys::Line::Raw)?,
    }
    // Process 1 itself leads the terminal's session: when a leader ends, the kernel hangs up and drops unsent output.
    sys::control(&terminal)?;
    let (program, arguments) = job.command.split_first().context("an empty command")?;
    let child = Command::new(program)
        .args(arguments)
        .current_dir("/work")
        .env_clear()
        .env("PATH", PATH)
        .env("HOME", "/root")
        .envs(job.env)
        .stdin(Stdio::from(terminal.try_clone()?))
        .stdout(Stdio::from(terminal.try_clone()?))
        .stderr(Stdio::from(terminal.try_clone()?))
        .spawn()
        .with_context(|| format!("cannot start {:?}", job.command))?;
    // Process 1 inherits orphans: wait for them too, or they stay as zombies.
    loop {
        let (pid, exit) = sys::wait_any().context("lost the command")?;
        if pid == child.id() {
            sys::drain(&terminal)?;
            return Ok(exit);
        }
    }
}

fn save(outcome: &Outcome) -> Result<()> {
    setup::wait_for("/dev/vdc")?;
    let disk = OpenOptions::new().write(true).open("/dev/vdc")?;
    let mut header = serde_json::to_vec(outcome)?;
    header.resize(HEADER_BYTES, 0);
    disk.write_all_at(&header, 0)?;
    disk.sync_all()?;
    Ok(())
}
