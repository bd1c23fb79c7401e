//! The names, types and meanings of all figures: the one list that the text and docs/operate.md have in common.
//!
//! A figure of a device has the name `husk_<kind>_<counter>`, where the counter's is the one in `vm.counters`.
//!
//! The list is text, and is read when somebody asks. As tables of strings it would be tables of
//! addresses, which a program that may lie anywhere has to put right before it begins: memory of
//! its own in every husk, also where nobody scrapes.

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

    /// The same the other way round.
    fn parse(name: &str) -> Option<Self> {
        let all = [Self::Counter, Self::Gauge, Self::Histogram, Self::Info];
        all.into_iter().find(|kind| kind.name() == name)
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
    pub labels: Vec<&'static str>,
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
    /// Names of its labels, with commas between them.
    labels: &'static str,
    pub help: &'static str,
}

impl Row {
    fn parse(line: &'static str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        Some(Self {
            name: words.next()?,
            kind: Type::parse(words.next()?)?,
            labels: words.next()?,
            help: words.next()?,
        })
    }
}

pub(super) const BUILD: &str = "husk_build";
pub(super) const VM_STATE: &str = "husk_vm_state";
pub(super) const BOOTS: &str = "husk_boots";
pub(super) const PHASES: &str = "husk_boot_phase_seconds";
pub(super) const VCPUS: &str = "husk_vcpus";
pub(super) const VCPU_EXITS: &str = "husk_vcpu_exits";
pub(super) const VCPU_REASONS: &str = "husk_vcpu_reason_exits";
pub(super) const VCPU_RAN: &str = "husk_vcpu_run_seconds";
pub(super) const VCPU_HALTED: &str = "husk_vcpu_halted_seconds";
pub(super) const GUEST_MEMORY: &str = "husk_guest_memory_bytes";
pub(super) const KVM_TABLES: &str = "husk_kvm_page_table_bytes";
pub(super) const RESIDENT: &str = "husk_resident_memory_bytes";
pub(super) const RESIZES: &str = "husk_resize_duration_seconds";
pub(super) const RESIZE_FAILURES: &str = "husk_resize_failures";
pub(super) const CALLS: &str = "husk_api_request_duration_seconds";
pub(super) const CONNECTIONS: &str = "husk_api_connections";
pub(super) const LOG_LINES: &str = "husk_log_lines";
pub(super) const LOG_LEFT_OUT: &str = "husk_log_left_out_lines";
pub(super) const LOG_LOST: &str = "husk_log_lost_lines";
pub(super) const FAILURES: &str = "husk_device_failures";
pub(super) const QUEUE_CHAINS: &str = "husk_queue_chains";
pub(super) const QUEUE_WAKEUPS: &str = "husk_queue_wakeups";
pub(super) const QUEUE_INTERRUPTS: &str = "husk_queue_interrupts";
pub(super) const KATA_THREADS: &str = "kata_hypervisor_threads";
pub(super) const KATA_FDS: &str = "kata_hypervisor_fds";
pub(super) const KATA_STAT: &str = "kata_hypervisor_proc_stat";
pub(super) const KATA_STATUS: &str = "kata_hypervisor_proc_status";
pub(super) const KATA_IO: &str = "kata_hypervisor_io_stat";
pub(super) const KATA_NETDEV: &str = "kata_hypervisor_netdev";

/// A line each: name, type, labels or `-`, meaning.
const ROWS: &str = "\
husk_build info version The program
husk_vm_state gauge state 1 for the state that the VM is in, 0 for the others
husk_boots counter - Machines built by this process
husk_boot_phase_seconds gauge phase How long each part of the last start took
husk_vcpus gauge state vCPUs: that there may be (max), were asked for (wanted), are there (present), and have been started by the guest since they came (online)
husk_vcpu_exits counter vcpu Times that a vCPU left the guest
husk_vcpu_reason_exits counter vcpu,reason Times that a vCPU left the guest, by the reasons that KVM counts
husk_vcpu_run_seconds counter vcpu Processor time of a vCPU's thread, in the guest and for it
husk_vcpu_halted_seconds counter vcpu Time for which a vCPU waited in KVM for an interrupt
husk_guest_memory_bytes gauge class Guest RAM: what was asked for (wanted), what the guest has now (actual), what of that it began with (boot) and has got as DIMMs (dimms), and what KVM has mapped for it, persistent memory included (mapped)
husk_kvm_page_table_bytes gauge - Page tables that KVM needs at least for what it has mapped, computed from the pages by size; KVM does not tell what it has
husk_resident_memory_bytes gauge class Memory of the process: anonymous (guest RAM that is private, and husk's own), shared (guest RAM that is shared), file (the program), page_tables, swapped
husk_resize_duration_seconds histogram what How long the guest took for what it was asked
husk_resize_failures counter outcome What a resize asked for and the guest or the host would not do (refused), resizes that the guest had not done in time (unanswered), and those that another one or the end of the VM came before (superseded)
husk_api_request_duration_seconds histogram endpoint,status Requests to the API, by how long their answer took
husk_api_connections gauge socket Clients that are connected
husk_log_lines counter level Lines of the log
husk_log_left_out_lines counter level Lines that were only counted, because their place in the source had said enough
husk_log_lost_lines counter - Lines of the log that had no reader or no room
husk_device_failures counter device,kind Times that a virtio device came to need a reset
husk_queue_chains counter device,kind,queue Requests and buffers that a virtqueue gave back to the driver, of a queue that husk itself serves
husk_queue_wakeups counter device,kind,queue Times that a virtqueue's doorbell called its thread, by the driver or for the rest of what it had offered
husk_queue_interrupts counter device,kind,queue Interrupts that a virtqueue raised
kata_hypervisor_threads gauge - Threads of the process
kata_hypervisor_fds gauge - Descriptors of the process
kata_hypervisor_proc_stat gauge item Processor time of the process in clock ticks, from /proc/self/stat
kata_hypervisor_proc_status gauge item Memory in bytes and context switches of the process, from /proc/self/status
kata_hypervisor_io_stat gauge item Input and output of the process, from /proc/self/io
kata_hypervisor_netdev gauge interface,item Interfaces of the process's network namespace, from /proc/self/net/dev
";

/// Labels of a device's figures.
const DEVICE: &str = "device";

/// A line each: kind of device, counter, type, meaning.
const DEVICES: &str = "\
block read_requests counter Reads completed
block read_bytes counter Bytes that reads gave the guest
block write_requests counter Writes completed
block write_bytes counter Bytes that the guest wrote
block flush_requests counter Flushes completed
block flush_errors counter Times that the host could not bring writes to its storage; no flush succeeds after the first
block discard_requests counter Discards completed
block write_zeroes_requests counter Write-zeroes requests completed
block bounced_requests counter Requests that took a detour because direct I/O could not use the guest's buffers
block throttled_waits counter Times that requests waited for the rate limiter
block failed_requests counter Requests answered with an I/O error
block unsupported_requests counter Requests answered as unsupported
block malformed_chains counter Chains without room for a status
net rx_frames counter Frames given to the guest
net rx_bytes counter Bytes of frames given to the guest
net rx_dropped_frames counter Frames for which the guest's buffers were too short, or that were longer than the MTU
net rx_malformed_chains counter Receive buffers that cannot hold a header or are in too many pieces
net rx_starved_waits counter Times that receiving waited for the guest to give buffers
net rx_throttled_waits counter Times that receiving waited for its rate limiter
net rx_tap_errors counter Reads that the tap refused
net tx_frames counter Frames sent
net tx_bytes counter Bytes of frames sent
net tx_malformed_frames counter Frames not sent because of their header or length
net tx_refused_frames counter Frames that the tap refused
net tx_throttled_waits counter Times that sending waited for its rate limiter
net tx_blocked_waits counter Times that sending waited for the tap
net control_commands counter Commands carried out
net control_refused_commands counter Commands refused
net tap_losses counter Taps that went away
net starts counter Times that the kernel was given the rings
net ring_faults counter Times that the kernel could not follow a ring
net memory_updates counter Times that the kernel was told of memory
vsock host_streams counter Streams opened by programs of the host
vsock guest_streams counter Streams opened by programs of the guest
vsock dials_without_driver counter Dials of the host closed because no guest driver was there
vsock dials_refused counter Dials of the host that the guest refused
vsock dials_malformed counter Dials of the host whose command made no sense
vsock dials_dropped counter Dials of the host closed because there were too many of them or of descriptors
vsock guest_dials_refused counter Dials of the guest that no socket of the host answered, or that were too many
vsock rx_packets counter Packets to the guest
vsock rx_bytes counter Bytes of payload to the guest
vsock tx_packets counter Packets from the guest
vsock tx_bytes counter Bytes of payload from the guest that a stream took
vsock credit_lies counter Streams cut off because the guest's counts of credit were impossible
vsock protocol_errors counter Packets that their stream did not allow
vsock stray_packets counter Packets for nobody
vsock malformed_chains counter Buffers of the driver that could not hold a header, or held less than it promised
vsock starts counter Times that the kernel was given the rings
vsock ring_faults counter Times that the kernel could not follow a ring
vsock memory_updates counter Times that the kernel was told of memory
fs connects counter Connections to the back-end
fs starts counter Times that the back-end was given the rings
fs backend_failures counter Times that the back-end failed
fs refused_requests counter Requests refused because there was no back-end
fs lost_requests counter Requests that went down with the back-end
fs late_requests counter Requests that the back-end had not ended a second after it gave their queue back
fs memory_updates counter Times that the back-end was told of memory
fs lock_waits counter Times that a request waited for a lock
fs refused_lock_waits counter Requests refused because too many waited for locks
fs helper_threads counter Threads started to help
fs malformed_chains counter Chains too short for a request
fs requests counter Requests served
fs errors counter Requests answered with an error
fs malformed_requests counter Requests that make no sense
fs short_replies counter Requests without room for their reply
fs unknown_requests counter Requests of a kind that is not known
fs sessions counter Times that a guest mounted the share
fs lookups counter Names looked up
fs unlisted_names counter Names left out of lists since they are too long for a guest
fs reads counter Reads served
fs read_bytes counter Bytes read
fs writes counter Writes served
fs write_bytes counter Bytes written
fs interrupts counter Requests interrupted by the guest
fs nodes gauge Files that the guest knows
fs node_descriptors gauge Descriptors that are open for them
fs nodes_reopened counter Files opened again because their descriptors had been given up
fs handles gauge Files that the guest has open
fs locks gauge Locks held
fs landlock_version gauge Version of Landlock that holds the threads, 0 without
pmem flushes counter Flushes completed
pmem flush_errors counter Flushes that failed; none succeeds after the first
pmem bad_requests counter Requests that make no sense
rng requests counter Requests answered
rng bytes counter Random bytes given
rng source_errors counter Times that the source failed or was at its end
mem plugged_bytes gauge Memory blocks that the guest has
mem requested_bytes gauge Memory blocks that the guest should have
mem usable_bytes gauge Memory blocks that the guest may have
mem requests counter Requests to plug or unplug that were carried out
mem nacks counter Requests turned down because there is a newer wish
mem busy counter Requests put off because the host could not
mem bad_requests counter Requests that make no sense
balloon actual_bytes gauge Size of the balloon by the guest's word
balloon target_bytes gauge Size that the balloon should have
balloon inflated_pages counter Pages of 4 KiB that went into the balloon
balloon deflated_pages counter Pages of 4 KiB that came out again
balloon reported_bytes counter Bytes that the guest reported free, and that the host has again
balloon discard_failures counter Ranges that the host would not take back
balloon bad_requests counter Requests that make no sense
console tx_requests counter Output requests handled
console tx_bytes counter Bytes printed
console tx_dropped_bytes counter Bytes of output that had no reader
console rx_bytes counter Bytes typed that the guest was given
serial rx_bytes counter Bytes typed that the guest has read
serial tx_bytes counter Bytes printed
serial tx_lost_bytes counter Bytes of output that were lost
ioapic refused_routes counter Interrupts that the host would not route
hotplug ignored_writes counter Writes of the guest to the registers of hot-plug that made no sense
";

/// The figure called `name`, one of those that have a name here.
pub(super) fn row(name: &str) -> Row {
    let is_its = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' '));
    let found = ROWS.lines().find(is_its).and_then(Row::parse);
    found.expect("every name here has its line")
}

/// The figures of devices, in the order in which they are told.
pub(super) fn devices() -> impl Iterator<Item = DeviceRow> {
    DEVICES.lines().filter_map(|line| {
        let mut words = line.splitn(4, ' ');
        Some(DeviceRow {
            device: words.next()?,
            counter: words.next()?,
            kind: Type::parse(words.next()?)?,
            help: words.next()?,
        })
    })
}

fn rows() -> impl Iterator<Item = Row> {
    ROWS.lines().filter_map(Row::parse)
}

/// Everything that can be told, in the order in which it is.
pub fn families() -> impl Iterator<Item = Family> {
    let labels = |labels: &'static str| labels.split(',').filter(|label| *label != "-").collect();
    let rows = rows().map(move |row| Family {
        name: row.name.into(),
        kind: row.kind,
        labels: labels(row.labels),
        help: row.help,
    });
    let devices = devices().map(move |row| Family {
        name: row.name(),
        kind: row.kind,
        labels: labels(DEVICE),
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

    #[test]
    fn every_line_is_understood_and_every_name_has_one() {
        assert_eq!(families().count(), ROWS.lines().count() + DEVICES.lines().count());
        let named = [
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
            KVM_TABLES,
            RESIDENT,
            RESIZES,
            RESIZE_FAILURES,
            CALLS,
            CONNECTIONS,
            LOG_LINES,
            LOG_LEFT_OUT,
            LOG_LOST,
            FAILURES,
            QUEUE_CHAINS,
            QUEUE_WAKEUPS,
            QUEUE_INTERRUPTS,
            KATA_THREADS,
            KATA_FDS,
            KATA_STAT,
            KATA_STATUS,
            KATA_IO,
            KATA_NETDEV,
        ];
        assert_eq!(rows().map(|row| row.name).collect::<Vec<_>>(), named);
        assert_eq!(row(CALLS).labels, "endpoint,status");
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
        let told: BTreeSet<_> = devices().map(|row| (row.device, row.counter)).collect();
        assert_eq!(told, documented);
    }
}
