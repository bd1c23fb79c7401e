//! What is wrong with a command line, in one line, and whose help has what is right.

use std::ffi::OsString;

use clap::CommandFactory;
use clap::error::{ContextKind, ContextValue};

use super::{Cli, Code, say};
use crate::ctl::show;

/// Says why not, in one line whatever a file or another process has put into it.
pub(super) fn refuse(of: Option<&str>, is_usage: bool, error: &anyhow::Error) -> Code {
    let line = show::plain(&format!("{error:#}"));
    if is_usage {
        return usage(of, &line);
    }
    say(&format!("error: {line}"));
    Code::Failure
}

/// Says what is wrong with the options of a command, or of husk itself, and where the right ones are.
pub(super) fn usage(of: Option<&str>, message: &str) -> Code {
    let of = of.map(|command| format!("{command} ")).unwrap_or_default();
    let message = show::plain(message);
    say(&format!("error: {message} (see husk {of}--help)"));
    Code::Usage
}

/// The command that `args` ask for, as its help is asked for: `run`, `ctl SOCKET resize`. `None` if they ask husk to serve, or for nothing
/// that there is.
pub(super) fn command_of(args: &[OsString]) -> Option<String> {
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
pub(super) fn misplaced(of: Option<&str>, error: &clap::Error) -> Option<String> {
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

pub(super) fn is_help(error: &clap::Error) -> bool {
    use clap::error::ErrorKind::{DisplayHelp, DisplayHelpOnMissingArgumentOrSubcommand, DisplayVersion};
    matches!(
        error.kind(),
        DisplayHelp | DisplayHelpOnMissingArgumentOrSubcommand | DisplayVersion
    )
}

/// clap's message without its usage and pointers: what is wrong, what is allowed, what may have been meant.
pub(super) fn one_line(error: &clap::Error) -> String {
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
    use clap::Parser;

    use super::*;

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
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
}
