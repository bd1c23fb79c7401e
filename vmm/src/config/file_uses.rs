//! Files that a VM is made of, and files that are written for it: nothing may be written over the former as if it were
//! the latter.
//!
//! Paths are compared here, and nothing is looked at: what has two names is found when the VM boots
//! (`vmm/src/control/file_conflict.rs`). Hence two lists of what husk writes itself: [`OwnFiles`]
//! are known by the options that name them, before any is opened, and compared on the main thread,
//! which waits for no file system; [`ProtectedFiles`](crate::terminal::ProtectedFiles) are known by
//! what they are once they are open, descriptors that husk was started with among them, and
//! compared by threads that may wait.

use std::path::{Component, Path, PathBuf};

use super::error::ConfigError;
use super::{NewDevice, VmConfig};

/// Files that this process writes whatever VM it has.
#[derive(Clone, Debug, Default)]
pub struct OwnFiles {
    /// Where relative paths begin. Kept from the start: a confined process cannot ask.
    folder: PathBuf,
    files: Vec<(&'static str, PathBuf)>,
    /// That of events, which is one of the files.
    events: Option<(&'static str, PathBuf)>,
}

impl OwnFiles {
    /// None yet, of a process whose working directory is `folder`.
    pub fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            ..Self::default()
        }
    }

    /// One more of them, at `path`, which `option` names.
    pub fn add(&mut self, option: &'static str, path: &Path) {
        self.files.push((option, path.into()));
    }

    /// As [`OwnFiles::add`], of the file that events are written to: no port may write there as well, or a guest could
    /// tell of what has not happened.
    pub fn add_events(&mut self, option: &'static str, path: &Path) {
        self.add(option, path);
        self.events = Some((option, path.into()));
    }
}

/// A file that a VM is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFile {
    /// What it is to the VM, as in "it writes over disk _disk0".
    pub what: String,
    /// Where it is.
    pub path: PathBuf,
    /// Whether the guest writes it. Only devices may share one, and only if none of them does.
    pub writes: bool,
}

impl NewDevice {
    /// The file that the device shows to the guest, if it is of that kind.
    pub fn source_file(&self) -> Option<SourceFile> {
        let (path, writes) = match self {
            Self::Disk(disk) => (&disk.path, !disk.readonly),
            Self::Pmem(pmem) => (&pmem.file, !pmem.discard_writes),
            Self::Net(_) | Self::Fs(_) | Self::Vsock(_) => return None,
        };
        Some(SourceFile {
            what: format!("{} {}", self.kind(), self.id().unwrap_or_default()),
            path: path.clone(),
            writes,
        })
    }
}

impl VmConfig {
    /// The files of disks and persistent memory, in the order in which they are opened. Devices without a name have the
    /// one that they will be given.
    pub fn images(&self) -> Vec<SourceFile> {
        self.named_devices().filter_map(|device| device.source_file()).collect()
    }

    /// All files that the VM is made of: kernel, initramfs and [images](Self::images).
    pub fn source_files(&self) -> Vec<SourceFile> {
        let payload = [
            ("the kernel", &self.payload.kernel),
            ("the initramfs", &self.payload.initramfs),
        ];
        let payload = payload.into_iter().filter_map(|(what, path)| {
            Some(SourceFile {
                what: what.into(),
                path: path.clone()?,
                writes: false,
            })
        });
        payload.chain(self.images()).collect()
    }

    /// The files that ports write to, each with the port's name.
    pub fn output_files(&self) -> Vec<(&'static str, PathBuf)> {
        let ports = [("serial", &self.serial), ("console", &self.console)];
        let files = ports
            .into_iter()
            .flat_map(|(name, port)| port.files().into_iter().map(move |file| (name, file)));
        files.collect()
    }

    /// Checks that no port writes to a file that the VM is made of.
    pub(super) fn validate_outputs(&self) -> Result<(), ConfigError> {
        // Relative to the same folder, whichever that is.
        self.apart_from(&self.output_files(), Path::new(""))
    }

    /// Checks that the VM is made of none of the files that husk writes itself, and that none of its ports writes where
    /// events go.
    ///
    /// # Errors
    /// [`ConfigError::Overwritten`], [`ConfigError::BesideEvents`].
    pub fn validate_beside_files(&self, own: &OwnFiles) -> Result<(), ConfigError> {
        self.apart_from(&own.files, &own.folder)?;
        let Some((option, events)) = &own.events else {
            return Ok(());
        };
        let outputs = self.output_files();
        match outputs.iter().find(|(_, path)| is_same_path(&own.folder, path, events)) {
            Some((port, path)) => Err(ConfigError::beside_events(port, option, path)),
            None => Ok(()),
        }
    }

    fn apart_from(&self, outputs: &[(&'static str, PathBuf)], folder: &Path) -> Result<(), ConfigError> {
        if outputs.is_empty() {
            return Ok(());
        }
        for source in self.source_files() {
            let mut outputs = outputs.iter();
            if let Some((output, _)) = outputs.find(|(_, path)| is_same_path(folder, path, &source.path)) {
                return Err(ConfigError::overwritten(output, &source));
            }
        }
        Ok(())
    }

    /// Checks that no two devices have one image, unless they only read it.
    pub(super) fn validate_images(&self) -> Result<(), ConfigError> {
        let images = self.images();
        for (number, image) in images.iter().enumerate() {
            let mut before = images.iter().take(number);
            let is_other =
                |other: &&SourceFile| excludes(other, image) && is_same_path(Path::new(""), &other.path, &image.path);
            if let Some(other) = before.find(is_other) {
                return Err(ConfigError::two_images(other, image));
            }
        }
        Ok(())
    }
}

/// Whether two devices cannot have one image.
pub fn excludes(one: &SourceFile, other: &SourceFile) -> bool {
    one.writes || other.writes
}

/// Whether two paths are spelled the same, relative ones from `folder` on. The file system is not asked.
fn is_same_path(folder: &Path, one: &Path, other: &Path) -> bool {
    let (one, other) = (folder.join(one), folder.join(other));
    let words = |path: &'_ Path| {
        let words = path.components().filter(|word| *word != Component::CurDir);
        words.collect::<PathBuf>()
    };
    words(&one) == words(&other)
}

impl ConfigError {
    /// That `output`, a port or what husk writes itself, would write over `source`.
    pub fn overwritten(output: &str, source: &SourceFile) -> Self {
        Self::Overwritten {
            output: output.into(),
            of: source.what.clone(),
            path: source.path.display().to_string(),
        }
    }

    /// That `port` would write where `events` go.
    pub fn beside_events(port: &'static str, events: &'static str, path: &Path) -> Self {
        Self::BesideEvents {
            port,
            events,
            path: path.display().to_string(),
        }
    }

    /// That `other` has the image of `one`.
    pub fn two_images(one: &SourceFile, other: &SourceFile) -> Self {
        Self::TwoImages {
            one: one.what.clone(),
            other: other.what.clone(),
            path: other.path.display().to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConsoleConfig, DiskConfig, ExtraFields, Limits, PayloadConfig, PmemConfig};
    use super::*;

    fn pmem(file: &str) -> PmemConfig {
        PmemConfig {
            file: file.into(),
            size: None,
            discard_writes: false,
            id: None,
            extra: ExtraFields::default(),
        }
    }

    fn vm() -> VmConfig {
        VmConfig {
            payload: PayloadConfig {
                kernel: Some("/kernel".into()),
                initramfs: Some("/initramfs".into()),
                ..PayloadConfig::default()
            },
            disks: vec![DiskConfig::new("/disk")],
            pmem: vec![pmem("/pmem")],
            ..VmConfig::default()
        }
    }

    fn refusal(config: &VmConfig) -> String {
        let refused = config.validate(Limits::ARCHITECTURE);
        refused.map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn no_port_and_nothing_of_husks_own_has_a_file_that_the_vm_is_made_of() {
        let sources = [
            ("kernel", "the kernel"),
            ("initramfs", "the initramfs"),
            ("disk", "disk _disk0"),
            ("pmem", "pmem _pmem0"),
        ];
        for (file, what) in sources {
            let line = |output: &str| format!("{output} would write over {what}: both have the file /{file}");
            for path in [format!("/{file}"), format!("/.//{file}")] {
                let with = |change: &dyn Fn(&mut VmConfig)| {
                    let mut config = vm();
                    change(&mut config);
                    refusal(&config)
                };
                let port = ConsoleConfig::file(&path);
                assert_eq!(with(&|config| config.serial = port.clone()), line("serial"));
                assert_eq!(with(&|config| config.console = port.clone()), line("console"));
                let mut own = OwnFiles::new("/pod".into());
                own.add("--log", Path::new("/log"));
                assert_eq!(vm().validate_beside_files(&own), Ok(()));
                own.add("--boot-trace", Path::new(&path));
                let refused = vm().validate_beside_files(&own).unwrap_err();
                assert_eq!(refused.to_string(), line("--boot-trace"));
                let mut own = OwnFiles::new("/".into());
                own.add("--boot-trace", Path::new(&format!("./{file}")));
                let refused = vm().validate_beside_files(&own).unwrap_err();
                assert_eq!(refused.to_string(), line("--boot-trace"));
            }
        }
    }

    #[test]
    fn a_file_that_takes_turns_with_one_of_a_port_is_no_disk_either() {
        let mut config = vm();
        config.serial = ConsoleConfig {
            limit: Some(4096),
            ..ConsoleConfig::file("/log")
        };
        assert_eq!(refusal(&config), "");
        config.disks.push(DiskConfig::new("/log.1"));
        let line = "serial would write over disk _disk1: both have the file /log.1";
        assert_eq!(refusal(&config), line);
        assert_eq!(config.validate_added().unwrap_err().to_string(), line);
    }

    #[test]
    fn one_image_is_two_devices_only_if_both_only_read_it() {
        let reader = DiskConfig {
            readonly: true,
            ..DiskConfig::new("/./disk")
        };
        let mut config = vm();
        config.disks.push(reader.clone());
        let refused = config.validate(Limits::ARCHITECTURE).unwrap_err();
        let both = "both have the image /./disk: allowed: one device, or any number that only read it";
        assert_eq!(refused.to_string(), format!("disk _disk0 and disk _disk1 {both}"));
        // A device that is on its way out may have it for the moment: the lock decides.
        config.validate_added().unwrap();
        config.disks = vec![reader.clone(), reader];
        assert_eq!(refusal(&config), "");
        config.pmem.push(pmem("/disk"));
        assert!(
            refusal(&config).starts_with("disk _disk0 and pmem _pmem1 both have the image /disk"),
            "{}",
            refusal(&config)
        );
    }
}
