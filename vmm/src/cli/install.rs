//! `husk install` and `husk uninstall`.

use std::path::PathBuf;

use clap::Args;

use crate::check;
use crate::install::{Engine, InstallError, Options, Overhead, plain_class, plain_path};

const PREFIX: &str = "/opt/husk";

/// The options of `husk install`.
#[derive(Args, Clone, Debug)]
pub struct InstallArgs {
    /// Where Kata is
    #[arg(long, value_name = "DIR", default_value = "/opt/kata", conflicts_with = "status")]
    pub kata: PathBuf,
    /// The container engine, if there are two
    #[arg(long, value_enum, conflicts_with = "status")]
    pub engine: Option<Engine>,
    /// Name of the handler and of the runtime class; with both of Kata's shims, the Go shim's has -go behind it
    #[arg(long, value_name = "NAME", default_value = "kata-husk", conflicts_with = "status")]
    pub runtime_class: String,
    /// Where husk goes
    #[arg(long, value_name = "DIR", default_value = PREFIX)]
    pub prefix: PathBuf,
    /// Let husk fs serve files in virtiofsd's place
    #[arg(long, conflicts_with = "status")]
    pub file_server: bool,
    /// What a pod costs beside its guest, as husk overhead --json has measured it
    #[arg(long, value_name = "FILE", conflicts_with = "status")]
    pub overhead: Option<PathBuf>,
    /// Install into the system below this directory, an image for example
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub root: PathBuf,
    /// Print what would change, and change nothing
    #[arg(long, conflicts_with = "status")]
    pub dry_run: bool,
    /// Say whether what was installed is still as it was
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
    pub(super) fn into_options(self) -> Result<Options, InstallError> {
        Ok(Options {
            kata: plain_path("--kata", &self.kata)?,
            engine: self.engine,
            class: plain_class(&self.runtime_class)?.into(),
            prefix: plain_path("--prefix", &self.prefix)?,
            file_server: self.file_server,
            program: super::own_program(),
            overhead: self.overhead.as_deref().map(Overhead::read).transpose()?,
            features: check::check(&self.root).to_nfd(),
            root: self.root,
        })
    }
}
