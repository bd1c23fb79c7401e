//! The life of one pod, told as it happens: the part of `cargo lab demo` that runs where guests run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use husk_guest::answer::Report;
use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::pod::Pod;
use husk_tests::share::FileServer;

use crate::growth;

/// What to boot.
#[derive(clap::Args)]
pub struct LifeArgs {
    /// The folder of the guest's kernel.
    #[arg(long)]
    guest: PathBuf,
}

const CPUS: u32 = 2;
const MEMORY_MIB: u64 = 512;

/// Bytes of the disk that is plugged in, and of what the guest writes there.
const DISK_BYTES: u64 = 64 << 20;
const WRITTEN_BYTES: u64 = 1 << 20;

/// Bytes of the shared file that the guest reads by its clock.
const READ_BYTES: usize = 4 << 20;

/// Starts a pod through the API, as the Rust shim does, shows its life, and checks that it really lived.
///
/// # Errors
///
/// It did not come up, was not what was asked for, or did not power off.
pub fn run(arguments: &LifeArgs) -> Result<()> {
    let folder = tempfile::tempdir().context("no folder for the pod")?;
    let shared = folder.path().join("shared");
    fs::create_dir(&shared)?;
    let teller = Teller(Instant::now());
    let server = FileServer::start(&shared, &folder.path().join("virtiofsd.sock"))?;
    teller.say("virtiofsd serves a folder");
    let shape = Shape {
        share: Some(server.socket().into()),
        vcpus: CPUS,
        memory_mib: MEMORY_MIB,
        ..Shape::new(
            Shim::Rust,
            arguments.guest.join("vmlinux"),
            arguments.guest.join("pod.cpio"),
        )
    };
    let mut pod = Pod::launch(shape, folder.path())?;
    teller.say("husk --api-socket answers vmm.ping");
    let told = tell(&teller, &mut pod, folder.path());
    if told.is_err() {
        print!("{}", pod.output());
    }
    let not_resized = told?;
    let stopped = pod.ended()?;
    server.ended()?;
    teller.say(&format!(
        "husk has ended: {}; both its sockets are gone",
        stopped.status
    ));
    ensure!(stopped.status.success(), "husk did not end with a clean power-off");
    not_resized.map_or(Ok(()), Err)
}

/// Says what happens, and when.
struct Teller(Instant);

impl Teller {
    fn say(&self, what: &str) {
        println!("{:>8.3} s  {what}", self.0.elapsed().as_secs_f64());
    }
}

/// A pod that cannot be resized lives on: why is the result.
fn tell(teller: &Teller, pod: &mut Pod, folder: &Path) -> Result<Option<anyhow::Error>> {
    pod.create()?;
    teller.say(&format!(
        "vm.create: {CPUS} vCPUs, {MEMORY_MIB} MiB, vsock, a share; the body is the Rust shim's"
    ));
    pod.boot()?;
    teller.say("vm.boot: the vCPUs run");
    let (mut agent, refused) = pod.agent()?;
    teller.say(&format!(
        "the guest's agent answers over vsock, after {refused} refused dials"
    ));
    look_around(teller, &mut agent)?;
    share_a_folder(teller, &mut agent, &folder.join("shared"))?;
    plug_a_disk(teller, pod, &mut agent, folder)?;
    let not_resized = growth::live(&|what| teller.say(what), pod, &mut agent, CPUS).err();
    let private = private_kib(pod.pid())?;
    teller.say(&format!("husk's private memory beside guest RAM: {private} KiB"));
    agent.send(&Call::step(&Step::PowerOff))?;
    let bye = agent.reply()?;
    ensure!(bye == Reply::Done, "not a good-bye: {bye:?}");
    teller.say("the guest powers off");
    Ok(not_resized)
}

fn look_around(teller: &Teller, agent: &mut Agent) -> Result<()> {
    let report = match agent.must(&Call::step(&Step::Report))? {
        Reply::Answer {
            answer: Answer::Report(report),
        } => report,
        other => bail!("not a report: {other:?}"),
    };
    let Report {
        kernel,
        online,
        memory_kib,
        clock,
        ..
    } = &report;
    teller.say(&format!(
        "in the guest: Linux {kernel}, CPUs {online}, {} MiB, clock {clock}",
        memory_kib / 1024
    ));
    ensure!(
        *online == format!("0-{}", CPUS - 1),
        "asked for {CPUS} CPUs, the guest has {online} online"
    );
    let plausible = MEMORY_MIB * 1024 * 3 / 4..=MEMORY_MIB * 1024;
    ensure!(
        plausible.contains(memory_kib),
        "asked for {MEMORY_MIB} MiB, the guest has {memory_kib} KiB"
    );
    let said = agent.run(&["uname", "-a"])?;
    teller.say(&format!("exec uname -a: {}", said.trim_end()));
    Ok(())
}

fn share_a_folder(teller: &Teller, agent: &mut Agent, shared: &Path) -> Result<()> {
    fs::write(shared.join("from-host"), "hello from the host")?;
    let mounting = agent.mount_share("/share")?;
    let read = agent.run(&["cat", "/share/from-host"])?;
    ensure!(read == "hello from the host", "the guest reads {read:?} from the share");
    let script = "echo hello from the guest > /share/from-guest";
    agent.run(&["sh", "-c", script])?;
    let written = fs::read_to_string(shared.join("from-guest"))?;
    ensure!(
        written == "hello from the guest\n",
        "the guest wrote {written:?} to the share"
    );
    teller.say("the guest mounts the folder, reads what the host wrote, and the host what the guest did");
    let large = pattern::bytes(9, READ_BYTES);
    fs::write(shared.join("large"), &large)?;
    let path = "/share/large".into();
    let (reading, reply) = agent.time(Call::Sum { path })?;
    let (bytes, checksum) = (u64::try_from(large.len())?, pattern::checksum(&large));
    ensure!(reply == Reply::Data { bytes, checksum }, "the guest read {reply:?}");
    teller.say(&format!(
        "by the guest's clock mounting took {:.1} ms, reading and summing {} MiB of it {:.1} ms",
        mounting.as_secs_f64() * 1000.0,
        READ_BYTES >> 20,
        reading.as_secs_f64() * 1000.0
    ));
    Ok(())
}

fn plug_a_disk(teller: &Teller, pod: &mut Pod, agent: &mut Agent, folder: &Path) -> Result<()> {
    let path = folder.join("disk.img");
    File::create(&path)?.set_len(DISK_BYTES)?;
    let device = pod.add_disk(&path)?;
    teller.say(&format!("vm.add-disk: husk says it is at {}", device.bdf));
    let found = agent.must(&Call::DiskAt {
        bdf: device.bdf.clone(),
    })?;
    let Reply::Device { name, path: place } = found else {
        bail!("not a device: {found:?}")
    };
    teller.say(&format!("the guest has it as /dev/{name}, at {place}"));
    agent.must(&Call::step(&Step::write(&name, 0, WRITTEN_BYTES, 7)))?;
    let expected = pattern::bytes(7, usize::try_from(WRITTEN_BYTES)?);
    ensure!(
        fs::read(&path)?.starts_with(&expected),
        "what the guest wrote is not in the file"
    );
    teller.say("the guest wrote 1 MiB to it, and the host finds the same bytes in the file");
    pod.remove(&device)?;
    agent.must(&Call::Gone { bdf: device.bdf })?;
    teller.say("vm.remove-device: the guest let it go");
    Ok(())
}

/// Private memory of a process in KiB, guest RAM excluded.
fn private_kib(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    ensure!(
        text.lines().any(is_guest_ram),
        "no mapping is the guest's {MEMORY_MIB} MiB"
    );
    Ok(private_sum(&text))
}

/// Whether a line of smaps begins the mapping of guest RAM: by its name, or, as kernels without `CONFIG_ANON_VMA_NAME` show
/// none, by its size.
fn is_guest_ram(line: &str) -> bool {
    let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
    let Some((start, end)) = range else { return false };
    let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16)) else {
        return false;
    };
    line.contains("guest-ram") || end.saturating_sub(start) >= MEMORY_MIB << 20
}

fn private_sum(smaps: &str) -> u64 {
    let mut guest = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let (key, value) = line.split_once(' ').unwrap_or((line, ""));
        match key {
            "Private_Clean:" | "Private_Dirty:" if !guest => {
                sum += value.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0);
            }
            key if !key.ends_with(':') => guest = is_guest_ram(line),
            _ => {}
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_ram_is_not_on_the_bill_with_or_without_a_name() {
        let ram = [
            "7f00-7f10 rw-p 00000000 00:00 0          [anon:guest-ram]",
            "7f0000000000-7f0020000000 rw-p 00000000 00:00 0 ",
        ];
        for ram in ram {
            let smaps = format!(
                "{ram}\nPrivate_Clean: 0 kB\nPrivate_Dirty: 500000 kB\n\
                 7f20-7f30 rw-p 00000000 00:00 0   [heap]\nPrivate_Clean: 8 kB\nPrivate_Dirty: 100 kB\nVmFlags: rd\n"
            );
            assert!(is_guest_ram(smaps.lines().next().unwrap()));
            assert_eq!(private_sum(&smaps), 108);
        }
    }
}
