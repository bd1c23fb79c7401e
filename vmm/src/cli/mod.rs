//! The command line: what can be asked of husk, and what it answers to the shell.

mod backend;
mod balloon;
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
mod vsock;

use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::{ContextKind, ContextValue};
use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::api::Server;
use crate::check;
use crate::config::VmConfig;
use crate::control::{self, Exit};
use crate::ctl::show;
use crate::explain::exit_codes;
use crate::install::{Lock, apply, plain_path, plan, removal, remove};
use crate::machine::BuildError;
use crate::overhead::MeasureError;
use crate::trace::{Begin, Phase, Trace};

use serve::Failure;

pub use crate::config::RunOptions;
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
        Ok(Cli { command, serve: args }) => match command {
            Some(Command::Run(args)) => run(*args, begin),
            Some(Command::Check(args)) => check(args),
            Some(Command::Ctl(args)) => ctl(args),
            Some(Command::Ps(args)) => answer(&crate::fleet::ps(args.patience.timeout, args.json), Code::Success),
            Some(Command::Top(args)) => top(args),
            Some(Command::Gather(args)) => gather(args),
            Some(Command::Fs(args)) => fs(*args),
            Some(Command::Install(args)) => install(args),
            Some(Command::Overhead(args)) => overhead(args),
            Some(Command::Uninstall(args)) => uninstall(&args),
            Some(Command::Explain(args)) => explain::explain(&args),
            Some(Command::Completions { shell }) => answer(&completions::script(shell), Code::Success),
            None => serve(&args),
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
    if let Err(error) = args.check_log() {
        return refuse(Some("run"), true, &anyhow::Error::new(error));
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

fn check(args: CheckArgs) -> Code {
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

fn ctl(args: CtlArgs) -> Code {
    if let CtlCommand::Events { past: false } = args.command {
        return events(&args.socket, args.timeout.unwrap_or(crate::ctl::PATIENCE), args.json);
    }
    let request = args.command.into();
    let patience = args.timeout.unwrap_or_else(|| crate::ctl::patience(&request));
    let asked = crate::ctl::ask(&args.socket, &request, patience, args.json);
    match asked {
        Ok(text) => answer(&text, Code::Success),
        Err(error) => refuse(Some("ctl"), error.is_usage(), &anyhow::Error::new(error)),
    }
}

/// Prints events as they come; JSON is an object a line.
fn events(socket: &Path, patience: Duration, as_json: bool) -> Code {
    let mut printed = Code::Success;
    let followed = crate::ctl::events::follow(socket, patience, false, |event| {
        let line = if as_json {
            format!("{}\n", event.line)
        } else {
            crate::ctl::events::row(&event.value)
        };
        printed = answer(&line, Code::Success);
        printed == Code::Success
    });
    match followed {
        Ok(()) => printed,
        Err(error) => refuse(Some("ctl"), false, &anyhow::Error::new(error)),
    }
}

fn top(args: TopArgs) -> Code {
    match crate::fleet::top::top(args.interval, args.patience.timeout) {
        Ok(()) => Code::Success,
        Err(error) => refuse(Some("top"), false, &error.into()),
    }
}

fn gather(args: GatherArgs) -> Code {
    let limit = args.timeout;
    let Some((target, output)) = args.into_parts() else {
        return usage(Some("gather"), "a husk and an output are needed");
    };
    match crate::gather::gather(&target, &output, limit) {
        Ok(summary) => answer(&format!("{summary}\n"), Code::Success),
        Err(error) => refuse(Some("gather"), false, &anyhow::Error::new(error)),
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
    match crate::fs::serve(options) {
        Ok(()) => Code::Success,
        Err(error) => {
            crate::log::tell_failure(&show::plain(&format!("{error:#}")));
            Code::Failure
        }
    }
}

fn install(args: InstallArgs) -> Code {
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

fn overhead(args: OverheadArgs) -> Code {
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

fn uninstall(args: &UninstallArgs) -> Code {
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

/// Says why not, in one line whatever a file or another process has put into it.
fn refuse(of: Option<&str>, is_usage: bool, error: &anyhow::Error) -> Code {
    let line = show::plain(&format!("{error:#}"));
    if is_usage {
        return usage(of, &line);
    }
    say(&format!("error: {line}"));
    Code::Failure
}

/// Says what is wrong with the options of a command, or of husk itself, and where the right ones are.
fn usage(of: Option<&str>, message: &str) -> Code {
    let of = of.map(|command| format!("{command} ")).unwrap_or_default();
    let message = show::plain(message);
    say(&format!("error: {message} (see husk {of}--help)"));
    Code::Usage
}

/// The command that `args` ask for, as its help is asked for: `run`, `ctl SOCKET resize`. `None` if they ask husk to serve, or for nothing
/// that there is.
fn command_of(args: &[OsString]) -> Option<String> {
    let mut root = Cli::command();
    // Each command has the options then that it shares with those above it.
    root.build();
    let (mut command, mut before, mut path) = (&root, before_commands(&root), Vec::new());
    let mut words = args.iter().skip(1).map(|word| word.to_string_lossy());
    while let Some(word) = words.next() {
        if word.starts_with('-') {
            if path.is_empty() {
                break;
            }
            if takes_next(command, &word) {
                words.next();
            }
        } else if !before.is_empty() {
            path.push(before.remove(0));
        } else if let Some(inner) = command
            .find_subcommand(&*word)
            .filter(|inner| inner.get_name() != "help")
        {
            (command, before) = (inner, before_commands(inner));
            path.push(inner.get_name().to_owned());
        } else {
            break;
        }
    }
    (!path.is_empty()).then(|| path.join(" "))
}

/// What stands between a command and those of its own, as its help calls it.
fn before_commands(command: &clap::Command) -> Vec<String> {
    let values = command.get_positionals().filter(|_| command.has_subcommands());
    let names = values.map(|value| value.get_value_names().and_then(<[_]>::first));
    names.flatten().map(ToString::to_string).collect()
}

/// Whether the value of the option `word` is the word that follows.
fn takes_next(command: &clap::Command, word: &str) -> bool {
    let name = word.strip_prefix("--").filter(|name| !name.contains('='));
    let option = name.and_then(|name| command.get_arguments().find(|option| option.get_long() == Some(name)));
    option.is_some_and(|option| option.get_action().takes_values())
}

/// What is wrong when a negative size, or an option of husk itself, stands behind a command; clap takes the one for an option, and would
/// suggest one that looks like the other.
fn misplaced(of: Option<&str>, error: &clap::Error) -> Option<String> {
    let of = of?;
    let Some(ContextValue::String(option)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    if option
        .strip_prefix('-')
        .is_some_and(|rest| rest.starts_with(|first: char| first.is_ascii_digit()))
    {
        return Some(format!(
            "'{option}…' is no option: sizes and numbers are whole, and not negative"
        ));
    }
    let name = option.strip_prefix("--")?.split('=').next()?;
    let root = Cli::command();
    let known = root.get_arguments().any(|argument| argument.get_long() == Some(name));
    known.then(|| {
        format!("--{name} is no option of husk {of}: it belongs to husk without a command, which serves the API")
    })
}

/// One line on standard error, if anybody reads it.
fn say(line: &str) {
    crate::log::tell(&format!("{line}\n"));
}

fn is_help(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    matches!(
        error.kind(),
        DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion
    )
}

/// clap's message without its usage and pointers: what is wrong, what is allowed, what may have been meant.
fn one_line(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:"));
    let lines = lines.filter(|line| !line.is_empty() && !line.starts_with("For more information"));
    let text = lines.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    text.strip_prefix("error: ").unwrap_or(&text).to_string()
}

#[cfg(test)]
mod tests {
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
    fn every_command_is_known_by_its_name() {
        for command in Cli::command().get_subcommands() {
            let args = words(&format!("husk {}", command.get_name()));
            assert_eq!(command_of(&args).as_deref(), Some(command.get_name()));
        }
        for (line, path) in [
            ("husk ctl", "ctl"),
            ("husk ctl /s", "ctl SOCKET"),
            ("husk ctl --json --timeout 3 /s resize --vcpus two", "ctl SOCKET resize"),
            (
                "husk ctl --timeout=3 resize container --json add x",
                "ctl SOCKET container add",
            ),
            ("husk ctl /s nothing", "ctl SOCKET"),
            ("husk run --cmdline run", "run"),
        ] {
            assert_eq!(command_of(&words(line)).as_deref(), Some(path), "{line}");
        }
        assert_eq!(command_of(&words("husk nothing")), None);
        assert_eq!(command_of(&words("husk --api-socket run")), None);
        assert_eq!(command_of(&words("husk")), None);
    }

    #[test]
    fn an_option_of_husk_itself_is_told_from_one_that_is_misspelt() {
        let told = |line: &str| {
            let args = words(line);
            let error = Cli::try_parse_from(args.clone()).err()?;
            misplaced(command_of(&args).as_deref(), &error)
        };
        for line in ["husk run --event-monitor /s", "husk run --event-monitor=/s"] {
            let message = told(line).unwrap();
            assert!(
                message.starts_with("--event-monitor is no option of husk run: "),
                "{message}"
            );
        }
        assert!(told("husk check --log-file /l").is_some());
        for line in [
            "husk run --memory -1M",
            "husk run --cpus -2x",
            "husk ctl /s resize --memory -1M",
        ] {
            let message = told(line).unwrap();
            assert!(
                message.ends_with("is no option: sizes and numbers are whole, and not negative"),
                "{message}"
            );
        }
        assert_eq!(told("husk run --kernal /k"), None);
        assert_eq!(told("husk --api-sock /s"), None);
    }

    #[test]
    fn every_way_to_end_has_its_code_and_its_line_of_help() {
        let codes = [Exit::PowerOff, Exit::Reset, Exit::Panic, Exit::Interrupted].map(|exit| Code::from(exit) as u8);
        assert_eq!(codes, [0, 3, 4, 5]);
        for code in 0..=5 {
            assert!(exit_codes().contains(&format!("\n  {code}  ")), "{code}");
        }
    }

    /// Every command without commands of its own, by the words that lead to it.
    fn leaves(command: &clap::Command, words: &[String]) -> Vec<(clap::Command, Vec<String>)> {
        if !command.has_subcommands() {
            return vec![(command.clone(), words.to_vec())];
        }
        let values = before_commands(command);
        let inner = command.get_subcommands().filter(|inner| inner.get_name() != "help");
        let led = inner.map(|inner| {
            let words = [words, values.as_slice(), &[inner.get_name().to_owned()]].concat();
            leaves(inner, &words)
        });
        led.flatten().collect()
    }

    #[test]
    fn an_error_names_the_help_that_has_what_is_wrong() {
        let mut root = Cli::command();
        root.build();
        let leaves = leaves(&root, &["husk".into()]);
        assert!(leaves.len() > 30, "{}", leaves.len());
        for (leaf, words) in leaves {
            let wrong: Vec<OsString> = words.iter().chain(&["--wrong".to_owned()]).map(Into::into).collect();
            let path = command_of(&wrong).unwrap();
            let help = format!("husk {path} --help");
            let shown = Cli::try_parse_from(help.split(' ')).unwrap_err();
            assert_eq!(shown.kind(), clap::error::ErrorKind::DisplayHelp, "{help}");
            let shown = shown.to_string();
            let usage = shown.lines().find_map(|line| line.strip_prefix("Usage: ")).unwrap();
            assert!(usage.starts_with(&synopsis(&path)), "{help}: {usage}");
            for argument in leaf.get_arguments().filter(|argument| !argument.is_hide_set()) {
                let name = match (argument.get_long(), argument.get_short()) {
                    (Some(long), _) => format!("--{long}"),
                    (None, Some(short)) => format!("-{short}"),
                    (None, None) => argument.get_value_names().map(|names| names[0].to_string()).unwrap(),
                };
                assert!(shown.contains(&name), "{help} has no {name}: {shown}");
            }
        }
    }

    /// What a usage line begins with: the words of `path`, of which those in capitals stand for others.
    fn synopsis(path: &str) -> String {
        let is_value = |word: &str| word.bytes().all(|byte| byte.is_ascii_uppercase());
        let words = path.split(' ').map(|word| match is_value(word) {
            true => format!("<{word}>"),
            false => word.to_owned(),
        });
        format!("husk {}", words.collect::<Vec<_>>().join(" "))
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
