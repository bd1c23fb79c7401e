//! What the kernel's log (`/dev/kmsg`) still has about KVM, husk and lack of memory.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;

use super::parts::FILE_BYTES;

/// What a line of the kernel's log has in it that is of interest here, in small letters.
const KERNEL_LOG: [&str; 5] = ["kvm", "husk", "cloud-hyperviso", "out of memory", "oom-kill"];

/// Lines of interest of what the kernel's log still has.
pub(super) fn kernel_log() -> Result<Vec<u8>, String> {
    let mut log = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .map_err(|error| format!("/dev/kmsg: {error}"))?;
    let (mut text, mut record) = (Vec::new(), vec![0; 8 << 10]);
    loop {
        match log.read(&mut record) {
            Ok(0) => break,
            Ok(bytes) => text.extend(line_of_interest(record.get(..bytes).unwrap_or_default()).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            // What was overwritten before it was read.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
            Err(error) => return Err(format!("/dev/kmsg: {error}")),
        }
        // The last are of most interest.
        if text.len() as u64 > 2 * FILE_BYTES {
            text = the_last(text);
        }
    }
    Ok(the_last(text))
}

/// The last lines of `text`, of which there are [`FILE_BYTES`] at most.
fn the_last(mut text: Vec<u8>) -> Vec<u8> {
    if let Some(surplus) = text
        .len()
        .checked_sub(usize::try_from(FILE_BYTES).unwrap_or(usize::MAX))
        .filter(|surplus| *surplus > 0)
    {
        let line = text.iter().skip(surplus - 1).position(|byte| *byte == b'\n');
        text.drain(..line.map_or(text.len(), |end| surplus + end));
    }
    text
}

/// A record of `/dev/kmsg` (`level,number,microseconds,flags;text`, then properties) as a line, if it is of interest.
fn line_of_interest(record: &[u8]) -> Option<Vec<u8>> {
    let record = String::from_utf8_lossy(record);
    let (head, text) = record.lines().next()?.split_once(';')?;
    let small = text.to_lowercase();
    if !KERNEL_LOG.iter().any(|word| small.contains(word)) {
        return None;
    }
    let at: u64 = head.split(',').nth(2)?.parse().ok()?;
    Some(format!("[{:>5}.{:06}] {text}\n", at / 1_000_000, at % 1_000_000).into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_too_many_lines_the_last_are_kept_whole() {
        let text: Vec<u8> = (0..200_000).flat_map(|n| format!("{n:09}\n").into_bytes()).collect();
        let kept = the_last(text.clone());
        assert_eq!(kept.len() as u64, FILE_BYTES / 10 * 10);
        assert!(text.ends_with(&kept) && kept.len().is_multiple_of(10));
        assert_eq!(the_last(kept.clone()), kept);
        assert_eq!(the_last(vec![b'x'; 2 << 20]), b"");
    }

    #[test]
    fn lines_of_the_kernel_about_others_are_left_out() {
        let line = |record: &str| line_of_interest(record.as_bytes()).map(|line| String::from_utf8(line).unwrap());
        assert_eq!(
            line("6,12,61000042,-;KVM: vcpu stuck\n SUBSYSTEM=x\n").unwrap(),
            "[   61.000042] KVM: vcpu stuck\n"
        );
        assert_eq!(line("6,12,1,-;usb 1-1: new device\n kvm=1\n"), None);
        assert_eq!(line("nonsense"), None);
    }
}
