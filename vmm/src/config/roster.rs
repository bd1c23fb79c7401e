//! The devices of a configuration by name: what comes and goes while the VM exists.

use std::collections::BTreeSet;

use super::{DiskConfig, FsConfig, NetConfig, PmemConfig, VmConfig, VsockConfig};

/// A device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewDevice {
    /// `vm.add-disk`.
    Disk(DiskConfig),
    /// `vm.add-net`.
    Net(NetConfig),
    /// `vm.add-fs`.
    Fs(FsConfig),
    /// `vm.add-vsock`.
    Vsock(VsockConfig),
    /// `vm.add-pmem`.
    Pmem(PmemConfig),
}

impl NewDevice {
    /// What kind of device it is, as generated names have it.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Disk(_) => "disk",
            Self::Net(_) => "net",
            Self::Fs(_) => "fs",
            Self::Vsock(_) => "vsock",
            Self::Pmem(_) => "pmem",
        }
    }

    /// Its name, if it has one.
    pub fn id(&self) -> Option<&str> {
        match self {
            Self::Disk(disk) => &disk.id,
            Self::Net(net) => &net.id,
            Self::Fs(fs) => &fs.id,
            Self::Vsock(vsock) => &vsock.id,
            Self::Pmem(pmem) => &pmem.id,
        }
        .as_deref()
    }

    /// Whether descriptors that come with it are its own. Those of others are closed.
    pub const fn takes_descriptors(&self) -> bool {
        matches!(self, Self::Net(_))
    }

    fn id_mut(&mut self) -> &mut Option<String> {
        match self {
            Self::Disk(disk) => &mut disk.id,
            Self::Net(net) => &mut net.id,
            Self::Fs(fs) => &mut fs.id,
            Self::Vsock(vsock) => &mut vsock.id,
            Self::Pmem(pmem) => &mut pmem.id,
        }
    }
}

impl VmConfig {
    /// Names of all devices that have one.
    pub fn ids(&self) -> impl Iterator<Item = &str> {
        let disks = self.disks.iter().map(|disk| &disk.id);
        let nets = self.net.iter().map(|net| &net.id);
        let shares = self.fs.iter().map(|fs| &fs.id);
        let pmems = self.pmem.iter().map(|pmem| &pmem.id);
        let vsock = self.vsock.iter().map(|vsock| &vsock.id);
        let all = disks.chain(nets).chain(shares).chain(pmems).chain(vsock);
        all.filter_map(Option::as_deref)
    }

    /// All devices, in the order in which a guest finds them.
    pub fn devices(&self) -> impl Iterator<Item = NewDevice> {
        let disks = self.disks.iter().cloned().map(NewDevice::Disk);
        let pmems = self.pmem.iter().cloned().map(NewDevice::Pmem);
        let nets = self.net.iter().cloned().map(NewDevice::Net);
        let shares = self.fs.iter().cloned().map(NewDevice::Fs);
        let vsock = self.vsock.iter().cloned().map(NewDevice::Vsock);
        disks.chain(pmems).chain(nets).chain(shares).chain(vsock)
    }

    /// The first name that two devices share.
    pub fn duplicate_id(&self) -> Option<&str> {
        let mut seen = BTreeSet::new();
        self.ids().find(|id| !seen.insert(*id))
    }

    /// Gives every device without a name one that no other has: `_disk0`, `_net1` and so on.
    pub fn name_devices(&mut self) {
        let taken: BTreeSet<String> = self.ids().map(str::to_owned).collect();
        let mut fresh = Fresh(taken);
        self.disks.iter_mut().for_each(|disk| fresh.name("disk", &mut disk.id));
        self.net.iter_mut().for_each(|net| fresh.name("net", &mut net.id));
        self.fs.iter_mut().for_each(|fs| fresh.name("fs", &mut fs.id));
        self.pmem.iter_mut().for_each(|pmem| fresh.name("pmem", &mut pmem.id));
        self.vsock
            .iter_mut()
            .for_each(|vsock| fresh.name("vsock", &mut vsock.id));
    }

    /// Gives `device` a name, unless it has one, that no device here has.
    pub fn name(&self, device: &mut NewDevice) {
        let kind = device.kind();
        Fresh(self.ids().map(str::to_owned).collect()).name(kind, device.id_mut());
    }

    /// Takes a device in. There is one vsock at most, and the last one counts.
    pub fn insert(&mut self, device: NewDevice) {
        match device {
            NewDevice::Disk(disk) => self.disks.push(disk),
            NewDevice::Net(net) => self.net.push(net),
            NewDevice::Fs(fs) => self.fs.push(fs),
            NewDevice::Vsock(vsock) => self.vsock = Some(vsock),
            NewDevice::Pmem(pmem) => self.pmem.push(pmem),
        }
    }

    /// Takes the device called `id` out; whether there was one.
    pub fn remove(&mut self, id: &str) -> bool {
        let is = |name: &Option<String>| name.as_deref() == Some(id);
        let before = self.ids().count();
        self.disks.retain(|disk| !is(&disk.id));
        self.net.retain(|net| !is(&net.id));
        self.fs.retain(|fs| !is(&fs.id));
        self.pmem.retain(|pmem| !is(&pmem.id));
        self.vsock.take_if(|vsock| is(&vsock.id));
        self.ids().count() < before
    }
}

/// Names that are taken, and the next one that is not.
struct Fresh(BTreeSet<String>);

impl Fresh {
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
        config.name_devices();
        assert_eq!(ids(&config), ["_disk1", "_disk0", "_net0"]);
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
