//! The names of the wire format's fields: a name that is none of them is told to whoever sent it, since it is probably misspelt.
//!
//! Fields that husk gives no meaning to are kept and echoed all the same ([`Rest`](super::Rest)): shims may send what a later Cloud
//! Hypervisor has.

use serde_json::Value;

use super::unsupported as refused;

/// The fields of an object.
pub struct Shape {
    /// Those that husk reads, with the objects that they hold.
    own: &'static [(&'static str, Option<&'static Shape>)],
    /// Cloud Hypervisor's that are refused unless they are neutral.
    pub(super) refused: &'static [&'static str],
    /// Cloud Hypervisor's that have no effect.
    ignored: &'static [&'static str],
}

/// A field that no object of its kind has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unknown {
    /// Where it is: `disks[0].read_only`.
    pub field: String,
    /// The name that it resembles most, if it resembles one.
    pub nearest: Option<&'static str>,
}

/// The most that are told of one request, and the most characters of a name.
const MOST: usize = 8;
const NAME_CHARS: usize = 64;
/// From which similarity on a name is taken to be meant, of 1 at most. As clap has it for options.
const SIMILAR: f64 = 0.7;

const fn own(name: &'static str) -> (&'static str, Option<&'static Shape>) {
    (name, None)
}

const fn of(name: &'static str, shape: &'static Shape) -> (&'static str, Option<&'static Shape>) {
    (name, Some(shape))
}

const fn shape(own: &'static [(&'static str, Option<&'static Shape>)]) -> Shape {
    Shape {
        own,
        refused: &[],
        ignored: &[],
    }
}

/// Where a device is to be on PCI: husk has one segment, and finds the place itself.
const PLACE: &[&str] = &["pci_device_id", "pci_segment"];

/// The body of `vm.create`.
pub static VM: Shape = Shape {
    own: &[
        of("balloon", &BALLOON),
        of("console", &CONSOLE),
        of("cpus", &CPUS),
        of("disks", &DISK),
        of("fs", &FS),
        of("memory", &MEMORY),
        of("net", &NET),
        of("payload", &PAYLOAD),
        of("platform", &PLATFORM),
        of("pmem", &PMEM),
        own("pvpanic"),
        of("rng", &RNG),
        of("serial", &CONSOLE),
        of("vsock", &VSOCK),
    ],
    refused: refused::VM,
    ignored: &[],
};
static CPUS: Shape = Shape {
    own: &[
        own("boot_vcpus"),
        own("max_phys_bits"),
        own("max_vcpus"),
        own("nested"),
        of("topology", &TOPOLOGY),
    ],
    refused: refused::CPUS,
    ignored: &["features"],
};
static TOPOLOGY: Shape = shape(&[
    own("cores_per_die"),
    own("dies_per_package"),
    own("packages"),
    own("threads_per_core"),
]);
static MEMORY: Shape = Shape {
    own: &[
        own("acpi_only"),
        own("hotplug_method"),
        own("hotplug_size"),
        own("hugepage_size"),
        own("hugepages"),
        own("mergeable"),
        own("prefault"),
        own("shared"),
        own("size"),
        own("thp"),
    ],
    refused: refused::MEMORY,
    ignored: &[],
};
static PAYLOAD: Shape = Shape {
    own: &[own("cmdline"), own("initramfs"), own("kernel")],
    refused: refused::PAYLOAD,
    ignored: &[],
};
static PLATFORM: Shape = Shape {
    own: &[own("num_pci_segments")],
    refused: refused::PLATFORM,
    ignored: &["iommu_address_width", "oem_strings", "serial_number", "uuid"],
};
/// The body of `vm.add-disk`.
pub static DISK: Shape = Shape {
    own: &[
        own("direct"),
        own("disable_io_uring"),
        own("id"),
        own("image_type"),
        own("num_queues"),
        own("path"),
        own("queue_size"),
        of("rate_limiter_config", &LIMITER),
        own("readonly"),
        own("serial"),
        own("sparse"),
    ],
    refused: refused::DISK,
    ignored: &["disable_aio", "lock_granularity", "pci_device_id", "pci_segment"],
};
/// The body of `vm.add-net`.
pub static NET: Shape = Shape {
    own: &[
        own("backend"),
        own("fds"),
        own("id"),
        own("ip"),
        own("mac"),
        own("mask"),
        own("mtu"),
        own("num_queues"),
        own("offload_csum"),
        own("offload_tso"),
        own("offload_ufo"),
        own("queue_size"),
        of("rate_limiter_config", &LIMITER),
        own("tap"),
    ],
    refused: refused::NET,
    ignored: &["pci_device_id", "pci_segment", "vhost_mode"],
};
/// The body of `vm.add-fs`.
pub static FS: Shape = Shape {
    own: &[
        own("cache"),
        own("dir"),
        own("direct_io"),
        own("id"),
        own("label"),
        own("locks"),
        own("num_queues"),
        own("posix_acl"),
        own("queue_size"),
        own("readonly"),
        own("security_label"),
        own("socket"),
        own("submounts"),
        own("tag"),
        of("translate_gid", &ID_RANGE),
        of("translate_uid", &ID_RANGE),
        own("writeback"),
        own("xattr"),
    ],
    refused: refused::DEVICE,
    ignored: PLACE,
};
static ID_RANGE: Shape = shape(&[own("count"), own("guest"), own("host")]);
/// The body of `vm.add-pmem`.
pub static PMEM: Shape = Shape {
    own: &[own("discard_writes"), own("file"), own("id"), own("size")],
    refused: refused::DEVICE,
    ignored: PLACE,
};
/// The body of `vm.add-vsock`.
pub static VSOCK: Shape = Shape {
    own: &[own("backend"), own("cid"), own("id"), own("socket")],
    refused: refused::DEVICE,
    ignored: PLACE,
};
static RNG: Shape = Shape {
    own: &[own("src")],
    refused: refused::DEVICE,
    ignored: PLACE,
};
static BALLOON: Shape = Shape {
    own: &[
        own("deflate_on_oom"),
        own("free_page_reporting"),
        own("reclaim_idle"),
        own("reclaim_keep"),
        own("size"),
    ],
    refused: refused::DEVICE,
    ignored: PLACE,
};
static CONSOLE: Shape = Shape {
    own: &[
        own("file"),
        own("identifier"),
        own("journal"),
        own("keep"),
        own("limit"),
        own("mode"),
        own("socket"),
    ],
    refused: refused::DEVICE,
    ignored: &[],
};
static LIMITER: Shape = shape(&[of("bandwidth", &BUCKET), of("ops", &BUCKET)]);
static BUCKET: Shape = shape(&[own("one_time_burst"), own("refill_time"), own("size")]);
/// The body of `vm.resize`.
pub static RESIZE: Shape = shape(&[
    own("containers_revision"),
    own("desired_balloon"),
    own("desired_ram"),
    own("desired_vcpus"),
]);
/// The body of `vm.remove-device`.
pub static REMOVE: Shape = shape(&[own("id")]);
/// The body of `vmm.set-log-level`.
pub static LOG_LEVEL: Shape = shape(&[own("level")]);
/// The body of `vm.set-containers`.
pub static CONTAINERS: Shape = shape(&[own("containers"), own("revision")]);

impl Shape {
    /// Every name that an object of this kind may have.
    pub fn names(&self) -> impl Iterator<Item = &'static str> {
        let own = self.own.iter().map(|(name, _)| *name);
        own.chain(self.refused.iter().copied())
            .chain(self.ignored.iter().copied())
    }

    /// The fields of `body` that are not of this kind, the first few of them. Values that are `null` say nothing, whatever they are
    /// called.
    pub fn unknown(&self, body: &Value) -> Vec<Unknown> {
        let mut found = Vec::new();
        self.look(body, "", &mut found);
        found
    }

    fn look(&self, value: &Value, place: &str, found: &mut Vec<Unknown>) {
        match value {
            Value::Array(values) => {
                for (number, value) in values.iter().enumerate() {
                    self.look(value, &format!("{place}[{number}]"), found);
                }
            }
            Value::Object(fields) => {
                let dot = if place.is_empty() { "" } else { "." };
                for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                    if found.len() >= MOST {
                        return;
                    }
                    let inner = self.own.iter().find(|(known, _)| known == name);
                    match inner {
                        Some((_, Some(shape))) => shape.look(value, &format!("{place}{dot}{name}"), found),
                        Some((_, None)) => {}
                        None if self.names().any(|known| known == name) => {}
                        None => {
                            let name: String = name.chars().take(NAME_CHARS).collect();
                            found.push(Unknown {
                                nearest: self.nearest(&name),
                                field: format!("{place}{dot}{name}"),
                            });
                        }
                    }
                }
            }
            _ => {}
        }
    }

    fn nearest(&self, name: &str) -> Option<&'static str> {
        let similar = self.names().map(|known| (strsim::jaro(name, known), known));
        let best = similar.max_by(|(one, _), (other, _)| one.total_cmp(other));
        best.filter(|(similarity, _)| *similarity > SIMILAR)
            .map(|(_, known)| known)
    }
}

#[cfg(test)]
#[path = "fields_test.rs"]
mod tests;
