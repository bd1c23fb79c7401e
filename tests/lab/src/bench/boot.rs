//! The profile `boot`: a stock kernel in the emulated host, where the clock counts instructions.
//!
//! The measuring is done in there, by this same program: a clock outside would measure the emulation.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use husk_guest::{Step, step};

use super::Results;
use super::emulated::{Extent, Profile, Session};
use super::measure;
use super::rounds::FigureDef;
use super::subject::{Guest, Kind, Room, Subject};
use crate::archive::Archive;
use crate::kernel::HOST_KERNEL;
use crate::paths::{self, Lab};

/// When a run is taken to hang, in virtual time: ten times what the slowest subject takes. A guest
/// that waits gets there at once.
const LIMIT: Duration = Duration::from_secs(30);

const MEMORY_MIB: u32 = 512;

/// Milliseconds to init, and to the exit.
pub type Times = (f64, f64);

const FIGURES: [FigureDef<Times>; 2] = [
    ("init_virtual_ms", "ms", |times| times.0),
    ("exit_virtual_ms", "ms", |times| times.1),
];

/// From exec to a stock kernel's init, and to the exit, in virtual time.
///
/// # Errors
///
/// An emulated host cannot be made.
pub fn run(lab: &Lab, subjects: Vec<&Subject>, extent: Extent) -> Result<Results> {
    let guest_init = super::guest_init(lab)?;
    let session = Session {
        profile: Profile::Boot,
        subjects,
        extent,
        files: vec![image(lab, &guest_init)?],
        guest_init,
        parts: Vec::new(),
        figure_defs: &FIGURES,
    };
    session.run(lab)
}

/// Makes an initramfs with nothing but the init; the file to take along.
///
/// # Errors
///
/// A file cannot be read or written.
pub fn image(lab: &Lab, guest_init: &Path) -> Result<(PathBuf, String)> {
    let mut image = Archive::default();
    image.file("init", &fs::read(guest_init)?)?;
    image.character_device("dev/null", 1, 3)?;
    let file = lab.path("bench").join("initramfs.cpio");
    paths::write(&file, &image.finish()?)?;
    Ok((file, "initramfs.cpio".into()))
}

/// One life of `subject`, in the emulated host.
pub fn sample(subject: &Subject, scratch: &Path) -> Result<Times> {
    sample_with(subject, scratch, None)
}

/// As [`sample`], of a guest that has room to grow.
pub fn sample_with(subject: &Subject, scratch: &Path, room: Option<Room>) -> Result<Times> {
    let guest = Guest {
        room,
        ..guest(subject.kind)
    };
    let life = measure::life(subject.start(&guest, scratch)?, LIMIT)?;
    Ok((life.mark.as_secs_f64() * 1e3, life.exit.as_secs_f64() * 1e3))
}

/// The same guest for all, but for its end. Firecracker has no ACPI S5 and ends on a reset; Cloud
/// Hypervisor boots its guest again on a reset and ends on S5 only.
fn guest(kind: Kind) -> Guest {
    let last = match kind {
        Kind::Firecracker => Step::Reset,
        _ => Step::PowerOff,
    };
    let steps = step::join(&[Step::Mark(husk_benches::MARK), last]);
    Guest {
        kernel: Path::new("/lab").join(HOST_KERNEL.name).join("vmlinux"),
        initramfs: Some("/work/initramfs.cpio".into()),
        cmdline: format!("console=ttyS0 quiet reboot=k panic=-1 husk.do={steps}"),
        memory_mib: MEMORY_MIB,
        disk: None,
        vsock: None,
        tap: None,
        room: None,
        share: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_guest_marks_and_then_ends_as_its_vmm_understands() {
        assert!(guest(Kind::Husk).cmdline.ends_with(" husk.do=mark:2,poweroff"));
        assert!(
            guest(Kind::CloudHypervisor)
                .cmdline
                .ends_with(" husk.do=mark:2,poweroff")
        );
        assert!(guest(Kind::Firecracker).cmdline.ends_with(" husk.do=mark:2,reset"));
    }
}
