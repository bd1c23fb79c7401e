//! Unix sockets on which husk listens, or to which it connects, for a VM: nobody else may have one
//! on which husk is to listen.

use std::path::{Path, PathBuf};

use super::error::ConfigError;
use super::{Backend, ConsoleMode, VmConfig};

/// The sockets on which this process listens whatever VM it has.
#[derive(Clone, Debug, Default)]
pub struct OwnSockets {
    /// Where relative paths begin.
    folder: PathBuf,
    sockets: Vec<(&'static str, PathBuf)>,
}

impl OwnSockets {
    /// Sockets, each with the option that names it, of a process whose working directory is `folder`.
    pub fn new(folder: PathBuf, sockets: impl IntoIterator<Item = (&'static str, PathBuf)>) -> Self {
        let sockets = sockets.into_iter();
        let sockets = sockets.map(|(option, path)| (option, folder.join(path))).collect();
        Self { folder, sockets }
    }

    /// The option that names the socket at `path`. Files are not looked at: another name of the
    /// same file is another socket.
    fn option_of(&self, path: &Path) -> Option<&'static str> {
        let path = self.folder.join(path);
        let found = self.sockets.iter().find(|(_, own)| *own == path);
        found.map(|(option, _)| *option)
    }
}

/// What wants a socket, in words, and where that is.
type SocketUse<'a> = (String, &'a Path);

impl VmConfig {
    /// Checks that nobody else in the VM has a socket on which husk is to listen.
    pub(super) fn validate_sockets(&self) -> Result<(), ConfigError> {
        let listening = self.listening();
        let all = [listening.clone(), self.connecting()].concat();
        for (number, (one, path)) in listening.into_iter().enumerate() {
            if let Some((other, _)) = all.iter().skip(number + 1).find(|(_, other)| *other == path) {
                return Err(ConfigError::TwoSockets {
                    one,
                    other: other.clone(),
                    path: path.display().to_string(),
                });
            }
        }
        Ok(())
    }

    /// Checks that nothing in the VM has one of the sockets of husk's own.
    ///
    /// # Errors
    /// [`ConfigError::TwoSockets`].
    pub fn validate_beside(&self, own: &OwnSockets) -> Result<(), ConfigError> {
        let mut wanted = self.listening().into_iter().chain(self.connecting());
        let twice = wanted.find_map(|(one, path)| Some((one, own.option_of(path)?, path)));
        match twice {
            Some((one, option, path)) => Err(ConfigError::TwoSockets {
                one,
                other: option.into(),
                path: path.display().to_string(),
            }),
            None => Ok(()),
        }
    }

    fn listening(&self) -> Vec<SocketUse<'_>> {
        let ports = [("serial", &self.serial), ("console", &self.console)];
        let ports = ports.into_iter().filter(|(_, port)| port.mode == ConsoleMode::Socket);
        let ports = ports.filter_map(|(name, port)| Some((name.to_owned(), port.socket.as_deref()?)));
        let vsock = self.vsock.iter().filter(|vsock| vsock.backend == Backend::Husk);
        ports
            .chain(vsock.map(|vsock| ("vsock".to_owned(), vsock.socket.as_path())))
            .collect()
    }

    fn connecting(&self) -> Vec<SocketUse<'_>> {
        let shares = self.fs.iter().filter(|fs| fs.dir.is_none());
        shares
            .map(|fs| (format!("fs {}", fs.tag), fs.socket.as_path()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConsoleConfig, FsConfig, VsockConfig};
    use super::*;

    #[test]
    fn nothing_in_a_vm_has_a_socket_of_husks_own() {
        let sockets = [("--api-socket", "api.sock".into()), ("--metrics", "/run/m".into())];
        let own = OwnSockets::new("/pod".into(), sockets);
        let check = |change: &dyn Fn(&mut VmConfig)| {
            let mut config = VmConfig::default();
            change(&mut config);
            config.validate_beside(&own).map_err(|error| error.to_string())
        };
        for path in ["api.sock", "./api.sock", "/pod/api.sock"] {
            let refused = check(&|config| config.vsock = Some(VsockConfig::new(3, path)));
            let told = format!("vsock and --api-socket both have the socket {path}, only one of them can");
            assert_eq!(refused, Err(told));
        }
        let serial = check(&|config| config.serial = ConsoleConfig::socket("/run/m"));
        assert!(serial.unwrap_err().starts_with("serial and --metrics"));
        let share = check(&|config| config.fs = vec![FsConfig::new("t", "/run/m")]);
        assert!(share.unwrap_err().starts_with("fs t and --metrics"));
        for free in ["/api.sock", "/pod/api.sock2", ""] {
            assert_eq!(check(&|config| config.vsock = Some(VsockConfig::new(3, free))), Ok(()));
        }
        let nobody = OwnSockets::default();
        let config = VmConfig {
            vsock: Some(VsockConfig::new(3, "/pod/api.sock")),
            ..VmConfig::default()
        };
        config.validate_beside(&nobody).unwrap();
    }
}
