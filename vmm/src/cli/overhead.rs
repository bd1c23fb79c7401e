//! `husk overhead`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::size::parse_size;
use super::{Code, answer, refuse};
use crate::overhead::{MeasureError, Options};

/// The options of `husk overhead`.
#[derive(Args, Clone, Debug)]
pub struct OverheadArgs {
    /// The guest's kernel, as in Kata's configuration
    #[arg(short, long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// Its initial RAM file system
    #[arg(short, long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// Memory of each guest
    #[arg(short, long, value_name = "SIZE", default_value = "512M", value_parser = parse_size)]
    pub memory: u64,
    /// vCPUs of each guest
    #[arg(short, long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub cpus: u32,
    /// How many VMs are started; all of them run at once
    #[arg(long, value_name = "N", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub pods: u16,
    /// For how long no figure may change before it counts
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub rest: u16,
    /// For how long to wait for that
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = clap::value_parser!(u16).range(1..=3600))]
    pub patience: u16,
    /// What Kata's shim takes beside them, in MiB; needed where none runs that may be looked into
    #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(0..=4096))]
    pub shim: Option<u64>,
    /// Print JSON, for husk install --overhead
    #[arg(long)]
    pub json: bool,
}

impl OverheadArgs {
    /// What is to be measured.
    pub(super) fn into_options(self) -> Options {
        let seconds = |seconds: u16| Duration::from_secs(seconds.into());
        Options {
            program: super::own_program(),
            kernel: self.kernel,
            initramfs: self.initramfs,
            memory_bytes: self.memory,
            cpus: self.cpus,
            pods: self.pods.into(),
            rest: seconds(self.rest),
            patience: seconds(self.patience),
            shim_mib: self.shim,
        }
    }
}

pub(super) fn overhead(args: OverheadArgs) -> Code {
    let is_json = args.json;
    match crate::overhead::measure(&args.into_options()) {
        Ok(measured) if is_json => {
            let mut text = serde_json::to_string(&measured.overhead()).expect("text and numbers are always JSON");
            text.push('\n');
            answer(&text, Code::Success)
        }
        Ok(measured) => answer(&measured.to_table(), Code::Success),
        Err(error) => {
            let is_interrupted = matches!(error, MeasureError::Interrupted);
            let is_usage = matches!(error, MeasureError::NoShim);
            let code = refuse(Some("overhead"), is_usage, &anyhow::Error::new(error));
            if is_interrupted { Code::Interrupted } else { code }
        }
    }
}
