//! What is booted: initramfs images of guests and of the emulated host, and the host's disk.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::archive::Archive;
use crate::command::{command, find, output};
use crate::file_server;
use crate::kernel::{HOST_KERNEL, KERNELS, Kernel};
use crate::packages::{self, Package};
use crate::paths::{self, Lab, PART};
use crate::{progress, user_space};

/// `/init` of the shell image: a guest for a person at the console.
const SHELL_INIT: &[u8] = include_bytes!("shell-init");

/// Fetches the packages of everything that guests boot from, as far as that is not made yet.
///
/// # Errors
///
/// A package cannot be fetched.
pub fn fetch(lab: &Lab) -> Result<()> {
    for kernel in &KERNELS {
        kernel.fetch(lab)?;
    }
    if !busybox(lab).exists() {
        packages::fetch(lab, BUSYBOX, Package::Named(BUSYBOX))?;
    }
    file_server::fetch(lab)
}

/// Makes everything that guests boot from,
/// `guest/KERNEL/{vmlinuz,vmlinux,initramfs.cpio,pod.cpio,pod.img,shell.cpio}`, and the server of
/// what they share, `guest/virtiofsd`.
///
/// # Errors
///
/// A package cannot be fetched, or a file not written.
pub fn ensure_guests(lab: &Lab, guest_init: &Path) -> Result<()> {
    let init = fs::read(guest_init).with_context(|| format!("cannot read {}", guest_init.display()))?;
    fs::create_dir_all(lab.guest())?;
    link(&file_server::ensure(lab)?, &lab.guest().join("virtiofsd"))?;
    user_space::ensure(lab)?;
    for kernel in &KERNELS {
        kernel.ensure(lab)?;
        let folder = lab.guest().join(kernel.name);
        fs::create_dir_all(&folder)?;
        for name in ["vmlinuz", "vmlinux"] {
            link(&kernel.folder(lab).join(name), &folder.join(name))?;
        }
        let modules = kernel.modules(lab, &[kernel.guest_modules])?;
        let mut image = with_init(&init)?;
        add_modules(&mut image, &modules)?;
        add_later_modules(lab, kernel, kernel.later_modules, &mut image)?;
        paths::write(&folder.join("initramfs.cpio"), &image.finish()?)?;
        let mut image = with_init(&init)?;
        add_shell(lab, &mut image)?;
        add_modules(
            &mut image,
            &kernel.modules(lab, &[kernel.guest_modules, kernel.pod_modules])?,
        )?;
        add_later_modules(lab, kernel, kernel.later_modules, &mut image)?;
        paths::write(&folder.join("pod.cpio"), &image.finish()?)?;
        ensure_pod_image(&folder.join("pod.img"))?;
        let mut image = Archive::default();
        image.file("init", SHELL_INIT)?;
        add_shell(lab, &mut image)?;
        add_modules(&mut image, &modules)?;
        paths::write(&folder.join("shell.cpio"), &image.finish()?)?;
    }
    Ok(())
}

/// Sectors of 512 bytes of a pod's image, and how many of them are before its partition.
const IMAGE_SECTORS: u32 = 8192;
const BEFORE_PARTITION: u32 = 2048;

/// Makes the disk of an image pod: one partition with an ext4 file system in it.
fn ensure_pod_image(path: &Path) -> Result<()> {
    if path.exists() {
        return Ok(());
    }
    let parent = path.parent().context("a disk needs a folder")?;
    let content = tempfile::Builder::new().prefix(PART).tempdir_in(parent)?;
    fs::create_dir(content.path().join("etc"))?;
    fs::write(content.path().join("etc/image"), "husk pod image\n")?;
    let part = tempfile::Builder::new().prefix(PART).tempfile_in(parent)?;
    part.as_file().set_len(u64::from(IMAGE_SECTORS) * 512)?;
    let mke2fs = find("mke2fs").context("mke2fs is not installed")?;
    let offset = format!("root_owner=0:0,offset={}", u64::from(BEFORE_PARTITION) * 512);
    let kib = (IMAGE_SECTORS - BEFORE_PARTITION) / 2;
    let mut make = command(mke2fs);
    make.args(["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-E", &offset, "-d"]);
    output(make.arg(content.path()).arg(part.path()).arg(format!("{kib}k")))?;
    part.as_file().write_all_at(&partition_table(), 0)?;
    part.persist(path)?;
    Ok(())
}

/// A master boot record with one Linux partition, by block numbers only.
fn partition_table() -> [u8; 512] {
    let mut sector = [0; 512];
    let entry = [
        [0, 0xfe, 0xff, 0xff],
        [0x83, 0xfe, 0xff, 0xff],
        BEFORE_PARTITION.to_le_bytes(),
        (IMAGE_SECTORS - BEFORE_PARTITION).to_le_bytes(),
    ];
    let ends = [0; 48];
    let content = entry.as_flattened().iter().chain(&ends).chain(&[0x55, 0xaa]);
    for (byte, value) in sector.iter_mut().skip(446).zip(content) {
        *byte = *value;
    }
    sector
}

/// Makes the emulated host's initramfs; its path.
///
/// # Errors
///
/// As [`ensure_guests`].
pub fn ensure_host(lab: &Lab, guest_init: &Path) -> Result<PathBuf> {
    HOST_KERNEL.ensure(lab)?;
    let mut image = Archive::default();
    image.file("init", &fs::read(guest_init)?)?;
    add_shell(lab, &mut image)?;
    add_modules(&mut image, &HOST_KERNEL.modules(lab, &[HOST_KERNEL.host_modules])?)?;
    add_later_modules(lab, HOST_KERNEL, HOST_KERNEL.host_later_modules, &mut image)?;
    let path = lab.path("host/initramfs.cpio");
    paths::write(&path, &image.finish()?)?;
    Ok(path)
}

/// Makes the read-only disk that the emulated host mounts on `/lab`; its path.
///
/// # Errors
///
/// `mke2fs` failed.
pub fn ensure_host_disk(lab: &Lab) -> Result<PathBuf> {
    let disk = lab.path("host/lab.ext4");
    let newest = newest(&lab.guest())?;
    if disk
        .metadata()
        .and_then(|data| data.modified())
        .is_ok_and(|made| made > newest)
    {
        return Ok(disk);
    }
    progress::step("making the emulated host's disk", || make_disk(&lab.guest(), &disk, 16))?;
    Ok(disk)
}

/// Makes an ext4 file system with the content of `folder` and `spare_mib` of free space.
///
/// # Errors
///
/// `mke2fs` failed.
pub fn make_disk(folder: &Path, disk: &Path, spare_mib: u64) -> Result<()> {
    let parent = disk.parent().context("a disk needs a folder")?;
    fs::create_dir_all(parent)?;
    let part = tempfile::Builder::new().prefix(PART).tempfile_in(parent)?;
    // File systems spend some space on themselves: an eighth is ample.
    let size = size_mib(folder)? * 9 / 8 + spare_mib + 8;
    let mke2fs = find("mke2fs").context("mke2fs is not installed")?;
    let mut make = command(mke2fs);
    make.args([
        "-q",
        "-F",
        "-t",
        "ext4",
        "-O",
        "^has_journal",
        "-m",
        "0",
        "-E",
        "root_owner=0:0",
        "-d",
    ]);
    output(make.arg(folder).arg(part.path()).arg(format!("{size}M")))?;
    part.persist(disk)?;
    Ok(())
}

/// An image with the tests' init.
fn with_init(init: &[u8]) -> Result<Archive> {
    let mut image = Archive::default();
    image.file("init", init)?;
    // Without a console the kernel starts the init with no standard streams, and Rust's runtime then opens /dev/null.
    image.character_device("dev/null", 1, 3)?;
    Ok(image)
}

fn add_modules(image: &mut Archive, modules: &[(String, Vec<u8>)]) -> Result<()> {
    for (index, (name, content)) in modules.iter().enumerate() {
        image.file(&format!("modules/{index:02}-{name}.ko"), content)?;
    }
    Ok(())
}

/// Adds modules that tests load, guests by the step `module`, each in a folder of its own with what it needs.
fn add_later_modules(lab: &Lab, kernel: &Kernel, modules: &[&'static str], image: &mut Archive) -> Result<()> {
    for module in modules {
        let all = kernel.modules(lab, &[&[*module]])?;
        for (index, (name, content)) in all.iter().enumerate() {
            image.file(&format!("later/{module}/{index:02}-{name}.ko"), content)?;
        }
    }
    Ok(())
}

/// Adds a static busybox under all its names.
fn add_shell(lab: &Lab, image: &mut Archive) -> Result<()> {
    let busybox = ensure_busybox(lab)?;
    image.file("bin/busybox", &fs::read(&busybox)?)?;
    for applet in output(command(&busybox).arg("--list"))?
        .lines()
        .filter(|applet| *applet != "busybox")
    {
        image.link(&format!("bin/{applet}"), "busybox")?;
    }
    Ok(())
}

/// The package of the shell.
const BUSYBOX: &str = "busybox-static";

fn busybox(lab: &Lab) -> PathBuf {
    lab.path("unpacked/busybox")
}

fn ensure_busybox(lab: &Lab) -> Result<PathBuf> {
    let path = busybox(lab);
    if !path.exists() {
        let deb = packages::fetch(lab, BUSYBOX, Package::Named(BUSYBOX))?;
        let content = tempfile::Builder::new().prefix(PART).tempdir_in(&lab.state)?;
        packages::unpack(&deb, content.path())?;
        let places = ["bin/busybox", "usr/bin/busybox"].map(|place| content.path().join(place));
        let binary = places
            .iter()
            .find(|place| place.exists())
            .context("busybox-static has no busybox")?;
        fs::create_dir_all(lab.path("unpacked"))?;
        fs::rename(binary, &path)?;
    }
    Ok(path)
}

/// Gives `source` a second name, replacing an older file of that name.
fn link(source: &Path, target: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let same = |a: fs::Metadata, b: fs::Metadata| a.ino() == b.ino() && a.dev() == b.dev();
    if let (Ok(a), Ok(b)) = (source.metadata(), target.metadata())
        && same(a, b)
    {
        return Ok(());
    }
    let _ = fs::remove_file(target);
    fs::hard_link(source, target).with_context(|| format!("cannot link {}", target.display()))
}

/// Calls `visit` for each file below `folder`.
fn walk(folder: &Path, visit: &mut dyn FnMut(&Path)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            walk(&path, visit)?
        } else {
            visit(&path)
        }
    }
    Ok(())
}

/// When anything below `folder` last changed, new names included.
fn newest(folder: &Path) -> Result<SystemTime> {
    use std::os::unix::fs::MetadataExt;
    let mut newest = SystemTime::UNIX_EPOCH;
    walk(folder, &mut |path| {
        if let Ok(data) = path.metadata() {
            let changed = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(data.ctime().unsigned_abs());
            newest = newest.max(changed);
        }
    })?;
    Ok(newest)
}

/// Of ext4.
const BLOCK_BYTES: u64 = 4096;

fn size_mib(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    walk(folder, &mut |path| {
        let length = path.symlink_metadata().map_or(0, |data| data.len());
        bytes += length.next_multiple_of(BLOCK_BYTES);
    })?;
    Ok(bytes.div_ceil(1 << 20))
}
