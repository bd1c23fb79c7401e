//! `husk install` and `husk uninstall`.

use std::path::{Path, PathBuf};

use clap::Args;

use super::{Code, answer, own_program, refuse, say};
use crate::check;
use crate::install::{
    Engine, InstallError, Lock, Overhead, Request, apply, plain_class, plain_path, plan, removal, remove,
};

const PREFIX: &str = "/opt/husk";

/// What `--overhead` takes as a word, and not as a file, which would be `./kata`.
const KATAS: &str = "kata";

/// The options of `husk install`.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Where Kata is, /opt/kata without it; this and the four options below stay as they are until they are given again
    #[arg(long, value_name = "DIR", conflicts_with = "status")]
    pub kata: Option<PathBuf>,
    /// The container engine, if there are two
    #[arg(long, value_enum, conflicts_with = "status")]
    pub engine: Option<Engine>,
    /// Name of the handler and of the runtime class, kata-husk without it; with both of Kata's shims, the Go shim's has -go behind it
    #[arg(long, value_name = "NAME", conflicts_with = "status")]
    pub runtime_class: Option<String>,
    /// Where husk goes
    #[arg(long, value_name = "DIR", default_value = PREFIX)]
    pub prefix: PathBuf,
    /// Let husk fs serve files in virtiofsd's place; with =false Kata's configuration decides again
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", conflicts_with = "status")]
    pub file_server: Option<bool>,
    /// What a pod costs beside its guest, as husk overhead --json has measured it; the word kata for Kata's own figures
    #[arg(long, value_name = "FILE", conflicts_with = "status")]
    pub overhead: Option<PathBuf>,
    /// Install into the system below this directory, an image for example
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print what would change, and change nothing
    #[arg(long, conflicts_with = "status")]
    pub dry_run: bool,
    /// Say whether what was installed is still as it was, and would be so today
    #[arg(long)]
    pub status: bool,
}

/// The options of `husk uninstall`.
#[derive(Args, Clone, Debug)]
pub struct UninstallArgs {
    /// Where husk is
    #[arg(long, value_name = "DIR", default_value = PREFIX)]
    pub prefix: PathBuf,
    /// Uninstall from the system below this directory
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print what would be removed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
}

impl InstallArgs {
    /// What is to be installed.
    pub(super) fn into_request(self) -> Result<Request, InstallError> {
        let overhead = |path: &Path| match path.to_str() {
            Some(KATAS) => Ok(None),
            _ => Overhead::read(path).map(Some),
        };
        let class = self.runtime_class.as_deref().map(plain_class).transpose()?;
        Ok(Request {
            kata: self.kata.map(|kata| plain_path("--kata", &kata)).transpose()?,
            engine: self.engine,
            class: class.map(str::to_owned),
            prefix: plain_path("--prefix", &self.prefix)?,
            file_server: self.file_server,
            program: own_program(),
            overhead: self.overhead.as_deref().map(overhead).transpose()?,
            features: check::check(&self.root).to_nfd(),
            root: self.root,
        })
    }
}

pub(super) fn install(args: InstallArgs) -> Code {
    let (dry_run, prefix, root) = (args.dry_run, args.prefix.clone(), args.root.clone());
    let done = match args.status {
        true => plain_path("--prefix", &prefix)
            .and_then(|prefix| crate::install::status(&root, &prefix, &own_program()))
            .map(|status| (status.to_table(), status.is_ok())),
        false => args.into_request().and_then(|request| {
            let _lock = (!dry_run).then(|| Lock::take(&root)).transpose()?;
            let plan = plan(&request.settle()?)?;
            let text = plan.describe();
            if dry_run {
                return Ok((text, true));
            }
            // Before anything is changed, for whoever watches.
            say(text.trim_end());
            apply(&plan).map(|()| (String::new(), true))
        }),
    };
    match done {
        Ok((text, held)) => answer(&text, if held { Code::Success } else { Code::Failure }),
        Err(error) => refuse(Some("install"), error.is_usage(), &anyhow::Error::new(error)),
    }
}

pub(super) fn uninstall(args: &UninstallArgs) -> Code {
    let done = plain_path("--prefix", &args.prefix).and_then(|prefix| {
        let _lock = (!args.dry_run).then(|| Lock::take(&args.root)).transpose()?;
        let found = removal(&args.root, &prefix)?;
        if !args.dry_run {
            remove(&found)?;
        }
        Ok((found.describe(), found.dangling.is_empty()))
    });
    match done {
        Ok((text, true)) => answer(&text, Code::Success),
        Ok((text, false)) => answer(&text, Code::Failure),
        Err(error) => refuse(Some("uninstall"), error.is_usage(), &anyhow::Error::new(error)),
    }
}
