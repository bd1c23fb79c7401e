//! What a guest does with its vsock device beside serving an agent: raw streams to be measured, and
//! a driver that comes and goes.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use anyhow::{Context, Result, bail};
use husk_guest::raw::{PORT, StreamRequest};
use husk_guest::{Answer, stream};

use crate::rest;

const DRIVER: &str = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport";
/// Bytes of one read or write.
const CHUNK: usize = 256 << 10;

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

/// Serves raw streams for ever, once the guest has come to rest.
///
/// # Errors
///
/// It does not; there is no vsock device, or its driver refuses to listen.
pub fn serve_raw() -> Result<Answer> {
    rest::wait()?;
    let listener: OwnedFd = stream::listen(PORT).context("cannot listen on vsock")?;
    loop {
        let stream = stream::accept(&listener).context("cannot accept a vsock connection")?;
        // A client that breaks off is no reason to end.
        thread::spawn(move || raw(stream));
    }
}

/// Does what the first bytes of a stream say.
fn raw(mut stream: UnixStream) -> Result<()> {
    let request = StreamRequest::read(&mut stream)?;
    let mut buffer = vec![0; CHUNK];
    match request {
        StreamRequest::Echo => loop {
            let count = stream.read(&mut buffer)?;
            if count == 0 {
                return Ok(());
            }
            stream.write_all(buffer.get(..count).unwrap_or_default())?;
        },
        StreamRequest::Take(bytes) => {
            let mut left = bytes;
            while left > 0 {
                let count = stream.read(&mut buffer)?;
                if count == 0 {
                    bail!("the stream ended {left} bytes early");
                }
                left = left.saturating_sub(count as u64);
            }
            stream.write_all(&[1])?;
        }
        StreamRequest::Give(bytes) => {
            let mut left = bytes;
            while left > 0 {
                let count = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stream.write_all(buffer.get(..count).unwrap_or_default())?;
                left = left.saturating_sub(count as u64);
            }
        }
    }
    Ok(())
}
