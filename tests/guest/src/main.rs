//! The first process of a test guest, and of the emulated host (`husk.role=host`).
//!
//! It is the whole user space: statically linked, started as `/init` of an initramfs that has
//! nothing else but kernel modules.

mod agent;
mod disk;
mod facts;
mod files;
mod guest;
mod host;
mod measured;
mod measured_disk;
mod net;
mod online;
mod rest;
mod setup;
mod speed;
mod steps;
mod sys;
mod vsock;

use std::fs;

use husk_guest::{MARK_INIT, PREFIX};

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    if let Some((word, words)) = words.split_first() {
        match word.as_str() {
            "net" => tool(net::perform(words)),
            "folder" => tool(measured::perform(words)),
            "disk" => tool(measured_disk::perform(words)),
            "files" => tool(files::perform(words)),
            "rest" => tool(rest::wait().map(|()| String::new())),
            // The kernel's own words for its init.
            _ => {}
        }
    }
    // First of all: this is the moment that boot times are measured to.
    let marked = sys::mark(MARK_INIT);
    let result = setup::kernel_files().and_then(|()| {
        let cmdline = fs::read_to_string("/proc/cmdline")?;
        match option(&cmdline, "husk.role") {
            Some("host") => host::run(option(&cmdline, "husk.shmem")),
            _ => marked.map_err(Into::into).and_then(|()| guest::run(&cmdline)),
        }
    });
    if let Err(error) = result {
        // To the kernel's console: there may be no other.
        println!("{PREFIX}init failed: {error:#}");
    }
    let refused = sys::leave(sys::Leave::PowerOff);
    println!("{PREFIX}init cannot power off: {refused}");
}

/// Ends a process that is not the first one, but was started by it.
fn tool(result: anyhow::Result<String>) -> ! {
    match result {
        Ok(text) => {
            println!("{text}");
            std::process::exit(0)
        }
        Err(error) => {
            eprintln!("{error:#}");
            std::process::exit(1)
        }
    }
}

/// The last value of `name=` on a kernel command line. Quotes are not interpreted: no value here contains a space.
fn option<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline
        .split_ascii_whitespace()
        .filter_map(|word| word.strip_prefix(name)?.strip_prefix('='))
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::option;

    #[test]
    fn the_last_value_of_an_option_counts() {
        let cmdline = "console=ttyS0 husk.do=report husk.do=idle husk.door=1\n";
        assert_eq!(option(cmdline, "husk.do"), Some("idle"));
        assert_eq!(option(cmdline, "husk.role"), None);
    }
}
