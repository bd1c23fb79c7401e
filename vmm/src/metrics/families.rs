//! The names, types and meanings of all figures: the one list that the text and docs/operate.md have in common.
//!
//! A figure of a device has the name `husk_<kind>_<counter>`, where the counter's is the one in `vm.counters`.

/// What a figure can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts how much took how long.
    Histogram,
    /// It is always 1, and its labels say it.
    Info,
}

impl Type {
    /// As Prometheus has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
            Self::Info => "info",
        }
    }
}

/// Figures of one name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family {
    /// The name, its unit included, without what the type adds to it (`_total`, `_info`, `_bucket`).
    pub name: String,
    /// Its type.
    pub kind: Type,
    /// Names of its labels.
    pub labels: &'static [&'static str],
    /// What it tells.
    pub help: &'static str,
}

/// A figure that every device of a kind has.
#[derive(Clone, Copy, Debug)]
pub(super) struct DeviceRow {
    /// The kind of device.
    pub device: &'static str,
    /// The counter, as the device calls it.
    pub counter: &'static str,
    pub kind: Type,
    pub help: &'static str,
}

impl DeviceRow {
    pub fn name(&self) -> String {
        format!("husk_{}_{}", self.device, self.counter)
    }
}

/// Any other figure.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    pub name: &'static str,
    pub kind: Type,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

pub(super) const BUILD: Row = row("husk_build", Type::Info, &["version"], "The program");
pub(super) const VM_STATE: Row = row(
    "husk_vm_state",
    Type::Gauge,
    &["state"],
    "1 for the state that the VM is in, 0 for the others",
);
pub(super) const BOOTS: Row = row("husk_boots", Type::Counter, &[], "Machines built by this process");
pub(super) const PHASES: Row = row(
    "husk_boot_phase_seconds",
    Type::Gauge,
    &["phase"],
    "How long each part of the last start took",
);
pub(super) const VCPUS: Row = row(
    "husk_vcpus",
    Type::Gauge,
    &["state"],
    "vCPUs: that there may be (max), were asked for (wanted), are there (present), and were started by the guest (online)",
);
pub(super) const VCPU_EXITS: Row = row(
    "husk_vcpu_exits",
    Type::Counter,
    &["vcpu"],
    "Times that a vCPU left the guest",
);
pub(super) const VCPU_REASONS: Row = row(
    "husk_vcpu_reason_exits",
    Type::Counter,
    &["vcpu", "reason"],
    "Times that a vCPU left the guest, by the reasons that KVM counts",
);
pub(super) const VCPU_RAN: Row = row(
    "husk_vcpu_run_seconds",
    Type::Counter,
    &["vcpu"],
    "Processor time of a vCPU's thread, in the guest and for it",
);
pub(super) const VCPU_HALTED: Row = row(
    "husk_vcpu_halted_seconds",
    Type::Counter,
    &["vcpu"],
    "Time for which a vCPU waited in KVM for an interrupt",
);
pub(super) const GUEST_MEMORY: Row = row(
    "husk_guest_memory_bytes",
    Type::Gauge,
    &["class"],
    "Guest RAM: what was asked for (wanted), what the guest has now (actual), and what KVM has mapped for it, persistent memory included (mapped)",
);
pub(super) const RESIDENT: Row = row(
    "husk_resident_memory_bytes",
    Type::Gauge,
    &["class"],
    "Memory of the process: anonymous (guest RAM that is private, and husk's own), shared (guest RAM that is shared), file (the program), page_tables, swapped",
);
pub(super) const RESIZES: Row = row(
    "husk_resize_duration_seconds",
    Type::Histogram,
    &["what"],
    "How long the guest took for what it was asked",
);
pub(super) const CALLS: Row = row(
    "husk_api_request_duration_seconds",
    Type::Histogram,
    &["endpoint", "status"],
    "Requests to the API, by how long their answer took",
);
pub(super) const CONNECTIONS: Row = row(
    "husk_api_connections",
    Type::Gauge,
    &["socket"],
    "Clients that are connected",
);
pub(super) const LOG_LINES: Row = row("husk_log_lines", Type::Counter, &["level"], "Lines of the log");
pub(super) const LOG_LOST: Row = row(
    "husk_log_lost_lines",
    Type::Counter,
    &[],
    "Lines of the log that had no reader",
);
pub(super) const FAILURES: Row = row(
    "husk_device_failures",
    Type::Counter,
    &["device", "kind"],
    "Times that a virtio device came to need a reset",
);
pub(super) const KATA_THREADS: Row = row("kata_hypervisor_threads", Type::Gauge, &[], "Threads of the process");
pub(super) const KATA_FDS: Row = row("kata_hypervisor_fds", Type::Gauge, &[], "Descriptors of the process");
pub(super) const KATA_STAT: Row = row(
    "kata_hypervisor_proc_stat",
    Type::Gauge,
    &["item"],
    "Processor time of the process in clock ticks, from /proc/self/stat",
);
pub(super) const KATA_STATUS: Row = row(
    "kata_hypervisor_proc_status",
    Type::Gauge,
    &["item"],
    "Memory in bytes and context switches of the process, from /proc/self/status",
);
pub(super) const KATA_IO: Row = row(
    "kata_hypervisor_io_stat",
    Type::Gauge,
    &["item"],
    "Input and output of the process, from /proc/self/io",
);
pub(super) const KATA_NETDEV: Row = row(
    "kata_hypervisor_netdev",
    Type::Gauge,
    &["interface", "item"],
    "Interfaces of the process's network namespace, from /proc/self/net/dev",
);

const ROWS: [Row; 23] = [
    BUILD,
    VM_STATE,
    BOOTS,
    PHASES,
    VCPUS,
    VCPU_EXITS,
    VCPU_REASONS,
    VCPU_RAN,
    VCPU_HALTED,
    GUEST_MEMORY,
    RESIDENT,
    RESIZES,
    CALLS,
    CONNECTIONS,
    LOG_LINES,
    LOG_LOST,
    FAILURES,
    KATA_THREADS,
    KATA_FDS,
    KATA_STAT,
    KATA_STATUS,
    KATA_IO,
    KATA_NETDEV,
];

/// Labels of a device's figures.
const DEVICE: &[&str] = &["device"];

pub(super) const DEVICES: &[DeviceRow] = &[
    counter("block", "read_requests", "Reads completed"),
    counter("block", "read_bytes", "Bytes that reads gave the guest"),
    counter("block", "write_requests", "Writes completed"),
    counter("block", "write_bytes", "Bytes that the guest wrote"),
    counter("block", "flush_requests", "Flushes completed"),
    counter("block", "discard_requests", "Discards completed"),
    counter("block", "write_zeroes_requests", "Write-zeroes requests completed"),
    counter(
        "block",
        "bounced_requests",
        "Requests that took a detour because direct I/O could not use the guest's buffers",
    ),
    counter(
        "block",
        "throttled_waits",
        "Times that requests waited for the rate limiter",
    ),
    counter("block", "failed_requests", "Requests answered with an I/O error"),
    counter("block", "unsupported_requests", "Requests answered as unsupported"),
    counter("block", "malformed_chains", "Chains without room for a status"),
    counter("net", "rx_frames", "Frames given to the guest"),
    counter("net", "rx_bytes", "Bytes of frames given to the guest"),
    counter(
        "net",
        "rx_dropped_frames",
        "Frames for which the guest's buffers were too short",
    ),
    counter(
        "net",
        "rx_malformed_chains",
        "Receive buffers that cannot hold a header or are in too many pieces",
    ),
    counter(
        "net",
        "rx_starved_waits",
        "Times that receiving waited for the guest to give buffers",
    ),
    counter(
        "net",
        "rx_throttled_waits",
        "Times that receiving waited for its rate limiter",
    ),
    counter("net", "rx_tap_errors", "Reads that the tap refused"),
    counter("net", "tx_frames", "Frames sent"),
    counter("net", "tx_bytes", "Bytes of frames sent"),
    counter(
        "net",
        "tx_malformed_frames",
        "Frames not sent because of their header or length",
    ),
    counter("net", "tx_refused_frames", "Frames that the tap refused"),
    counter(
        "net",
        "tx_throttled_waits",
        "Times that sending waited for its rate limiter",
    ),
    counter("net", "tx_blocked_waits", "Times that sending waited for the tap"),
    counter("net", "control_commands", "Commands carried out"),
    counter("net", "control_refused_commands", "Commands refused"),
    counter("net", "tap_losses", "Taps that went away"),
    counter("net", "starts", "Times that the kernel was given the rings"),
    counter("net", "ring_faults", "Times that the kernel could not follow a ring"),
    counter("net", "memory_updates", "Times that the kernel was told of memory"),
    counter("vsock", "host_streams", "Streams opened by programs of the host"),
    counter("vsock", "guest_streams", "Streams opened by programs of the guest"),
    counter(
        "vsock",
        "dials_without_driver",
        "Dials of the host closed because no guest driver was there",
    ),
    counter("vsock", "dials_refused", "Dials of the host that the guest refused"),
    counter(
        "vsock",
        "dials_malformed",
        "Dials of the host whose command made no sense",
    ),
    counter(
        "vsock",
        "dials_dropped",
        "Dials of the host closed because there were too many of them or of descriptors",
    ),
    counter(
        "vsock",
        "guest_dials_refused",
        "Dials of the guest that no socket of the host answered, or that were too many",
    ),
    counter("vsock", "rx_packets", "Packets to the guest"),
    counter("vsock", "rx_bytes", "Bytes of payload to the guest"),
    counter("vsock", "tx_packets", "Packets from the guest"),
    counter(
        "vsock",
        "tx_bytes",
        "Bytes of payload from the guest that a stream took",
    ),
    counter(
        "vsock",
        "credit_lies",
        "Streams cut off because the guest's counts of credit were impossible",
    ),
    counter("vsock", "protocol_errors", "Packets that their stream did not allow"),
    counter("vsock", "stray_packets", "Packets for nobody"),
    counter(
        "vsock",
        "malformed_chains",
        "Buffers of the driver that could not hold a header, or held less than it promised",
    ),
    counter("vsock", "starts", "Times that the kernel was given the rings"),
    counter("vsock", "ring_faults", "Times that the kernel could not follow a ring"),
    counter("vsock", "memory_updates", "Times that the kernel was told of memory"),
    counter("fs", "connects", "Connections to the back-end"),
    counter("fs", "starts", "Times that the back-end was given the rings"),
    counter("fs", "backend_failures", "Times that the back-end failed"),
    counter(
        "fs",
        "refused_requests",
        "Requests refused because there was no back-end",
    ),
    counter("fs", "lost_requests", "Requests that went down with the back-end"),
    counter("fs", "memory_updates", "Times that the back-end was told of memory"),
    counter("fs", "lock_waits", "Times that a request waited for a lock"),
    counter(
        "fs",
        "refused_lock_waits",
        "Requests refused because too many waited for locks",
    ),
    counter("fs", "helper_threads", "Threads started to help"),
    counter("fs", "malformed_chains", "Chains too short for a request"),
    counter("fs", "requests", "Requests served"),
    counter("fs", "errors", "Requests answered with an error"),
    counter("fs", "malformed_requests", "Requests that make no sense"),
    counter("fs", "short_replies", "Requests without room for their reply"),
    counter("fs", "unknown_requests", "Requests of a kind that is not known"),
    counter("fs", "sessions", "Times that a guest mounted the share"),
    counter("fs", "lookups", "Names looked up"),
    counter("fs", "reads", "Reads served"),
    counter("fs", "read_bytes", "Bytes read"),
    counter("fs", "writes", "Writes served"),
    counter("fs", "write_bytes", "Bytes written"),
    counter("fs", "interrupts", "Requests interrupted by the guest"),
    gauge("fs", "nodes", "Files that the guest knows"),
    gauge("fs", "node_descriptors", "Descriptors that are open for them"),
    counter(
        "fs",
        "nodes_reopened",
        "Files opened again because their descriptors had been given up",
    ),
    gauge("fs", "handles", "Files that the guest has open"),
    gauge("fs", "locks", "Locks held"),
    gauge(
        "fs",
        "landlock_version",
        "Version of Landlock that holds the threads, 0 without",
    ),
    counter("pmem", "flushes", "Flushes completed"),
    counter("pmem", "flush_errors", "Flushes that failed"),
    counter("pmem", "bad_requests", "Requests that make no sense"),
    counter("rng", "requests", "Requests answered"),
    counter("rng", "bytes", "Random bytes given"),
    counter("rng", "source_errors", "Times that the source failed or was at its end"),
    gauge("mem", "plugged_bytes", "Memory blocks that the guest has"),
    gauge("mem", "requested_bytes", "Memory blocks that the guest should have"),
    gauge("mem", "usable_bytes", "Memory blocks that the guest may have"),
    counter("mem", "requests", "Requests to plug or unplug that were carried out"),
    counter("mem", "nacks", "Requests turned down because there is a newer wish"),
    counter("mem", "busy", "Requests put off because the host could not"),
    counter("mem", "bad_requests", "Requests that make no sense"),
    gauge("balloon", "actual_bytes", "Size of the balloon by the guest's word"),
    gauge("balloon", "target_bytes", "Size that the balloon should have"),
    counter("balloon", "inflated_pages", "Pages of 4 KiB that went into the balloon"),
    counter("balloon", "deflated_pages", "Pages of 4 KiB that came out again"),
    counter("balloon", "reported_bytes", "Bytes that the guest reported free"),
    counter(
        "balloon",
        "discard_failures",
        "Ranges that the host would not take back",
    ),
    counter("balloon", "bad_requests", "Requests that make no sense"),
    counter("console", "tx_requests", "Output requests handled"),
    counter("console", "tx_bytes", "Bytes printed"),
    counter("console", "tx_dropped_bytes", "Bytes of output that had no reader"),
    counter("console", "rx_bytes", "Bytes typed that the guest was given"),
    counter(
        "console",
        "rx_dropped_bytes",
        "Bytes typed that found the input queue full",
    ),
    counter("serial", "rx_bytes", "Bytes typed that the guest has read"),
    counter("serial", "tx_bytes", "Bytes printed"),
    counter("serial", "tx_lost_bytes", "Bytes of output that were lost"),
    counter("ioapic", "refused_routes", "Interrupts that the host would not route"),
    counter(
        "hotplug",
        "ignored_writes",
        "Writes of the guest to the registers of hot-plug that made no sense",
    ),
];

const fn row(name: &'static str, kind: Type, labels: &'static [&'static str], help: &'static str) -> Row {
    Row {
        name,
        kind,
        labels,
        help,
    }
}

const fn counter(device: &'static str, counter: &'static str, help: &'static str) -> DeviceRow {
    DeviceRow {
        device,
        counter,
        kind: Type::Counter,
        help,
    }
}

const fn gauge(device: &'static str, counter: &'static str, help: &'static str) -> DeviceRow {
    DeviceRow {
        device,
        counter,
        kind: Type::Gauge,
        help,
    }
}

/// Everything that can be told, in the order in which it is.
pub fn families() -> impl Iterator<Item = Family> {
    let rows = ROWS.into_iter().map(|row| Family {
        name: row.name.into(),
        kind: row.kind,
        labels: row.labels,
        help: row.help,
    });
    let devices = DEVICES.iter().map(|row| Family {
        name: row.name(),
        kind: row.kind,
        labels: DEVICE,
        help: row.help,
    });
    rows.chain(devices)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_name_stands_twice() {
        let names: Vec<String> = families().map(|family| family.name).collect();
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
    }

    /// What a device counts is what docs/devices.md says (a guest test holds that), and all of it is told.
    #[test]
    fn every_counter_of_every_kind_of_device_is_told() {
        let text = include_str!("../../../docs/devices.md");
        let kinds = [
            ("Serial port", "serial"),
            ("I/O APIC", "ioapic"),
            ("Block", "block"),
            ("Entropy", "rng"),
            ("Memory blocks", "mem"),
            ("Balloon", "balloon"),
            ("Persistent memory", "pmem"),
            ("Network", "net"),
            ("vsock", "vsock"),
            ("File systems", "fs"),
            ("Files served by husk", "fs"),
            ("Console", "console"),
            ("Hot-plug registers", "hotplug"),
        ];
        let mut documented = BTreeSet::new();
        for section in text.split("\n## ").skip(1) {
            let heading = section.lines().next().unwrap();
            let Some((_, counters)) = section.split_once("**Counters.**") else {
                continue;
            };
            let Some((_, kind)) = kinds.iter().find(|(known, _)| *known == heading) else {
                assert_eq!(heading, "vCPUs", "of which kind are these counters?");
                continue;
            };
            // Also where the kernel serves it.
            for counters in [counters].into_iter().chain(section.split("What it counts:").skip(1)) {
                let counters = counters.split("\n\n").next().unwrap();
                let counters = counters.split("\n- ").next().unwrap();
                documented.extend(counters.split('`').skip(1).step_by(2).map(|name| (*kind, name)));
            }
        }
        let told: BTreeSet<_> = DEVICES.iter().map(|row| (row.device, row.counter)).collect();
        assert_eq!(told, documented);
    }
}
