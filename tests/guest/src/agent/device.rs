//! Devices that come and go while the guest runs, found as Kata's agent finds them: by their place on the PCI bus.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use husk_guest::Reply;

/// How long a device may take to come or go: ten times what a slow emulated guest needs.
const PATIENCE: Duration = Duration::from_secs(30);

/// Where the functions of PCI bus 0 are.
const BUS: &str = "/sys/devices/pci0000:00";

/// The folder of the function `bdf`.
fn place(bdf: &str) -> Result<PathBuf> {
    let known = bdf
        .bytes()
        .all(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
    ensure!(known && bdf.starts_with("0000:00:"), "{bdf} is not on bus 0");
    Ok(Path::new(BUS).join(bdf))
}

/// Waits for a disk in a slot.
pub fn disk_at(bdf: &str) -> Result<Reply> {
    let place = place(bdf)?;
    let start = Instant::now();
    loop {
        // The kernel shows a disk, and its node, a moment before it can be opened.
        if let Some((name, path)) = disk_below(&place)
            && File::open(format!("/dev/{name}")).is_ok()
        {
            let path = path.to_string_lossy().trim_start_matches("/sys/devices").to_string();
            return Ok(Reply::Device { name, path });
        }
        if start.elapsed() > PATIENCE {
            bail!(
                "no disk below {} within {} s; there is: {}",
                place.display(),
                PATIENCE.as_secs(),
                on_the_bus()
            );
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// `PLACE/virtioN/block/NAME`.
fn disk_below(place: &Path) -> Option<(String, PathBuf)> {
    let folders = fs::read_dir(place).ok()?.flatten();
    let mut virtio = folders.filter(|entry| entry.file_name().to_string_lossy().starts_with("virtio"));
    let disk = virtio.find_map(|entry| fs::read_dir(entry.path().join("block")).ok()?.flatten().next())?;
    Some((disk.file_name().to_string_lossy().into_owned(), disk.path()))
}

/// Waits until a slot is empty.
pub fn gone(bdf: &str) -> Result<Reply> {
    let place = place(bdf)?;
    let start = Instant::now();
    while place
        .try_exists()
        .with_context(|| format!("cannot look for {}", place.display()))?
    {
        if start.elapsed() > PATIENCE {
            bail!("{} is still there after {} s", place.display(), PATIENCE.as_secs());
        }
        thread::sleep(Duration::from_millis(2));
    }
    Ok(Reply::Done)
}

fn on_the_bus() -> String {
    let entries = fs::read_dir(BUS).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("0000:")).collect();
    names.sort();
    names.join(" ")
}
