//! Building the fuzzing program: the targets, libFuzzer, coverage counters and the address sanitizer in one.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::build;
use crate::command::{command, find, output};
use crate::paths::Lab;

/// What libFuzzer is told by (LLVM's *SanitizerCoverage*), and the address sanitizer. It cannot be
/// linked statically, as husk itself is: these flags take the place of those in
/// `.cargo/config.toml`.
const FLAGS: [&str; 8] = [
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Zsanitizer=address",
];
/// Between flags in `CARGO_ENCODED_RUSTFLAGS`.
const SEPARATOR: &str = "\x1f";

/// Builds it, with stable's sources and nightly's compiler.
///
/// # Errors
///
/// A tool is missing, which the message says how to get, or it does not compile.
pub fn build(lab: &Lab) -> Result<PathBuf> {
    let Some(rustup) = find("rustup") else {
        bail!(
            "sanitizers need a nightly compiler, which is chosen by rustup, and there is none in PATH: https://rustup.rs"
        );
    };
    output(command(&rustup).args(["run", "nightly", "rustc", "--version"]))
        .context("sanitizers need a nightly compiler: rustup toolchain install nightly --profile minimal")?;
    if find("c++").is_none() {
        bail!("libFuzzer is written in C++, and there is no compiler c++ in PATH: sudo apt-get install g++");
    }
    let mut cargo = command(&rustup);
    cargo
        .args(["run", "nightly", "cargo", "build", "--locked", "--profile", "fuzz"])
        .args([
            "--package",
            "husk-fuzz",
            "--bin",
            "husk-fuzz",
            "--features",
            "libfuzzer",
        ])
        .arg("--target-dir")
        .arg(lab.path("fuzz/build"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join(SEPARATOR))
        .current_dir(&lab.workspace);
    build::forget_this_package(&mut cargo);
    let programs = build::run(&mut cargo)?;
    let program = programs.into_iter().find(|program| program.name == "husk-fuzz");
    Ok(program.context("cargo built no program husk-fuzz")?.path)
}
