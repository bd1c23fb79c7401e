//! The names of the wire format's fields: a name that is none of them is told to whoever sent it, since it is probably misspelt.
//!
//! Fields that husk gives no meaning to are kept and echoed all the same ([`ExtraFields`](super::ExtraFields)): shims may send what a later Cloud
//! Hypervisor has. `wire.txt` has the fields of the one that is known.

use std::fmt;

use serde::de::{DeserializeSeed, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::unsupported::{self as theirs, Foreign, Neutral, PCI};

/// The fields of an object.
#[derive(Debug)]
pub struct Shape {
    /// Those that husk reads, with the objects that they hold.
    own: &'static [(&'static str, Option<&'static Shape>)],
    /// Cloud Hypervisor's that husk gives no meaning to.
    pub(super) foreign: &'static [&'static [Foreign]],
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
    Shape { own, foreign: &[] }
}

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
        of("serial", &SERIAL),
        of("vsock", &VSOCK),
    ],
    foreign: &[theirs::VM],
};
pub(super) static CPUS: Shape = Shape {
    own: &[
        own("boot_vcpus"),
        own("core_scheduling"),
        own("max_phys_bits"),
        own("max_vcpus"),
        own("nested"),
        of("topology", &TOPOLOGY),
    ],
    foreign: &[theirs::CPUS],
};
/// In `cpus`.
pub(super) static FEATURES: Shape = Shape {
    own: &[],
    foreign: &[theirs::FEATURES],
};
pub(super) static TOPOLOGY: Shape = shape(&[
    own("cores_per_die"),
    own("dies_per_package"),
    own("packages"),
    own("threads_per_core"),
]);
pub(super) static MEMORY: Shape = Shape {
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
    foreign: &[theirs::MEMORY],
};
pub(super) static PAYLOAD: Shape = Shape {
    own: &[own("cmdline"), own("initramfs"), own("kernel")],
    foreign: &[theirs::PAYLOAD],
};
pub(super) static PLATFORM: Shape = Shape {
    own: &[own("num_pci_segments")],
    foreign: &[theirs::PLATFORM],
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
    foreign: &[PCI, theirs::DISK],
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
    foreign: &[PCI, theirs::NET],
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
        own("mmap"),
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
    foreign: &[PCI],
};
static ID_RANGE: Shape = shape(&[own("count"), own("guest"), own("host"), own("kind")]);
/// The body of `vm.add-pmem`.
pub static PMEM: Shape = Shape {
    own: &[own("discard_writes"), own("file"), own("id"), own("size")],
    foreign: &[PCI],
};
/// The body of `vm.add-vsock`.
pub static VSOCK: Shape = Shape {
    own: &[own("backend"), own("cid"), own("id"), own("socket")],
    foreign: &[PCI],
};
pub(super) static RNG: Shape = Shape {
    own: &[own("src")],
    foreign: &[PCI, theirs::RNG],
};
pub(super) static BALLOON: Shape = Shape {
    own: &[
        own("deflate_on_oom"),
        own("free_page_reporting"),
        own("reclaim_idle"),
        own("reclaim_keep"),
        own("size"),
    ],
    foreign: &[PCI, theirs::BALLOON],
};
/// Where a port leads.
const PORT: &[(&str, Option<&Shape>)] = &[
    own("file"),
    own("identifier"),
    own("journal"),
    own("keep"),
    own("limit"),
    own("mode"),
    own("socket"),
];
pub(super) static SERIAL: Shape = Shape {
    own: PORT,
    foreign: &[theirs::SERIAL],
};
pub(super) static CONSOLE: Shape = Shape {
    own: PORT,
    foreign: &[PCI, theirs::CONSOLE],
};
pub(super) static LIMITER: Shape = shape(&[of("bandwidth", &BUCKET), of("ops", &BUCKET)]);
pub(super) static BUCKET: Shape = shape(&[own("one_time_burst"), own("refill_time"), own("size")]);
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
        own.chain(self.foreign().map(|field| field.name))
    }

    /// Those that husk gives no meaning to.
    pub(super) fn foreign(&self) -> impl Iterator<Item = &'static Foreign> {
        self.foreign.iter().copied().flatten()
    }

    /// The fields of the JSON `body` that are not of this kind, the first few of them; none of what is no JSON. Values
    /// that are `null` say nothing, whatever they are called. Of a value nothing is kept: see
    /// [`ExtraFields`](super::ExtraFields).
    pub fn unknown(&self, body: &[u8]) -> Vec<Unknown> {
        let mut found = Vec::new();
        let place = String::new();
        let look = Look {
            shape: self,
            place,
            found: &mut found,
        };
        let looked = look.deserialize(&mut serde_json::Deserializer::from_slice(body));
        looked.map_or_else(|_| Vec::new(), |()| found)
    }

    /// What is at the field `name`.
    fn at(&self, name: &str) -> At {
        let own = self.own.iter().find(|(known, _)| *known == name);
        let foreign = || self.foreign().find(|field| field.name == name);
        match own {
            Some((_, Some(shape))) => At::Object(shape),
            Some((_, None)) => At::Value,
            None => match foreign().map(|field| &field.neutral) {
                Some(Neutral::Fields(shape)) => At::Object(shape),
                Some(_) => At::Value,
                None => At::Nothing,
            },
        }
    }

    fn nearest(&self, name: &str) -> Option<&'static str> {
        let similar = self.names().map(|known| (strsim::jaro(name, known), known));
        let best = similar.max_by(|(one, _), (other, _)| one.total_cmp(other));
        best.filter(|(similarity, _)| *similarity > SIMILAR)
            .map(|(_, known)| known)
    }
}

/// What a field is.
enum At {
    /// An object, or a list of such.
    Object(&'static Shape),
    /// Anything else that is known.
    Value,
    Nothing,
}

/// Looks for fields that are none, in what is read at `place`.
struct Look<'a> {
    shape: &'a Shape,
    place: String,
    found: &'a mut Vec<Unknown>,
}

impl<'de> DeserializeSeed<'de> for Look<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Look<'_> {
    type Value = ();

    fn expecting(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str("a value")
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        let Self { shape, place, found } = self;
        let mut number = 0_usize;
        loop {
            let look = Look {
                shape,
                place: format!("{place}[{number}]"),
                found: &mut *found,
            };
            if from.next_element_seed(look)?.is_none() {
                return Ok(());
            }
            number = number.saturating_add(1);
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<(), A::Error> {
        let Self { shape, place, found } = self;
        let dot = if place.is_empty() { "" } else { "." };
        while let Some(name) = from.next_key::<String>()? {
            match shape.at(&name) {
                At::Object(shape) => from.next_value_seed(Look {
                    shape,
                    place: format!("{place}{dot}{name}"),
                    found: &mut *found,
                })?,
                At::Nothing if found.len() < MOST => {
                    if !from.next_value::<IsNull>()?.0 {
                        let name: String = name.chars().take(NAME_CHARS).collect();
                        found.push(Unknown {
                            nearest: shape.nearest(&name),
                            field: format!("{place}{dot}{name}"),
                        });
                    }
                }
                At::Value | At::Nothing => {
                    from.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// Whether a value is `null`; nothing of any other is kept.
struct IsNull(bool);

impl<'de> Deserialize<'de> for IsNull {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(Self(Option::<IgnoredAny>::deserialize(from)?.is_none()))
    }
}

#[cfg(test)]
#[path = "fields_test.rs"]
mod tests;
