//! A guest with root's rights behind the back of its own drivers: it writes to a device's registers
//! while the driver uses it. The VMM and every other device go on.
#![allow(clippy::unwrap_used, reason = "helpers of a test fail as the test does")]

mod hot_plug;
mod registers;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use husk_guest::{Answer, Call, Reply, Step, pattern};
use husk_tests::agent::Agent;
use husk_tests::api::Shim;
use husk_tests::body::Shape;
use husk_tests::info::PciDevice;
use husk_tests::kernel_file;
use husk_tests::pod::{Launch, Pod};
use serde_json::{Value, json};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

struct Lab {
    folder: TempDir,
    pod: Pod,
    agent: Agent,
}

impl Lab {
    /// A pod whose kernel lets root write where a driver works.
    fn start() -> Self {
        Self::with_disks(&[], "")
    }

    /// The same with disks of these names from the start, and more on the kernel's command line.
    fn with_disks(names: &[&str], params: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (kernel, initramfs) = (kernel_file("6.12", "vmlinux"), kernel_file("6.12", "pod.cpio"));
        let shape = Shape {
            kernel_params: format!("iomem=relaxed {params}"),
            ..Shape::new(Shim::Rust, kernel, initramfs)
        };
        let launch = Launch {
            with_events: true,
            ..Launch::default()
        };
        let mut pod = Pod::launch_with(shape, folder.path(), launch).unwrap();
        pod.create().unwrap();
        for name in names {
            let image = folder.path().join(name);
            File::create(&image).unwrap().set_len(4 * MIB).unwrap();
            let body = json!({"path": image, "id": name});
            pod.api().put("vm.add-disk", Some(&body)).unwrap().done().unwrap();
        }
        pod.boot().unwrap();
        let agent = pod.agent().unwrap().0;
        Self { folder, pod, agent }
    }

    fn disk(&mut self, name: &str) -> Disk {
        let image = self.folder.path().join(name);
        File::create(&image).unwrap().set_len(4 * MIB).unwrap();
        let device = self.pod.add_disk(&image).unwrap();
        let bdf = device.bdf.clone();
        let Reply::Device { name, .. } = self.agent.must(&Call::DiskAt { bdf }).unwrap() else {
            panic!("no disk at {}", device.bdf);
        };
        let text = self.sh(&format!("head -n 1 /sys/bus/pci/devices/{}/resource", device.bdf));
        let bar = text.split(' ').next().unwrap().trim_start_matches("0x");
        Disk {
            bar: u64::from_str_radix(bar, 16).unwrap(),
            name,
            image,
            device,
        }
    }

    fn sh(&mut self, script: &str) -> String {
        match self.agent.must(&Call::run(&["/bin/sh", "-c", script])).unwrap() {
            Reply::Ran { code: 0, stdout, .. } => stdout,
            other => panic!("{script}: {other:?}"),
        }
    }

    /// Writes registers of a device, in this order.
    fn poke(&mut self, disk: &Disk, writes: &[((u64, u8), u64)]) {
        let line =
            |((offset, bits), value): &((u64, u8), u64)| format!("devmem {:#x} {bits} {value:#x}", disk.bar + offset);
        let script: Vec<String> = writes.iter().map(line).collect();
        self.sh(&script.join(" && "));
    }

    fn peek(&mut self, disk: &Disk, (offset, bits): (u64, u8)) -> u64 {
        let text = self.sh(&format!("devmem {:#x} {bits}", disk.bar + offset));
        u64::from_str_radix(text.trim().trim_start_matches("0x"), 16).unwrap()
    }

    /// Writes through the guest and finds it in the file.
    fn works(&mut self, disk: &Disk, seed: u64) {
        let step = Step::write(&disk.name, MIB, 64 << 10, seed);
        let reply = self.agent.must(&Call::step(&step)).unwrap();
        assert!(
            matches!(
                reply,
                Reply::Answer {
                    answer: Answer::Data { .. }
                }
            ),
            "{reply:?}"
        );
        assert!(
            read(&disk.image) == pattern::bytes(seed, 64 << 10),
            "{} lost a write",
            disk.name
        );
    }

    fn counter(&mut self, disk: &Disk, name: &str) -> u64 {
        let all: Value = self.pod.api().get("vm.counters").unwrap().json().unwrap();
        all[&disk.device.id][name]
            .as_u64()
            .unwrap_or_else(|| panic!("no {name} in {all}"))
    }
}

struct Disk {
    device: PciDevice,
    name: String,
    image: PathBuf,
    bar: u64,
}

fn read(image: &Path) -> Vec<u8> {
    let mut found = vec![0; 64 << 10];
    File::open(image).unwrap().read_exact_at(&mut found, MIB).unwrap();
    found
}
