//! `cargo lab bench`: what husk costs, and what its peers cost under the same conditions.
//!
//! | profile   | where                                     | guest                        | figures                                     |
//! |-----------|-------------------------------------------|------------------------------|---------------------------------------------|
//! | `startup` | this machine's `/dev/kvm`, of any kind    | built-in payload, powers off | `first_instruction_ms`, `exit_ms`           |
//! | `memory`  | this machine's `/dev/kvm`, of any kind    | built-in payload, halts      | `private_kib`, `page_table_kib`             |
//! | `boot`    | emulated host, one nanosecond an instruction | stock kernel to its init  | `init_virtual_ms`, `exit_virtual_ms`        |
//! | `vsock`   | emulated host, one nanosecond an instruction | stock kernel, raw streams | virtual MiB/s, µs, dials/s                  |
//! | `resize`  | emulated host, one nanosecond an instruction | stock kernel with the agent  | virtual ms from a request to what the guest has |
//! | `net`     | emulated host, one nanosecond an instruction | stock kernel with a network device | virtual µs for a MiB, an exchange, a datagram |
//! | `block`   | emulated host, one nanosecond an instruction | stock kernel with a disk | virtual MiB/s, 1/s |
//! | `fs`      | emulated host, one nanosecond an instruction | stock kernel with a shared folder | virtual MiB/s, 1/s, µs; KiB |
//!
//! Every subject is seen from outside in the same way: the guest writes a byte to its serial port, and the VMM passes it on.

mod boot;
mod broken;
mod confinement;
mod disk;
mod elf;
mod emulated;
mod figures;
mod folder;
mod footprint;
mod forecast;
mod inside;
mod measure;
mod net;
mod net_host;
mod parts;
mod payload;
mod portable;
mod resize;
mod rounds;
mod scraper;
mod scripted;
mod subject;
mod vsock;
mod wire;
mod work_queue;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use husk_guest::{blocks, folder as shared};

use confinement::Seen;
use emulated::Extent;
pub use emulated::{MeasureArgs, measure};
use figures::Figure;
use forecast::Forecast;
use subject::{Kind, Subject};
use work_queue::GivenUp;

use crate::emulator::Timing;
use crate::paths::{self, Lab};
use crate::{build, host, progress};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Profile {
    /// From exec to the guest's first instruction and to the exit.
    Startup,
    /// From exec to a stock kernel's init and to the exit, in virtual time.
    Boot,
    /// Private memory and page tables beside guest RAM.
    Memory,
    /// Streams between guest and host, in virtual time.
    Vsock,
    /// Traffic between guest and host, in virtual time.
    Net,
    /// Resizes of a running pod, in virtual time.
    Resize,
    /// A disk, in virtual time.
    Block,
    /// Files of the host, in virtual time.
    Fs,
}

impl Profile {
    /// Those that are measured if the user names none: they take minutes together.
    const USUAL: [Self; 3] = [Self::Startup, Self::Memory, Self::Boot];

    /// Its name in results.
    fn name(self) -> &'static str {
        match self {
            Self::Startup => "startup",
            Self::Boot => "boot",
            Self::Memory => "memory",
            Self::Vsock => "vsock",
            Self::Net => "net",
            Self::Resize => "resize",
            Self::Block => "block",
            Self::Fs => "fs",
        }
    }

    /// Names of its parts, each with guests of its own; none if it is a whole.
    fn parts(self) -> Vec<String> {
        match self {
            Self::Block => blocks::Part::ALL.iter().map(ToString::to_string).collect(),
            Self::Fs => shared::Part::ALL.iter().map(ToString::to_string).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether it can measure a subject: the floor runs no kernel, and not everybody has every device without help.
    fn measures(self, kind: Kind) -> bool {
        match self {
            Self::Startup | Self::Memory => !kind.is_variant(),
            Self::Boot => kind.boots(),
            Self::Vsock => matches!(kind, Kind::Husk | Kind::CloudHypervisor | Kind::Firecracker),
            Self::Net | Self::Resize => matches!(kind, Kind::Husk | Kind::CloudHypervisor),
            Self::Block => {
                let asked_for = matches!(
                    kind,
                    Kind::Husk | Kind::HuskScraped | Kind::CloudHypervisor | Kind::Firecracker
                );
                asked_for || kind.is_without_io_uring()
            }
            Self::Fs => matches!(kind, Kind::Husk | Kind::CloudHypervisor) || kind.has_file_server(),
        }
    }

    /// Runs of each subject if the user names no number.
    fn usual_runs(self) -> u32 {
        match self {
            Self::Startup => 40,
            Self::Memory => 5,
            Self::Fs | Self::Block => 1,
            Self::Boot | Self::Vsock | Self::Net | Self::Resize => 3,
        }
    }

    /// About how long it takes before the first life.
    fn start(self) -> Duration {
        match self {
            Self::Startup | Self::Memory => Duration::ZERO,
            Self::Boot | Self::Vsock | Self::Net | Self::Resize | Self::Block | Self::Fs => Duration::from_secs(40),
        }
    }

    /// About how long a life takes.
    fn life(self, kind: Kind) -> Duration {
        match self {
            Self::Startup if kind == Kind::QemuQ35 => Duration::from_secs(4),
            Self::Startup => Duration::from_millis(50),
            Self::Memory if kind == Kind::QemuQ35 => Duration::from_secs(6),
            Self::Memory => Duration::from_millis(2500),
            Self::Boot => Duration::from_secs(20),
            Self::Vsock | Self::Net => Duration::from_secs(60),
            Self::Block => Duration::from_secs(100),
            Self::Fs => Duration::from_secs(150),
            Self::Resize => Duration::from_secs(180),
        }
    }
}

/// What to measure, and against whom.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// What to measure [default: startup, memory, boot].
    #[arg(value_enum)]
    profiles: Vec<Profile>,
    /// Measure cloud-hypervisor, firecracker and qemu-system-x86_64 too, those of them that are in PATH.
    #[arg(long)]
    peers: bool,
    /// Write the figures to this file as well.
    #[arg(long)]
    json: Option<PathBuf>,
    /// Measure husk as tests have it: built sooner, somewhat slower than what is released.
    #[arg(long)]
    quick: bool,
    /// Runs of each subject, not counting the one that warms up [default: 40 for startup, 5 for memory, 1 for block and fs, 3 for the others].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
    /// Seconds of processor time in which an emulated host has to get on; the life in one that does not is done again in another.
    #[arg(long, default_value_t = 45, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    patience: u64,
    /// Have the clocks of emulated hosts follow this machine's: a quick look at whether all subjects work. Such figures compare nothing.
    #[arg(long)]
    uncounted: bool,
    /// In the profile block, measure husk once more with its figures read a hundred times a second, as no scraper does.
    #[arg(long)]
    scraped: bool,
    /// Measure this part only: read, write, random or flush of block; names, read, random, write or inodes of fs. May be given several times.
    #[arg(long = "part", value_name = "PART")]
    parts: Vec<String>,
}

impl BenchArgs {
    fn timing(&self) -> Timing {
        if self.uncounted {
            Timing::Fast
        } else {
            Timing::Deterministic
        }
    }

    /// What of the project itself is measured, in profiles that can.
    fn ours(&self) -> impl Iterator<Item = Kind> {
        let kinds = Kind::OURS.into_iter();
        kinds.filter(|kind| self.scraped || *kind != Kind::HuskScraped)
    }
}

/// Figures, why a subject has none or not all of them, and what was given up and done again.
#[derive(Default)]
struct Results {
    figures: Vec<Figure>,
    failures: Vec<(Kind, String)>,
    given_up: Vec<GivenUp>,
}

/// Measures; whether husk and the floor could be measured. A peer that fails is a line in the results.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, `/dev/kvm` does not open, or the emulated host died.
pub fn run(lab: &Lab, arguments: &BenchArgs) -> Result<bool> {
    let profiles = match arguments.profiles.as_slice() {
        [] => &Profile::USUAL,
        chosen => chosen,
    };
    let peers = if arguments.peers { Subject::peers() } else { Vec::new() };
    let runs = |profile: Profile| arguments.runs.unwrap_or(profile.usual_runs());
    if let Some(path) = &arguments.json {
        // Known before hours of measuring, and not after.
        let file = fs::File::options().append(true).create(true).open(path);
        file.with_context(|| format!("cannot write {}", path.display()))?;
    }
    check_parts(profiles, &arguments.parts)?;
    let kinds: Vec<_> = arguments.ours().chain(peers.iter().map(|peer| peer.kind)).collect();
    foretell(profiles, &kinds, runs);
    let (husk, floor) = programs(lab, arguments.quick)?;
    let ours = arguments
        .ours()
        .map(|kind| Subject::new(kind, if kind == Kind::Floor { &floor } else { &husk }));
    let measured = |subject: &Subject| profiles.iter().any(|profile| profile.measures(subject.kind));
    let subjects: Vec<_> = ours.chain(peers).filter(measured).collect();
    let seen = confinement(profiles, &subjects);
    let mut results = Vec::new();
    let measured = profiles.iter().try_for_each(|profile| {
        let extent = Extent {
            runs: runs(*profile),
            patience: Duration::from_secs(arguments.patience),
            timing: arguments.timing(),
        };
        let part = measure_one(lab, *profile, &subjects, extent, &arguments.parts)?;
        results.push((*profile, part));
        anyhow::Ok(())
    });
    // What there is comes out, whatever became of the rest.
    if measured.is_ok() || !results.is_empty() {
        save(lab, arguments, &subjects, &seen, &results)?;
    }
    measured?;
    let mut failures = results.iter().flat_map(|(_, part)| &part.failures);
    Ok(!failures.any(|(kind, _)| kind.is_ours()))
}

/// Each of `parts` is one of a profile that is measured, and no profile is left without any of its own.
fn check_parts(profiles: &[Profile], parts: &[String]) -> Result<()> {
    let known: Vec<_> = profiles
        .iter()
        .map(|profile| (profile.name(), profile.parts()))
        .collect();
    for part in parts {
        let is_known = known.iter().any(|(_, names)| names.contains(part));
        ensure!(
            is_known,
            "--part {part}: there is no such part, allowed: {}",
            listed(&known)
        );
    }
    for (profile, names) in &known {
        let is_measured = parts.is_empty() || names.is_empty() || names.iter().any(|name| parts.contains(name));
        ensure!(
            is_measured,
            "--part: no part of {profile}, allowed: {}",
            names.join(", ")
        );
    }
    Ok(())
}

fn listed(known: &[(&str, Vec<String>)]) -> String {
    let with_parts = known.iter().filter(|(_, names)| !names.is_empty());
    let listed: Vec<_> = with_parts
        .map(|(profile, names)| format!("{} of {profile}", names.join(", ")))
        .collect();
    match listed.as_slice() {
        [] => "none, for these profiles are measured as a whole".into(),
        _ => listed.join("; "),
    }
}

/// Measures those of `subjects` that `profile` can measure.
fn measure_one(lab: &Lab, profile: Profile, subjects: &[Subject], extent: Extent, parts: &[String]) -> Result<Results> {
    let measured: Vec<_> = subjects
        .iter()
        .filter(|subject| profile.measures(subject.kind))
        .collect();
    let alone = || measured.iter().copied().cloned().collect::<Vec<_>>();
    let part = match profile {
        Profile::Startup => natively(|| payload::startup(&alone(), extent.runs))?,
        Profile::Memory => natively(|| payload::memory(&alone(), extent.runs))?,
        Profile::Vsock => vsock::run(lab, measured, extent)?,
        Profile::Net => net::run(lab, measured, extent)?,
        Profile::Boot => boot::run(lab, measured, extent)?,
        Profile::Resize => resize::run(lab, measured, extent)?,
        Profile::Block => disk::run(lab, measured, extent, parts)?,
        Profile::Fs => folder::run(lab, measured, extent, parts)?,
    };
    for (kind, why) in &part.failures {
        progress::say(&format!("{}: {}: failed: {why}", profile.name(), kind.name()));
    }
    Ok(part)
}

/// Says what will be done, and about how long it takes.
fn foretell(profiles: &[Profile], kinds: &[Kind], runs: impl Fn(Profile) -> u32) {
    let forecast = |profile: &Profile| Forecast::new(*profile, kinds.iter().copied(), runs(*profile));
    let forecasts: Vec<_> = profiles.iter().map(forecast).collect();
    for forecast in &forecasts {
        progress::say(&forecast.told());
    }
    let all = forecasts.iter().map(Forecast::time).sum();
    progress::say(&format!(
        "about {} in all, and the time that building takes",
        forecast::about(all)
    ));
}

/// Builds the init of guests.
fn guest_init(lab: &Lab) -> Result<PathBuf> {
    progress::say("building the guest's init");
    let init = build::build(lab, &["build", "--profile", "lab", "--package", "husk-guest", "--bins"])?;
    Ok(init.into_iter().next().context("cargo built no init")?.path)
}

/// Builds husk and the floor: as they are released, or as tests have them.
fn programs(lab: &Lab, quick: bool) -> Result<(PathBuf, PathBuf)> {
    let profile = if quick { "--profile=lab" } else { "--release" };
    progress::say(&format!("building husk and the floor ({profile})"));
    let built = build::build(
        lab,
        &[
            "build",
            profile,
            "--package",
            "husk",
            "--package",
            "husk-benches",
            "--bins",
        ],
    )?;
    Ok((build::named(&built, "husk")?, build::named(&built, "husk-floor")?))
}

fn natively(profile: impl FnOnce() -> Result<Results>) -> Result<Results> {
    host::open_kvm().map_err(anyhow::Error::msg)?;
    profile()
}

/// Looks which of the subjects that `profiles` measure are confined, each in a life of its own on this machine's KVM, if it has one.
fn confinement(profiles: &[Profile], subjects: &[Subject]) -> Vec<Seen> {
    if let Err(why) = host::open_kvm() {
        progress::say(&format!("whether the subjects are confined is not looked at: {why}"));
        return Vec::new();
    }
    // A variant is the same program.
    let measured = |subject: &&Subject| {
        let kind = subject.kind;
        !kind.is_variant() && profiles.iter().any(|profile| profile.measures(kind))
    };
    let subjects: Vec<_> = subjects.iter().filter(measured).cloned().collect();
    let seen = confinement::look(&subjects);
    for seen in &seen {
        progress::say(&seen.to_string());
    }
    seen
}

/// Writes table, chart and JSON, and shows the table.
fn save(
    lab: &Lab,
    arguments: &BenchArgs,
    subjects: &[Subject],
    seen: &[Seen],
    results: &[(Profile, Results)],
) -> Result<()> {
    let folder = lab.path("bench");
    let mut table = String::from("## husk and its peers\n\n");
    for subject in subjects {
        table.push_str(&format!("- {}: {}\n", subject.kind.name(), subject.version()));
    }
    for seen in seen {
        table.push_str(&format!("- {seen}\n"));
    }
    if arguments.uncounted {
        table.push_str("- **not counted**: times of emulated hosts are those of this machine, whatever else it did\n");
    }
    for (profile, part) in results {
        table.push_str(&losses(profile.name(), part));
    }
    let figures: Vec<Figure> = results.iter().flat_map(|(_, part)| part.figures.clone()).collect();
    table.push_str(&figures::markdown(&figures));
    let with_confinement: Vec<_> = figures
        .iter()
        .cloned()
        .chain(seen.iter().flat_map(Seen::figures))
        .collect();
    let mut json = serde_json::to_string_pretty(&with_confinement)?;
    json.push('\n');
    paths::write(&folder.join("results.md"), table.as_bytes())?;
    paths::write(&folder.join("results.svg"), figures::svg(&figures).as_bytes())?;
    paths::write(&folder.join("results.json"), json.as_bytes())?;
    if let Some(path) = &arguments.json {
        fs::write(path, &json).with_context(|| format!("cannot write {}", path.display()))?;
    }
    println!("{table}");
    progress::say(&format!(
        "written to {}: results.md, results.svg, results.json",
        folder.display()
    ));
    Ok(())
}

/// What could not be measured in a profile, and what was given up and done again.
fn losses(profile: &str, results: &Results) -> String {
    let failures = results.failures.iter();
    let failures = failures.map(|(kind, why)| format!("- {profile}: {}: failed: {why}\n", kind.name()));
    let given_up = results
        .given_up
        .iter()
        .map(|given_up| format!("- {profile}: {given_up}\n"));
    let mut lines: String = failures.chain(given_up).collect();
    if !results.given_up.is_empty() {
        let count = results.given_up.len();
        lines.push_str(&format!("- {profile}: lives given up and done again: {count}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_no_measured_profile_has_is_refused_with_those_that_there_are() {
        let check = |profiles: &[Profile], parts: &[&str]| {
            let parts: Vec<_> = parts.iter().map(|part| (*part).to_owned()).collect();
            check_parts(profiles, &parts).map_err(|error| error.to_string())
        };
        use Profile::{Block, Boot, Fs};
        assert_eq!(check(&[Fs, Block, Boot], &[]), Ok(()));
        assert_eq!(check(&[Fs, Block], &["random"]), Ok(()));
        let refused = "--part names: there is no such part, allowed: read, write, random, flush of block".to_owned();
        assert_eq!(check(&[Block], &["names"]), Err(refused));
        let refused = "--part: no part of block, allowed: read, write, random, flush".to_owned();
        assert_eq!(check(&[Fs, Block], &["names"]), Err(refused));
        assert!(check(&[Boot], &["read"]).unwrap_err().ends_with("measured as a whole"));
    }

    #[test]
    fn losses_are_named_by_profile_and_counted() {
        let given_up = |why: &str| GivenUp {
            kind: Kind::Husk,
            why: why.into(),
        };
        let results = Results {
            figures: Vec::new(),
            failures: vec![(Kind::QemuQ35, "no KVM".into())],
            given_up: vec![given_up("panic"), given_up("its emulated host slept")],
        };
        let lines = "- net: qemu-q35: failed: no KVM\n- net: husk: given up and done again: panic\n\
            - net: husk: given up and done again: its emulated host slept\n- net: lives given up and done again: 2\n";
        assert_eq!(losses("net", &results), lines);
        assert_eq!(losses("net", &Results::default()), "");
    }
}
