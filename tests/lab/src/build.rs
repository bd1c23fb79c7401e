//! Building what runs in guests and on hosts, through cargo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::command::{command, typed};
use crate::paths::Lab;

/// The programs that every use of the lab needs.
pub struct Programs {
    /// The VMM.
    pub husk: PathBuf,
    /// The init of test guests and of the emulated host.
    pub guest_init: PathBuf,
}

/// A program that cargo built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// Its target's name in `Cargo.toml`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Builds [`Programs`].
///
/// # Errors
///
/// They do not compile.
pub fn programs(lab: &Lab) -> Result<Programs> {
    let built = build(
        lab,
        &[
            "build",
            "--profile",
            "lab",
            "--package",
            "husk",
            "--package",
            "husk-guest",
            "--bins",
        ],
    )?;
    Ok(Programs {
        husk: named(&built, "husk")?,
        guest_init: named(&built, "husk-guest")?,
    })
}

/// The path of the program `name`.
///
/// # Errors
///
/// Cargo built none of that name.
pub fn named(built: &[Built], name: &str) -> Result<PathBuf> {
    let program = built.iter().find(|program| program.name == name);
    program
        .map(|program| program.path.clone())
        .with_context(|| format!("cargo built no program {name}"))
}

/// Builds the guest-driven tests.
///
/// # Errors
///
/// They do not compile.
pub fn guest_tests(lab: &Lab) -> Result<Vec<Built>> {
    build(lab, &["test", "--no-run", "--package", "husk-tests"])
}

/// Cargo, as the user called it.
pub fn cargo(lab: &Lab) -> Command {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut cargo = command(program);
    cargo.current_dir(&lab.workspace);
    forget_this_package(&mut cargo);
    cargo
}

/// Cargo, to install `what` from crates.io below `tools`, built in `target`. Outside the workspace,
/// whose configuration is not meant for it.
pub fn cargo_install(lab: &Lab, what: &str, tools: &Path, target: &Path) -> Command {
    let mut install = cargo(lab);
    install
        .current_dir("/")
        // Quiet: neither the user's PATH nor what crates.io thinks of a locked version is theirs to mend.
        .args(["install", "--quiet", "--locked", what, "--root"])
        .arg(tools)
        .arg("--target-dir")
        .arg(target);
    install
}

/// Keeps from `command` what `cargo lab` itself was started with: it is not meant for other packages.
pub fn forget_this_package(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        let known = name.to_string_lossy();
        if known.starts_with("CARGO_PKG_") || known.starts_with("CARGO_MANIFEST_") || known.starts_with("CARGO_BIN_") {
            command.env_remove(name);
        }
    }
}

/// Runs cargo with these arguments; the programs it built.
///
/// # Errors
///
/// Something does not compile.
pub fn build(lab: &Lab, arguments: &[&str]) -> Result<Vec<Built>> {
    run(cargo(lab).args(arguments))
}

/// Runs a prepared cargo; the programs it built.
///
/// # Errors
///
/// Something does not compile.
pub fn run(cargo: &mut Command) -> Result<Vec<Built>> {
    cargo.arg("--message-format=json-render-diagnostics");
    // Cargo shows its own progress on standard error.
    let output = cargo
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("cannot start `{}`", typed(cargo)))?;
    if !output.status.success() {
        bail!("`{}` failed ({})", typed(cargo), output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

#[derive(Deserialize)]
struct Message {
    executable: Option<PathBuf>,
    target: Option<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
}

/// Programs in cargo's messages, one message a line.
fn executables(messages: &str) -> Vec<Built> {
    let messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Message>(line).ok());
    messages
        .filter_map(|message| {
            Some(Built {
                name: message.target?.name,
                path: message.executable?,
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_among_cargos_messages() {
        let messages = concat!(
            r#"{"reason":"compiler-artifact","target":{"name":"libc"},"executable":null}"#,
            "\n",
            r#"{"reason":"compiler-artifact","target":{"name":"husk"},"executable":"/t/husk"}"#,
            "\n",
            r#"{"reason":"build-finished","success":true}"#,
        );
        assert_eq!(
            executables(messages),
            [Built {
                name: "husk".into(),
                path: "/t/husk".into()
            }]
        );
    }
}
