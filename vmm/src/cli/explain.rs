//! `husk explain`: what an exit code or a line of the log means.

use clap::Args;

use super::{Code, answer, say};
use crate::explain;

/// The options of `husk explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// An exit code such as 137, a signal such as SIGBUS, or a line of the log
    #[arg(value_name = "WHAT", required = true, num_args = 1.., trailing_var_arg = true)]
    pub what: Vec<String>,
}

pub(super) fn explain(args: &ExplainArgs) -> Code {
    let what = args.what.join(" ");
    if let Some(text) = explain::explain(&what) {
        return answer(&text, Code::Success);
    }
    let what: String = what.chars().filter(|found| !found.is_control()).take(80).collect();
    say(&format!(
        "error: nothing is known of '{what}': give an exit code, a signal's name, or a warning or error from husk's log"
    ));
    Code::Failure
}
