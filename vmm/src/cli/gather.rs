//! `husk gather`: what is needed to find out what is wrong with a VM.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::builder::{PathBufValueParser, TypedValueParser};
use clap::{ArgGroup, Args, ValueHint};

use super::ctl::parse_timeout;
use super::{Code, answer, refuse, usage};
use crate::gather::{Output, Target};

/// The options of `husk gather`.
#[derive(Args, Clone, Debug)]
#[command(group = ArgGroup::new("whom").required(true), group = ArgGroup::new("where").required(true))]
pub struct GatherArgs {
    /// The husk that serves this socket, or has this process
    #[arg(value_name = "SOCKET|PID", value_hint = ValueHint::FilePath, group = "whom")]
    pub target: Option<Target>,
    /// Every husk of this host that you may look into
    #[arg(long, group = "whom")]
    pub all: bool,
    /// Write a new archive, such as bundle.tar.zst
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, value_parser = PathBufValueParser::new().try_map(named), group = "where")]
    pub output: Option<PathBuf>,
    /// Write a new folder
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath, value_parser = PathBufValueParser::new().try_map(named), group = "where")]
    pub dir: Option<PathBuf>,
    /// Leave out a part that is not there after so long
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = parse_timeout, allow_negative_numbers = true)]
    pub timeout: Duration,
}

/// What `-` means to other programs is not what a file of that name is.
fn named(path: PathBuf) -> Result<PathBuf, &'static str> {
    match path == Path::new("-") {
        true => Err(
            "a bundle is not written to standard output; allowed: the name of a new file or folder, ./- for one that is called so",
        ),
        false => Ok(path),
    }
}

impl GatherArgs {
    /// Of whom, and whereto; clap has seen to it that there is one of each.
    pub(super) fn into_parts(self) -> Option<(Target, Output)> {
        let target = if self.all { Target::All } else { self.target? };
        let archive = self.output.map(Output::Archive);
        let output = archive.or(self.dir.map(Output::Folder))?;
        Some((target, output))
    }
}

pub(super) fn gather(args: GatherArgs) -> Code {
    let limit = args.timeout;
    let Some((target, output)) = args.into_parts() else {
        return usage(Some("gather"), "a husk and an output are needed");
    };
    match crate::gather::gather(&target, &output, limit) {
        Ok(summary) => answer(&format!("{summary}\n"), Code::Success),
        Err(error) => refuse(Some("gather"), false, &anyhow::Error::new(error)),
    }
}
