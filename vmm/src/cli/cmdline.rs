//! The kernel command line for those who gave none.

use crate::config::{ConsoleConfig, ConsoleMode, VmConfig};

/// A command line that fits `config`:
///
/// * `console=` for each of serial port and console whose output goes somewhere. Linux makes the last one `/dev/console`, so the
///   one on stdio comes last;
/// * `reboot=k panic=-1`: a reset or panic ends the VM at once;
/// * `root=/dev/vda`, read-only or writable as the disk is, when there is a disk and no initramfs.
pub fn default_cmdline(config: &VmConfig) -> String {
    let mut consoles = [("console=ttyS0", &config.serial), ("console=hvc0", &config.console)];
    consoles.sort_by_key(|(_, console)| console.mode == ConsoleMode::Tty);
    let mut words: Vec<&str> = consoles
        .iter()
        .filter(|(_, console)| is_heard(console))
        .map(|(word, _)| *word)
        .collect();
    words.extend(["reboot=k", "panic=-1"]);
    if let (Some(disk), None) = (config.disks.first(), &config.payload.initramfs) {
        words.extend(["root=/dev/vda", if disk.readonly { "ro" } else { "rw" }]);
    }
    words.join(" ")
}

fn is_heard(console: &ConsoleConfig) -> bool {
    match console.mode {
        ConsoleMode::Tty | ConsoleMode::File | ConsoleMode::Journald | ConsoleMode::Pty | ConsoleMode::Socket => true,
        ConsoleMode::Off | ConsoleMode::Null => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DiskConfig;

    fn config(serial: ConsoleMode, console: ConsoleMode) -> VmConfig {
        VmConfig {
            serial: ConsoleConfig::new(serial),
            console: ConsoleConfig::new(console),
            ..VmConfig::default()
        }
    }

    #[test]
    fn the_console_on_stdio_is_the_guests_own() {
        use ConsoleMode::{File, Null, Off, Pty, Socket, Tty};
        for (serial, console, line) in [
            (Tty, Off, "console=ttyS0 reboot=k panic=-1"),
            (Tty, File, "console=hvc0 console=ttyS0 reboot=k panic=-1"),
            (File, Tty, "console=ttyS0 console=hvc0 reboot=k panic=-1"),
            (Off, Tty, "console=hvc0 reboot=k panic=-1"),
            (Null, Off, "reboot=k panic=-1"),
            (Pty, Socket, "console=ttyS0 console=hvc0 reboot=k panic=-1"),
        ] {
            assert_eq!(default_cmdline(&config(serial, console)), line);
        }
    }

    #[test]
    fn the_first_disk_is_the_root_unless_there_is_an_initramfs() {
        let mut config = config(ConsoleMode::Off, ConsoleMode::Off);
        config.disks = vec![DiskConfig::new("/a"), DiskConfig::new("/b")];
        assert_eq!(default_cmdline(&config), "reboot=k panic=-1 root=/dev/vda rw");
        config.disks[0].readonly = true;
        assert_eq!(default_cmdline(&config), "reboot=k panic=-1 root=/dev/vda ro");
        config.payload.initramfs = Some("/i".into());
        assert_eq!(default_cmdline(&config), "reboot=k panic=-1");
    }
}
