//! Guests that do a script and power off, for profiles whose other end or clock is the guest's.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use husk_guest::{Answer, PREFIX, Step, step};
use husk_tests::end_of;

use super::broken::GuestFailure;
use super::measure::{Start, collected, end};
use super::subject::Guest;
use crate::archive::Archive;
use crate::images;
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};

const MEMORY_MIB: u32 = 512;

/// Makes a pod's initramfs named `name` whose guest does `script`; the file to take along.
///
/// # Errors
///
/// A package cannot be fetched, or a file not written.
pub fn image(lab: &Lab, guest_init: &Path, name: &str, script: &str) -> Result<(PathBuf, String)> {
    images::ensure_guests(lab, guest_init)?;
    let mut image = fs::read(lab.guest().join(HOST_KERNEL.name).join("pod.cpio"))?;
    let mut more = Archive::default();
    more.file("script", script.as_bytes())?;
    image.extend(more.finish()?);
    let file = lab.path("bench").join(name);
    paths::write(&file, &image)?;
    Ok((file, name.into()))
}

/// The guest of such an image.
pub fn guest(image: &str) -> Guest {
    let steps = step::join(&[Step::Script, Step::PowerOff]);
    Guest {
        kernel: Path::new("/lab").join(HOST_KERNEL.name).join("vmlinux"),
        initramfs: Some(Path::new("/work").join(image)),
        cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 husk.do={steps}"),
        memory_mib: MEMORY_MIB,
        disk: None,
        vsock: None,
        room: None,
        tap: None,
        share: None,
    }
}

/// Runs `start` until it exits by itself: what the host has done beside it, and what the guest's
/// script has printed, by lines.
///
/// # Errors
///
/// It cannot be spawned, does not end within `limit`, or its script or `beside` fails; its last words are added.
pub fn run<T>(
    mut start: Start,
    limit: Duration,
    beside: impl FnOnce(&mut Child) -> Result<T>,
) -> Result<(T, Vec<String>)> {
    let complaints = fs::File::create(&start.complaints)?;
    start
        .command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(complaints);
    let mut child = Running(start.command.spawn().context("cannot start it")?);
    let output = child.0.stdout.take().context("no output")?;
    let reader = thread::spawn(move || {
        let (mut output, mut text) = (output, Vec::new());
        let _ = output.read_to_end(&mut text);
        text
    });
    let host = beside(&mut child.0).and_then(|host| {
        let end = end_of(&mut child.0, limit)?.context("it does not end");
        end.map_err(|error| GuestFailure::asleep(child.0.id(), error))?;
        Ok(host)
    });
    drop(child);
    let said = String::from_utf8_lossy(&collected(reader)).into_owned();
    if let Some(panicked) = GuestFailure::find(&said) {
        return Err(panicked.into());
    }
    let complained = fs::read_to_string(&start.complaints).unwrap_or_default();
    let words = || format!("{}{complained}", tail(&said));
    // A broken guest is told as it is.
    let host = host.map_err(|error| {
        if error.is::<GuestFailure>() {
            error
        } else {
            error.context(words())
        }
    })?;
    let guest = printed(&said).with_context(words)?;
    Ok((host, guest))
}

/// A child that does not outlive its run.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        end(&mut self.0);
    }
}

fn tail(said: &str) -> &str {
    let start = said.char_indices().rev().nth(600).map_or(0, |(index, _)| index);
    said.get(start..).unwrap_or_default()
}

/// What the guest's script has printed.
fn printed(said: &str) -> Result<Vec<String>> {
    let answers = said.lines().filter_map(Answer::parse).filter_map(Result::ok);
    for answer in answers {
        if let Answer::Ran { code, output } = answer {
            ensure!(code == 0, "the guest's script failed: {output}");
            return Ok(output.lines().map(str::to_string).collect());
        }
    }
    bail!("no answer of the guest's script ({PREFIX})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_script_has_printed_is_told_by_lines() {
        let output = "one\ntwo\n".to_string();
        let said = format!("noise\n{}\n", Answer::Ran { code: 0, output }.line());
        assert_eq!(printed(&said).unwrap(), ["one", "two"]);
    }

    #[test]
    fn a_script_that_failed_is_an_error_with_its_words() {
        let failed = Answer::Ran {
            code: 1,
            output: "no route".into(),
        };
        let error = printed(&failed.line()).unwrap_err().to_string();
        assert!(error.contains("no route"), "{error}");
        assert!(printed("nothing").is_err());
    }
}
