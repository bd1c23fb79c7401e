//! `husk completions`: what clap knows of the command line, and what only a running husk knows: the ids of its devices.

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;

/// Who is asked for ids, by all shells alike: devices count under theirs, and what is no device of the configuration has a name with `__`.
/// Whoever does not answer in a second has none.
macro_rules! ids_at {
    ($socket:literal) => {
        concat!(
            "husk ctl ",
            $socket,
            " --timeout 1 counters 2>/dev/null | sed -n '/^__/d; s/ .*//p' | sort -u"
        )
    };
}

/// Words before the one that is completed: without options, and `--timeout` without its value.
const BASH: &str = concat!(
    r#"
# After `husk ctl SOCKET remove`: the ids of the VM's devices.
_husk_with_ids() {
    local word skip="" socket
    local -a words=()
    for word in "${COMP_WORDS[@]:1:COMP_CWORD-1}"; do
        case "$skip$word" in
            --timeout) skip=value ;;
            value*) skip="" ;;
            -*) ;;
            *) words+=("$word") ;;
        esac
    done
    _husk "$@"
    if [[ -z $skip && ${#words[@]} -eq 3 && ${words[0]} == ctl && ${words[2]} == remove && ${COMP_WORDS[COMP_CWORD]} != -* ]]; then
        socket=${words[1]}
        COMPREPLY=($(compgen -W "$("#,
    ids_at!(r#""$socket""#),
    r#")" -- "${COMP_WORDS[COMP_CWORD]}"))
    fi
}
complete -F _husk_with_ids -o bashdefault -o default husk
"#
);

/// The function that zsh calls for what it knows as [`ZSH_ID`].
const ZSH: &str = concat!(
    r#"
# After `husk ctl SOCKET remove`: the ids of the VM's devices.
_husk_ids() {
    local word skip=""
    local -a typed
    for word in ${(Qz)LBUFFER}; do
        case $skip$word in
            --timeout) skip=value ;;
            value*) skip="" ;;
            -*) ;;
            *) typed+=("$word") ;;
        esac
    done
    compadd -- ${(f)"$("#,
    ids_at!(r#""${typed[3]}""#),
    r#")"}
}
"#
);
const ZSH_ID: &str = r"':id -- The device'\''s id:_default'";
const ZSH_ID_OF_HUSK: &str = r"':id -- The device'\''s id:_husk_ids'";
const ZSH_END: &str = "\nif [ \"$funcstack[1]\" = \"_husk\" ]";

const FISH: &str = concat!(
    r#"
# After `husk ctl SOCKET remove`: the ids of the VM's devices.
function __fish_husk_ids
    set -l typed (commandline -opc)
    argparse 'timeout=' json h/help -- $typed[3..] 2>/dev/null
    or return
    test (count $argv) -ge 2; and test $argv[2] = remove; or return
    "#,
    ids_at!("$argv[1]"),
    r#"
end
complete -c husk -n "__fish_husk_using_subcommand ctl; and __fish_seen_subcommand_from remove" -f -a "(__fish_husk_ids)"
"#
);

/// The script for `shell`.
pub(super) fn script(shell: Shell) -> String {
    // clap_complete panics when it cannot write, so it writes to memory.
    let mut bytes = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "husk", &mut bytes);
    let mut script = String::from_utf8_lossy(&bytes).into_owned();
    match shell {
        Shell::Bash => script.push_str(BASH),
        Shell::Fish => script.push_str(FISH),
        Shell::Zsh => {
            script = script.replacen(ZSH_ID, ZSH_ID_OF_HUSK, 1);
            // Before the end, which calls what is there.
            script = script.replacen(ZSH_END, &format!("{ZSH}{ZSH_END}"), 1);
        }
        _ => {}
    }
    script
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_that_can_ask_a_husk_are_told_how() {
        for (shell, called) in [
            (Shell::Bash, "complete -F _husk_with_ids"),
            (Shell::Zsh, ZSH_ID_OF_HUSK),
            (Shell::Fish, r#"-f -a "(__fish_husk_ids)""#),
        ] {
            let script = script(shell);
            assert!(script.contains(called), "{shell}");
            assert_eq!(script.matches("--timeout 1 counters").count(), 1, "{shell}");
        }
        let zsh = script(Shell::Zsh);
        assert!(zsh.find("_husk_ids() {").unwrap() < zsh.find(ZSH_END).unwrap());
    }
}
