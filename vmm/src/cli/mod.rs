//! The command line: what can be asked of husk, and what it answers to the shell.

mod backend;
mod balloon;
mod check;
mod cmdline;
mod completions;
mod console;
mod cpus;
mod ctl;
mod disk;
mod explain;
mod file_server;
mod fleet;
mod fs;
mod gather;
mod install;
mod kernel;
mod log;
mod memory;
mod net;
mod overhead;
mod pairs;
mod pmem;
mod pod;
mod rate;
mod reclaim;
mod run;
mod serve;
mod size;
mod switch;
mod translation;
mod usage;
mod vsock;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

use crate::api::Server;
use crate::config::{ConfigError, VmConfig};
use crate::control::{self, Exit};
use crate::ctl::show;
use crate::explain::exit_codes;
use crate::machine::BuildError;
use crate::terminal::{FileId, ProtectedFiles};
use crate::trace::{Begin, Phase, Trace};

use serve::Failure;
use usage::{command_of, is_help, misplaced, one_line, refuse, usage};

pub use crate::config::RunOptions;
pub use check::CheckArgs;
pub(crate) use console::parse_console;
pub use ctl::{CtlArgs, CtlCommand};
pub use explain::ExplainArgs;
pub use file_server::{FileServerArgs, FileServerUsage};
pub use fleet::{PsArgs, TopArgs};
pub use gather::GatherArgs;
pub use install::{InstallArgs, UninstallArgs};
pub use overhead::OverheadArgs;
pub use run::{RunArgs, UsageError};
pub use serve::ServeArgs;

const EXAMPLES: &str = "\
Examples:
  husk check
      Can this host run VMs, and what is missing?
  husk run --kernel vmlinuz --initramfs initrd.img --memory 1G --cpus 2
      Boot a kernel to its shell in this terminal. Ctrl-A x ends the VM.
  husk run --kernel vmlinuz --disk path=root.img --disk path=data.img,readonly=on
      The first disk is the root file system, the second cannot be written.
  husk run --kernel vmlinux --initramfs initrd.img -v --boot-trace boot.json
      Show where the time went; open boot.json in https://ui.perfetto.dev.
  husk --api-socket /run/pod/api.sock
      Serve the REST API for one VM, as a container runtime starts husk.
  husk ctl /run/pod/api.sock resize --vcpus 4 --memory 2G
      Grow its VM, and return when the guest has both.
  husk gather /run/pod/api.sock -o bundle.tar.zst
      Put what is known of it into an archive, for whoever is to find out what is wrong.
  husk fs --shared-dir /srv/data --socket-path /run/pod/fs.sock
      Serve a directory to the VM of another husk, as virtiofsd does.
  husk install --kata /opt/kata --dry-run
      Show what it takes to run Kata's pods on husk.
";

/// What stands below the long help of most commands.
fn examples() -> String {
    format!("{EXAMPLES}\n{}", exit_codes())
}

/// A KVM virtual machine monitor for pods.
///
/// Runs one VM from the command line (run), or serves the REST API on a socket (--api-socket) for a container runtime.
#[derive(Debug, Parser)]
#[command(name = "husk", version, arg_required_else_help = true)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(after_help = exit_codes(), after_long_help = examples())]
pub struct Cli {
    /// What to do, unless it is to serve.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What husk can be asked to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a kernel in a VM and stay until it ends
    ///
    /// The VM's console is this terminal: every key goes to the guest, except that Ctrl-A x ends the VM (Ctrl-A Ctrl-A sends one
    /// Ctrl-A). Memory is allocated when the guest first touches it.
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Run(Box<RunArgs>),
    /// Say whether this host can run pods, and what to do if not
    Check(CheckArgs),
    /// Ask a husk that serves the API: show its VM, resize it, pause it, end it
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Ctl(CtlArgs),
    /// Show every husk of this host that you may look into, with its VM
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Ps(PsArgs),
    /// Show them again and again, those first that use most of the processors, until q or Ctrl-C; once where there is no terminal
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Top(TopArgs),
    /// Gather what is needed to find out what is wrong with a VM, for a support case
    ///
    /// Configuration, versions, counters, figures, events, log, threads, and what the kernel says of the process: no guest memory, no
    /// environment, no contents of other files, and what looks like a secret is masked. A husk that hangs is no obstacle.
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Gather(GatherArgs),
    /// Serve a directory to a VMM by vhost-user, in virtiofsd's place and with its options
    ///
    /// Waits for one VMM, serves it, and ends with it. Does the same when it is started under the name virtiofsd.
    #[command(after_help = exit_codes(), after_long_help = examples(), version)]
    Fs(Box<FileServerArgs>),
    /// Install husk under Kata Containers: its configurations, the engine's handlers, files for Kubernetes
    ///
    /// Prints what would change first, and changes nothing that husk did not write. Everything is put in place, or nothing. Running VMs keep
    /// the program that they were started with.
    #[command(after_help = exit_codes(), after_long_help = examples())]
    Install(InstallArgs),
    /// Measure what a pod costs beside its guest's memory, for its runtime class
    ///
    /// Starts VMs as Kata does, each with a file server, and waits until all are at rest. What counts is what each process has for itself
    /// alone: private pages that are not guest RAM, page tables, and those of KVM.
    Overhead(OverheadArgs),
    /// Remove what husk install has put in place, and nothing that was changed since
    Uninstall(UninstallArgs),
    /// Say what an exit code, a signal or a line of the log means, and what to do about it
    Explain(ExplainArgs),
    /// Print a completion script for a shell
    ///
    /// For bash: husk completions bash > /etc/bash_completion.d/husk
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// What husk answers to the shell; [`exit_codes`] in types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Code {
    Success = 0,
    Failure = 1,
    Usage = 2,
    Reset = 3,
    Panic = 4,
    Interrupted = 5,
}

impl From<Exit> for Code {
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::PowerOff => Self::Success,
            Exit::Reset => Self::Reset,
            Exit::Panic => Self::Panic,
            Exit::Interrupted => Self::Interrupted,
        }
    }
}

/// All of `main`: takes the process's arguments, does what they ask, and returns what the shell is told.
pub fn main() -> ExitCode {
    let begin = Begin::now();
    let args: Vec<OsString> = std::env::args_os().collect();
    crate::process::close_inherited(&args);
    let code = dispatch(args, begin);
    // What was only counted so far: nothing is said after this.
    crate::log::finish();
    ExitCode::from(code as u8)
}

/// Does what `args` (the first is the program's name) ask. `begin` is when.
fn dispatch(args: impl IntoIterator<Item = OsString>, begin: Begin) -> Code {
    let args = file_server::under_alias(args.into_iter().collect());
    if let Some(args) = parse_run(&args) {
        return run(args, begin);
    }
    if let Some(args) = parse_serve(&args) {
        return serve(&args);
    }
    match Cli::try_parse_from(&args) {
        Ok(Cli {
            command,
            serve: options,
        }) => match command {
            Some(Command::Run(args)) => run(*args, begin),
            Some(Command::Check(args)) => check::check(args),
            Some(Command::Ctl(command)) => ctl::ctl(command, || command_of(&args)),
            Some(Command::Ps(args)) => answer(&crate::fleet::ps(args.patience.timeout, args.json), Code::Success),
            Some(Command::Top(args)) => fleet::top(args),
            Some(Command::Gather(args)) => gather::gather(args),
            Some(Command::Fs(args)) => fs(*args),
            Some(Command::Install(args)) => install::install(args),
            Some(Command::Overhead(args)) => overhead::overhead(args),
            Some(Command::Uninstall(args)) => install::uninstall(&args),
            Some(Command::Explain(args)) => explain::explain(&args),
            Some(Command::Completions { shell }) => answer(&completions::script(shell), Code::Success),
            None => serve(&options),
        },
        Err(error) if is_help(&error) => {
            // Nobody to tell when the reader has gone.
            let _ = error.print();
            if error.use_stderr() { Code::Usage } else { Code::Success }
        }
        Err(error) => {
            let of = command_of(&args);
            let of = of.as_deref();
            usage(of, &misplaced(of, &error).unwrap_or_else(|| one_line(&error)))
        }
    }
}

/// Parses `husk run …` without the rest of the command tree, which costs as much again. `None` sends everything else, and
/// everything wrong, to the whole of it, for the same answer with the right help.
fn parse_run(args: &[OsString]) -> Option<RunArgs> {
    let args = args
        .get(1..)
        .filter(|args| args.first().is_some_and(|name| name == "run"))?;
    parse_alone("run", args)
}

/// Parses `husk --api-socket …`, which is how a pod begins, in the same way.
fn parse_serve(args: &[OsString]) -> Option<ServeArgs> {
    args.get(1).filter(|first| first.as_encoded_bytes().starts_with(b"-"))?;
    parse_alone("husk", args)
}

/// Parses `args`, the first of which is a name, as those of one command. `None` for what is wrong, or asks for help.
fn parse_alone<T: Args>(name: &'static str, args: &[OsString]) -> Option<T> {
    let command = T::augment_args(clap::Command::new(name)).disable_help_flag(true);
    let mut matches = command.try_get_matches_from(args).ok()?;
    T::from_arg_matches_mut(&mut matches).ok()
}

/// This program, for what starts or installs it.
fn own_program() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into())
}

fn run(args: RunArgs, begin: Begin) -> Code {
    crate::fatal::install();
    if let Err(error) = args.check_own_outputs() {
        return refuse_output(error);
    }
    if let Err(error) = serve::begin_log(args.verbosity, &args.log.options(args.api_socket.as_deref())) {
        return fail(Some("run"), Failure::Other(error));
    }
    let own_kernel = args.kernel.is_none();
    let (socket, metrics) = (args.api_socket.clone(), args.metrics.clone());
    let (config, mut options) = match args.into_config() {
        Ok(described) => described,
        Err(error) => return refuse(Some("run"), error.is_usage(), &anyhow::Error::new(error)),
    };
    if let (true, Some(kernel)) = (own_kernel, &config.payload.kernel) {
        say(&format!(
            "husk: no --kernel given, booting this host's own: {}",
            kernel.display()
        ));
    }
    if options.boot_trace.is_some() || options.verbosity > 0 {
        options.trace = Trace::on_since(begin);
    }
    options.trace.mark(Phase::Args);
    let server = match listen(socket.as_deref(), metrics.as_deref(), &config, &mut options) {
        Ok(server) => server,
        Err(failure) => return fail(Some("run"), failure),
    };
    match control::run(config, server, &options) {
        Ok(exit) => exit.into(),
        Err(error) => {
            crate::log::tell_failure(&show::plain(&format!("{error:#}")));
            // What KVM's limits forbid is as wrong as what the architecture's do.
            let wrong = matches!(error.downcast_ref(), Some(BuildError::Config(_)));
            if wrong { Code::Usage } else { Code::Failure }
        }
    }
}

/// Refuses a file that is written and that the VM is made of. Of standard error nothing is said there: standard output has it,
/// unless both lead to the file.
fn refuse_output(error: ConfigError) -> Code {
    let of_stderr = matches!(&error, ConfigError::Overwritten { output, .. } if output == ProtectedFiles::STDERR);
    if !of_stderr {
        return refuse(Some("run"), true, &anyhow::Error::new(error));
    }
    if FileId::of_stdout() != FileId::of_stderr() {
        // When nobody hears it there, there is nobody else to tell.
        let _ = writeln!(io::stdout(), "error: {}", show::plain(&error.to_string()));
    }
    Code::Usage
}

/// Listens for clients beside the VM, if there are to be any, where the VM itself has nothing.
fn listen(
    socket: Option<&OsStr>,
    metrics: Option<&OsStr>,
    config: &VmConfig,
    options: &mut RunOptions,
) -> Result<Option<Server>, Failure> {
    let sockets = serve::ServerSockets::parse(socket, metrics)?;
    options.own_sockets = sockets.own_sockets();
    let apart = config.validate_beside(&options.own_sockets);
    apart.map_err(|error| Failure::Usage(error.to_string()))?;
    sockets.listen()
}

fn serve(args: &ServeArgs) -> Code {
    crate::fatal::install();
    match serve::serve(args) {
        Ok(exit) => exit.into(),
        Err(failure) => fail(None, failure),
    }
}

fn fail(of: Option<&str>, failure: Failure) -> Code {
    match failure {
        Failure::Usage(what) => usage(of, &what),
        Failure::Other(error) => {
            crate::log::tell_failure(&show::plain(&format!("{error:#}")));
            Code::Failure
        }
    }
}

fn fs(args: FileServerArgs) -> Code {
    if args.print_capabilities {
        return answer(file_server::CAPABILITIES, Code::Success);
    }
    let options = match args.into_options() {
        Ok(options) => options,
        Err(error) => return usage(Some("fs"), &error.to_string()),
    };
    crate::fatal::install();
    crate::fatal::end_when_asked::<{ Code::Interrupted as i32 }>();
    match crate::fs::serve(options, Code::Interrupted as i32) {
        Ok(()) => Code::Success,
        Err(error) => {
            crate::log::tell_failure(&show::plain(&format!("{error:#}")));
            Code::Failure
        }
    }
}

/// Prints what was asked for. `code`, unless it did not get through.
fn answer(text: &str, code: Code) -> Code {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => code,
        Err(error) => {
            say(&format!("error: cannot write to standard output: {error}"));
            Code::Failure
        }
    }
}

/// One line on standard error, if anybody reads it.
fn say(line: &str) {
    crate::log::tell(&format!("{line}\n"));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn the_short_way_reads_run_as_the_whole_tree_does() {
        let line = words("husk run -k /k --disk path=/d,id=a -vv --memory=1G --cmdline --help --no-rng");
        let Ok(Cli {
            command: Some(Command::Run(whole)),
            ..
        }) = Cli::try_parse_from(&line)
        else {
            panic!("refused")
        };
        assert_eq!(format!("{:?}", parse_run(&line).unwrap()), format!("{whole:?}"));
    }

    #[test]
    fn the_short_way_reads_what_shims_say_as_the_whole_tree_does() {
        for line in [
            "husk --api-socket /s",
            "husk --api-socket=/s -vv --metrics /m --seccomp false",
        ] {
            let line = words(line);
            let Ok(Cli { command: None, serve }) = Cli::try_parse_from(&line) else {
                panic!("refused: {line:?}")
            };
            assert_eq!(format!("{:?}", parse_serve(&line).unwrap()), format!("{serve:?}"));
        }
        for line in [
            "husk",
            "husk check",
            "husk --version",
            "husk --help",
            "husk -v",
            "husk --api-socket",
            "husk --api-socket /s run",
            "husk run --api-socket /s",
        ] {
            assert!(parse_serve(&words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn the_short_way_leaves_help_errors_and_other_commands_alone() {
        for line in [
            "husk",
            "husk check",
            "husk run --help",
            "husk run -h",
            "husk run --memory x",
            "husk run stray",
            "husk --version",
        ] {
            assert!(parse_run(&words(line)).is_none(), "{line}");
        }
    }

    #[test]
    fn every_way_to_end_has_its_code_and_its_line_of_help() {
        let codes = [Exit::PowerOff, Exit::Reset, Exit::Panic, Exit::Interrupted].map(|exit| Code::from(exit) as u8);
        assert_eq!(codes, [0, 3, 4, 5]);
        for code in 0..=5 {
            assert!(exit_codes().contains(&format!("\n  {code}  ")), "{code}");
        }
    }

    #[test]
    fn help_names_every_option() {
        let mut command = Cli::command();
        let run = command.find_subcommand_mut("run").unwrap();
        let help = run.render_long_help().to_string();
        for option in run.get_arguments().filter_map(clap::Arg::get_long) {
            assert!(help.contains(&format!("--{option}")), "{option}");
        }
        assert!(help.contains("Examples:") && help.contains("Exit codes:"));
    }
}

#[cfg(test)]
#[path = "man_test.rs"]
mod man_tests;
