//! All figures as text: in Prometheus' text format 0.0.4, or as OpenMetrics 1.0 for who asks for that.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use husk_virtio::ring::QueueStats;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder, NoLabelSet, prometheus_text, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};

use super::families::{self as f, Type, devices};
use super::process::{Items, Process};
use super::{Calls, Figures, Vcpu};
use crate::api::{VmInfo, VmState};
use crate::machine::Latency;

/// The kind of a vCPU among what has counted.
const VCPU: &str = "vcpu";
/// What every virtio device counts.
const FAILURES: &str = "failures";

/// How figures are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Prometheus' own, which everybody reads.
    #[default]
    Prometheus,
    /// OpenMetrics, with units.
    OpenMetrics,
}

impl Format {
    /// What a client that accepts `accept` (RFC 9110 §12.5.1) is given: OpenMetrics, if it names
    /// that and likes it no less than plain text.
    pub fn accepted(accept: &str) -> Self {
        let weight_of = |name: &str| {
            let named = accept.split(',').filter_map(|range| weight(range, name));
            named.fold(0.0, f32::max)
        };
        let weight = weight_of("application/openmetrics-text");
        if weight > 0.0 && weight >= weight_of("text/plain") {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }

    /// The media type.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => prometheus_text::CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// How much the client that sends `range` likes the media type `name`, from 0 for not at all to 1
/// (RFC 9110 §12.4.2); `None` if it says so of another. A weight that is none counts as if it were
/// not there.
fn weight(range: &str, name: &str) -> Option<f32> {
    let mut parts = range.split(';').map(str::trim);
    parts.next().filter(|kind| kind.eq_ignore_ascii_case(name))?;
    let mut weights = parts.filter_map(|parameter| {
        parameter
            .split_once('=')
            .filter(|(key, _)| key.eq_ignore_ascii_case("q"))
    });
    let weight = weights.next_back().and_then(|(_, value)| value.parse().ok());
    Some(weight.filter(|weight| (0.0..=1.0).contains(weight)).unwrap_or(1.0))
}

/// Everything that is known at the moment of a scrape.
#[derive(Debug)]
pub struct Exposition {
    /// What the machine's owner knows.
    pub figures: Box<Figures>,
    /// The VM, if there is one.
    pub vm: Option<Arc<VmInfo>>,
    /// What clients have asked.
    pub calls: Calls,
    /// Clients that are connected, by socket.
    pub connections: Vec<(&'static str, usize)>,
}

impl Exposition {
    /// All of it, in `format`. Reads `/proc`.
    pub fn write(self, format: Format) -> String {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        let written = match format {
            Format::Prometheus => prometheus_text::encode(&mut out, &registry),
            Format::OpenMetrics => text::encode(&mut out, &registry),
        };
        written.expect("memory takes every byte");
        out
    }
}

impl Collector for Exposition {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Out(encoder);
        self.write_vm(&mut out)?;
        self.write_vcpus(&mut out)?;
        let process = self.figures.process.read();
        self.write_memory(&mut out, &process)?;
        self.write_activity(&mut out)?;
        write_process(&mut out, &process)?;
        self.write_devices(&mut out)
    }
}

impl Exposition {
    fn write_vm(&self, out: &mut Out<'_>) -> fmt::Result {
        out.info(f::BUILD, &[("version", env!("CARGO_PKG_VERSION"))])?;
        let states = VmState::ALL.map(|state| {
            let there = self.vm.as_ref().is_some_and(|vm| vm.state == state);
            ([("state", state.name())], u64::from(there))
        });
        out.family(f::VM_STATE, &states)?;
        out.family(f::BOOTS, &[([], self.figures.boots)])?;
        let phases = self.figures.phases.iter();
        let phases: Vec<_> = phases
            .map(|(phase, took)| ([("phase", *phase)], took.as_secs_f64()))
            .collect();
        out.family(f::PHASES, &phases)
    }

    fn write_vcpus(&self, out: &mut Out<'_>) -> fmt::Result {
        let vcpus = &self.figures.vcpus;
        if let Some(vm) = &self.vm {
            let online = vcpus.iter().filter(|vcpu| vcpu.online).count();
            let states = [
                ("max", u64::from(vm.config.cpus.max_vcpus)),
                ("wanted", u64::from(vm.config.cpus.boot_vcpus)),
                ("present", vcpus.len() as u64),
                ("online", online as u64),
            ];
            out.family(f::VCPUS, &states.map(|(state, count)| ([("state", state)], count)))?;
        }
        let (mut exits, mut reasons) = (Vec::new(), Vec::new());
        for counted in self.figures.counted.iter().filter(|counted| counted.kind == VCPU) {
            let vcpu = ("vcpu", counted.name.trim_start_matches("__vcpu"));
            for (name, value) in &counted.counters {
                match name.strip_suffix("_exits") {
                    Some(reason) => reasons.push(([vcpu, ("reason", reason)], *value)),
                    None => exits.push(([vcpu], *value)),
                }
            }
        }
        out.family(f::VCPU_EXITS, &exits)?;
        out.family(f::VCPU_REASONS, &reasons)?;
        let ids: Vec<String> = vcpus.iter().map(|vcpu| vcpu.id.to_string()).collect();
        let mut times = |row, time: fn(&Vcpu) -> Option<Duration>| {
            let rows = ids.iter().zip(vcpus);
            let rows = rows.filter_map(|(id, vcpu)| Some(([("vcpu", id.as_str())], time(vcpu)?.as_secs_f64())));
            out.family(row, &rows.collect::<Vec<_>>())
        };
        times(f::VCPU_RAN, |vcpu| vcpu.ran)?;
        times(f::VCPU_HALTED, |vcpu| vcpu.halted)
    }

    fn write_memory(&self, out: &mut Out<'_>, process: &Process) -> fmt::Result {
        let vm = self.vm.as_ref();
        let guest = [
            ("wanted", vm.map(|vm| vm.config.memory.size)),
            ("actual", vm.map(|vm| vm.memory_actual_size)),
            ("boot", self.figures.ram.map(|ram| ram.boot_bytes)),
            ("dimms", self.figures.ram.map(|ram| ram.dimm_bytes)),
            ("mapped", self.figures.mapped.map(|mapped| mapped.bytes)),
        ];
        out.family(f::GUEST_MEMORY, &classes(&guest))?;
        let tables = self.figures.mapped.map(|mapped| ([], mapped.page_table_bytes));
        out.family(f::KVM_TABLES, &tables.into_iter().collect::<Vec<_>>())?;
        let resident = [
            ("anonymous", "rssanon"),
            ("shared", "rssshmem"),
            ("file", "rssfile"),
            ("page_tables", "vmpte"),
            ("swapped", "vmswap"),
        ];
        out.family(
            f::RESIDENT,
            &classes(&resident.map(|(class, item)| (class, process.status_of(item)))),
        )
    }

    /// What was asked for, and what was said.
    fn write_activity(&self, out: &mut Out<'_>) -> fmt::Result {
        let resizes = self.figures.resizes.iter();
        let resizes: Vec<_> = resizes.map(|(what, latency)| ([("what", *what)], latency)).collect();
        out.histogram(f::RESIZES, &resizes)?;
        let failures = self.figures.resize_failures.iter();
        let failures: Vec<_> = failures
            .map(|(outcome, count)| ([("outcome", *outcome)], *count))
            .collect();
        out.family(f::RESIZE_FAILURES, &failures)?;
        let calls = self.calls.iter();
        let calls: Vec<_> = calls
            .map(|(endpoint, status, latency)| (endpoint.to_string(), status.to_string(), latency))
            .collect();
        let calls = calls
            .iter()
            .map(|(endpoint, status, latency)| ([("endpoint", endpoint.as_str()), ("status", status)], *latency));
        out.histogram(f::CALLS, &calls.collect::<Vec<_>>())?;
        let connections = self.connections.iter();
        let connections = connections.map(|(socket, count)| ([("socket", *socket)], *count as u64));
        out.family(f::CONNECTIONS, &connections.collect::<Vec<_>>())?;
        for (name, lines) in [
            (f::LOG_LINES, crate::log::lines()),
            (f::LOG_LEFT_OUT, crate::log::left_out_lines()),
        ] {
            out.family(name, &lines.map(|(level, count)| ([("level", level)], count)))?;
        }
        out.family(f::LOG_LOST, &[([], crate::log::lost_lines())])
    }

    fn write_devices(&self, out: &mut Out<'_>) -> fmt::Result {
        let counted = &self.figures.counted;
        let failures = counted.iter().filter_map(|device| {
            let labels = [("device", device.name.as_str()), ("kind", device.kind)];
            Some((labels, device.get(FAILURES)?))
        });
        out.family(f::FAILURES, &failures.collect::<Vec<_>>())?;
        self.write_queues(out)?;
        for row in devices() {
            let devices = counted.iter().filter(|device| device.kind == row.device);
            let devices =
                devices.filter_map(|device| Some(([("device", device.name.as_str())], device.get(row.counter)?)));
            let devices: Vec<_> = devices.collect();
            let name = row.name();
            out.named(&name, row.kind, row.help, &devices)?;
        }
        Ok(())
    }

    fn write_queues(&self, out: &mut Out<'_>) -> fmt::Result {
        let devices = self.figures.counted.iter();
        let queues = devices.flat_map(|device| device.queues.iter().map(move |queue| (device, queue)));
        let queues: Vec<_> = queues
            .map(|(device, (number, figures))| (device, number.to_string(), figures))
            .collect();
        let mut family = |name, value: fn(&QueueStats) -> u64| {
            let rows = queues.iter().map(|(device, number, figures)| {
                let labels = [
                    ("device", device.name.as_str()),
                    ("kind", device.kind),
                    ("queue", number.as_str()),
                ];
                (labels, value(figures))
            });
            out.family(name, &rows.collect::<Vec<_>>())
        };
        family(f::QUEUE_CHAINS, |figures| figures.chains)?;
        family(f::QUEUE_WAKEUPS, |figures| figures.wakeups)?;
        family(f::QUEUE_INTERRUPTS, |figures| figures.interrupts)
    }
}

fn write_process(out: &mut Out<'_>, process: &Process) -> fmt::Result {
    let one = |value: Option<u64>| value.map(|value| ([], value)).into_iter().collect::<Vec<_>>();
    out.family(f::KATA_THREADS, &one(process.threads))?;
    out.family(f::KATA_FDS, &one(process.descriptors))?;
    let items = |items: &Items| {
        items
            .iter()
            .map(|(item, value)| ([("item", *item)], *value))
            .collect::<Vec<_>>()
    };
    out.family(f::KATA_STAT, &items(&process.stat))?;
    out.family(f::KATA_STATUS, &items(&process.status))?;
    out.family(f::KATA_IO, &items(&process.io))?;
    let netdev = process.netdev.iter().flat_map(|(interface, items)| {
        items
            .iter()
            .map(move |(item, value)| ([("interface", interface.as_str()), ("item", item)], *value))
    });
    out.family(f::KATA_NETDEV, &netdev.collect::<Vec<_>>())
}

fn classes<const N: usize>(
    classes: &[(&'static str, Option<u64>); N],
) -> Vec<([(&'static str, &'static str); 1], u64)> {
    let known = classes
        .iter()
        .filter_map(|(class, bytes)| Some(([("class", *class)], (*bytes)?)));
    known.collect()
}

/// Labels of one figure.
type Labels<'a, const N: usize> = [(&'a str, &'a str); N];

/// A value that a figure can have.
trait Value: Copy {
    fn encode(self, kind: Type, metric: MetricEncoder<'_>) -> fmt::Result;
}

impl Value for u64 {
    fn encode(self, kind: Type, metric: MetricEncoder<'_>) -> fmt::Result {
        match kind {
            Type::Counter => ConstCounter::new(self).encode(metric),
            _ => ConstGauge::new(self).encode(metric),
        }
    }
}

impl Value for f64 {
    fn encode(self, kind: Type, metric: MetricEncoder<'_>) -> fmt::Result {
        match kind {
            Type::Counter => ConstCounter::new(self).encode(metric),
            _ => ConstGauge::new(self).encode(metric),
        }
    }
}

/// What the text is written with. A family without figures is left out.
struct Out<'a>(DescriptorEncoder<'a>);

impl Out<'_> {
    fn info<const N: usize>(&mut self, name: &str, labels: &Labels<'_, N>) -> fmt::Result {
        let row = f::row(name);
        self.describe(row.name, Type::Info, row.help)?.encode_info(labels)
    }

    /// Says what the figures are that follow.
    fn describe<'a>(&'a mut self, name: &'a str, kind: Type, help: &str) -> Result<MetricEncoder<'a>, fmt::Error> {
        let (name, unit) = split_unit(name);
        self.0.encode_descriptor(name, help, unit, metric_type(kind))
    }

    fn family<const N: usize>(&mut self, name: &str, figures: &[(Labels<'_, N>, impl Value)]) -> fmt::Result {
        let row = f::row(name);
        self.named(row.name, row.kind, row.help, figures)
    }

    fn named<const N: usize>(
        &mut self,
        name: &str,
        kind: Type,
        help: &str,
        figures: &[(Labels<'_, N>, impl Value)],
    ) -> fmt::Result {
        if figures.is_empty() {
            return Ok(());
        }
        let mut metric = self.describe(name, kind, help)?;
        for (labels, value) in figures {
            value.encode(kind, metric.encode_family(labels)?)?;
        }
        Ok(())
    }

    fn histogram<const N: usize>(&mut self, name: &str, figures: &[(Labels<'_, N>, &Latency)]) -> fmt::Result {
        if figures.is_empty() {
            return Ok(());
        }
        let row = f::row(name);
        let mut metric = self.describe(row.name, Type::Histogram, row.help)?;
        for (labels, latency) in figures {
            let (sum, count) = (latency.sum().as_secs_f64(), latency.count());
            metric
                .encode_family(labels)?
                .encode_histogram::<NoLabelSet>(sum, count, &latency.buckets(), None)?;
        }
        Ok(())
    }
}

fn metric_type(kind: Type) -> MetricType {
    match kind {
        Type::Counter => MetricType::Counter,
        Type::Gauge => MetricType::Gauge,
        Type::Histogram => MetricType::Histogram,
        Type::Info => MetricType::Info,
    }
}

/// A name without its unit, if that is one of those that OpenMetrics has for all (OpenMetrics 1.0,
/// "Units and Base Units").
fn split_unit(name: &str) -> (&str, Option<&'static Unit>) {
    static UNITS: [(&str, Unit); 2] = [("_bytes", Unit::Bytes), ("_seconds", Unit::Seconds)];
    let found = UNITS
        .iter()
        .find_map(|(end, unit)| Some((name.strip_suffix(end)?, unit)));
    found.map_or((name, None), |(name, unit)| (name, Some(unit)))
}

#[cfg(test)]
#[path = "exposition_test.rs"]
mod tests;
