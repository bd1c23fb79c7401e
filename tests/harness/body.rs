//! The bodies that Kata's shims send, with the fields, the order of devices and the command lines of Kata 4.1.
//!
//! Two things differ from a real pod. The stock kernels that the lab boots have their block driver
//! as a module, so that a pod from an image has an initramfs, too, which stands for the image's
//! user space. And the end of the command line, where a shim puts the `kernel_params` of its
//! configuration, tells that initramfs to be the agent.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::SHORT_BOOT;
use crate::api::Shim;

/// What a shim was configured and asked to start.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Which shim.
    pub shim: Shim,
    /// `enable_debug`: the guest's serial port is the VMM's standard output, and the agent serves its log.
    pub debug: bool,
    /// The guest's kernel, an ELF with a PVH note.
    pub kernel: PathBuf,
    /// The guest's initramfs.
    pub initramfs: PathBuf,
    /// The root file system's image; without one the pod is an initrd pod.
    pub image: Option<PathBuf>,
    /// The socket of the file server of the pod's share.
    pub share: Option<PathBuf>,
    /// vCPUs.
    pub vcpus: u32,
    /// As many vCPUs as there may be.
    pub max_vcpus: u32,
    /// MiB of memory.
    pub memory_mib: u64,
    /// What the `kernel_params` of the configuration hold beside the agent.
    pub kernel_params: String,
}

/// What makes the lab's initramfs the agent, on kernels with and without a console. The kernel
/// writes no zeroes to pages that it allocates, as Kata configures its own; Debian's does, with all
/// memory before it goes.
pub const AGENT: &str = "init_on_alloc=0 husk.console=null husk.do=agent";

/// The tag of a pod's share.
pub const SHARE: &str = "kataShared";

impl Shape {
    /// An initrd pod without debug and share.
    pub fn new(shim: Shim, kernel: PathBuf, initramfs: PathBuf) -> Self {
        Self {
            shim,
            debug: false,
            kernel,
            initramfs,
            image: None,
            share: None,
            vcpus: 1,
            max_vcpus: 8,
            memory_mib: 256,
            kernel_params: String::new(),
        }
    }

    /// The body of `vm.create`.
    pub fn create(&self, vsock: &Path) -> Value {
        match self.shim {
            Shim::Rust => self.rust_create(vsock),
            Shim::Go => self.go_create(vsock),
        }
    }

    fn rust_create(&self, vsock: &Path) -> Value {
        let serial = if self.debug { "Tty" } else { "Off" };
        let mut body = json!({
            "cpus": {"boot_vcpus": self.vcpus, "max_vcpus": self.max_vcpus,
                     "topology": {"threads_per_core": 1, "cores_per_die": self.max_vcpus, "dies_per_package": 1, "packages": 1},
                     "kvm_hyperv": false, "nested": true, "max_phys_bits": 46, "features": {"amx": false}},
            "memory": {"size": self.memory_mib << 20, "mergeable": false, "hotplug_method": "Acpi",
                       "hotplug_size": 31_524_388_864_u64, "shared": true, "hugepages": false, "prefault": false},
            "payload": {"firmware": null, "kernel": self.kernel, "cmdline": self.cmdline(), "initramfs": self.initramfs,
                        "mrconfigid": null, "host_data": null},
            "rng": {"src": "/dev/urandom", "iommu": false},
            "fs": [],
            "serial": {"file": null, "mode": serial, "iommu": false},
            "console": {"file": null, "mode": "Off", "iommu": false},
            "devices": [],
            "vsock": {"cid": 3, "socket": vsock, "iommu": false, "id": null, "pci_segment": 0},
            "iommu": false, "watchdog": false,
        });
        if let Some(image) = &self.image {
            body["disks"] = json!([rust_disk(image, true, "Unknown")]);
        }
        if let Some(socket) = &self.share {
            body["fs"] = json!([{"tag": SHARE, "socket": socket, "num_queues": 1, "queue_size": 1024, "id": null,
                                 "pci_segment": 0}]);
        }
        body
    }

    fn go_create(&self, vsock: &Path) -> Value {
        let serial = if self.debug { "Tty" } else { "Off" };
        let mut body = json!({
            "cpus": {"boot_vcpus": self.vcpus, "max_vcpus": self.max_vcpus,
                     "topology": {"threads_per_core": 1, "cores_per_die": self.max_vcpus, "dies_per_package": 1, "packages": 1},
                     "kvm_hyperv": false, "nested": true},
            "memory": {"size": self.memory_mib << 20, "hotplug_size": 33_285_996_544_u64, "mergeable": false,
                       "hotplug_method": "Acpi", "shared": true, "hugepages": false, "prefault": false, "thp": true},
            "payload": {"kernel": self.kernel, "cmdline": self.cmdline(), "initramfs": self.initramfs},
            "rng": {"src": "/dev/urandom", "iommu": false},
            "serial": {"mode": serial, "iommu": false}, "console": {"mode": "Off", "iommu": false},
            "vsock": {"cid": 3, "socket": vsock, "iommu": false},
            "iommu": false, "watchdog": false, "pvpanic": false,
            "platform": {"num_pci_segments": 2, "tdx": false, "sev_snp": false},
            "landlock_enable": false,
        });
        if let Some(image) = &self.image {
            body["disks"] = json!([go_disk(image, true, 128)]);
        }
        if let Some(socket) = &self.share {
            body["fs"] =
                json!([{"tag": SHARE, "socket": socket, "num_queues": 1, "queue_size": 1024, "pci_segment": 1}]);
        }
        body
    }

    /// The kernel's command line.
    pub fn cmdline(&self) -> String {
        let systemd = "systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service \
                       systemd.mask=systemd-networkd.socket";
        let root = "root=/dev/vda1 rootflags=data=ordered,errors=remount-ro ro rootfstype=ext4";
        let console = if self.debug { "console=ttyS0,115200n8" } else { "quiet" };
        let common = "no_timer_check noreplace-smp";
        let params = format!("{SHORT_BOOT} {AGENT} {}", self.kernel_params);
        let line = match self.shim {
            Shim::Rust => {
                let log = if self.debug { "agent.log_vport=1025 " } else { "" };
                format!(
                    "reboot=k panic=1 {systemd} {log}{console} {root} {common} systemd.log_target=console \
                     agent.cdh_api_timeout=50 {params}"
                )
            }
            Shim::Go => {
                let systemd = if self.image.is_some() { systemd } else { "" };
                let target = if self.debug { "systemd.log_target=console" } else { "" };
                format!("{root} panic=1 {common} {console} {target} {systemd} agent.cdh_api_timeout=50 {params}")
            }
        };
        line.split_ascii_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The body of `vm.add-disk`.
    pub fn add_disk(&self, path: &Path) -> Value {
        match self.shim {
            Shim::Rust => rust_disk(path, false, "Raw"),
            Shim::Go => go_disk(path, false, 1024),
        }
    }

    /// The body of `vm.add-net` for one queue pair whose descriptor comes with the request.
    pub fn add_net(&self, fd: i32) -> Value {
        let mut body = json!({"ip": "192.168.249.1", "mask": "255.255.255.0", "mac": "02:42:ac:11:00:02", "iommu": false,
                              "num_queues": 2, "queue_size": 256, "vhost_user": false, "vhost_mode": "Client"});
        let more = match self.shim {
            Shim::Rust => json!({"fds": [fd]}),
            Shim::Go => json!({"offload_tso": true, "offload_ufo": true, "offload_csum": true}),
        };
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        body
    }

    /// The body of `vm.resize` for a number of vCPUs.
    pub fn resize_vcpus(&self, vcpus: u32) -> Value {
        match self.shim {
            Shim::Rust => json!({"desired_vcpus": vcpus, "desired_ram": null, "desired_balloon": null}),
            Shim::Go => json!({"desired_vcpus": vcpus}),
        }
    }

    /// The body of `vm.resize` for a size of memory in all.
    pub fn resize_memory(&self, bytes: u64) -> Value {
        match self.shim {
            Shim::Rust => json!({"desired_vcpus": null, "desired_ram": bytes, "desired_balloon": null}),
            Shim::Go => json!({"desired_ram": bytes}),
        }
    }
}

fn rust_disk(path: &Path, image: bool, image_type: &str) -> Value {
    json!({"path": path, "readonly": image, "direct": false, "iommu": false, "num_queues": 1, "queue_size": 128,
           "vhost_user": false, "vhost_socket": null, "rate_limiter_config": null, "id": null, "disable_io_uring": false,
           "pci_segment": 0, "sparse": image, "image_type": image_type})
}

fn go_disk(path: &Path, image: bool, queue_size: u16) -> Value {
    json!({"path": path, "readonly": image, "direct": false, "iommu": false, "num_queues": 1, "queue_size": queue_size,
           "vhost_user": false, "backing_files": false, "sparse": true, "image_type": "Raw"})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines_are_those_of_the_shims() {
        let mut shape = Shape::new(Shim::Rust, "/k".into(), "/i".into());
        let expected = "reboot=k panic=1 systemd.unit=kata-containers.target systemd.mask=systemd-networkd.service \
             systemd.mask=systemd-networkd.socket quiet root=/dev/vda1 rootflags=data=ordered,errors=remount-ro ro \
             rootfstype=ext4 no_timer_check noreplace-smp systemd.log_target=console agent.cdh_api_timeout=50 ";
        assert_eq!(shape.cmdline(), format!("{expected}{SHORT_BOOT} {AGENT}"));
        shape.debug = true;
        assert!(
            shape
                .cmdline()
                .contains("networkd.socket agent.log_vport=1025 console=ttyS0,115200n8 root=")
        );
        shape.shim = Shim::Go;
        assert!(shape.cmdline().starts_with("root=/dev/vda1 rootflags=") && !shape.cmdline().contains("systemd.unit"));
    }

    #[test]
    fn an_initrd_pod_has_no_disk_and_an_image_pod_has_it_first() {
        for shim in [Shim::Rust, Shim::Go] {
            let mut shape = Shape::new(shim, "/k".into(), "/i".into());
            assert!(shape.create("/v".as_ref()).get("disks").is_none());
            shape.image = Some("/image".into());
            let body = shape.create("/v".as_ref());
            assert_eq!(
                (&body["disks"][0]["path"], &body["disks"][0]["readonly"]),
                (&json!("/image"), &json!(true))
            );
        }
    }
}
