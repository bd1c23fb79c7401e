//! The options of the log: where it goes, how it looks, and what it calls this process.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::log::{Destination, Format, Options, Tag};

/// Where the log goes.
#[derive(Args, Clone, Debug)]
pub struct LogArgs {
    /// Where the log goes: stderr, journald, syslog, or a file, file=FILE or a path with a / in it
    ///
    /// A file is appended to. With journald=SOCKET and syslog=SOCKET the daemon's socket is elsewhere than usual. Where no daemon takes
    /// lines, standard error has them.
    #[arg(
        long,
        value_name = "WHERE",
        default_value = "stderr",
        hide_default_value = true,
        help_heading = "Log"
    )]
    pub log: Destination,

    /// Append the log to FILE in place of standard error
    #[arg(long, value_name = "FILE", conflicts_with = "log", help_heading = "Log")]
    pub log_file: Option<PathBuf>,

    /// How lines look on standard error and in a file
    #[arg(long, value_enum, value_name = "FORM", default_value_t = Format::Text, help_heading = "Log")]
    pub log_format: Format,

    /// What the log calls this process, in JSON and for the daemons [default: after the socket of the API, or husk]
    ///
    /// The pod's name, say: 1 to 64 letters, digits, _, . and -. The default is the sandbox in whose folder the socket is, or else the
    /// socket's own name without its ending.
    #[arg(long, value_name = "TAG", help_heading = "Log")]
    pub log_tag: Option<Tag>,
}

impl LogArgs {
    /// The file that they name, if they do, with the option that does.
    pub fn file(&self) -> Option<(&'static str, &Path)> {
        let of_file = self.log_file.as_deref().map(|path| ("--log-file", path));
        of_file.or(match &self.log {
            Destination::File(path) => Some(("--log", path)),
            Destination::Stderr | Destination::Journal(_) | Destination::Syslog(_) => None,
        })
    }

    /// What they say, of a husk with its API at `socket`.
    pub fn options(&self, socket: Option<&OsStr>) -> Options {
        let file = self.log_file.clone().map(Destination::File);
        Options {
            destination: file.unwrap_or_else(|| self.log.clone()),
            format: self.log_format,
            tag: self.log_tag.clone().or_else(|| tag_of(socket?)),
        }
    }
}

/// What a husk with this `--api-socket` is called.
fn tag_of(socket: &OsStr) -> Option<Tag> {
    let socket = socket.as_bytes();
    if socket.starts_with(b"fd=") {
        return None;
    }
    let path = socket.strip_prefix(b"path=").unwrap_or(socket);
    Tag::of_socket(Path::new(OsStr::from_bytes(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_called_after_its_sandbox_or_its_socket() {
        let tag = |socket: &str| tag_of(OsStr::new(socket));
        for (socket, name) in [
            ("/run/kata/4f1e/ch-api.sock", "4f1e"),
            ("/run/vc/vm/4f1e/clh-api.sock", "4f1e"),
            ("path=/run/pod/api.sock", "pod"),
            ("/run/husk/web.sock", "web"),
            ("/run/husk/my pod", "my_pod"),
            ("/tmp/web.sock", "web"),
        ] {
            assert_eq!(tag(socket), Tag::like(name), "{socket}");
        }
        for socket in ["fd=3", "api.sock", "/tmp/api.sock", "", "/"] {
            assert_eq!(tag(socket), None, "{socket}");
        }
    }
}
