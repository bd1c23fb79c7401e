//! `cargo lab api-fuzz`: requests that schemathesis makes of `docs/openapi.yaml`, sent to husk in each of its states.
//!
//! What must hold of every answer: its status is one that the description has for that path, and 500 is none that is accepted; its body
//! is of the described form. What must hold in the end: husk answers, has no more descriptors open than before, and ends when told.
//!
//! schemathesis comes from PyPI into `target/lab/tools/schemathesis`; what it said is in `target/lab/api-fuzz/ROUND.log`.

mod husk;
mod relay;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use husk_benches::GuestAction;

use crate::command::{command, output, shown, typed};
use crate::paths::Lab;
use crate::{build, progress, sys};
use husk::Husk;

/// One version, so that what was found once is found again.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

/// What is expected of answers. 501 is how husk says that it does not have something.
const CONFIG: &str = r#"[checks]
not_a_server_error = { enabled = true, expected-statuses = ["2xx", "4xx", "501"] }
"#;
const CHECKS: &str = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance";

/// How many requests.
#[derive(clap::Args)]
pub struct ApiFuzzArgs {
    /// Random requests for each path, in each round.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    examples: u32,
    /// Makes the same requests again.
    #[arg(long)]
    seed: Option<u64>,
}

/// The state in which husk is when the requests come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Round {
    /// There is no VM, or what a request makes of it.
    Empty,
    /// There is one that has not been booted.
    Created,
    /// There is one whose guest runs.
    Running,
}

impl Round {
    const ALL: [Self; 3] = [Self::Empty, Self::Created, Self::Running];

    const fn name(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::Created => "created",
            Self::Running => "running",
        }
    }

    /// Operations that would end the state, beside the one that ends the process.
    const fn left_out(self) -> &'static [&'static str] {
        match self {
            Self::Empty => &[],
            Self::Created => &["deleteVm"],
            Self::Running => &["deleteVm", "shutdownVm", "rebootVm"],
        }
    }
}

/// Runs all rounds; whether nothing was found.
///
/// # Errors
///
/// Something is missing, or husk cannot be started.
pub fn run(lab: &Lab, arguments: &ApiFuzzArgs) -> Result<bool> {
    let schemathesis = progress::step("schemathesis", || install(lab))?;
    let built = build::build(lab, &["build", "--profile", "lab", "--package", "husk", "--bins"])?;
    let program = built.iter().find(|program| program.name == "husk");
    let program = program.context("cargo built no program husk")?;
    let logs = lab.path("api-fuzz");
    fs::create_dir_all(&logs).with_context(|| format!("cannot create {}", logs.display()))?;
    let mut held = true;
    for round in Round::ALL {
        let log = logs.join(format!("{}.log", round.name()));
        let fuzz = Fuzz {
            lab,
            schemathesis: &schemathesis,
            husk: &program.path,
            log: &log,
            arguments,
        };
        match fuzz.round(round) {
            Ok(summary) => println!("{}: {summary}", round.name()),
            Err(error) => {
                println!("{}: {error:#}; see {}", round.name(), log.display());
                held = false;
            }
        }
    }
    Ok(held)
}

/// The program, made if it is not there.
fn install(lab: &Lab) -> Result<PathBuf> {
    let folder = lab.path("tools/schemathesis");
    let program = folder.join("bin/schemathesis");
    let version = SCHEMATHESIS.rsplit('=').next().unwrap_or_default();
    if program.exists() && output(command(&program).arg("--version")).is_ok_and(|said| said.contains(version)) {
        return Ok(program);
    }
    output(command("python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("python3 with its module venv is needed (Debian: python3-venv)")?;
    shown(command(folder.join("bin/pip")).args(["install", "--quiet", SCHEMATHESIS]))?;
    Ok(program)
}

struct Fuzz<'a> {
    lab: &'a Lab,
    schemathesis: &'a Path,
    husk: &'a Path,
    log: &'a Path,
    arguments: &'a ApiFuzzArgs,
}

impl Fuzz<'_> {
    /// One round; how many requests there were.
    fn round(&self, round: Round) -> Result<String> {
        let folder = self.lab.new_run()?;
        let mut husk = Husk::start(self.husk, folder.path())?;
        if let Some(reason) = prepare(&husk, round, folder.path())? {
            husk.end()?;
            return Ok(format!("skipped: {reason}"));
        }
        let before = husk.descriptors()?;
        let relay = relay::start(husk.socket())?;
        let found = self.send(round, folder.path(), &format!("http://{relay}/api/v1"));
        ensure!(
            husk.ask("GET", "vmm.ping", "")?.0 == 200,
            "husk does not answer any more"
        );
        let summary = found?;
        husk.settle(&before)?;
        husk.end()?;
        Ok(summary)
    }

    fn send(&self, round: Round, folder: &Path, url: &str) -> Result<String> {
        let config = folder.join("schemathesis.toml");
        fs::write(&config, CONFIG).with_context(|| format!("cannot write {}", config.display()))?;
        let mut requests = self.schemathesis(&config);
        requests.args([
            "--url",
            url,
            "--checks",
            CHECKS,
            "--phases",
            "examples,coverage,fuzzing",
        ]);
        requests.args(["--max-examples", &self.arguments.examples.to_string()]);
        requests.args(["--request-timeout", "10", "--continue-on-failure", "--no-color"]);
        for operation in round.left_out().iter().chain(&["shutdownVmm"]) {
            requests.args(["--exclude-operation-id", operation]);
        }
        if let Some(seed) = self.arguments.seed {
            requests.args(["--seed", &seed.to_string()]);
        }
        let log = File::create(self.log).with_context(|| format!("cannot create {}", self.log.display()))?;
        requests.stdout(log).current_dir(folder);
        let ticker = progress::Ticker::start(&format!("requests to a husk that is {}", round.name()));
        let status = requests
            .status()
            .with_context(|| format!("cannot start `{}`", typed(&requests)))?;
        ticker.end("");
        let said = fs::read_to_string(self.log).with_context(|| format!("cannot read {}", self.log.display()))?;
        let summary = said.lines().map(str::trim).find(|line| line.contains(" generated, "));
        let summary = summary.unwrap_or("no requests were made").to_string();
        if !status.success() || summary.contains("failed") {
            bail!("{summary}");
        }
        Ok(summary)
    }

    fn schemathesis(&self, config: &Path) -> Command {
        let mut requests = command(self.schemathesis);
        sys::die_with_parent(&mut requests);
        requests.arg("--config-file").arg(config).arg("run");
        requests.arg(self.lab.workspace.join("docs/openapi.yaml"));
        requests
    }
}

/// Brings husk into the state of the round; the reason if this machine cannot.
fn prepare(husk: &Husk, round: Round, folder: &Path) -> Result<Option<String>> {
    if round == Round::Empty {
        return Ok(None);
    }
    let kernel = folder.join("payload.elf");
    fs::write(&kernel, husk_benches::elf(GuestAction::Halt))
        .with_context(|| format!("cannot write {}", kernel.display()))?;
    let vm = serde_json::json!({
        "payload": {"kernel": kernel}, "memory": {"size": 64 << 20}, "serial": {"mode": "Tty"}, "console": {"mode": "Off"},
    });
    let (status, body) = husk.ask("PUT", "vm.create", &vm.to_string())?;
    ensure!(status == 204, "vm.create was answered {status}: {body}");
    if round == Round::Running {
        let (status, body) = husk.ask("PUT", "vm.boot", "")?;
        if status != 204 {
            return Ok(Some(format!("this machine runs no guest: {body}")));
        }
    }
    Ok(None)
}
