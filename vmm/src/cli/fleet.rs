//! `husk ps` and `husk top`: the husks of this host.

use std::time::Duration;

use clap::Args;

use super::ctl::parse_timeout;
use super::{Code, refuse};

/// The options of `husk ps`.
#[derive(Args, Clone, Copy, Debug)]
pub struct PsArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How long.
    #[command(flatten)]
    pub patience: PatienceArgs,
}

/// The options of `husk top`.
#[derive(Args, Clone, Copy, Debug)]
pub struct TopArgs {
    /// Look again after so long
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = parse_timeout, allow_negative_numbers = true)]
    pub interval: Duration,
    /// How long.
    #[command(flatten)]
    pub patience: PatienceArgs,
}

/// How long each husk is waited for.
#[derive(Args, Clone, Copy, Debug)]
pub struct PatienceArgs {
    /// Show a husk as one that does not answer when it has not for so long; all are asked at once
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = parse_timeout, allow_negative_numbers = true)]
    pub timeout: Duration,
}

pub(super) fn top(args: TopArgs) -> Code {
    match crate::fleet::top::top(args.interval, args.patience.timeout) {
        Ok(()) => Code::Success,
        Err(error) => refuse(Some("top"), false, &error.into()),
    }
}
