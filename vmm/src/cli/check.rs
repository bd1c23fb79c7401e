//! `husk check`: whether this host can run pods.

use std::path::Path;

use clap::Args;

use super::{Code, answer};
use crate::check;

/// The options of `husk check`.
#[derive(Args, Clone, Copy, Debug)]
pub struct CheckArgs {
    /// Print JSON
    #[arg(long, conflicts_with = "nfd")]
    pub json: bool,
    /// Print features for Kubernetes' node feature discovery if the host can run pods, else nothing
    #[arg(long)]
    pub nfd: bool,
}

pub(super) fn check(args: CheckArgs) -> Code {
    let report = check::check(Path::new("/"));
    let text = match args {
        CheckArgs { json: true, .. } => report.to_json(),
        CheckArgs { nfd: true, .. } => report.to_nfd(),
        _ => report.to_table(),
    };
    answer(
        &text,
        if report.is_eligible() {
            Code::Success
        } else {
            Code::Failure
        },
    )
}
