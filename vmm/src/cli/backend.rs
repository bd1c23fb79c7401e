//! Who moves the data of a device: a word of several options.

use crate::config::Backend;

/// Neither.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("backend is '{0}', allowed: husk, vhost")]
pub struct BadBackend(String);

/// Reads `husk` or `vhost`.
pub fn backend(found: String) -> Result<Backend, BadBackend> {
    match found.as_str() {
        "husk" => Ok(Backend::Husk),
        "vhost" => Ok(Backend::Vhost),
        _ => Err(BadBackend(found)),
    }
}
