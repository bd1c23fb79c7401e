//! The value of `--vsock`.

use super::backend::{BadBackend, backend};
use super::pairs::{PairsError, parse_pairs};
use crate::config::{Backend, VsockConfig};

/// Every key, in the order in which help and errors list them.
const KEYS: [&str; 4] = ["cid", "socket", "id", "backend"];
/// The context that shims give their only guest.
const USUAL_CID: u32 = 3;

/// Why a text describes no vsock device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VsockArgError {
    /// Not a list of known pairs.
    #[error(transparent)]
    Pairs(#[from] PairsError),
    /// No socket, or an empty name.
    #[error("socket=PATH is missing, which only backend=vhost does without")]
    NoSocket,
    /// Nobody who moves packets.
    #[error(transparent)]
    Backend(#[from] BadBackend),
    /// Not a number of the right size.
    #[error("cid is '{0}', allowed: a whole number from 3 to 4294967294")]
    Cid(String),
}

/// Reads `cid=N,socket=PATH,…` or `cid=N,backend=vhost`.
pub fn parse_vsock(text: &str) -> Result<VsockConfig, VsockArgError> {
    let mut vsock = VsockConfig::new(USUAL_CID, "");
    for (key, value) in parse_pairs(text, &KEYS)? {
        match key {
            "cid" => vsock.cid = value.parse().map_err(|_| VsockArgError::Cid(value))?,
            "socket" => vsock.socket = value.into(),
            "backend" => vsock.backend = backend(value)?,
            _ => vsock.id = Some(value),
        }
    }
    match vsock.backend {
        Backend::Husk if vsock.socket.as_os_str().is_empty() => Err(VsockArgError::NoSocket),
        _ => Ok(vsock),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_sets_its_field() {
        let expected = VsockConfig {
            id: Some("pod".into()),
            ..VsockConfig::new(7, "/s")
        };
        assert_eq!(parse_vsock("cid=7,socket=/s,id=pod"), Ok(expected));
        assert_eq!(parse_vsock("socket=/s"), Ok(VsockConfig::new(3, "/s")));
        assert_eq!(parse_vsock("cid=9,backend=vhost"), Ok(VsockConfig::by_kernel(9)));
    }

    #[test]
    fn errors_name_the_key() {
        let message = |text| parse_vsock(text).unwrap_err().to_string();
        assert_eq!(
            message("cid=3"),
            "socket=PATH is missing, which only backend=vhost does without"
        );
        assert_eq!(
            message("cid=3,socket="),
            "socket=PATH is missing, which only backend=vhost does without"
        );
        assert_eq!(
            message("cid=host,socket=/s"),
            "cid is 'host', allowed: a whole number from 3 to 4294967294"
        );
        assert_eq!(
            message("cid=3,backend=husk"),
            "socket=PATH is missing, which only backend=vhost does without"
        );
        assert_eq!(message("backend=qemu"), "backend is 'qemu', allowed: husk, vhost");
        assert_eq!(
            message("path=/s"),
            "unknown key 'path', allowed: cid, socket, id, backend"
        );
    }
}
