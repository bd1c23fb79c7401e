//! The driver of the vsock device, taken off and put back.

use std::fs;

use anyhow::{Context, Result, bail};
use husk_guest::Answer;

const DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";

/// Takes the driver off its device and puts it back: the device is reset in between.
///
/// # Errors
///
/// There is no such device, or the kernel refused.
pub fn rebind() -> Result<Answer> {
    let entries = fs::read_dir(DRIVER).with_context(|| format!("no {DRIVER}"))?;
    let names = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    let Some(device) = names.into_iter().find(|name| name.starts_with("virtio")) else {
        bail!("no device has the vsock driver");
    };
    for file in ["unbind", "bind"] {
        fs::write(format!("{DRIVER}/{file}"), &device).with_context(|| format!("cannot {file} {device}"))?;
    }
    Ok(Answer::Data { bytes: 0, checksum: 0 })
}
