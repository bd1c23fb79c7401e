//! Stock guest kernels: Debian's packages, unpacked once.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::mebibytes;
use crate::modules::{self, plain_name};
use crate::packages::{self, Package};
use crate::paths::{self, Lab, PART};
use crate::progress;

/// A kernel that guests are tested with.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// Its series, and the name of its folders.
    pub name: &'static str,
    package: Package,
    /// Modules that guests of this kernel load, without the ones they depend on. What is built in is not listed.
    pub guest_modules: &'static [&'static str],
    /// Modules that pods load beside those.
    pub pod_modules: &'static [&'static str],
    /// Modules that guests have beside those and load when a test says so.
    pub later_modules: &'static [&'static str],
    /// Modules that the emulated host loads. Empty if this kernel is not used as a host.
    pub host_modules: &'static [&'static str],
    /// Modules that the emulated host has beside those, for tests that load them.
    pub host_later_modules: &'static [&'static str],
}

/// A guest's memory grows and shrinks in another way with these than without them: tests choose.
const RESIZE_DRIVERS: [&str; 2] = ["virtio_mem", "virtio_balloon"];

/// Everything that is booted. The first is also the emulated host's kernel.
pub const KERNELS: [Kernel; 2] = [
    Kernel {
        name: "6.12",
        package: Package::Newest("linux-image-6.12-cloud-amd64"),
        guest_modules: &[
            "virtio_blk",
            "virtio_rng",
            "pvpanic_mmio",
            "virtio_pmem",
            "nd_pmem",
            "vmw_vsock_virtio_transport",
        ],
        pod_modules: &["virtio_net"],
        later_modules: &RESIZE_DRIVERS,
        host_modules: &["virtio_blk", "kvm_amd", "loop", "tun", "vhost_net", "vhost_vsock"],
        host_later_modules: &["null_blk", "quota_v2"],
    },
    Kernel {
        name: "6.1",
        package: Package::Newest("linux-image-cloud-amd64"),
        guest_modules: &[
            "virtio_pci",
            "virtio_blk",
            "virtio_rng",
            "virtio_console",
            "pvpanic_mmio",
            "pvpanic_pci",
            "virtio_pmem",
            "nd_pmem",
            "vmw_vsock_virtio_transport",
        ],
        pod_modules: &["virtio_net", "virtiofs"],
        later_modules: &RESIZE_DRIVERS,
        host_modules: &[],
        host_later_modules: &[],
    },
];

/// The kernel of the emulated host.
pub const HOST_KERNEL: &Kernel = &KERNELS[0];

impl Kernel {
    /// Where the unpacked kernel is.
    pub fn folder(&self, lab: &Lab) -> PathBuf {
        lab.path("unpacked").join(self.name)
    }

    /// Fetches the kernel's package unless the kernel has been unpacked before.
    ///
    /// # Errors
    ///
    /// It cannot be fetched.
    pub fn fetch(&self, lab: &Lab) -> Result<()> {
        if self.is_unpacked(lab) {
            return Ok(());
        }
        self.package(lab).map(drop)
    }

    fn package(&self, lab: &Lab) -> Result<PathBuf> {
        packages::fetch(lab, &format!("linux-{}", self.name), self.package)
    }

    /// What is kept of the package.
    fn recipe(&self) -> String {
        format!(
            "{:?} {:?} {:?} {:?} {:?}, without signatures\n",
            self.guest_modules, self.pod_modules, self.later_modules, self.host_modules, self.host_later_modules
        )
    }

    fn is_unpacked(&self, lab: &Lab) -> bool {
        fs::read_to_string(self.folder(lab).join("recipe")).is_ok_and(|old| old == self.recipe())
    }

    /// Fetches and unpacks the kernel unless that was done before.
    ///
    /// # Errors
    ///
    /// The package cannot be fetched, or does not contain what a kernel package contains.
    pub fn ensure(&self, lab: &Lab) -> Result<()> {
        if self.is_unpacked(lab) {
            return Ok(());
        }
        let folder = self.folder(lab);
        let deb = self.package(lab)?;
        progress::step(
            &format!("unpacking kernel {} ({} MiB)", self.name, mebibytes(&deb)),
            || {
                paths::fill_folder(&folder, |folder| {
                    let content = tempfile::Builder::new().prefix(PART).tempdir_in(&lab.state)?;
                    packages::unpack(&deb, content.path())?;
                    self.keep_what_is_needed(content.path(), folder)?;
                    fs::write(folder.join("recipe"), self.recipe())?;
                    Ok(())
                })
            },
        )
    }

    fn keep_what_is_needed(&self, content: &Path, folder: &Path) -> Result<()> {
        let image = only(&content.join("boot"), "vmlinuz-")?;
        let bytes = fs::read(&image)?;
        fs::write(folder.join("vmlinuz"), &bytes)?;
        fs::write(folder.join("vmlinux"), payload(&bytes)?)?;
        // usrmerge: newer packages have modules below /usr.
        let trees = [content.join("lib/modules"), content.join("usr/lib/modules")];
        let tree = trees
            .iter()
            .find(|tree| tree.exists())
            .context("the kernel package has no modules")?;
        let tree = only(tree, "")?;
        let wanted = [
            self.guest_modules,
            self.pod_modules,
            self.later_modules,
            self.host_modules,
            self.host_later_modules,
        ];
        let wanted = wanted.into_iter().flatten();
        modules::unpack(&tree, wanted.copied(), &folder.join("modules"))
    }

    /// The modules `wanted` and what they depend on, in loading order: name and content.
    ///
    /// # Errors
    ///
    /// The unpacked kernel is damaged.
    pub fn modules(&self, lab: &Lab, wanted: &[&[&str]]) -> Result<Vec<(String, Vec<u8>)>> {
        let folder = self.folder(lab).join("modules");
        modules::in_loading_order(wanted.iter().copied().flatten().copied(), &|name| {
            let path = folder.join(format!("{}.ko", plain_name(name)));
            Ok(if path.exists() { Some(fs::read(path)?) } else { None })
        })
    }
}

/// The only entry of `folder` whose name begins with `prefix`.
fn only(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = fs::read_dir(folder).with_context(|| format!("no {} in the package", folder.display()))?;
    let mut found: Vec<_> = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .collect();
    match (found.pop(), found.pop()) {
        (Some(entry), None) => Ok(entry.path()),
        _ => bail!("{} does not have exactly one {prefix}*", folder.display()),
    }
}

/// The ELF kernel in a bzImage (Linux x86 boot protocol 2.08: `payload_offset` at 0x248, `payload_length` at 0x24c).
///
/// # Errors
///
/// It is not a bzImage, or its payload is compressed in a way that Debian does not use.
fn payload(image: &[u8]) -> Result<Vec<u8>> {
    let word = |offset: usize| -> Result<usize> {
        let bytes = image.get(offset..offset + 4).context("the kernel image is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        bail!("the kernel image has no boot protocol header");
    }
    let sectors = match image.get(0x1f1).context("the kernel image is too short")? {
        0 => 4,
        sectors => usize::from(*sectors),
    };
    let start = (sectors + 1) * 512 + word(0x248)?;
    // The last four bytes are the uncompressed size, appended by the kernel's build.
    let end = (start + word(0x24c)?)
        .checked_sub(4)
        .context("the kernel image has an empty payload")?;
    let packed = image
        .get(start..end)
        .context("the kernel image is shorter than its header says")?;
    let mut elf = Vec::new();
    match packed {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::Decoder::new(packed)?.read_to_end(&mut elf)?,
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4_flex::frame::FrameDecoder::new(packed).read_to_end(&mut elf)?,
        _ => bail!("the kernel's payload is neither zstd nor LZ4: {:02x?}", packed.get(..4)),
    };
    if !elf.starts_with(b"\x7fELF") {
        bail!("the kernel's payload is not an ELF file");
    }
    Ok(elf)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bzImage with one setup sector and `packed` as its payload.
    fn bzimage(packed: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let length = u32::try_from(packed.len() + 4).unwrap();
        image[0x24c..0x250].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(packed);
        image.extend_from_slice(&[0; 4]);
        image
    }

    #[test]
    fn payloads_of_both_kernels_are_found() {
        let elf = [b"\x7fELF".as_slice(), &[7; 100_000]].concat();
        let zstd = zstd::encode_all(elf.as_slice(), 1).unwrap();
        assert_eq!(payload(&bzimage(&zstd)).unwrap(), elf);
        // The legacy frame: magic, then blocks behind their sizes (lz4_Frame_format.md, "Legacy frame").
        let block = lz4_flex::block::compress(&elf);
        let size = u32::try_from(block.len()).unwrap().to_le_bytes();
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18], size.as_slice(), &block].concat();
        assert_eq!(payload(&bzimage(&lz4)).unwrap(), elf);
    }

    #[test]
    fn what_is_not_a_kernel_is_refused() {
        assert!(payload(b"MZ").is_err());
        assert!(payload(&bzimage(b"????")).is_err());
        let mut cut = bzimage(&zstd::encode_all(b"\x7fELF".as_slice(), 1).unwrap());
        cut.truncate(1030);
        assert!(payload(&cut).is_err());
    }
}
