//! The kinds of devices that come and go while the VM exists: one row each, and what follows from the rows.

use std::collections::BTreeSet;

use super::error::ConfigError;
use super::fields::{self, Shape};
use super::json::{self, JsonError};
use super::{DiskConfig, ExtraFields, FsConfig, NetConfig, PmemConfig, VmConfig, VsockConfig, unsupported};

/// Where a [`VmConfig`] has the devices of one kind: any number of them, or one at most.
trait DeviceField<T> {
    /// Whether there is room for no more.
    fn is_full(&self) -> bool;
    fn put(&mut self, device: T);
    fn keep(&mut self, wanted: impl FnMut(&T) -> bool);
    /// What the device of this number is called in messages: `disks[0]`, `vsock`.
    fn place(field: &str, number: usize) -> String;
}

impl<T> DeviceField<T> for Vec<T> {
    fn is_full(&self) -> bool {
        false
    }

    fn put(&mut self, device: T) {
        self.push(device);
    }

    fn keep(&mut self, wanted: impl FnMut(&T) -> bool) {
        self.retain(wanted);
    }

    fn place(field: &str, number: usize) -> String {
        format!("{field}[{number}]")
    }
}

impl<T> DeviceField<T> for Option<T> {
    fn is_full(&self) -> bool {
        self.is_some()
    }

    fn put(&mut self, device: T) {
        *self = Some(device);
    }

    fn keep(&mut self, mut wanted: impl FnMut(&T) -> bool) {
        self.take_if(|device| !wanted(device));
    }

    fn place(field: &str, _number: usize) -> String {
        field.into()
    }
}

/// Makes all that has to know every kind. A row has the kind's name in code and in generated names
/// and commands (`_disk0`, `vm.add-disk`), its configuration, the field of [`VmConfig`] that has
/// it, the names of its own fields, and whether descriptors that come with it are its own; those of
/// others are closed. The order of the rows is that in which a guest finds the devices.
macro_rules! kinds {
    ($($kind:ident: $name:literal, $config:ident in $field:ident, $shape:ident, descriptors: $descriptors:literal;)*) => {
        /// A device to add.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum NewDevice {
            $(#[doc = concat!("`vm.add-", $name, "`.")] $kind($config),)*
        }

        impl NewDevice {
            /// Every kind, by its name, with the names of the fields that describe one.
            pub const KINDS: &'static [(&'static str, &'static Shape)] = &[$(($name, &fields::$shape)),*];

            /// Reads the JSON that describes a device of the kind called `kind`; `None` if there is no such kind.
            ///
            /// # Errors
            /// What is wrong with the JSON.
            pub fn parse(kind: &str, json: &[u8]) -> Option<Result<Self, JsonError>> {
                match kind {
                    $($name => Some(json::parse(json).map(Self::$kind)),)*
                    _ => None,
                }
            }

            /// What kind of device it is, as generated names have it.
            pub const fn kind(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => $name,)*
                }
            }

            /// Its name, if it has one.
            pub fn id(&self) -> Option<&str> {
                match self {
                    $(Self::$kind(device) => device.id.as_deref(),)*
                }
            }

            /// The command that adds one, as clients write it.
            pub const fn command(&self) -> &'static str {
                match self {
                    $(Self::$kind(_) => concat!("vm.add-", $name),)*
                }
            }

            /// Whether descriptors that come with it are its own. Those of others are closed.
            pub const fn takes_descriptors(&self) -> bool {
                match self {
                    $(Self::$kind(_) => $descriptors,)*
                }
            }

            /// What was sent of it beside the fields that husk reads, and the names of all.
            pub(super) fn extra(&self) -> (&ExtraFields, &'static Shape) {
                match self {
                    $(Self::$kind(device) => (&device.extra, &fields::$shape),)*
                }
            }

            fn id_mut(&mut self) -> &mut Option<String> {
                match self {
                    $(Self::$kind(device) => &mut device.id,)*
                }
            }
        }

        impl VmConfig {
            /// Names of all devices that have one.
            pub fn ids(&self) -> impl Iterator<Item = &str> {
                let none = std::iter::empty();
                $(let none = none.chain(self.$field.iter().filter_map(|device| device.id.as_deref()));)*
                none
            }

            /// All devices, in the order in which a guest finds them.
            pub fn devices(&self) -> impl Iterator<Item = NewDevice> {
                let none = std::iter::empty();
                $(let none = none.chain(self.$field.iter().cloned().map(NewDevice::$kind));)*
                none
            }

            /// Gives every device without a name one that no other has: `_disk0`, `_net1` and so on.
            pub fn name_devices(&mut self) {
                let mut names = self.names();
                $(self.$field.iter_mut().for_each(|device| names.name($name, &mut device.id));)*
            }

            /// All devices, as [`VmConfig::devices`], with the names that [`VmConfig::name_devices`] would give them.
            pub fn named_devices(&self) -> impl Iterator<Item = NewDevice> {
                let mut names = self.names();
                self.devices().map(move |mut device| {
                    names.name(device.kind(), device.id_mut());
                    device
                })
            }

            /// Whether a VM has no more devices of the kind of `device` than it has now.
            pub fn is_full_for(&self, device: &NewDevice) -> bool {
                match device {
                    $(NewDevice::$kind(_) => self.$field.is_full(),)*
                }
            }

            /// Takes a device in. Where there is one at most, the last one counts.
            pub fn insert(&mut self, device: NewDevice) {
                match device {
                    $(NewDevice::$kind(device) => self.$field.put(device),)*
                }
            }

            /// Takes the device called `id` out; whether there was one.
            pub fn remove(&mut self, id: &str) -> bool {
                let before = self.ids().count();
                $(self.$field.keep(|device| device.id.as_deref() != Some(id));)*
                self.ids().count() < before
            }

            /// All devices, with the place of each in the configuration.
            pub(super) fn placed_devices(&self) -> Vec<(String, NewDevice)> {
                let mut devices = Vec::new();
                $(for (number, device) in self.$field.iter().enumerate() {
                    let place = place(&self.$field, stringify!($field), number);
                    devices.push((place, NewDevice::$kind(device.clone())));
                })*
                devices
            }

            /// Checks each device by itself, in the order of the rows.
            pub(super) fn validate_devices(&self) -> Result<(), ConfigError> {
                $(self.$field.iter().try_for_each($config::validate)?;)*
                Ok(())
            }
        }
    };
}

kinds! {
    Disk: "disk", DiskConfig in disks, DISK, descriptors: false;
    Pmem: "pmem", PmemConfig in pmem, PMEM, descriptors: false;
    Net: "net", NetConfig in net, NET, descriptors: true;
    Fs: "fs", FsConfig in fs, FS, descriptors: false;
    Vsock: "vsock", VsockConfig in vsock, VSOCK, descriptors: false;
}

fn place<T, S: DeviceField<T>>(_field: &S, field: &str, number: usize) -> String {
    S::place(field, number)
}

impl NewDevice {
    /// Refuses the first field that asks for what husk does not have, by its name in the body that
    /// describes this device alone.
    ///
    /// # Errors
    /// [`ConfigError::Unsupported`].
    pub fn refuse_foreign(&self) -> Result<(), ConfigError> {
        unsupported::refuse_device("", self)
    }
}

impl VmConfig {
    /// The first name that two devices share.
    pub fn duplicate_id(&self) -> Option<&str> {
        first_duplicate(self.ids())
    }

    /// Gives `device` a name, unless it has one, that no device here has.
    pub fn name(&self, device: &mut NewDevice) {
        let kind = device.kind();
        self.names().name(kind, device.id_mut());
    }

    fn names(&self) -> NameAllocator {
        NameAllocator(self.ids().map(str::to_owned).collect())
    }
}

/// The first of `names` that came before.
pub(super) fn first_duplicate<'a>(names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let mut seen = BTreeSet::new();
    names.into_iter().find(|name| !seen.insert(*name))
}

/// Names that are taken, and the next one that is not.
struct NameAllocator(BTreeSet<String>);

impl NameAllocator {
    fn name(&mut self, kind: &str, id: &mut Option<String>) {
        if id.is_none() {
            let mut names = (0..=self.0.len()).map(|number| format!("_{kind}{number}"));
            *id = names.find(|name| !self.0.contains(name));
        }
        self.0.extend(id.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(config: &VmConfig) -> Vec<&str> {
        config.ids().collect()
    }

    #[test]
    fn devices_get_names_that_nobody_has() {
        let mut config = VmConfig {
            disks: vec![DiskConfig::new("/a"), DiskConfig::new("/b")],
            net: vec![NetConfig::new()],
            ..VmConfig::default()
        };
        config.disks[1].id = Some("_disk0".into());
        let named: Vec<_> = config.named_devices().collect();
        config.name_devices();
        assert_eq!(ids(&config), ["_disk1", "_disk0", "_net0"]);
        assert!(config.devices().eq(named));
        assert_eq!(config.duplicate_id(), None);
        let mut disk = NewDevice::Disk(DiskConfig::new("/c"));
        config.name(&mut disk);
        assert_eq!(disk.id(), Some("_disk2"));
        config.name(&mut disk);
        assert_eq!(disk.id(), Some("_disk2"), "a name stays");
    }

    #[test]
    fn devices_go_by_their_names() {
        let mut config = VmConfig {
            vsock: Some(VsockConfig::new(3, "/s")),
            ..VmConfig::default()
        };
        config.insert(NewDevice::Fs(FsConfig::new("t", "/f")));
        config.name_devices();
        assert_eq!(ids(&config), ["_fs0", "_vsock0"]);
        assert!(config.remove("_vsock0") && !config.remove("_vsock0"));
        assert!(config.remove("_fs0"));
        assert!(config.vsock.is_none() && config.fs.is_empty());
    }

    #[test]
    fn every_kind_is_read_by_its_name_and_there_is_one_vsock_at_most() {
        for (kind, _) in NewDevice::KINDS {
            assert!(NewDevice::parse(kind, b"no json").unwrap().is_err(), "{kind}");
        }
        let vsock = NewDevice::parse("vsock", br#"{"cid": 3, "socket": "/s"}"#)
            .unwrap()
            .unwrap();
        assert_eq!((vsock.kind(), vsock.takes_descriptors()), ("vsock", false));
        assert!(NewDevice::parse("tpm", b"{}").is_none());
        let mut config = VmConfig::default();
        assert!(!config.is_full_for(&vsock));
        config.insert(vsock.clone());
        assert!(config.is_full_for(&vsock));
        let disk = NewDevice::Disk(DiskConfig::new("/a"));
        config.insert(disk.clone());
        assert!(!config.is_full_for(&disk));
        let places: Vec<_> = config.placed_devices().into_iter().map(|(place, ..)| place).collect();
        assert_eq!(places, ["disks[0]", "vsock"]);
    }

    #[test]
    fn one_name_for_two_devices_is_found() {
        let mut config = VmConfig {
            disks: vec![DiskConfig::new("/a")],
            vsock: Some(VsockConfig::new(3, "/s")),
            ..VmConfig::default()
        };
        config.disks[0].id = Some("x".into());
        config.vsock.as_mut().unwrap().id = Some("x".into());
        assert_eq!(config.duplicate_id(), Some("x"));
    }
}
