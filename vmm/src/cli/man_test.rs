//! `docs/husk.1` is what the command line says of itself.

use std::path::Path;

use clap::CommandFactory;
use clap_mangen::Man;

use super::*;

/// Set to write the page instead of comparing it.
const BLESS: &str = "HUSK_BLESS";

/// One page for the whole program: each subcommand, at any depth, is a section, whose parts are subsections.
fn page() -> String {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .title("HUSK")
        .manual("User commands")
        .source(concat!("husk ", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    man.render_synopsis_section(&mut page).unwrap();
    man.render_description_section(&mut page).unwrap();
    man.render_options_section(&mut page).unwrap();
    let mut page = String::from_utf8(page).unwrap();
    for subcommand in subcommands(&command) {
        page.push_str(&section(subcommand));
    }
    page.push_str(&literal("EXAMPLES", EXAMPLES.trim_start_matches("Examples:\n")));
    page.push_str(&literal(
        "EXIT STATUS",
        exit_codes().trim_start_matches("Exit codes:\n"),
    ));
    tidy(&page)
}

/// Every part that clap_mangen renders begins with the definition of the apostrophe; one is enough. An absent date must still be
/// an argument of the title, or the next one takes its place.
fn tidy(page: &str) -> String {
    let preamble: Vec<&str> = page
        .lines()
        .take_while(|line| line.starts_with(".ie") || line.starts_with(".el"))
        .collect();
    let rest = page.lines().filter(|line| !preamble.contains(line));
    preamble
        .iter()
        .copied()
        .chain(rest)
        .map(|line| format!("{line}\n"))
        .collect()
}

/// All below `command`, each before its own.
fn subcommands(command: &clap::Command) -> Vec<&clap::Command> {
    let own = command
        .get_subcommands()
        .filter(|subcommand| subcommand.get_name() != "help");
    own.flat_map(|subcommand| [vec![subcommand], subcommands(subcommand)].concat())
        .collect()
}

fn section(command: &clap::Command) -> String {
    let man = Man::new(named(command));
    let mut parts = Vec::new();
    man.render_synopsis_section(&mut parts).unwrap();
    man.render_description_section(&mut parts).unwrap();
    man.render_options_section(&mut parts).unwrap();
    let parts = String::from_utf8(parts).unwrap().replace(".SH ", ".SS ");
    let name = command.get_display_name().unwrap_or(command.get_name());
    format!(".SH {}\n{parts}", name.replace('-', " ").to_uppercase())
}

/// What is below `husk ctl` is written behind the socket, and has the options that every one of them has from there.
fn named(command: &clap::Command) -> clap::Command {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    let name = name.replace(" <SOCKET>", "");
    let Some(below) = name.strip_prefix("husk ctl ") else {
        return command.clone();
    };
    let name = format!("husk ctl SOCKET {below}");
    let named = command.clone().bin_name(name);
    named.mut_args(|arg| {
        let is_elsewhere = arg.is_global_set() || arg.get_id() == "help" || arg.is_hide_set();
        arg.hide(is_elsewhere)
    })
}

/// Text whose lines are kept as they are.
fn literal(title: &str, text: &str) -> String {
    format!(
        ".SH {title}\n.nf\n{}\n.fi\n",
        text.trim_end().replace('\\', "\\e").replace('-', "\\-")
    )
}

#[test]
fn the_manual_page_is_that_of_this_command_line() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/husk.1");
    if std::env::var_os(BLESS).is_some() {
        std::fs::write(&path, page()).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let fresh = page();
    let stale = committed.lines().zip(fresh.lines()).position(|(old, new)| old != new);
    assert!(
        committed == fresh,
        "docs/husk.1 is stale from line {stale:?} on; {BLESS}=1 cargo test -p husk --lib man writes it anew"
    );
}

#[test]
fn the_page_has_every_option() {
    let page = page().replace("\\-", "-");
    let mut command = Cli::command();
    command.build();
    let commands = subcommands(&command).into_iter().chain([&command]);
    for option in commands.flat_map(|command| command.get_arguments().filter_map(clap::Arg::get_long)) {
        assert!(page.contains(&format!("--{option}")), "{option}");
    }
}
