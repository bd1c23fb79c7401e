//! `cargo lab bench`: what husk costs, and what its peers cost under the same conditions.
//!
//! | profile   | where                                     | guest                        | figures                                     |
//! |-----------|-------------------------------------------|------------------------------|---------------------------------------------|
//! | `startup` | this machine's `/dev/kvm`, of any kind    | built-in payload, powers off | `first_instruction_ms`, `exit_ms`           |
//! | `memory`  | this machine's `/dev/kvm`, of any kind    | built-in payload, halts      | `private_kib`, `page_table_kib`             |
//! | `boot`    | emulated host, one nanosecond an instruction | stock kernel to its init  | `init_virtual_ms`, `exit_virtual_ms`        |
//! | `vsock`   | emulated host, one nanosecond an instruction | stock kernel, raw streams | virtual MiB/s, µs, dials/s                  |
//! | `net`     | emulated host, one nanosecond an instruction | stock kernel with a network device | virtual µs for a MiB, an exchange, a datagram |
//!
//! Every subject is seen from outside in the same way: the guest writes a byte to its serial port, and the VMM passes it on.

mod boot;
mod elf;
mod emulated;
mod figures;
mod footprint;
mod measure;
mod net;
mod net_host;
mod payload;
mod portable;
mod rounds;
mod standstill;
mod subject;
mod vsock;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

pub use emulated::{MeasureArgs, measure};
use figures::Figure;
use subject::{Kind, Subject};

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
}

/// What to measure, and against whom.
#[derive(clap::Args)]
pub struct BenchArgs {
    /// What to measure; everything by default.
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
    /// Runs of each subject, not counting the one that warms up [default: 40 for startup, 5 for memory, 3 for the others].
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    runs: Option<u32>,
}

/// Figures, and why there are none of a subject.
#[derive(Default)]
struct Results {
    figures: Vec<Figure>,
    failures: Vec<(Kind, String)>,
}

/// Measures; whether husk and the floor could be measured. A peer that fails is a line in the results.
///
/// # Errors
///
/// Something does not compile or cannot be fetched, `/dev/kvm` does not open, or the emulated host died.
pub fn run(lab: &Lab, arguments: &BenchArgs) -> Result<bool> {
    let profiles = match arguments.profiles.as_slice() {
        [] => Profile::value_variants(),
        chosen => chosen,
    };
    let (husk, floor) = programs(lab, arguments.quick)?;
    let mut subjects = vec![
        Subject::new(Kind::Husk, husk.clone()),
        Subject::new(Kind::HuskUnfiltered, husk),
        Subject::new(Kind::Floor, floor),
    ];
    if arguments.peers {
        subjects.extend(Subject::peers());
    }
    let mut results = Results::default();
    for profile in profiles {
        let part = match profile {
            Profile::Startup => natively(|| payload::startup(&subjects, arguments.runs.unwrap_or(40)))?,
            Profile::Memory => natively(|| payload::memory(&subjects, arguments.runs.unwrap_or(5)))?,
            Profile::Vsock => vsock::run(lab, &subjects, arguments.runs.unwrap_or(3))?,
            Profile::Net => net::run(lab, &subjects, arguments.runs.unwrap_or(3))?,
            Profile::Boot => boot::run(lab, &subjects, arguments.runs.unwrap_or(3))?,
        };
        for (kind, why) in &part.failures {
            progress::say(&format!("{}: failed: {why}", kind.name()));
        }
        results.figures.extend(part.figures);
        results.failures.extend(part.failures);
    }
    save(lab, arguments, &subjects, &results)?;
    Ok(!results.failures.iter().any(|(kind, _)| kind.is_ours()))
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

/// Writes table, chart and JSON, and shows the table.
fn save(lab: &Lab, arguments: &BenchArgs, subjects: &[Subject], results: &Results) -> Result<()> {
    let folder = lab.path("bench");
    let mut table = String::from("## husk and its peers\n\n");
    for subject in subjects {
        table.push_str(&format!("- {}: {}\n", subject.kind.name(), subject.version()));
    }
    for (kind, why) in &results.failures {
        table.push_str(&format!("- {}: failed: {why}\n", kind.name()));
    }
    table.push_str(&figures::markdown(&results.figures));
    let mut json = serde_json::to_string_pretty(&results.figures)?;
    json.push('\n');
    paths::write(&folder.join("results.md"), table.as_bytes())?;
    paths::write(&folder.join("results.svg"), figures::svg(&results.figures).as_bytes())?;
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
